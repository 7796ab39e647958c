"""A user's DataLoader, rebuilt around the condensed set. The batch stays as it was."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader

from ..base.arguments import checked_length
from ..logits import one_of
from ..run import end_together
from ..run_owner import RunOwner
from ..saved import gathered
from .alignment import Place
from .asking import check_asking
from .keys import KeyBatches
from .last_batch import LastBatch
from .lengths import Planned
from .reader import Reader
from .rebuild import told

__all__ = ["CondensedLoader"]

Batch = TypeVar("Batch", covariant=True)


class CondensedLoader(RunOwner, Planned, LastBatch, Generic[Batch]):
    """What `wrap_loader` returns. It holds a rebuilt DataLoader, and deliberately is not one itself, because trainers
    silently rebuild any DataLoader.

    Parameters
    ----------
    reader : Reader
    """

    def __init__(self, reader: Reader) -> None:
        self._reader, self._run = reader, reader.run
        self._planned = False

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(type(self), name) or name in inspect.signature(DataLoader.__init__).parameters:
            raise AttributeError(
                f"{name} can't be set on a wrapped loader, which would not follow: make a DataLoader with it, wrap that "
                "with wrap_loader(), and take over the run with load_state_dict()"
            )
        super().__setattr__(name, value)

    @property
    def dataset(self) -> Any:
        """The user's, untouched."""
        return self._reader.dataset

    @property
    def sampler(self) -> Any:
        """A `CondensedSampler`; with ``sharded``, a `ShardedSampler`.

        Its `set_epoch`, which trainers call, does not change what the loader draws.
        """
        return self._run.sampler

    @property
    def batch_sampler(self) -> KeyBatches:
        """What draws the batches: ``sampler``, ``batch_size`` and ``drop_last`` in one object, for trainers that ask
        for it."""
        return self._reader.batches

    # -- drawing -----------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch]:
        """One pass over the current epoch, from its start.

        After `load_state_dict`, passes continue at the saved position instead, until something is recorded. A pass
        begins with its first batch: an iterator that is only made, to see whether it can be, takes nothing up.

        Raises
        ------
        RuntimeError
            At the first batch, if the data set has another length than when it was wrapped.
        """
        return iter(self._reader)

    def __len__(self) -> int:
        """Number of batches of the current epoch (all of it, also after a resume within it)."""
        return self._reader.left(0)

    @property
    def batches_done(self) -> int:
        """Number of batches of the current epoch that are done, including those before a resume within it.

        Within a pass, these are the batches yielded, so that ``loader.batches_done == len(loader)`` in the step of
        the last one. Between passes, they are those that a resumed run would not draw again.
        """
        return len(self) - self._reader.left(self._reader.drawn)

    @property
    def batch_size(self) -> int:
        """Samples in a batch."""
        return self.batch_sampler.batch_size

    @property
    def drop_last(self) -> bool:
        """Whether a last batch that is not full is left out."""
        return self.batch_sampler.drop_last

    @property
    def num_workers(self) -> int:
        """Worker processes."""
        return self._reader.inner.num_workers

    # -- recording ---------------------------------------------------------------------------------

    def record(
        self,
        student_logits: torch.Tensor | None = None,
        *,
        values: Any = None,
        indices: Any = None,
        teacher_logits: Any = None,
        targets: Any = None,
    ) -> None:
        """E-step: record the values of the batch yielded last.

        Parameters
        ----------
        student_logits : floating tensor [B, C]; with value "sequence_entropy", [B, T, C]
            The student's, before ``backward()`` or after it; no ``detach()`` needed.
        values : real array [B]
            Values of your own instead of logits, for losses that make none.
        indices : integer array [B], optional
            Which samples these are; -1 is padding. Needed if the logits do not belong to the last batch (prefetchers
            that look ahead). See ``return_index``.
        teacher_logits, targets : optional
            For values that use them; others, and values of your own, ignore them.

        Raises
        ------
        RuntimeError
            Without ``indices``, whenever it is not certain which batch the logits belong to: nothing was yielded
            since the last record, or since `end_epoch`; more than one batch was, and an earlier one is still held by
            somebody (one that nobody holds was skipped; before the loader's first record it is refused where CUDA is in
            use, too, since a prefetcher may hold copies on a device); another thread fetched it; another pass, still
            in use, owes a record of another batch; a whole pass over this epoch was recorded before; or
            ``collate_fn`` was seen to put samples in another order.
        ValueError
            If ``indices``, in host memory, has a sample that no batch has held yet. This is checked until an epoch
            with recordings has ended: from then on, all of the data was drawn.
        ValueError, TypeError, IndexError
            As `KnowledgeValueTracker.update` and `record` do. Nothing is recorded then.

        Warns
        -----
        UserWarning
            Once an epoch, if it is recorded again from its start after a pass that was broken off.

        Notes
        -----
        A loop that begins to look ahead after its first record, and keeps only copies of its batches, looks like one
        that skips a batch. The error comes at the pass's end, when it records once more than batches were left.
        """
        reader = self._reader
        given = one_of(student_logits, values)
        with reader.lock:
            owed = reader.drawn_last(given) if indices is None else None
            samples = indices if owed is None else owed[1].indices
            name = "student_logits" if values is None else "values"
            rows, size = checked_length(given, name), checked_length(samples, "indices")
            if rows != size:
                raise ValueError(
                    f"{name} has {rows} rows for a batch of {size} samples; pass only the rows of the samples "
                    "themselves (collate_fn may leave out samples that are None, and none else), or indices="
                )
            others = {"values": values, "teacher_logits": teacher_logits, "targets": targets}
            reader.under_way = owed or reader.drawn_of(indices), indices is not None, self.tracker.batches
            try:
                self._run.record(student_logits, indices=samples, **others)
            finally:
                reader.settle()
                reader.under_way = None

    def skip(self, *, indices: Any = None) -> None:
        """Mark the batch yielded last as done without a record, so that a resumed run does not draw it again.

        This is for loops that save right after a batch with nothing to record, such as one whose loss was not finite.
        It is not needed if the next batch is drawn before saving.

        Parameters
        ----------
        indices : integer array [B], optional
            Those of the batch to skip, if the loop looks ahead. Default: the last batch. A batch that is done already
            stays as it is.

        Raises
        ------
        ValueError
            If ``indices``, in host memory, has a sample that no batch has held yet.
        """
        self._reader.skip(indices)

    def end_epoch(self) -> Any:
        """End the epoch: condense if the schedule says a stage ends, and move on to the next.

        Returns
        -------
        CondensedSet, ShardedSet (with ``sharded``) or None
            The set that is drawn from; None if no stage is due. The set that the teacher is asked for is `gate`'s.
            Either both sets change, or neither.

        Raises
        ------
        RuntimeError
            If a stage is due and nothing was ever recorded, or the data set was reordered since the first batch; or if
            ranks disagree in their settings, one of them recorded nothing, or one is gone. Nothing is changed then, nor
            by an interrupt.

        Warns
        -----
        UserWarning
            Once, if nothing was recorded in an epoch. If warnings are errors, nothing is changed yet.
        """
        gates = () if self._reader.asking is None else (self._reader.asking.run,)
        before = len(self)

        def shorter() -> str:
            now = len(self)
            return f"; {now} batches an epoch from now on, {before} before" if now != before else ""

        return end_together(self._run, *gates, more=shorter)[0]

    # -- state -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume within the epoch, as plain numbers and tensors.

        Under DDP every rank saves its own. ``torch.load(weights_only=True)`` reads it. The state is a copy, taken
        between two records, also in another thread, in a signal handler, or after an interrupt.

        The position in the epoch is that of the pass that recorded last; a pass that records nothing does not move
        it. It is the end of the last batch, or its start if the batch is not recorded yet: a resumed run draws it
        again. A skipped batch is not drawn again once the next one was drawn. If records come with ``indices``, the
        position is the end of the last recorded batch, however far ahead others were fetched. Recording through
        `tracker` does not move it.

        Raises
        ------
        RuntimeError
            Within an epoch, if worker processes may deliver batches out of order (``in_order=False``):
            one position can't say then which were drawn.
        """
        out_of_order = self.num_workers > 0 and not getattr(self._reader.inner, "in_order", True)
        with self._reader.lock:
            place = self._reader.place
            if out_of_order and 0 < place.position < self.sampler.num_kept:
                raise RuntimeError(
                    "the state can't be saved within an epoch of a loader with in_order=False: save between epochs, "
                    "or use in_order=True"
                )
            asked = {} if self._reader.asking is None else {"ask": self._reader.asking.state_dict()}
            return {
                **self._run.state_dict(),
                **asked,
                "position": place.position,
                "recorded": place.recorded,
            }

    def gather_state_dict(self) -> list[dict[str, Any]]:
        """What `state_dict` returns on every rank, on each of them: see `Condensation.gather_state_dict`."""
        return gathered(self.state_dict, self._run.group)

    def load_state_dict(self, state: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Resume where a state was saved: see `state_dict`. Passes begin there until something is recorded.

        If it was saved after the last batch of an epoch, these passes are empty, and `end_epoch` moves on to the next.

        Parameters
        ----------
        state : mapping, or list of mappings
            What this rank saved; or, on any number of ranks, what all ranks of a run saved at one step, in any order.
            Give the whole list to each new rank. The global order continues from the same position, and rank 0 takes
            over the sum of what was recorded. With ``sharded``, every rank takes over its slice, and the number of
            ranks can change only between epochs.

        Raises
        ------
        ValueError
            If it was saved over other samples, with another schedule, seed, setting, rank or version, or
            is no loader's state; of a list, also if a rank is missing or there twice, or if they were
            not saved at one step; with ``sharded``, also if a rank's new slice keeps nothing. Nothing is
            changed then.
        """
        checked = self._run.check_state(state, needs=("position", "recorded"), within="position")
        check_asking(state, self._reader.asking is not None)
        if self._reader.asking is not None:
            asked = self._reader.asking.check_state(state)
            self._reader.asking.run.apply(asked)
        self._run.apply(checked)
        self._reader.go_to(Place(checked.epoch, checked.also["position"], checked.also["recorded"]))

    def __repr__(self) -> str:
        return (
            f"CondensedLoader({type(self.dataset).__name__}, kept={self.sampler.num_kept} of "
            f"{self.sampler.num_samples}, epoch={self.epoch}, stage={self.sampler.stage}, "
            f"next stage {self.schedule.next_stage(self.epoch)}, batch_size={self.batch_size}"
            f"{', drop_last=True' * self.drop_last}{told(self._reader.inner)})"
        )
