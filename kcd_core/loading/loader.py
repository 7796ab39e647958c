"""A user's DataLoader, rebuilt around the condensed set. The batch stays as it was."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from ..base import distributed
from ..base.arrays import as_array, checked_int, is_integer
from ..base.states import check_rank, check_same, check_together, state_int, value_name
from ..condense import CondensedSet, Select, check_settings, condense_stage
from ..history import CondensationHistory
from ..mixing import Mixer, is_built_in
from ..recipes import MixRecipes
from ..sampler import CondensedSampler, EpochSampler, fingerprint
from ..schedule import CondensationSchedule
from ..sharded.condense import choose_sharded, for_history
from ..sharded.reslice import resliced
from ..sharded.sampler import ShardedSampler
from ..sharded.slices import ShardedSet
from ..tracker import CheckedState as TrackerState
from ..tracker import KnowledgeValueTracker, summed
from ..values import Value
from .alignment import Pass
from .keys import KeyBatches, rebuild, resolve_mixer, understand, without_padding

__all__ = ["CondensedLoader", "wrap_loader"]

STATE_VERSION = 1


def wrap_loader(
    loader: DataLoader[Any],
    *,
    schedule: CondensationSchedule,
    value: str | Value = "entropy",
    alpha: float = 0.03,
    min_weight: float = 0.7,
    mixing: str | None = "cumulative",
    mixer: str | Mixer = "auto",
    select: Select | None = None,
    return_index: bool = False,
    on_nonfinite: str = "skip",
    device: Any = None,
    seed: int = 0,
    sharded: bool = False,
) -> CondensedLoader:
    """Wrap a DataLoader: same batches, drawn from the condensed set, with ``record`` and ``end_epoch``.

    Parameters
    ----------
    loader : torch.utils.data.DataLoader
        Map-style, batched, with torch's own random, sequential or distributed sampler. It is not
        changed. Workers, pinning, collate function and the rest are carried over.
    schedule : CondensationSchedule
    value, on_nonfinite
        See `KnowledgeValueTracker`.
    alpha, min_weight, select
        See `condense` and `condense_step`.
    mixing : {"cumulative", "fresh", None}
        Mix what is dropped into what is barely kept: images mixed at several stages one on top of the
        other (the authors' behaviour), always from the originals, or not at all.
    mixer : {"auto", "arrays", "samples"} or callable
        ``mix_arrays`` (raw images, before the transform, as the paper does), ``mix_samples`` (after
        it), or your own ``mixer(dataset, index, steps) -> sample``. Auto takes the first where the
        data set keeps raw arrays in ``.data``. What can't be mixed is a TypeError at the first batch,
        long before the first mixture: name the fields of a dict with
        ``functools.partial(mix_samples, fields=[...])``, or use ``mixing=None``.
    return_index : bool
        Yield ``(indices, batch)``, int64 [B] and your batch, instead of your batch alone. The index
        of a sample that only pads a rank's length is -1: pass it to ``record`` as it is.
    device : torch device, optional
        Where values are kept. Default: where the first recorded logits are.
    seed : int
        Of the order of the samples. A DistributedSampler's own seed is taken over instead.
    sharded : bool
        For data sets too large for 12 bytes a sample on every rank: each rank keeps the values of a slice
        of the data set, and draws from that slice alone. Same sets; see `ShardedSampler` for what else
        changes.

    Returns
    -------
    CondensedLoader

    Raises
    ------
    TypeError
        If the loader can't be wrapped honestly: another type, an iterable-style or unsized data set,
        ``batch_size=None``, a custom sampler or batch sampler.
    ValueError
        If a setting is outside its range, or the data set is empty.
    """
    return CondensedLoader(
        loader,
        schedule=schedule,
        value=value,
        alpha=alpha,
        min_weight=min_weight,
        mixing=mixing,
        mixer=mixer,
        select=select,
        return_index=return_index,
        on_nonfinite=on_nonfinite,
        device=device,
        seed=seed,
        sharded=sharded,
    )


class CondensedLoader:
    """What `wrap_loader` returns. Holds a rebuilt DataLoader and is none, on purpose: trainers rebuild
    whatever is one behind the user's back.

    Attributes
    ----------
    tracker : KnowledgeValueTracker
    sampler : CondensedSampler
    dataset
        The user's, untouched.
    schedule : CondensationSchedule
    history : CondensationHistory
    epoch : int
        From 1; moved on by `end_epoch` alone.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        *,
        schedule: CondensationSchedule,
        value: str | Value,
        alpha: float,
        min_weight: float,
        mixing: str | None,
        mixer: str | Mixer,
        select: Select | None,
        return_index: bool,
        on_nonfinite: str,
        device: Any,
        seed: int,
        sharded: bool,
    ) -> None:
        if isinstance(loader, CondensedLoader):
            raise TypeError("loader is wrapped already")
        batching, settings = understand(loader, seed)
        if not isinstance(schedule, CondensationSchedule):
            raise TypeError(f"schedule must be a CondensationSchedule, got {type(schedule).__name__}")
        if sharded and select is not None:
            raise ValueError("select needs the values of all samples in one place: not with sharded=True")
        self.dataset = loader.dataset
        self.schedule = schedule
        kind: Any = ShardedSampler if sharded else CondensedSampler
        self.sampler: EpochSampler = kind(len(loader.dataset), mixing=mixing, **settings)  # type: ignore[arg-type]
        # The tracker's samples: those of this rank's slice, or all.
        self._sharded, self._own = bool(sharded), (0, self.sampler.num_samples)
        if isinstance(self.sampler, ShardedSampler):
            self._own = (self.sampler.start, self.sampler.stop)
        self.tracker = KnowledgeValueTracker(
            self._own[1] - self._own[0], value=value, on_nonfinite=on_nonfinite, device=device
        )
        self.history = CondensationHistory(self.sampler.num_samples)
        self.epoch = 1
        self._alpha, self._min_weight = check_settings(alpha, min_weight)
        self._select = select
        self._return_index = bool(return_index)
        self._choose_device = device is None
        self._batches = KeyBatches(self.sampler, *batching)
        mix = resolve_mixer(mixer, self.dataset)
        self._batches.rehearse = mixing is not None and schedule.ratio < 1 and is_built_in(mix)
        self._inner = rebuild(loader, self._batches, mix)
        self._agreed = False
        self._position = 0  # global samples yielded this epoch
        self._resume = 0  # where the next iterator starts
        self._recorded = 0  # global position up to which this epoch is recorded
        self._seen = False  # anything recorded this epoch, in whatever way
        self._current: Pass | None = None
        self._iterator: weakref.ref[_Iterator] | None = None  # of that pass

    # -- drawing -----------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        """One pass over the current epoch, from its start.

        After `load_state_dict`, the first pass continues at the saved position instead.
        """
        # A pass that nobody holds any more, as after next(iter(loader)), can confuse nothing.
        alive = self._iterator is not None and self._iterator() is not None
        owed = alive and self._current is not None and self._current.owes
        start, self._resume = self._resume, 0
        self._batches.start = start
        self._current = Pass(start, ambiguous=owed)
        # Made here, at the call: what this pass draws is settled, whatever is installed meanwhile.
        iterator = _Iterator(self, self._current, iter(self._inner))
        self._iterator = weakref.ref(iterator)
        return iterator

    def __len__(self) -> int:
        """Number of batches of the current epoch (all of it, also after a resume within it)."""
        return self._batches.steps(self.sampler.num_kept)

    def steps(self, epoch: int) -> int:
        """Number of batches of any epoch (from 1), past or future, before training starts.

        Exact, since the schedule alone fixes every size. For epochs from the present one on it starts
        from the set in force, whoever installed it.
        """
        n = self.sampler.num_samples
        if checked_int(epoch, "epoch", 1) < self.epoch:
            size = self.schedule.size(n, epoch)
        else:
            size = self.schedule.size_from(n, epoch, current=self.sampler.num_kept, current_epoch=self.epoch)
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
        student_logits: Any,
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
        current = None
        if indices is None:
            current = self._current
            if current is None or current.yielded == 0:
                raise RuntimeError(
                    "record() was called before this pass yielded a batch: iterate the loader first"
                )
            current.check(self._recorded, self.epoch)
            indices = current.indices
        if self._choose_device:
            self._move_to(student_logits)
        if len(indices) != len(student_logits):
            raise ValueError(
                f"student_logits has {len(student_logits)} rows for a batch of {len(indices)} samples; pass "
                "only the rows of the samples themselves, or indices="
            )
        padded = self.sampler.num_replicas > 1 and (self._sharded or not self.sampler.drop_last)
        if padded:
            indices, student_logits, teacher_logits, targets = without_padding(
                indices, student_logits, teacher_logits, targets
            )
        update = self.tracker.update if current is None else self.tracker._update_drawn
        if self._sharded:
            indices = _within(indices, *self._own)
        update(indices, student_logits, teacher_logits=teacher_logits, targets=targets)
        self._seen = True
        if current is not None:
            self._recorded = current.note_record()

    def _move_to(self, logits: Any) -> None:
        """Keep the values where the first recorded logits are, if CUDA can spare the copies."""
        self._choose_device = False
        if isinstance(logits, torch.Tensor) and logits.is_cuda:
            self.tracker.to(logits.device)

    def end_epoch(self) -> CondensedSet | ShardedSet | None:
        """End the epoch: condense if the schedule says a stage ends, and move on to the next.

        Returns
        -------
        CondensedSet, ShardedSet (with ``sharded``) or None
            None where no stage is due.

        Raises
        ------
        RuntimeError
            If a stage is due and nothing was ever recorded; or if ranks disagree in their settings, or one
            is gone. Nothing is changed then.

        Warns
        -----
        UserWarning
            Once, if nothing was recorded in an epoch.
        """
        due = self.schedule.due(self.epoch)
        chosen: CondensedSet | ShardedSet | None = None
        if due or not self._agreed:
            self._check_agreement()
        if due:
            seen: dict[str, Any]
            if isinstance(self.sampler, ShardedSampler):
                chosen = choose_sharded(
                    self.tracker, self.sampler, self.schedule, alpha=self._alpha, min_weight=self._min_weight
                )
                seen = for_history(self.tracker, self.sampler)
                self.sampler.install(chosen)  # after the last exchange
            else:
                chosen, value, count = condense_stage(
                    self.tracker,
                    self.sampler,
                    self.schedule,
                    alpha=self._alpha,
                    min_weight=self._min_weight,
                    select=self._select,
                )
                seen = {"value": value, "count": count}
            self.history.append(
                chosen,
                **seen,
                epoch=self.epoch,
                alpha=self._alpha,
                mixing=self.sampler.mixing is not None,
            )
        epoch, silent = self.epoch, not self._seen and not self._warned
        self.epoch += 1
        self.sampler.set_epoch(self.epoch)
        self._position = self._resume = self._recorded = 0
        self._seen = False
        self._current = None
        if silent:  # last, so that all is done where warnings are errors
            self._warned = True
            warnings.warn(
                f"nothing was recorded in epoch {epoch}: call loader.record(student_logits) after the "
                "student's forward pass",
                UserWarning,
                stacklevel=2,
            )
        return chosen

    _warned = False

    def _check_agreement(self) -> None:
        """See that all ranks would condense alike. Nothing is sent where there is one."""
        if distributed.world_size() > 1:
            settings = {
                "value": value_name(self.tracker._function),
                "select": value_name(self._select) if self._select else None,
                "batch_size": self.batch_size,
                "drop_last": (self.drop_last, self.sampler.drop_last),
                "num_replicas": self.sampler.num_replicas,
                "set": self.sampler.fingerprint(),
            }
            distributed.check_agreement(
                {**self._identity(), **settings, "epoch": self.epoch},
                shard=self.sampler.rank,
                shards=self.sampler.num_replicas,
            )
        self._agreed = True

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
        if out_of_order and 0 < self._position < self.sampler.num_kept:
            raise RuntimeError(
                "the state can't be saved within an epoch of a loader with in_order=False: save between epochs, "
                "or use in_order=True"
            )
        return {
            **self._identity(),
            "num_replicas": self.sampler.num_replicas,
            "rank": self.sampler.rank,
            "epoch": self.epoch,
            "position": self._position,
            "recorded": self._recorded,
            "seen": self._seen,
            "tracker": self.tracker.state_dict(),
            "sampler": self.sampler.state_dict(),
            "history": self.history.state_dict(),
        }

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
            If it was saved with another data set length, schedule, seed, setting, rank or version, or
            is no loader's state; of a list, also if a rank is missing or there twice, or if they were
            not saved at one step; with ``sharded``, also if a rank's new slice keeps nothing. Nothing is
            changed then.
        """
        several = isinstance(state, (list, tuple))
        states = [self._checked_state(s) for s in (state if several else [state])]
        saved = [(s.rank, s.num_replicas) for s in states]
        if several:
            check_together(saved, [self._moment(s) for s in states], "loader")
        else:
            check_rank(saved[0], (self.sampler.rank, self.sampler.num_replicas), "loader")
        first = states[0]
        sampler: Any = first.sampler
        if several and isinstance(self.sampler, ShardedSampler):
            parts = [(s.tracker, s.sampler) for s in sorted(states, key=lambda s: s.rank)]
            tracker, sampler = resliced(parts, self.sampler, first.position)
        else:
            total, count, skipped = summed([s.tracker for s in states])
            if several and self.sampler.rank > 0:  # a stage's end sums over the ranks again
                total, count, skipped = np.zeros_like(total), np.zeros_like(count), np.zeros_like(skipped)
            tracker = total, count, skipped
        self.tracker._apply_state(tracker)
        self.sampler.in_force = sampler
        self.history = first.history
        self.epoch = first.epoch
        self._position = self._resume = first.position
        self._recorded = first.recorded
        self._seen = any(s.seen for s in states)
        self._current, self._agreed = None, False

    def _checked_state(self, state: Any) -> _State:
        """One rank's state, or why it is none of this run's."""
        check_same(state, self._identity(), "loader", needs=_State._fields)
        if not isinstance(state["seen"], bool):
            raise ValueError(f"the loader state is damaged: seen must be a bool, got {state['seen']!r}")
        history = CondensationHistory.from_state(state["history"])
        if history.num_samples != self.sampler.num_samples:
            raise ValueError(f"the loader state is damaged: its history is of {history.num_samples} samples")
        rank, ranks = state_int(state, "rank", 0, "loader"), state_int(state, "num_replicas", 1, "loader")
        tracker, sampler = self.tracker, self.sampler
        if self._sharded:  # those of the rank that saved it
            sampler = ShardedSampler(
                sampler.num_samples,
                shuffle=sampler.shuffle,
                seed=sampler.seed,
                num_replicas=ranks,
                rank=rank,
                mixing=sampler.mixing,
            )
            tracker = KnowledgeValueTracker(sampler.stop - sampler.start, value=tracker._function)
        return _State(
            num_replicas=ranks,
            rank=rank,
            epoch=state_int(state, "epoch", 1, "loader"),
            position=state_int(state, "position", 0, "loader"),
            recorded=state_int(state, "recorded", 0, "loader"),
            seen=state["seen"],
            tracker=tracker._checked_state(state["tracker"]),
            sampler=sampler.check_state(state["sampler"]),
            history=history,
        )

    def _moment(self, state: _State) -> dict[str, str]:
        """What all ranks of a run have alike at one step."""
        _, stage, *_, kept, recipes = state.sampler  # of a sharded one: the sizes of what ranks keep
        if self._sharded and self.sampler.mixing == "fresh":  # a rank's own
            recipes = MixRecipes()
        return {
            "epoch": str(state.epoch),
            "position": str(state.position),
            "recorded position": str(state.recorded),
            "set": fingerprint(stage, kept, recipes),
            "history": str(state.history.records),
        }

    def __getstate__(self) -> dict[str, Any]:
        # A copy in another process has no part in a pass that is under way here.
        return {**self.__dict__, "_iterator": None, "_current": None}

    def _identity(self) -> dict[str, Any]:
        return {
            "version": STATE_VERSION,
            "num_samples": self.sampler.num_samples,
            "schedule": self.schedule.state_dict(),
            "seed": self.sampler.seed,
            "shuffle": self.sampler.shuffle,
            "alpha": self._alpha,
            "min_weight": self._min_weight,
            "mixing": self.sampler.mixing,
            "sharded": self._sharded,
        }

    def __repr__(self) -> str:
        return (
            f"CondensedLoader({type(self.dataset).__name__}, kept={self.sampler.num_kept} of "
            f"{self.sampler.num_samples}, epoch={self.epoch}, stage={self.sampler.stage})"
        )


