"""Which samples of a stream pass: ids, their slots, and the set in force in memory that all processes share."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..algorithms.permutation import mix_int
from ..base.arrays import is_tensor, to_numpy

__all__ = ["Key", "StreamFilter"]

Key = Callable[[Any], Any]
FIELDS = 20  # of a sample that are named, where its id is not found


class StreamFilter(IterableDataset[Any]):
    """Which samples pass. Of a `CondensedStream`, this is all that a worker process gets.

    ``dropped`` and ``reading`` are shared memory: a process that was forked or spawned long ago sees a new set, too,
    and the main process what the workers read.
    """

    def __init__(
        self,
        dataset: Iterable[Any] | None,
        key: Key,
        slots: int,
        seed: int,
        dropped: torch.Tensor,
        reading: torch.Tensor,
    ) -> None:
        self.dataset, self.key, self.slots, self.seed = dataset, key, slots, seed
        self._reading = reading  # int64 [3]: passes, and 1 + the slots that the first two workers read first
        self._dropped = dropped  # bits, uint8 [ceil(slots / 8)], the lowest first
        self._read = dropped.numpy().data  # a memoryview: where one byte is read, far the fastest
        self._salt = hashlib.blake2b(str(seed).encode(), digest_size=16).digest()
        self._offset = int.from_bytes(self._salt[:8], "little")

    def __iter__(self) -> Iterator[Any]:
        """The samples of ``dataset`` that `keep` lets pass, in its order."""
        if self.dataset is None:
            raise TypeError("this stream was given no dataset: it can only be used through keep()")
        worker = get_worker_info()
        if worker is None or worker.id == 0:
            self._reading[0] += 1
        if worker is None or worker.id > 1:
            return filter(self.keep, self.dataset)
        return filter(self.keep, self._noted(self.dataset, worker.id))

    def _noted(self, samples: Iterable[Any], worker: int) -> Iterator[Any]:
        """These samples of a worker, the first of which is taken note of."""
        rest = iter(samples)
        for first in rest:
            self._reading[1 + worker] = 1 + self._slot(first)
            yield first
            yield from rest

    @property
    def passes_begun(self) -> int:
        """Passes over the data set: all workers' together are one. 0 if only `keep` is used."""
        return int(self._reading[0])

    @property
    def shared(self) -> bool:
        """Whether the first two workers began with the same sample."""
        _, one, other = self._reading.tolist()
        return bool(one) and one == other

    def keep(self, sample: Any) -> bool:
        """Whether a sample is in the set in force. Samples that were never recorded are.

        Raises
        ------
        TypeError
            If its id is not a str, bytes or integer.
        LookupError
            If it has no such field or place, where ``key`` names one.
        """
        slot = self._slot(sample)
        return not self._read[slot >> 3] >> (slot & 7) & 1

    def passes(self, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which slots the set in force lets pass: bool [B]."""
        bits = self.bits[slots >> 3] >> (slots & 7).astype(np.uint8)
        passes: npt.NDArray[np.bool_] = bits & 1 == 0
        return passes

    @property
    def bits(self) -> npt.NDArray[np.uint8]:
        """One bit for each slot, lowest first, that says whether it is dropped: uint8 [ceil(slots / 8)] in shared
        memory."""
        bits: npt.NDArray[np.uint8] = self._dropped.numpy()
        return bits

    def slots_of(self, ids: Any) -> npt.NDArray[np.int64]:
        """The slots of a batch of ids.

        They are the same in every process and on every machine. Text is hashed as its UTF-8 bytes. Integers are
        hashed as numbers modulo 2**64, whatever their dtype, and not as text.

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
        if isinstance(ids, (str, bytes, Set, Mapping)) or not isinstance(ids, Iterable):  # a set has no order
            raise TypeError(f"ids must be a list or array with one id per sample, got {ids!r}")
        return np.array([self._hash(i) % self.slots for i in ids], np.int64)

    def _slot(self, sample: Any) -> int:
        try:
            sample_id = self.key(sample)
        except (LookupError, TypeError) as error:
            if not isinstance(self.key, itemgetter):  # a function's own error says more
                raise
            raise LookupError(_without(self.key, sample)) from error
        return self._hash(sample_id) % self.slots

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process has no use for the values, nor should it record.
        return StreamFilter, (self.dataset, self.key, self.slots, self.seed, self._dropped, self._reading)

    def __deepcopy__(self, memo: dict[int, Any]) -> StreamFilter:
        # Of the same set in force: one of its own would never see a new one.
        dataset, key = copy.deepcopy((self.dataset, self.key), memo)
        return StreamFilter(dataset, key, self.slots, self.seed, self._dropped, self._reading)

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


def _without(key: itemgetter[Any], sample: Any) -> str:
    """What to say of a sample that has no field or place ``key``."""
    name = key.__reduce__()[1][0]
    has = f"a {type(sample).__name__}"
    if isinstance(sample, Mapping):
        has += f" of {', '.join(map(repr, list(sample)[:FIELDS]))}"
    elif isinstance(sample, (tuple, list)):
        has += f" of {len(sample)}"
    return (
        f"key={name!r} says where a sample has its id, and this sample, {has}, has nothing there: name the field or place of its id, "
        "or give a function, key(sample)"
    )
