"""A run: records, and ends epochs.

What differs between a data set, slices of one, and a stream, is its `Layout`. Everything else about a stage's
end, and about a state, is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from .account import Cost
from .base import distributed
from .base.arguments import checked_length
from .base.arrays import checked_int, is_tensor
from .base.same_samples import SameSamples
from .em_step import Decision, check_share
from .layout import Layout, Undo
from .log import LOGGER, stage_line
from .logits import one_of
from .progress import EpochProgress
from .rules import Select, SelectName
from .run_state import RunState
from .schedule import CondensationSchedule
from .sole_run import check_sole, note_made

__all__ = ["Ending", "Run", "end_together"]

Tell = Callable[[int, Decision | None], Mapping[str, str]]


class Ending(NamedTuple):
    """What the end of an epoch will change: nothing but the epoch, where no stage ends."""

    decision: Decision | None
    entry: dict[str, Any] | None


class Run(RunState):
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
    also : mapping
        What the history says of settings besides: plain numbers and texts, by the arguments' names.
    tell : callable
        ``tell(epoch, decision)``: what else an epoch's end warns of, by kind. An epoch of which it tells something is not
        said to lack recordings.
    plain : callable, optional
        ``plain()``: how many samples this rank would draw in an epoch of plain distillation. Whoever gives it counts in the
        account what is drawn; else it is what is recorded.
    samples : SameSamples, optional
        Those of the data set, which must stay what they are.
    """

    #: Whether its epochs are those of another run, which ends them together with its own.
    beside: ClassVar[bool] = False

    def __init__(
        self,
        layout: Layout,
        schedule: CondensationSchedule | None,
        *,
        alpha: float,
        min_weight: float,
        select: SelectName | Select | None,
        what: str = "",
        own: Mapping[str, Any] | None = None,
        alike: Mapping[str, Any] | None = None,
        also: Mapping[str, Any] | None = None,
        tell: Tell | None = None,
        plain: Callable[[], int] | None = None,
        samples: SameSamples | None = None,
    ) -> None:
        settings: dict[str, Any] = {"alpha": alpha, "min_weight": min_weight, "select": select}
        super().__init__(layout, schedule, **settings, what=what, own=own, alike=alike, also=also)
        self._tell, self._plain = tell, plain
        self.samples = samples or SameSamples()
        self._choose_device = layout.tracker.device is None
        note_made(self)

    # -- recording ---------------------------------------------------------------------------------

    def record(
        self,
        student_logits: Any = None,
        *,
        indices: Any,
        values: Any = None,
        teacher_logits: Any = None,
        targets: Any = None,
        asked: int | None = None,
    ) -> int:
        """E-step: record the values of one batch.

        Parameters
        ----------
        student_logits : floating array [B, C]; with value "sequence_entropy", [B, T, C]
            The student's, before ``backward()`` or after it; no ``detach()`` needed.
        values : real array [B]
            Values of your own instead of logits, for losses that make none.
        indices : integer array [B]
            Which samples these are. -1 is padding: its row is not recorded.
        teacher_logits, targets : optional
            For values that use them; others, and values of your own, ignore them.
        asked : int, optional
            For how many of these rows the teacher was asked, for the `account`. Default: all.

        Returns
        -------
        int
            How many rows were samples and not padding; indices on a device are not checked for padding.

        Raises
        ------
        TypeError
            If not exactly one of ``student_logits`` and ``values`` is given.
        ValueError
            If ``asked`` is more than there are rows.
        ValueError, TypeError, IndexError
            As `KnowledgeValueTracker.update` and `record` do. Nothing is recorded then.
        """
        given = one_of(student_logits, values)
        if asked is not None:
            asked = checked_int(asked, "asked", 0)
            if asked > (rows := checked_length(given, "the batch")):
                raise ValueError(f"asked must be at most the number of rows, {rows}, got {asked}")
        if not self.progress.begun:
            self._begin_epoch()
        if self._choose_device:
            self._choose_device = False
            if is_tensor(given) and given.is_cuda:  # values are kept where no copy stalls the step
                self.tracker.to(given.device)
        rows = self.layout.rows(indices)
        if values is None:
            recorded = self.tracker.update(rows, given, teacher_logits=teacher_logits, targets=targets)
        else:
            recorded = self.tracker.record(rows, given)
        self.progress = self.progress.with_batch(recorded)
        self.account.touch()
        if self._plain is None:
            self.account.add(Cost(drawn=recorded, asked=recorded if asked is None else asked))
        return recorded

    # -- stages ------------------------------------------------------------------------------------

    def begin_pass(self) -> None:
        """Say that the first batch of a pass is about to be drawn.

        Raises
        ------
        RuntimeError
            If each of several ranks would draw everything in the same order, and was not asked to; if the sampler
            draws for another number of ranks than there are; or if a state was loaded, and other ranks resume from
            another moment.

        Warns
        -----
        UserWarning
            Once, if the sampler draws for several ranks and there is no process group to sum their recordings.
        """
        if not self.progress.begun:
            self._begin_epoch()
        self.agreement.drawn(self.epoch)

    def _begin_epoch(self) -> None:
        """What can be known only now: a process group may be younger than the sampler."""
        group = self.group
        check_share(self.sampler, group, begun=True)
        check_sole(self)
        self.warn_once("unsummed", distributed.unsummed(getattr(self.sampler, "num_replicas", None), group))
        self.agreement.check_moment()
        self.samples.note()
        self.progress = self.progress._replace(begun=True)

    def end_epoch(self) -> Any:
        """End the epoch: condense if the schedule says a stage ends, and move on to the next.

        This happens completely or not at all: any exception, including an interrupt, leaves stage, set, history and
        epoch as they were. (This includes the set of a sampler of your own if its ``in_force`` can be read and put
        back.) Under a process group every rank must call it.

        Returns
        -------
        CondensedSet or None
            The set that is drawn from; None if no stage is due.

        Raises
        ------
        RuntimeError
            If a stage is due and nothing was ever recorded; if ranks disagree in their settings, one of them recorded nothing of
            a share that it drew, or one is gone; if a stage is due and the data set was reordered; or if the tracker's
            statistic is "stage_mean", and it has another run, made after this one.
        ValueError
            With ``on_nonfinite="raise"`` and values on a device, if some were not finite in this epoch. Where no
            stage is due, only the rank that recorded them raises; the others wait for it at the next stage, or with
            statistic "last", raise, too.

        Warns
        -----
        UserWarning
            Once, if nothing was recorded in an epoch.
        RuntimeWarning
            Once, if values were not finite.
        """
        return end_together(self)[0]

    def decide_end(self) -> Ending:
        """Compute what the epoch's end will change, including all that may fail. Nothing is changed."""
        check_sole(self)
        self.account.begin()
        self.agreement.check_moment()
        due = self.schedule.due(self.epoch)
        meets = due or self.tracker.window == "epoch"
        if meets or self.agreement.missing:
            self.agreement.check(self.identity(), self.epoch, self.seen)
        if due:
            distributed.together(self.samples.check, self.group)
        decision = self.layout.decide(self.criteria, len(self.history)) if due else None
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
        if meets:
            distributed.raise_together(problem, self.group)
        elif problem is not None:
            raise problem
        return Ending(decision, entry)

    def _entry(self, decision: Decision) -> dict[str, Any]:
        """What the history says of a stage."""
        entry = self.history.entry(
            decision.chosen,
            decision.value,
            decision.count,
            epoch=self.epoch,
            alpha=self.alpha,
            mixing=self.layout.mixing,
            unseen=decision.unseen,
        )
        if decision.previous is not None:
            entry["dropped"] = max(0, decision.previous - decision.chosen.num_kept)
        return entry

    def _warn(self, decision: Decision | None) -> None:
        told = dict(self._tell(self.epoch, decision)) if self._tell else {}
        if not (self.seen or told) and self.layout.call:
            where = f" on rank {distributed.rank(self.group)}" * (distributed.world_size(self.group) > 1)
            told["nothing recorded"] = (
                f"nothing was recorded in epoch {self.epoch}{where}: call {self.layout.call} after the student's "
                "forward pass"
            )
        if self.progress.rows:  # in this process
            told["weights"] = getattr(self.sampler, "why_unweighed", "")
        if not self.beside:  # of a loss, which records by itself, it is said here first
            told["unsummed"] = distributed.unsummed(getattr(self.sampler, "num_replicas", None), self.group)
        for kind, text in {"decision": decision.warning if decision else "", **told}.items():
            self.warn_once(kind, text)

    def snapshot(self) -> Undo:
        """What restores set, history and epoch to their present state."""
        history, undo = self.history, self.layout.snapshot()
        before = history.num_samples, history.records, self.epoch, self.progress, self.account.copy()

        def put_back() -> None:
            undo()
            history.num_samples, history.records, self.epoch, self.progress, self.account = before
            history.account = self.account

        return put_back

    def carry_out(self, ending: Ending) -> Any:
        """Carry out the end of an epoch. Returns the chosen set, if there is one."""
        decision, history = ending.decision, self.history
        self.account.end_epoch(self._plain_epoch())
        if decision is None or ending.entry is None:
            self.layout.install(None, self.epoch + 1)
        else:
            in_force = decision.chosen if decision.in_force is None else decision.in_force
            self.layout.install(in_force, self.epoch + 1)
            history.num_samples = decision.num_samples or history.num_samples
            history.records = [*history.records, ending.entry]
        self.epoch += 1
        self.progress = EpochProgress(self.tracker.batches)
        return None if decision is None else decision.chosen

    def log(self, ending: Ending, more: Callable[[], str]) -> None:
        """Log what an epoch's end has changed, and ``more()`` for a stage, on the first rank only."""
        if distributed.rank_announced(self.group) > 0:
            return
        LOGGER.debug("epoch %d: %s", self.epoch - 1, self.account.epochs[-1])
        if ending.entry is not None:
            LOGGER.info("%s%s", stage_line(ending.entry, self.history.num_samples), more())

    def _plain_epoch(self) -> int:
        """What plain distillation would have drawn in the epoch that ends."""
        if self._plain is not None:
            return self._plain()
        if self.layout.num_kept == self.layout.num_samples:
            return self.account.under_way.drawn
        return self.account.epochs[-1].plain if self.account.epochs else 0


def end_together(*runs: Run, more: Callable[[], str] = str) -> list[Any]:
    """`Run.end_epoch` of several runs of one tracker: all of them, or none. All that may fail is done first.

    ``more``: what whoever draws says of a stage besides, in the line that is logged. Called when it has ended.
    """
    endings, chosen = [], []
    for run in runs:
        endings.append(run.decide_end())
    tracker, stage = runs[0].tracker, any(ending.decision is not None for ending in endings)
    settled = tracker.settled(runs[0].group) if tracker.window_ends(stage) else None
    undo = [tracker.snapshot(), *(run.snapshot() for run in runs)]
    try:
        for run, ending in zip(runs, endings, strict=True):
            chosen.append(run.carry_out(ending))
        if settled is not None:
            tracker.settle(settled)
        # Within all that is undone: who is interrupted here, and ends the epoch again, may be told of the stage twice.
        for run, ending in zip(runs, endings, strict=True):
            run.log(ending, more)
        return chosen
    except BaseException:
        for put_back in undo:
            put_back()
        raise
