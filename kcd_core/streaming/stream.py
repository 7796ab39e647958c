"""Condensation of streams, where there is no index space: tar shards, iterable-style data sets.

A sample is known by an id, its id by a hash, and a hash by its slot in a table of fixed size. Slots are
an index space: V, F, their sum over ranks, the exact selection and resuming are those of any data set.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Set
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset

from ..algorithms.permutation import mix_int
from ..base import distributed
from ..base.arrays import checked_int, is_tensor, state_array, to_numpy
from ..base.states import check_rank, check_same, check_together, state_int, value_name
from ..condense import CondensedSet, Select, check_settings, choose, sums_of_all
from ..history import CondensationHistory
from ..schedule import CondensationSchedule
from ..tracker import CheckedState as TrackerState
from ..tracker import KnowledgeValueTracker, summed
from ..values import Value

__all__ = ["CondensedStream"]

STATE_VERSION = 1
CROWDED = 0.5  # share of ids that share their slot, from which on a warning says so

Key = Callable[[Any], Any]


class StreamFilter(IterableDataset[Any]):
    """Which samples pass. Of a `CondensedStream`, this is all that a worker process gets.

    ``dropped`` is shared memory: a process that was forked or spawned long ago sees a new set, too.
    """

    def __init__(
        self, dataset: Iterable[Any] | None, key: Key, slots: int, seed: int, dropped: torch.Tensor
    ) -> None:
        self.dataset, self.key, self.slots, self.seed = dataset, key, slots, seed
        self._dropped = dropped  # bits, uint8 [ceil(slots / 8)], the lowest first
        self._bits = dropped.numpy().data  # a memoryview: where one byte is read, far the fastest
        self._salt = hashlib.blake2b(str(seed).encode(), digest_size=16).digest()
        self._offset = int.from_bytes(self._salt[:8], "little")

    def __iter__(self) -> Iterator[Any]:
        """The samples of ``dataset`` that `keep` lets pass, in its order."""
        if self.dataset is None:
            raise TypeError("this stream was given no dataset: it can only be used through keep()")
        return filter(self.keep, self.dataset)

    def keep(self, sample: Any) -> bool:
        """Whether a sample is in the set in force. What was never recorded is.

        Raises
        ------
        TypeError
            If its id is not a str, bytes or integer.
        """
        slot = self._hash(self.key(sample)) % self.slots
        return not self._bits[slot >> 3] >> (slot & 7) & 1

    def slots_of(self, ids: Any) -> npt.NDArray[np.int64]:
        """The slots of a batch of ids.

        The same in every process and on every machine. Text counts as its UTF-8 bytes; integers count
        modulo 2**64, whatever their dtype, and are hashed as numbers, not as text.

        Parameters
        ----------
        ids : list of str, bytes or int, or integer array [B]
            In host memory.

        Returns
        -------
        int64 array [B], in 0 .. slots-1

        Raises
        ------
        TypeError
            If ids are something else, or on a device.
        ValueError
            If they are an array that is not one-dimensional, or an integer does not fit 64 bits.
        """
        if is_tensor(ids):
            if not ids.is_cpu:
                raise TypeError(
                    f"ids are on {ids.device}, and hashing them would stall the step: leave them in host memory"
                )
            ids = to_numpy(ids)
        if isinstance(ids, np.ndarray):
            if ids.ndim != 1:
                raise ValueError(f"ids must be [B], one per sample, got shape {ids.shape}")
            if ids.dtype.kind in "iu":
                numbers: Any = ids.astype(np.uint64) ^ np.uint64(self._offset)
                mixed: Any = mix_int(numbers)  # unsigned arrays wrap as its masks do
                slots: npt.NDArray[np.int64] = (mixed % np.uint64(self.slots)).astype(np.int64)
                return slots
            ids = ids.tolist()
        if isinstance(ids, (str, bytes, Set)) or not isinstance(ids, Iterable):  # a set has no order
            raise TypeError(f"ids must be a list or array with one id per sample, got {ids!r}")
        return np.array([self._hash(i) % self.slots for i in ids], np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process has no use for the values, nor should it record.
        return StreamFilter, (self.dataset, self.key, self.slots, self.seed, self._dropped)

    def __deepcopy__(self, memo: dict[int, Any]) -> StreamFilter:
        # Of the same set in force: one of its own would never see a new one.
        dataset, key = copy.deepcopy((self.dataset, self.key), memo)
        return StreamFilter(dataset, key, self.slots, self.seed, self._dropped)

    def _hash(self, sample_id: Any) -> int:
        """64 bits. Python's own hash() of text is another one in each process."""
        if isinstance(sample_id, str):
            sample_id = sample_id.encode("utf-8", "surrogatepass")  # file names may be no valid UTF-8
        if isinstance(sample_id, bytes):
            digest = hashlib.blake2b(sample_id, digest_size=8, salt=self._salt).digest()
            return int.from_bytes(digest, "little")
        if is_tensor(sample_id) and sample_id.ndim == 0:
            sample_id = sample_id.item()
        if isinstance(sample_id, bool) or not isinstance(sample_id, (int, np.integer)):
            raise TypeError(
                f"an id must be a str, bytes or integer that names its sample in every epoch, got {sample_id!r} "
                f"({type(sample_id).__name__})"
            )
        number = int(sample_id)
        if not -(2**63) <= number < 2**64:
            raise ValueError(f"an integer id must fit 64 bits, got {number}: use str(id)")
        return mix_int((number & (2**64 - 1)) ^ self._offset)


