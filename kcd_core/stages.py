"""One owner of a run's state: what was recorded, which set is in force, which epoch it is, and what each stage did.

What differs between a data set, slices of one, and a stream, is its `Layout`. Everything else about a stage's
end, and about a state, is the same for all, and is here.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .agreement import Agreement, numbered
from .base import distributed
from .base.arguments import check_kind
from .base.arrays import is_tensor
from .base.dataset_identity import dataset_identity
from .base.states import value_name
from .condense import check_settings
from .em_step import Condensable, Decision, Select, check_sampler, check_select, check_share
from .history import CondensationHistory
from .layout import Layout, WholeLayout, nothing_of
from .logits import one_of
from .saved import Saved, checked, gathered
from .schedule import AHEAD, CondensationSchedule
from .skipped import OnNonfinite
from .tracker import KnowledgeValueTracker
from .values import Value, ValueName

__all__ = ["Condensation"]

STATE_VERSION = 2
Tell = Callable[[int, Decision | None], Mapping[str, str]]


class Condensation:
    """A run of KCD for a loop that owns its index: records, ends epochs, and saves its state.

    `CondensedLoader` and `CondensedStream` are this, and a way to draw.

    Parameters
    ----------
    sampler : CondensedSampler, CondensedLoss, or anything with ``num_samples``, ``kept`` and ``install``
        What each stage's set is installed in.
    schedule : CondensationSchedule
    value, on_nonfinite
        See `KnowledgeValueTracker`.
    alpha, min_weight, select
        See `condense` and `condense_step`.
    device : torch device, optional
        Where values are kept. Default: where the first recorded logits are.
    tracker : KnowledgeValueTracker, optional
        One that is there already, in place of ``value``, ``on_nonfinite`` and ``device``. Default: the sampler's own,
        as a `CondensedLoss` has one.
    dataset : optional
        What the indices are of. What of it says which samples these are, such as its labels, is then part of the run's
        state, and compared between ranks: see `dataset_identity`.
    group : torch.distributed.ProcessGroup, optional
        The ranks that train this student. Default: all.

    Attributes
    ----------
    sampler
    tracker : KnowledgeValueTracker
    schedule : CondensationSchedule
    history : CondensationHistory
    epoch : int
        From 1; moved on by `end_epoch` alone.

    Raises
    ------
    TypeError
        If ``schedule`` is no CondensationSchedule, ``sampler`` lacks one of the three, ``select`` can't be called as
        `condense_step` calls it, or ``group`` is no process group.
    ValueError
        If a setting is outside its range; if ``tracker`` is of another number of samples, or ``value``,
        ``on_nonfinite`` or ``device`` is given beside it; or if this process is not in ``group``.
    RuntimeError
        If the sampler draws for another number of ranks than there are, or was made before the process group
        and draws everything on each of several.

    Examples
    --------
    >>> import numpy as np
    >>> from kcd_core import CondensationSchedule, CondensedSampler
    >>> schedule = CondensationSchedule(ratio=0.5, stages=1, period=1)
    >>> run = Condensation(CondensedSampler(4, shuffle=False), schedule=schedule)
    >>> student_logits = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 9.0], [0.0, 5.0]])
    >>> run.record(student_logits, indices=[0, 1, 2, 3])
    4
    >>> run.end_epoch().kept, list(run.sampler), run.epoch
    (array([0, 1]), [0, 1], 2)
    """

    def __init__(
        self,
        sampler: Condensable,
        *,
        schedule: CondensationSchedule,
        value: ValueName | Value | None = None,
        alpha: float = 0.03,
        min_weight: float = 0.7,
        select: Select | None = None,
        on_nonfinite: OnNonfinite | None = None,
        device: Any = None,
        tracker: KnowledgeValueTracker | None = None,
        dataset: Any = None,
        group: Any = None,
    ) -> None:
        check_sampler(sampler)
        if tracker is not None:
            check_kind(tracker, "tracker", KnowledgeValueTracker)
        if tracker is None:
            tracker = getattr(sampler, "tracker", None)
        recording: dict[str, Any] = {"value": value, "on_nonfinite": on_nonfinite, "device": device}
        given = {name: setting for name, setting in recording.items() if setting is not None}
        if tracker is None:
            tracker = KnowledgeValueTracker(sampler.num_samples, **given)
        elif given:
            raise ValueError(
                f"{', '.join(given)} must be given to the tracker that is there already, {tracker!r}, and not beside it"
            )
        elif tracker.num_samples != sampler.num_samples:
            raise ValueError(
                f"tracker and sampler must be of one size, got num_samples = {tracker.num_samples} and "
                f"{sampler.num_samples}"
            )
        check_share(sampler, distributed.check_group(group))
        layout = WholeLayout(sampler, tracker, group)
        own = {"dataset": None if dataset is None else dataset_identity(dataset)}
        self._begin(layout, schedule, alpha=alpha, min_weight=min_weight, select=select, own=own)
        self._agreement = Agreement(layout, numbered("run", layout.num_samples), {})
        layout.install(None, self.epoch)
        self.warn_once("drops nothing", schedule.why_idle(sampler.num_samples), stacklevel=3)

    @classmethod
    def over(
        cls,
        layout: Layout,
        schedule: CondensationSchedule,
        *,
        alpha: float,
        min_weight: float,
        select: Select | None,
        run: str = "",
        own: Mapping[str, Any] | None = None,
        alike: Mapping[str, Any] | None = None,
        tell: Tell | None = None,
    ) -> Condensation:
        """The run of a loader or a stream, which calls `end_epoch` for its user.

        ``run``, ``alike``: see `Agreement`; ``own``: what can't change in the course of the run besides.
        ``tell(epoch, decision)``: what else an epoch's end warns of, by kind; an epoch of which it tells something is not
        said to lack recordings.
        """
        made = cls.__new__(cls)
        made._begin(layout, schedule, alpha=alpha, min_weight=min_weight, select=select, own=own or {})
        made._agreement, made._depth = Agreement(layout, run, alike or {}), 5
        made._tell = tell or _nothing
        return made

    def _begin(
        self,
        layout: Layout,
        schedule: CondensationSchedule,
        *,
        alpha: float,
        min_weight: float,
        select: Select | None,
        own: Mapping[str, Any],
    ) -> None:
        check_kind(schedule, "schedule", CondensationSchedule)
        self._layout = layout
        self.schedule = schedule
        self.alpha, self.min_weight = check_settings(alpha, min_weight)
        check_select(select)
        self.select = select
        self._own = dict(own)
        self.history = CondensationHistory(layout.num_samples, schedule)
        self.epoch = 1
        self._seen_before = False  # whether this epoch was recorded in before its state was saved
        self._batches = layout.tracker.batches  # that were recorded when this epoch began
        self._rows = self._largest = 0  # recorded by `record` in this epoch, and in one batch
        self._choose_device = layout.tracker.device is None
        self._depth = 4  # of the user's call, which a warning is about
        self._tell: Tell | None = None  # by hand
        self._warned: set[str] = set()
        self._fresh = True  # until something of this epoch is drawn or recorded

    @property
    def sampler(self) -> Any:
        """What each stage's set is installed in."""
        return getattr(self._layout, "sampler", self._layout)

    @property
    def tracker(self) -> KnowledgeValueTracker:
        """V and F."""
        return self._layout.tracker

    @property
    def group(self) -> Any:
        """The process group of the ranks that train this student; None is all."""
        return self._layout.group

    @property
    def seen(self) -> bool:
        """Whether anything was recorded in this epoch, in whatever way."""
        return self._seen_before or self.tracker.batches > self._batches

    # -- recording ---------------------------------------------------------------------------------

    def record(
        self,
        student_logits: Any = None,
        *,
        indices: Any,
        values: Any = None,
        teacher_logits: Any = None,
        targets: Any = None,
    ) -> int:
        """E-step: record the values of one batch.

        Parameters
        ----------
        student_logits : floating array [B, C]; with value "sequence_entropy", [B, T, C]
            The student's, before ``backward()`` or after it; no ``detach()`` needed.
        values : real array [B]
            Values of your own in their place, for losses that make no logits.
        indices : integer array [B]
            Which samples these are. -1 is padding: its row is not recorded.
        teacher_logits, targets : optional
            For values that use them.

        Returns
        -------
        int
            How many rows were samples, and not padding; that of indices on a device is not looked at.

        Raises
        ------
        TypeError
            If not exactly one of ``student_logits`` and ``values`` is given.
        ValueError, TypeError, IndexError
            As `KnowledgeValueTracker.update` and `record` do. Nothing is recorded then.
        """
        given = one_of(student_logits, values)
        if self._fresh:
            self._begin_epoch(self._depth)
        if self._choose_device:
            self._choose_device = False
            if is_tensor(given) and given.is_cuda:  # values are kept where no copy stalls the step
                self.tracker.to(given.device)
        rows = self._layout.rows(indices)
        if values is None:
            recorded = self.tracker.update(rows, given, teacher_logits=teacher_logits, targets=targets)
        else:
            recorded = self.tracker.record(rows, given)
        self._rows, self._largest = self._rows + recorded, max(self._largest, recorded)
        return recorded

    # -- stages ------------------------------------------------------------------------------------

    def begin_pass(self) -> None:
        """Whoever draws is about to draw the first batch of a pass.

        Raises
        ------
        RuntimeError
            If each of several ranks would draw everything in the same order, and was not asked to; if the sampler
            draws for another number of ranks than there are; or if a state was loaded, and other ranks go on from
            another moment.

        Warns
        -----
        UserWarning
            Once, if the sampler draws for several ranks and there is no process group to sum their recordings.
        """
        if self._fresh:
            self._begin_epoch(6)
        self._agreement.drawn(self.epoch)

    def _begin_epoch(self, depth: int) -> None:
        """What can be known only now: a process group may be younger than the sampler."""
        group = self.group
        check_share(self.sampler, group, begun=True)
        self.warn_once(
            "unsummed", distributed.unsummed(getattr(self.sampler, "num_replicas", None), group), depth
        )
        self._agreement.check_moment()
        self._fresh = False

    def end_epoch(self) -> Any:
        """End the epoch: condense if the schedule says a stage ends, and move on to the next.

        All or nothing: whatever is raised in it, an interrupt included, leaves stage, set, history and epoch as
        they were (the set of a sampler of one's own, if it has an ``in_force`` that can be read and put back).
        Under a process group every rank must call it.

        Returns
        -------
        CondensedSet or None
            None where no stage is due.

        Raises
        ------
        RuntimeError
            If a stage is due and nothing was ever recorded; or if ranks disagree in their settings, or one
            is gone.
        ValueError
            With ``on_nonfinite="raise"`` and values on a device, if some were not finite in this epoch. Where no
            stage is due, only the rank that recorded them raises; the others wait for it at the next stage.

        Warns
        -----
        UserWarning
            Once, if nothing was recorded in an epoch.
        RuntimeWarning
            Once, if values were not finite.
        """
        self._agreement.check_moment()
        due = self.schedule.due(self.epoch)
        if due or self._agreement.missing:
            self._agreement.check({**self.identity(), "epoch": self.epoch})
        decision = self._decide() if due else None
        problem: Exception | None = None
        entry: dict[str, Any] | None = None
        try:
            if decision is not None:
                entry = self._entry(decision)
            else:
                self.tracker.report()  # a stage has read the values already
            self._warn(decision)  # before anything is changed, since a warning may be an error
        except Exception as error:
            problem = error
        if due:
            distributed.raise_together(problem, self.group)
        elif problem is not None:
            raise problem
        return self._move_on(decision, entry)

    def _decide(self) -> Decision:
        return self._layout.decide(
            self.schedule,
            alpha=self.alpha,
            min_weight=self.min_weight,
            select=self.select,
            ended=len(self.history),
        )

    def _entry(self, decision: Decision) -> dict[str, Any]:
        """What the history says of a stage."""
        entry = self.history.entry(
            decision.chosen,
            decision.value,
            decision.count,
            epoch=self.epoch,
            alpha=self.alpha,
            mixing=self._layout.mixing,
            unseen=decision.unseen,
        )
        if decision.previous is not None:
            entry["dropped"] = decision.previous - decision.chosen.num_kept
        return entry

    def warn_once(self, kind: str, text: str, stacklevel: int) -> None:
        """Warn of one ``kind`` of thing once in a run; of an empty text, not at all."""
        if text and kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(text, UserWarning, stacklevel=stacklevel)

    def _warn(self, decision: Decision | None) -> None:
        told = dict((self._tell or self._shared_out_twice)(self.epoch, decision))
        if not (self.seen or told) and self._layout.call:
            told["nothing recorded"] = (
                f"nothing was recorded in epoch {self.epoch}: call {self._layout.call} after the student's "
                "forward pass"
            )
        for kind, text in {"decision": decision.warning if decision else "", **told}.items():
            self.warn_once(kind, text, self._depth)

    def _shared_out_twice(self, epoch: int, decision: Decision | None) -> Mapping[str, str]:
        """A trainer that shares out a sampler's share again leaves this rank a part of it: to a batch, that of one rank."""
        ranks, length = getattr(self.sampler, "num_replicas", 1), getattr(self.sampler, "length", None)
        if ranks == 1 or length is None or self._seen_before or not self._rows:
            return {}
        share = length(self.sampler.num_kept)
        if abs(self._rows - share / ranks) > self._largest or self._rows + 2 * self._largest > share:
            return {}
        return {
            "shared out twice": f"this rank's share of epoch {epoch} is {share} samples, and {self._rows} were recorded, as if "
            f"the share were shared out to {ranks} ranks again: a trainer that does so with a sampler's indices needs "
            "CondensedSampler(num_replicas=1, rank=0). If a part of each epoch is left out on purpose, leave this aside"
        }

    def why_plain(self, epochs: int) -> str:
        """Why a run that ends with epoch ``epochs`` drops nothing; empty if it does, or has ended already."""
        schedule = self.schedule
        if epochs < self.epoch or len(self.history) or not schedule.drops(self._layout.num_samples):
            return ""
        due = schedule.next_due(self.epoch, max(epochs, AHEAD))
        if due is not None and due < epochs:
            return ""
        when = schedule.next_stage(self.epoch)
        return (
            f"a run of {epochs} epochs drops nothing and is plain training: the first stage is {when}. Lower period "
            "(or warmup), or leave this aside if the run is longer"
        )

    def _move_on(self, decision: Decision | None, entry: dict[str, Any] | None) -> Any:
        """Change what an epoch's end changes, now that all that can fail is done; an interrupt puts it back."""
        history, undo = self.history, self._layout.snapshot()
        before = history.num_samples, history.records, self.epoch, self._seen_before, self._batches
        rows, largest = self._rows, self._largest
        try:
            if decision is None or entry is None:
                self._layout.install(None, self.epoch + 1)
            else:
                in_force = decision.chosen if decision.in_force is None else decision.in_force
                self._layout.install(in_force, self.epoch + 1)
                history.num_samples = decision.num_samples or history.num_samples
                history.records = [*history.records, entry]
            self.epoch += 1
            self._seen_before, self._batches, self._fresh = False, self.tracker.batches, True
            self._rows = self._largest = 0
            return None if decision is None else decision.chosen
        except BaseException:
            undo()
            history.num_samples, history.records, self.epoch, self._seen_before, self._batches = before
            self._rows, self._largest = rows, largest
            raise

    # -- state -------------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """What can't change in the course of a run."""
        return {
            "version": STATE_VERSION,
            **self._layout.identity(),
            **copy.deepcopy(self._own),
            "schedule": self.schedule.state_dict(),
            "schedule_type": type(self.schedule).__qualname__,
            "alpha": self.alpha,
            "min_weight": self.min_weight,
            "select": value_name(self.select) if self.select else None,
        }

    def state_dict(self) -> dict[str, Any]:
        """Recordings, set in force, history and epoch, as plain numbers and tensors. Copies.

        Under a process group every rank saves its own. Reads back under ``torch.load(weights_only=True)``.
        """
        return {
            **self.identity(),
            "num_replicas": self._layout.ranks,
            "rank": self._layout.rank,
            "epoch": self.epoch,
            "seen": self.seen,
            "tracker": self.tracker.state_dict(),
            **self._layout.state_dict(),
            "history": self.history.state_dict(),
        }

    def gather_state_dict(self) -> list[dict[str, Any]]:
        """What `state_dict` returns on every rank, in the order of ranks, on each of them: for trainers that save on one.

        `load_state_dict` takes the list on any number of ranks. Every rank must call this, and holds all states
        while it has the list. Under NCCL they pass through the device that ``torch.cuda.set_device`` set.

        Returns
        -------
        list of dict
            Of one, without a process group, or where all ranks draw alike.

        Raises
        ------
        RuntimeError
            If another rank has not called this within five minutes. (With a torch that has no
            ``ProcessGroup.get_group_store``, it waits until the process group's own timeout.)
        """
        return gathered(self.state_dict, self.group)

    def load_state_dict(self, state: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Go on where a state was saved.

        The ranks of a process group compare where they go on when the first batch is drawn or recorded: each of those
        that loaded waits for the others to have loaded, five minutes at most, and a RuntimeError says which of them has
        not, or goes on from another moment. (With a torch that has no ``ProcessGroup.get_group_store``, what all ranks
        know is compared when a stage ends.)

        Parameters
        ----------
        state : mapping, or list of mappings
            What this rank saved; or, on any number of ranks, what all ranks of a run saved at one step, in any
            order. Rank 0 then takes over the sum of what was recorded.

        Raises
        ------
        ValueError
            If it was saved with other settings, by another rank or version, or is no run's state; of a list,
            also if a rank is missing or there twice, or if they were not saved at one step. Nothing is changed
            then.
        """
        self.apply(self.check_state(state))

    def check_state(
        self,
        state: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        needs: tuple[str, ...] = (),
        within: str = "",
    ) -> Saved:
        """What `load_state_dict` would take over, or why it would not.

        ``needs`` are whole numbers that the state holds besides; the one called ``within`` is 0 between epochs.
        """
        mine = self.identity()
        if getattr(self.sampler, "adopts_seed", False):  # the sampler's own state brings it
            del mine["seed"]
        return checked(state, self._layout, mine, needs=needs, within=within)

    def apply(self, saved: Saved) -> None:
        """Take over a checked state."""
        self._layout.apply(saved.recorded, saved.in_force)
        self.history, self.epoch = saved.history, saved.epoch
        self.history.schedule = self.schedule
        self._seen_before, self._batches = saved.seen, self.tracker.batches
        self._rows = self._largest = 0
        self._fresh = True
        self._agreement.loaded(saved.moment)

    def restore(
        self, *, epoch: int, seen: bool, tracker: Any, sampler: Any, history: Any, summed: bool = False
    ) -> None:
        """Go on from parts that were saved within another's state: those of `tracker`, `sampler` and `history`.

        ``summed``: the recordings are those of all ranks, which the first takes over.

        Raises
        ------
        ValueError
            If one of them is not such a part, or of other settings. Nothing is changed then.
        """
        layout = self._layout
        done = CondensationHistory.from_state(history)
        parts = {"tracker": tracker, "sampler": sampler}
        recorded, in_force = layout.check_state(parts, done, layout.rank, layout.ranks)
        if summed and layout.rank > 0:
            recorded = nothing_of(recorded)
        self.apply(Saved(epoch, seen, recorded, in_force, done, also={}))

    def __getstate__(self) -> dict[str, Any]:
        if self.group is not None:
            raise TypeError(
                "a run that was given group= can't be pickled or copied, since a process group can't: save its "
                "state_dict(), and load it into a new one"
            )
        return self.__dict__

    def __repr__(self) -> str:
        return (
            f"Condensation(kept={self._layout.num_kept} of {self._layout.num_samples}, epoch={self.epoch}, "
            f"stages={len(self.history)}, next stage {self.schedule.next_stage(self.epoch)})"
        )


def _nothing(epoch: int, decision: Decision | None) -> Mapping[str, str]:
    return {}