class _State(NamedTuple):
    """What one rank saved beside the run's identity, checked."""

    num_replicas: int
    rank: int
    epoch: int
    position: int
    recorded: int
    seen: bool
    tracker: TrackerState
    sampler: Any
    history: CondensationHistory


class _Iterator:
    """Yields the user's batches and keeps the pass up to date.

    No generator, which would end at a worker's exception: a DataLoader's iterator goes on after it.
    """

    def __init__(self, loader: CondensedLoader, current: Pass, batches: Iterator[Any]) -> None:
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
        if loader._current is current:
            loader._position = current.end
        elif loader._current is not None:
            loader._current.ambiguous = True
        # A copy of the caller's own: what is recorded must not change in its hands.
        return (torch.from_numpy(indices.copy()), batch) if loader._return_index else batch


def _within(indices: Any, start: int, stop: int) -> Any:
    """Indices of the data set as those of its slice ``start .. stop - 1``."""
    indices = as_array(indices)
    if not is_integer(indices):
        return indices  # the tracker says what is wrong
    if isinstance(indices, torch.Tensor):
        if indices.device.type != "cpu":
            return indices.long() - start  # the tracker masks and counts what is outside
        indices = indices.numpy()
    indices = indices.astype(np.int64)
    outside = indices[(indices < start) | (indices >= stop)]
    if len(outside):
        raise IndexError(
            f"this rank records samples {start} .. {stop - 1}, got {outside[:5].tolist()}; nothing of this batch "
            "was recorded"
        )
    return indices - start
