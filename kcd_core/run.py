"""A run: what was recorded, which set is in force, which epoch it is, and what each stage did.

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
from .base.states import value_name
from .condense import check_settings
from .em_step import Decision, Select, check_select, check_share
from .history import CondensationHistory
from .layout import Layout, nothing_of
from .logits import one_of
from .progress import EpochProgress
from .saved import Saved, checked, gathered
from .schedule import CondensationSchedule
from .tracker import KnowledgeValueTracker

__all__ = ["Run", "RunOwner"]

STATE_VERSION = 2
Tell = Callable[[int, Decision | None], Mapping[str, str]]


class Run:
    """The one owner of a run's state, for all that draw or record.

    Parameters
    ----------
    layout : Layout
    schedule : CondensationSchedule
    alpha, min_weight, select
        See `condense` and `condense_step`.
    what : str
        What the ranks tell this run from others by, with its number and its size: see `numbered`. Empty where they don't.
    own : mapping
        What can't change in the course of the run besides.
    alike : mapping
        See `Agreement`.
    tell : callable
        ``tell(epoch, decision)``: what else an epoch's end warns of, by kind. An epoch of which it tells something is not
        said to lack recordings.
    depth : int
        Of the user's call, which a warning is about: 4 for one that calls this object's methods, one more for each call
        between.

    Attributes
    ----------
    epoch : int
        From 1; moved on by `end_epoch` alone.
    history : CondensationHistory
    progress : EpochProgress
        What was recorded in the epoch.
    """

    def __init__(
        self,
        layout: Layout,
        schedule: CondensationSchedule,
        *,
        alpha: float,
        min_weight: float,
        select: Select | None,
        what: str = "",
        own: Mapping[str, Any] | None = None,
        alike: Mapping[str, Any] | None = None,
        tell: Tell | None = None,
        depth: int = 5,
    ) -> None:
        check_kind(schedule, "schedule", CondensationSchedule)
        self._layout = layout
        self.schedule = schedule
        self.alpha, self.min_weight = check_settings(alpha, min_weight)
        check_select(select)
        self.select = select
        self._own = dict(own or {})
        self._tell, self._depth = tell, depth
        self._agreement = Agreement(layout, numbered(what, layout.num_samples) if what else "", alike or {})
        self.history = CondensationHistory(layout.num_samples, schedule)
        self.epoch = 1
        self.progress = EpochProgress(layout.tracker.batches)
        self._choose_device = layout.tracker.device is None
        self._warned: set[str] = set()

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
        return self.progress.seen_before or self.tracker.batches > self.progress.batches

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
        if not self.progress.begun:
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
        self.progress = self.progress.with_batch(recorded)
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
        if not self.progress.begun:
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
        self.progress = self.progress._replace(begun=True)

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
        told = dict(self._tell(self.epoch, decision)) if self._tell else {}
        if not (self.seen or told) and self._layout.call:
            told["nothing recorded"] = (
                f"nothing was recorded in epoch {self.epoch}: call {self._layout.call} after the student's "
                "forward pass"
            )
        for kind, text in {"decision": decision.warning if decision else "", **told}.items():
            self.warn_once(kind, text, self._depth)

    def why_plain(self, epochs: int) -> str:
        """Why a run that ends with epoch ``epochs`` drops nothing; empty if it does, or has ended already."""
        return (
            ""
            if len(self.history)
            else self.schedule.why_plain(self._layout.num_samples, epochs, epoch=self.epoch)
        )

    def _move_on(self, decision: Decision | None, entry: dict[str, Any] | None) -> Any:
        """Change what an epoch's end changes, now that all that can fail is done; an interrupt puts it back."""
        history, undo = self.history, self._layout.snapshot()
        before = history.num_samples, history.records, self.epoch, self.progress
        try:
            if decision is None or entry is None:
                self._layout.install(None, self.epoch + 1)
            else:
                in_force = decision.chosen if decision.in_force is None else decision.in_force
                self._layout.install(in_force, self.epoch + 1)
                history.num_samples = decision.num_samples or history.num_samples
                history.records = [*history.records, entry]
            self.epoch += 1
            self.progress = EpochProgress(self.tracker.batches)
            return None if decision is None else decision.chosen
        except BaseException:
            undo()
            history.num_samples, history.records, self.epoch, self.progress = before
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
        self.progress = EpochProgress(self.tracker.batches, seen_before=saved.seen)
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
            f"{type(self).__name__}(kept={self._layout.num_kept} of {self._layout.num_samples}, epoch={self.epoch}, "
            f"stages={len(self.history)}, next stage {self.schedule.next_stage(self.epoch)})"
        )


class RunOwner:
    """What whoever draws for a run says of it."""

    _run: Run

    @property
    def tracker(self) -> KnowledgeValueTracker:
        """V and F: of all samples, by index; with ``sharded``, of this rank's slice; of a stream, by slot."""
        return self._run.tracker

    @property
    def schedule(self) -> CondensationSchedule:
        """When a stage ends, and how many samples it leaves."""
        return self._run.schedule

    @property
    def history(self) -> CondensationHistory:
        """What each stage did."""
        return self._run.history

    @property
    def epoch(self) -> int:
        """From 1; moved on by `end_epoch` alone."""
        return self._run.epoch
