"""What a tracker has recorded: sums, and the steps that wait to be added to them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from .base.arrays import Array, as_indices, backend, checked_range, to_numpy
from .base.cuda_streams import StreamOrder
from .base.padding import PADDING, without_padding
from .skipped import SkipReport
from .sums import CheckedState, ValueSums
from .waiting import MAX_PENDING, Step, alike, joined

__all__ = ["Recordings"]


class Recordings:
    """Sums and what waits, under one lock, so that several threads may append and read.

    Parameters
    ----------
    num_samples : int
    kind : type of ValueSums
        See `kcd_core.statistics`.
    skips : SkipReport
        Is told what was not added.

    Attributes
    ----------
    sums : ValueSums
        Without what waits.
    """

    def __init__(self, num_samples: int, kind: type[ValueSums], skips: SkipReport) -> None:
        self.sums = kind.zeros(num_samples)
        # How many steps were added, and those that wait. One attribute, so that no interrupt comes between the two.
        self._steps: tuple[int, list[Step]] = (0, [])
        self.skips, self._num_samples, self._streams = skips, num_samples, StreamOrder()
        # Held while what is recorded is changed or read, and never while a user's value function runs.
        self._lock = threading.RLock()

    @property
    def device(self) -> Any:
        """The torch device of the sums, or None for NumPy."""
        return self.sums.device

    @property
    def waiting(self) -> list[Step]:
        """The steps that wait to be added."""
        return self._steps[1]

    @property
    def steps(self) -> int:
        """Appended by this object so far."""
        added, waiting = self._steps
        return added + len(waiting)

    def placed_copy(self, x: Array) -> Array:
        """A copy where it is to be added: the caller may reuse the buffer."""
        x = self.sums.place(x)
        return backend(x).copy(x)

    def samples(self, indices: Any, *rows: Any) -> tuple[Any, ...]:
        """A copy of ``indices``, and what has a row for each of them: in host memory, without those that only pad.

        On the sums' device, padding is left out when it is added.

        Raises
        ------
        TypeError, ValueError, IndexError
            As `KnowledgeValueTracker.update` does.
        """
        indices = as_indices(indices, "indices")
        batch = rows[0].shape[0]  # len() of a tensor takes four times as long
        if len(indices) != batch:
            raise ValueError(
                f"indices and the batch must have one length, got {len(indices)} indices for {batch} samples"
            )
        if isinstance(indices, np.ndarray):
            try:
                return self._in_range(indices), *rows
            except IndexError:  # which most batches, without padding, don't pay for
                if PADDING not in indices:
                    raise
            return self._in_range(indices[indices != PADDING]), *without_padding(indices, *rows)
        if self.device is None:
            raise TypeError(
                f"indices are on {indices.device} but the tracker is in host memory: pass indices in host "
                f"memory, or use tracker.to({indices.device.type!r})"
            )
        return backend(indices).to_int64(self.placed_copy(indices)), *rows

    def _in_range(self, indices: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        return checked_range(
            indices, "indices", self._num_samples, outcome="; nothing of this batch was recorded"
        )

    def append(self, indices: Array, values: Array) -> None:
        """Let checked indices wait with ``values`` [B], or logits [B, C], where they are to be added."""
        step = indices, values
        with self._lock:
            self._join_stream()
            if self.waiting and not alike(self.waiting[0], step):
                self.flush()  # what waits together travels together
            waiting = self.waiting
            waiting.append(step)
            if len(waiting) >= MAX_PENDING:
                self.flush()

    def _join_stream(self) -> None:
        """Let the current CUDA stream wait for what was recorded on another one. The host waits for neither."""
        self._streams.join(self.device, self._held)

    def _held(self) -> Iterator[Array]:
        yield from self.sums.arrays
        for pair in self.waiting:
            yield from pair

    def flush(self) -> None:
        """Add what waits. If that fails or is interrupted, it goes on waiting: nothing is lost, nor added twice."""
        with self._lock:
            self._join_stream()
            steps, added = self._steps, self.sums.added
            if not steps[1]:
                return
            together = joined(steps[1])
            try:
                self._steps = self.steps, []
                self.sums.add(*together)
            except BaseException:
                if self.sums.added == added:  # else the interrupt came when all was done
                    self._steps = steps
                raise
            if self.device is None:
                self._report()

    def _report(self) -> None:
        """Say what was skipped since the last report. Waits for a device."""
        self.skips.tell(to_numpy(self.sums.skipped), self._num_samples)

    @contextmanager
    def added(self) -> Iterator[ValueSums]:
        """The sums with all that was appended, for as long as nobody else may change them."""
        with self._lock:
            self.flush()
            yield self.sums

    @contextmanager
    def read(self) -> Iterator[ValueSums]:
        """`added`, and what was skipped is told."""
        with self.added() as sums:
            self._report()
            yield sums

    def move(self, device: Any) -> None:
        """To a torch device, or to NumPy with None."""
        with self.added() as sums:
            self.sums, self._streams = sums.to(device, copy=False), StreamOrder()
            self._join_stream()

    def change(self, change: Callable[[ValueSums], ValueSums]) -> None:
        """Hold other sums, made from these, with all that was appended."""
        with self.added() as sums:
            self.sums = change(sums)

    def replace(self, checked: CheckedState) -> None:
        """Take over what a state holds. What waits is forgotten."""
        with self._lock:
            self._join_stream()
            copies = type(self.sums)(*checked).to(self.sums.device)
            self.skips.told(checked[2])
            self.sums, self._steps = copies, (self.steps, [])

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle is made of: the sums are copied at once, lest another thread adds to them."""
        with self.added() as sums:
            state = {**self.__dict__, "sums": sums.to(sums.device), "_steps": (self.steps, [])}
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()
