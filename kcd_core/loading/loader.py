"""A user's DataLoader, rebuilt around the condensed set. The batch stays as it was."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader

from ..base.arrays import checked_int
from ..history import CondensationHistory
from ..schedule import CondensationSchedule
from ..stages import Condensation
from ..tracker import KnowledgeValueTracker
from .alignment import Pass
from .keys import KeyBatches

__all__ = ["CondensedLoader"]

Batch = TypeVar("Batch", covariant=True)


@dataclass
class Place:
    """Where in an epoch a loader is. Positions are global: samples that all ranks together have drawn.

    Attributes
    ----------
    epoch : int
    position : int
        Up to which it was yielded.
    resume : int
        Where the next pass starts.
    recorded : int
        Up to which it is recorded.
    current : Pass or None
        The pass begun last.
    """

    epoch: int
    position: int = 0
    resume: int = 0
    recorded: int = 0
    current: Pass | None = None


class CondensedLoader(Generic[Batch]):
    """What `wrap_loader` returns. Holds a rebuilt DataLoader and is none, on purpose: trainers rebuild
    whatever is one behind the user's back.

    Parameters
    ----------
    run : Condensation
    batches : KeyBatches
        Of the run's sampler.
    inner : DataLoader
        The user's, rebuilt around ``batches``: it yields (indices, batch).
    dataset
        The user's.
    return_index : bool
        See `wrap_loader`.

    Attributes
    ----------
    dataset
        The user's, untouched.
    """

    def __init__(
        self, run: Condensation, batches: KeyBatches, inner: DataLoader[Any], dataset: Any, return_index: bool
    ) -> None:
        self.dataset = dataset
        self._run, self._batches, self._inner = run, batches, inner
        self._return_index = return_index
        self._last = Place(run.epoch)
        self._iterator: weakref.ref[_Iterator] | None = None  # of the pass begun last

    @property
    def sampler(self) -> Any:
        """A `CondensedSampler`; with ``sharded``, a `ShardedSampler`."""
        return self._run.sampler

    @property
    def tracker(self) -> KnowledgeValueTracker:
        """V and F: of all samples; with ``sharded``, of this rank's slice."""
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

    @property
    def _place(self) -> Place:
        """Of an epoch that was ended since, nothing is left: so an end is whole as soon as the run's is."""
        if self._last.epoch != self._run.epoch:
            self._last = Place(self._run.epoch)
        return self._last

    # -- drawing -----------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch]:
        """One pass over the current epoch, from its start.

        After `load_state_dict`, the first pass continues at the saved position instead.
        """
        # A pass that nobody holds any more, as after next(iter(loader)), can confuse nothing.
        alive = self._iterator is not None and self._iterator() is not None
        place = self._place
        owed = alive and place.current is not None and place.current.owes
        start, place.resume = place.resume, 0
        self._batches.start = start
        place.current = Pass(start, ambiguous=owed)
        # Made here, at the call: what this pass draws is settled, whatever is installed meanwhile.
        iterator = _Iterator(self, place.current, iter(self._inner))
        self._iterator = weakref.ref(iterator)
        return iterator

    def __len__(self) -> int:
        """Number of batches of the current epoch (all of it, also after a resume within it)."""
        return self._batches.steps(self.sampler.num_kept)

    def steps(self, epoch: int) -> int:
        """Number of batches of any epoch (from 1), past or future, before training starts.

        Exact, since the schedule alone fixes every size. For epochs from the present one on it starts
        from the set in force, whoever installed it.

        Raises
        ------
        RuntimeError
            For an epoch that has ended, if a set was installed by hand: its length is not known any more.
        """
        n = self.sampler.num_samples
        if checked_int(epoch, "epoch", 1) >= self.epoch:
            size = self.schedule.size_from(n, epoch, current=self.sampler.num_kept, current_epoch=self.epoch)
        elif self.sampler.stage != len(self.history):
            raise RuntimeError(
                f"epoch {epoch} has ended, and a set was installed by hand since the run began, so its length is not "
                f"known: ask for epochs from the present one, {self.epoch}, on"
            )
        else:
            size = next((stage["kept"] for stage in reversed(self.history) if stage["epoch"] < epoch), n)
        return self._batches.steps(size)

    def total_steps(self, epochs: int) -> int:
        """Number of batches in epochs 1 .. ``epochs``: what a per-step LR schedule needs to know."""
        return sum(self.steps(epoch) for epoch in range(1, checked_int(epochs, "epochs", 0) + 1))

    @property
    def batch_size(self) -> int:
        """Samples in a batch."""
        return self._batches.batch_size

    @property
    def drop_last(self) -> bool:
        """Whether a last batch that is not full is left out."""
        return self._batches.drop_last

    @property
    def num_workers(self) -> int:
        """Worker processes."""
        return self._inner.num_workers

    # -- recording ---------------------------------------------------------------------------------

    def record(
        self,
        student_logits: torch.Tensor,
        *,
        indices: Any = None,
        teacher_logits: Any = None,
        targets: Any = None,
    ) -> None:
        """E-step: record the values of the batch yielded last.

        Parameters
        ----------
        student_logits : floating tensor [B, C]
            The student's, before ``backward()`` or after it; no ``detach()`` needed.
        indices : integer array [B], optional
            Which samples these are. Needed where the last batch is not the one the logits belong to
            (prefetchers that look ahead); always wins. See ``return_index``. -1 is padding.
        teacher_logits, targets : optional
            For values that use them.

        Raises
        ------
        RuntimeError
            Without ``indices``, whenever it is not certain which batch the logits belong to: nothing
            was yielded since the last record; more than one batch was yielded before a pass's first
            record; another pass, still in use, owed a record when this one was started, or is read in
            turns with it; or this part of the epoch was recorded before.
        ValueError, TypeError, IndexError
            As `KnowledgeValueTracker.update` does. Nothing is recorded then.
        """
        place, current = self._place, None
        if indices is None:
            current = place.current
            if current is None or current.yielded == 0:
                raise RuntimeError(
                    "record() was called before this pass yielded a batch: iterate the loader first"
                )
            current.check(place.recorded, place.epoch)
        drawn = indices if current is None else current.indices
        if len(drawn) != len(student_logits):
            raise ValueError(
                f"student_logits has {len(student_logits)} rows for a batch of {len(drawn)} samples; pass "
                "only the rows of the samples themselves, or indices="
            )
        if current is None:
            self._run.record(student_logits, indices=indices, teacher_logits=teacher_logits, targets=targets)
        else:
            self._run.record_drawn(drawn, student_logits, teacher_logits, targets)
            place.recorded = current.note_record()

    def end_epoch(self) -> Any:
        """End the epoch: condense if the schedule says a stage ends, and move on to the next.

        Returns
        -------
        CondensedSet, ShardedSet (with ``sharded``) or None
            None where no stage is due.

        Raises
        ------
        RuntimeError
            If a stage is due and nothing was ever recorded; or if ranks disagree in their settings, or one
            is gone. Nothing is changed then, nor by an interrupt.

        Warns
        -----
        UserWarning
            Once, if nothing was recorded in an epoch. Nothing is changed yet, where warnings are errors.
        """
        return self._run.end_epoch()

    # -- state -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on at this very batch, as plain numbers and tensors.

        Save it after ``record``. Under DDP every rank saves its own. Reads back under
        ``torch.load(weights_only=True)``. Copies.

        Raises
        ------
        RuntimeError
            Within an epoch, if worker processes may deliver batches out of order (``in_order=False``):
            one position can't say then which were drawn.
        """
        out_of_order = self.num_workers > 0 and not getattr(self._inner, "in_order", True)
        place = self._place
        if out_of_order and 0 < place.position < self.sampler.num_kept:
            raise RuntimeError(
                "the state can't be saved within an epoch of a loader with in_order=False: save between epochs, "
                "or use in_order=True"
            )
        return {**self._run.state_dict(), "position": place.position, "recorded": place.recorded}

    def load_state_dict(self, state: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Go on where a state was saved: the next iteration continues after the last batch yielded.

        Saved after the last batch of an epoch, that iteration is empty, and `end_epoch` goes on.

        Parameters
        ----------
        state : mapping, or list of mappings
            What this rank saved; or, on any number of ranks, what all ranks of a run saved at one step, in
            any order. Each new rank is given all of them: the global order goes on from the same position,
            and rank 0 takes over the sum of what was recorded. With ``sharded``, every rank takes over its
            slice, and on another number of ranks between epochs only.

        Raises
        ------
        ValueError
            If it was saved over other samples, with another schedule, seed, setting, rank or version, or
            is no loader's state; of a list, also if a rank is missing or there twice, or if they were
            not saved at one step; with ``sharded``, also if a rank's new slice keeps nothing. Nothing is
            changed then.
        """
        checked = self._run.check_state(state, needs=("position", "recorded"), within="position")
        self._run.apply(checked)
        position, recorded = checked.also["position"], checked.also["recorded"]
        self._last = Place(checked.epoch, position, position, recorded)

    def __getstate__(self) -> dict[str, Any]:
        # A copy in another process has no part in a pass that is under way here.
        return {**self.__dict__, "_iterator": None, "_last": replace(self._place, current=None)}

    def __repr__(self) -> str:
        return (
            f"CondensedLoader({type(self.dataset).__name__}, kept={self.sampler.num_kept} of "
            f"{self.sampler.num_samples}, epoch={self.epoch}, stage={self.sampler.stage})"
        )


class _Iterator:
    """Yields the user's batches and keeps the pass up to date.

    No generator, which would end at a worker's exception: a DataLoader's iterator goes on after it.
    """

    def __init__(self, loader: CondensedLoader[Any], current: Pass, batches: Iterator[Any]) -> None:
        self._loader, self._pass, self._batches = loader, current, batches

    def __iter__(self) -> _Iterator:
        return self

    def __next__(self) -> Any:
        loader, current = self._loader, self._pass
        per_position = loader.sampler.num_replicas
        try:
            indices, batch = next(self._batches)
        except StopIteration:
            raise
        except Exception as error:
            if str(error).startswith("DataLoader timed out"):
                raise  # the batch comes with the next call
            current.note_loss(loader.batch_size * per_position)
            raise
        current.note_batch(indices, len(indices) * per_position)
        place = loader._place
        if place.current is current:
            place.position = current.end
        elif place.current is not None:
            place.current.ambiguous = True
        # A copy of the caller's own: what is recorded must not change in its hands.
        return (torch.from_numpy(indices.copy()), batch) if loader._return_index else batch