class CondensedStream(StreamFilter):
    """A stream without what was dropped, recorded by id. For data sets with indices, see `wrap_loader`.

    Goes into any DataLoader as an iterable-style data set, or, as ``.select(stream.keep)``, into a
    webdataset pipeline before its decoder. Nothing is mixed: the dropped sample is not at hand.

    Parameters
    ----------
    dataset : iterable of samples, optional
        Iterated anew each epoch. Sharing it out among workers and ranks stays its own business, so that
        each sample passes one of them. None where only `keep` is used.
    key : str, int or callable
        Where a sample has its id: the field of a dict, the place in a tuple, or ``key(sample)`` (a
        function at module level, if workers are spawned). The id is a str, bytes or integer that is
        the sample's own, in every epoch and shard.
    slots : int
        Size of the table, which does not grow: 12 bytes a slot, and one bit that all processes of a rank
        share. Ids that fall into one slot share their mean and their fate; of n ids, the share that
        shares is about ``1 - exp(-n / slots)``: 10 % at ten slots an id.
    schedule : CondensationSchedule
        Sizes are of the slots recorded until then.
    alpha, select
        See `condense` and `condense_step`. ``select`` is given the recorded slots alone.
    value, on_nonfinite
        See `KnowledgeValueTracker`.
    device : torch device, optional
        Where values are kept. Default: where the first recorded logits are.
    seed : int
        Of the hash.

    Attributes
    ----------
    tracker : KnowledgeValueTracker
        By slot.
    history : CondensationHistory
        By recorded slot.
    epoch : int
        From 1; moved on by `end_epoch` alone.
    stage : int
        Number of stages ended.

    Raises
    ------
    TypeError
        If ``dataset`` can't be iterated, or is a generator, which can be iterated only once; or if another
        argument is of the wrong type.
    ValueError
        If a number is outside its range.

    Notes
    -----
    What worker processes are sent is the filter, not the values, and the set in force is shared memory:
    the first sample that is read after `end_epoch` meets the new one, also in persistent workers. A copy
    by pickle or ``deepcopy`` is such a filter, too, and doesn't record.

    An id that was never recorded passes, unless it falls into the slot of one that was dropped.

    Examples
    --------
    >>> import torch
    >>> from kcd_core import CondensationSchedule
    >>> samples = [{"name": f"cat{i}", "x": i} for i in range(4)]
    >>> schedule = CondensationSchedule(ratio=0.5, stages=1, period=1)
    >>> stream = CondensedStream(samples, key="name", slots=1000, schedule=schedule)
    >>> logits = torch.tensor([[0.0, 9.0], [0.0, 1.0], [0.0, 0.0], [0.0, 5.0]])
    >>> stream.record(logits, ids=[sample["name"] for sample in stream])
    >>> chosen = stream.end_epoch()
    >>> [sample["name"] for sample in stream]
    ['cat1', 'cat2']
    """

    def __init__(
        self,
        dataset: Iterable[Any] | None = None,
        *,
        key: str | int | Key,
        slots: int,
        schedule: CondensationSchedule,
        value: str | Value = "entropy",
        alpha: float = 0.03,
        select: Select | None = None,
        on_nonfinite: str = "skip",
        device: Any = None,
        seed: int = 0,
    ) -> None:
        if dataset is not None and (not hasattr(dataset, "__iter__") or isinstance(dataset, Generator)):
            raise TypeError(
                f"dataset must be something that can be iterated anew each epoch, got {type(dataset).__name__}; "
                "for a data set with indices, use wrap_loader"
            )
        if not isinstance(schedule, CondensationSchedule):
            raise TypeError(f"schedule must be a CondensationSchedule, got {type(schedule).__name__}")
        if not callable(key) and (isinstance(key, bool) or not isinstance(key, (str, int))):
            raise TypeError(f"key must be a field's name, a place in a tuple or a function, got {key!r}")
        slots = checked_int(slots, "slots", 1)
        dropped = torch.zeros(-(-slots // 8), dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
        super().__init__(
            dataset, key if callable(key) else itemgetter(key), slots, checked_int(seed, "seed", 0), dropped
        )
        self.tracker = KnowledgeValueTracker(slots, value=value, on_nonfinite=on_nonfinite, device=device)
        self.schedule = schedule
        self.history = CondensationHistory(slots)
        self.epoch, self.stage = 1, 0
        self._alpha, _ = check_settings(alpha, 1.0)
        self._select = select
        self._choose_device = device is None
        self._agreed = self._seen = False
        self._warned: set[str] = set()

    def record(
        self, student_logits: Any, *, ids: Any, teacher_logits: Any = None, targets: Any = None
    ) -> None:
        """E-step: record the values of one batch.

        Parameters
        ----------
        student_logits : floating tensor [B, C]
            No ``detach()`` needed.
        ids : list of str, bytes or int, or integer array [B]
            What ``key`` gave for these samples; ``batch["__key__"]`` after torch's own collate function.
        teacher_logits, targets : optional
            For values that use them.

        Raises
        ------
        ValueError, TypeError
            As `slots_of` and `KnowledgeValueTracker.update` do. Nothing is recorded then.
        """
        slots = self.slots_of(ids)
        if len(slots) != len(student_logits):
            raise ValueError(f"student_logits has {len(student_logits)} rows for {len(slots)} ids")
        if self._choose_device and is_tensor(student_logits) and student_logits.is_cuda:
            self.tracker.to(student_logits.device)
        self._choose_device = False
        self.tracker.update(slots, student_logits, teacher_logits=teacher_logits, targets=targets)
        self._seen = True

    def end_epoch(self) -> CondensedSet | None:
        """End the epoch: condense if the schedule says a stage ends, and move on to the next.

        Under a process group every rank must call it; recordings are summed over the ranks, and each
        gets the same set.

        Returns
        -------
        CondensedSet or None
            By slot: ``kept`` and ``dropped`` are recorded ones. None where no stage is due.

        Raises
        ------
        RuntimeError
            If a stage is due and nothing was ever recorded; or if ranks disagree in their settings.
            Nothing is changed then.

        Warns
        -----
        UserWarning
            Once, if nothing was recorded in an epoch; and once, if more than half the ids share a slot.
        """
        due = self.schedule.due(self.epoch)
        if due or not self._agreed:
            self._check_agreement()
        chosen = self._condense() if due else None
        silent, self._seen = not self._seen, False
        self.epoch += 1
        # Last, so that all is done where warnings are errors.
        if chosen is not None and self.history.num_samples > CROWDED * self.slots:
            self._warn_once(
                f"more than {CROWDED:.0%} of the {self.slots} slots are taken, so about as many ids share a slot "
                "and its fate: use more slots"
            )
        if silent:
            self._warn_once(
                "nothing was recorded in an epoch: call stream.record(student_logits, ids=...) after the "
                "student's forward pass"
            )
        return chosen

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, UserWarning, stacklevel=3)

    def _condense(self) -> CondensedSet:
        """One EM step over the slots recorded until now; the others are neither ranked nor dropped."""
        total, count = sums_of_all(self.tracker)
        recorded = np.flatnonzero(count)
        count = count[recorded]
        value = self.tracker.mean(total[recorded], count)
        in_force = np.flatnonzero(self._passes(recorded))
        chosen = choose(
            value,
            count,
            in_force,
            self.schedule.target(len(recorded), len(in_force)),
            alpha=self._alpha,
            min_weight=1.0,
            stage=self.stage + 1,
            seed=self.seed,
            select=self._select,
        )
        dropped = np.zeros(self.slots, bool)
        dropped[recorded] = True
        dropped[recorded[chosen.kept]] = False
        self._dropped.numpy()[:] = np.packbits(dropped, bitorder="little")
        self.stage = chosen.stage
        self.history.num_samples = len(recorded)
        self.history.append(chosen, value, count, epoch=self.epoch, alpha=self._alpha, mixing=False)
        self.history[-1]["dropped"] = len(in_force) - len(
            chosen.kept
        )  # more may be recorded than at the last stage
        return CondensedSet(
            kept=recorded[chosen.kept],
            num_samples=self.slots,
            stage=chosen.stage,
            dropped=recorded[chosen.dropped],
            cut=chosen.cut,
        )

    def is_kept(self, ids: Any) -> npt.NDArray[np.bool_]:
        """Which of these ids pass: bool [B]. Raises as `slots_of` does."""
        return self._passes(self.slots_of(ids))

    def _passes(self, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        bits = self._dropped.numpy()[slots >> 3] >> (slots & 7).astype(np.uint8)
        passes: npt.NDArray[np.bool_] = bits & 1 == 0
        return passes

    @property
    def share(self) -> float:
        """Share of what was recorded up to the last stage that is still drawn: 1.0 before the first."""
        return float(self.history[-1]["kept"] / self.history.num_samples) if self.stage else 1.0

    # -- state -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The recordings, the set in force and the epoch, as plain numbers and tensors. Copies.

        Not the place within the epoch, which is the reader's: save between epochs, or resume the reader
        at its place as well. Under a process group every rank saves its own. Reads back under
        ``torch.load(weights_only=True)``.
        """
        return {
            **self._identity(),
            "num_replicas": distributed.world_size(),
            "rank": distributed.rank(),
            "epoch": self.epoch,
            "stage": self.stage,
            "dropped": state_array(self._dropped.numpy()),
            "tracker": self.tracker.state_dict(),
            "history": self.history.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Go on with a saved state. Worker processes see its set, too.

        Parameters
        ----------
        state : mapping, or list of mappings
            What this rank saved; or, on any number of ranks, what all ranks of a run saved in one epoch, in
            any order. Rank 0 takes over the sum of what was recorded.

        Raises
        ------
        ValueError
            If it was saved with another table, seed, key, schedule, setting, rank or version, or is no
            stream's state; of a list, also if a rank is missing or there twice, or if they differ in the epoch
            or the set in force. Nothing is changed then.
        """
        several, here = isinstance(state, (list, tuple)), (distributed.rank(), distributed.world_size())
        checked = [self._checked_state(s) for s in (state if several else [state])]
        saved = [ranks for ranks, _, _ in checked]
        if several:
            moments = [
                {"epoch": str(s["epoch"]), "set": hashlib.sha256(s["dropped"]).hexdigest()}
                for _, s, _ in checked
            ]
            check_together(saved, moments, "stream")
        else:
            check_rank(saved[0], here, "stream")
        total, count, skipped = summed([tracker for _, _, tracker in checked])
        if several and here[0] > 0:  # a stage's end sums over the ranks again
            total, count, skipped = np.zeros_like(total), np.zeros_like(count), np.zeros_like(skipped)
        first = checked[0][1]
        self.tracker._apply_state((total, count, skipped))
        self._dropped.numpy()[:] = first["dropped"]
        self.history, self.epoch, self.stage = first["history"], first["epoch"], first["stage"]
        self._agreed, self._seen = False, True  # no warning if this epoch was recorded before

    def _checked_state(self, state: Any) -> tuple[tuple[int, int], dict[str, Any], TrackerState]:
        """Who saved it, what all ranks have alike, and what was recorded."""
        needs = ("rank", "num_replicas", "epoch", "stage", "dropped", "tracker", "history")
        check_same(state, self._identity(), "stream", needs=needs)
        epoch, stage = state_int(state, "epoch", 1, "stream"), state_int(state, "stage", 0, "stream")
        dropped, mine = to_numpy(state["dropped"]), self._dropped.numpy()
        if dropped.dtype != mine.dtype or dropped.shape != mine.shape:
            raise ValueError(
                f"the stream state is damaged: dropped must be uint8 of shape {mine.shape}, got {dropped.dtype} "
                f"{dropped.shape}"
            )
        history = CondensationHistory.from_state(state["history"])
        if len(history) != stage or not 1 <= history.num_samples <= self.slots:
            raise ValueError(
                f"the stream state is damaged: stage {stage} with a history of {len(history)} stages and "
                f"{history.num_samples} points"
            )
        ranks = state_int(state, "rank", 0, "stream"), state_int(state, "num_replicas", 1, "stream")
        alike = {"epoch": epoch, "stage": stage, "dropped": np.array(dropped), "history": history}
        return ranks, alike, self.tracker._checked_state(state["tracker"])

    def _identity(self) -> dict[str, Any]:
        return {
            "version": STATE_VERSION,
            "slots": self.slots,
            "seed": self.seed,
            "key": repr(self.key) if isinstance(self.key, itemgetter) else value_name(self.key),
            "schedule": self.schedule.state_dict(),
            "alpha": self._alpha,
        }

    def _check_agreement(self) -> None:
        """See that all ranks would condense alike. Nothing is sent where there is one."""
        if distributed.world_size() > 1:
            settings = {
                "value": value_name(self.tracker._function),
                "select": value_name(self._select) if self._select else None,
                "epoch": self.epoch,
                "stage": self.stage,
                "set": hashlib.sha256(self._bits).hexdigest(),
            }
            rank = distributed.rank()
            distributed.check_agreement(
                {**self._identity(), **settings}, shard=rank, shards=distributed.world_size()
            )
        self._agreed = True

    def __repr__(self) -> str:
        return (
            f"CondensedStream({type(self.dataset).__name__}, slots={self.slots}, share={self.share:.1%}, "
            f"epoch={self.epoch}, stage={self.stage})"
        )
