"""The integer sums of what was recorded: added up in host memory or on a device, and added to one another."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .algorithms.ranks import blocks
from .base.arrays import Array, backend, is_tensor, state_array, to_numpy, torch_backend
from .base.padding import PADDING

__all__ = ["CheckedState", "Sums", "ValueSums", "mean", "recordable", "summed"]

# Sums are integers, so that adding is associative: the set then depends on what was recorded, not on
# the order of batches, the number of ranks, or CUDA's atomics. 2**-40 is finer than float32 values.
SCALE = 2.0**40
MAX_VALUE = 2.0**20  # a larger value is not recorded
MAX_TOTAL = 2**62  # nor is anything for a sample whose sum is beyond this: int64 would wrap
MAX_REACH = MAX_TOTAL + MAX_TOTAL // 2  # what is added to a sum within MAX_TOTAL carries it no further

#: Sums of ``round(value * 2**40)`` and counts, of some samples, and of a kind of sums that keeps more, that.
Sums = tuple[npt.NDArray[Any], ...]
#: Those of all samples, what was skipped, and what else a kind of sums keeps: what it is made of.
CheckedState = tuple[npt.NDArray[Any], ...]

Kind = TypeVar("Kind", bound="ValueSums")


class ValueSums:
    """What was recorded of N samples, in NumPy arrays or on a torch device: what their mean needs.

    `kcd_core.statistics` has kinds that keep more.

    Parameters
    ----------
    total : int64 [N]
        Sums of ``round(value * 2**40)``.
    count : int32 [N]
    skipped : int64 [2]
        How many values were not recordable, and how many indices lay outside ``0 .. N-1``.
    device : torch device, optional
        Where these lie; None, in NumPy arrays. They are not copied: nobody else may hold them.

    Attributes
    ----------
    keys : tuple of str
        What a state holds.
    largest : str
        Up to which size a value is recorded.
    added : int
        How many times `add` was carried out.
    """

    keys: tuple[str, ...] = ("total", "count", "skipped")
    largest = "2**20"

    def __init__(self, total: Array, count: Array, skipped: Array, *, device: Any = None) -> None:
        self.total, self.count, self.skipped = total, count, skipped
        self.device, self.added = device, 0

    @classmethod
    def zeros(cls: type[Kind], num_samples: int) -> Kind:
        """Nothing recorded, in host memory."""
        return cls(*cls.nothing(num_samples))

    @staticmethod
    def nothing(num_samples: int) -> CheckedState:
        """What these are made of where nothing was recorded."""
        return (np.zeros(num_samples, np.int64), np.zeros(num_samples, np.int32), np.zeros(2, np.int64))

    @property
    def totals(self) -> tuple[Array, ...]:
        """What is added up, as it is held: a sum for each of `powers`."""
        return (self.total,)

    @staticmethod
    def powers(values: Array) -> tuple[Array, ...]:
        """What of ``values`` is added up; the last is the largest where they are large."""
        return (values,)

    @property
    def arrays(self) -> tuple[Array, ...]:
        """Total, count and what was skipped, as they are held, and what else is added to."""
        return self.total, self.count, self.skipped

    def made_of(self: Kind, arrays: Sequence[Array], device: Any = None) -> Kind:
        """Others that hold these `arrays`, and all else that these do."""
        return type(self)(*arrays, device=device)

    def to(self: Kind, device: Any, *, copy: bool = True) -> Kind:
        """A copy on a torch device, or in NumPy arrays with None. Without ``copy``, these are used no more."""
        if device is None:
            arrays = map(to_numpy, self.arrays)
            return self.made_of([x.copy() if copy else x for x in arrays])
        import torch

        try:
            device = torch.device(device)
        except (TypeError, ValueError, RuntimeError) as error:
            wrong = TypeError if isinstance(error, TypeError) else ValueError
            raise wrong(f"device must be a torch device or its name, got {device!r} ({error})") from None
        with torch.inference_mode(False):  # else what is made in inference mode could not be added to
            own = torch_backend().own
            moved = [own(x).to(device, copy=copy) for x in self.arrays]
        # Its own device, with its number: "cuda" would follow whichever device is current.
        return self.made_of(moved, moved[0].device)

    def place(self, values: Array) -> Array:
        """``values``, or logits, where these sums can add them: NumPy arrays, or on the device. Waits for none.

        Raises
        ------
        TypeError
            If they are on a device and the sums are in host memory.
        """
        if self.device is not None:
            return torch_backend().own(values).to(self.device, non_blocking=True)
        if not backend(values).on_host(values):
            kind = values.device.type
            raise TypeError(
                f"the logits are on {values.device} but the tracker is in host memory, and copying them would "
                f"stall every step: use KnowledgeValueTracker(..., device={kind!r}) or tracker.to({kind!r})"
            )
        return to_numpy(values)

    def place_indices(self, indices: Array) -> Array:
        """Indices where these sums can add them, as `place` does with values."""
        if self.device is None or is_tensor(indices):
            return indices
        torch = sys.modules["torch"]
        indices = torch.from_numpy(indices)
        if self.device.type == "cuda" and torch.cuda.is_available():
            indices = indices.pin_memory()  # only from pinned memory does a copy not wait
        return indices.to(self.device, non_blocking=True)

    # -- adding ------------------------------------------------------------------------------------

    def add(self, indices: Array, values: Array) -> None:
        """Add what is recordable, and count the rest. If this raises or is interrupted, nothing has changed.

        A sum on its way to wrapping is not added to. In host memory as many values are added as fit; on a
        device, where all are added at once, those of one sample are refused together if they would carry
        its sum beyond `MAX_REACH`.

        Parameters
        ----------
        indices : int64 array [B]
            In host memory, known to lie in ``0 .. N-1``. On the device, those outside are masked and counted, but
            for `PADDING`, which is masked alone.
        values : real array [B]
        """
        if self.device is None:
            floats = self.place(values).astype(np.float64, copy=False)
            before = [total.take(indices) for total in self.totals]
            self._change(indices, before, lambda: self._add_on_host(indices, floats))
        else:
            with sys.modules["torch"].no_grad():
                indices, before, *more = self._device_sums(indices, values)
            self._change(indices, before, lambda: self._add_on_device(indices, *more))

    def _change(self, indices: Array, sums: Sequence[Array], change: Callable[[], None]) -> None:
        """Make a ``change`` of these samples, whose ``sums`` are given, whole or not at all.

        Totals and count are several arrays, and Ctrl-C may come between two operations. What they held is put
        back then: the same twice is the same once. What is left is a second Ctrl-C while that is done.
        """
        count, skipped, added = self.count.take(indices), self.skipped + 0, self.added
        try:
            change()
            self.added += 1  # an interrupt that comes later changes nothing
        except BaseException:
            for total, before in zip(self.totals, sums, strict=True):
                total[indices] = before
            self.count[indices], self.skipped[:], self.added = count, skipped, added
            raise

    def _add_on_host(self, indices: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> None:
        powers = self.powers(values)
        ok = recordable(powers[-1])
        for total in self.totals:
            ok &= np.abs(total[indices]) <= MAX_TOTAL
        if not ok.all():
            self.skipped[0] += len(ok) - np.count_nonzero(ok)
            indices, values, powers = indices[ok], values[ok], tuple(x[ok] for x in powers)
        if len(values) > 1 and any(np.abs(x).sum() > (MAX_REACH - MAX_TOTAL) / SCALE for x in powers):
            # Recordings of one sample could wrap together: add less at a time.
            half = len(values) // 2
            self._add_on_host(indices[:half], values[:half])
            self._add_on_host(indices[half:], values[half:])
            return
        for total, numbers in zip(self.totals, powers, strict=True):
            np.add.at(total, indices, np.rint(numbers * SCALE).astype(np.int64))
        np.add.at(self.count, indices, np.int32(1))

    def _device_sums(self, indices: Array, values: Array) -> tuple[Any, ...]:
        """Which samples these are, their sums, and what is added to their sums, counts and what was skipped."""
        torch = sys.modules["torch"]
        if is_tensor(indices):
            inside = (indices >= 0) & (indices < len(self.total))
            outside = (inside | (indices == PADDING)).logical_not()
            indices = indices.where(inside, 0)
        else:  # checked when they came in
            indices, inside = self.place_indices(indices), None
        powers = self.powers(self.place(values).double())
        before = [total.take(indices) for total in self.totals]
        ok = powers[-1].abs() <= MAX_VALUE
        for total in before:
            ok = ok & (total.abs() <= MAX_TOTAL)
        recorded = ok if inside is None else ok & inside
        fixed = [(x * SCALE).round().where(recorded, 0) for x in powers]
        # Where the sums would end, in float64, which does not wrap (and is far closer than the room
        # left above MAX_REACH). A sum that ends in range is right: int64 wraps back on the way.
        for total, more in zip(before, fixed, strict=True):
            fits = (total.double() + _sums_by_index(indices, more)).abs() <= MAX_REACH
            ok, recorded = ok & fits, recorded & fits
        whole = [x.where(recorded, 0).long() for x in fixed]
        if inside is None:
            skipped = torch.stack([ok.logical_not().sum(), self.skipped.new_zeros(())])
        else:
            skipped = torch.stack([(inside > ok).sum(), outside.sum()])
        return indices, before, whole, recorded.int(), skipped

    def _add_on_device(self, indices: Array, whole: Sequence[Array], recorded: Array, skipped: Array) -> None:
        for total, more in zip(self.totals, whole, strict=True):
            total.index_add_(0, indices, more)
        self.count.index_add_(0, indices, recorded)
        self.skipped.add_(skipped)

    # -- reading -----------------------------------------------------------------------------------

    def part(self, samples: slice = slice(None)) -> Sums:
        """Total and count of these samples, copied to host memory, and what else is needed for `of_sums`."""
        return to_numpy(self.total[samples]).copy(), to_numpy(self.count[samples]).copy()

    def of_sums(self, sums: Sums, samples: slice = slice(None)) -> tuple[Any, Any]:
        """V, NaN where nothing was recorded, and F of these samples, from what `part` gives, or the sum of several."""
        total, count = sums
        return mean(total, count), count

    def value(self) -> Array:
        """V where it lies: float64 [N], NaN where nothing was recorded."""
        if self.device is None:
            return mean(self.total, self.count)
        return (self.total.double() / SCALE / self.count).where(self.count > 0, float("nan"))

    def recorded(self) -> Array:
        """F where it lies: int32 [N]. A copy."""
        return backend(self.count).copy(self.count)

    def state(self) -> dict[str, Any]:
        """Copies: tensors, NumPy arrays where torch is not installed, and plain numbers."""
        return {
            "total": state_array(to_numpy(self.total)),
            "count": state_array(to_numpy(self.count)),
            "skipped": to_numpy(self.skipped).tolist(),
        }

    # -- states ------------------------------------------------------------------------------------

    @staticmethod
    def checked(state: Mapping[str, Any], num_samples: int) -> CheckedState:
        """The arrays of a state that has all of its `keys`; they are not copied.

        Raises
        ------
        ValueError
            If they are not such as `state` gives of so many samples.
        """
        return _checked_sums(state, num_samples)

    @classmethod
    def joined(cls, states: Sequence[CheckedState], rank: int = 0) -> CheckedState:
        """Of what all ranks recorded, what one of them holds from now on: the sum on the first, nothing on the others.

        Raises
        ------
        ValueError
            As `summed` does.
        """
        everything = summed(states)
        return everything if rank == 0 else cls.nothing(len(everything[0]))


def mean(total: npt.NDArray[np.int64], count: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """V from `KnowledgeValueTracker.sums`: float64 [N], NaN where ``count`` is 0."""
    mean: npt.NDArray[np.float64] = total / SCALE
    np.divide(mean, count, out=mean, where=count > 0)
    mean[count == 0] = np.nan
    return mean


def recordable(values: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which values are finite, and at most 2**20 in size."""
    ok: npt.NDArray[np.bool_] = np.abs(values) <= MAX_VALUE  # False for NaN
    return ok


def _checked_sums(state: Mapping[str, Any], num_samples: int) -> CheckedState:
    total, count = (to_numpy(state[key]) for key in ("total", "count"))
    shape = (num_samples,)
    if total.shape != shape or total.dtype != np.int64 or count.shape != shape or count.dtype != np.int32:
        raise ValueError(
            f"the tracker state is damaged: total and count must be int64 and int32 of shape {shape}, got "
            f"{total.dtype} {total.shape} and {count.dtype} {count.shape}"
        )
    if any(_contradict(total[block], count[block]) for block in blocks(num_samples)):
        raise ValueError("the tracker state is damaged: counts and sums contradict each other")
    skipped = state["skipped"]
    if not isinstance(skipped, list) or [type(x) for x in skipped] != [int, int] or min(skipped) < 0:
        raise ValueError(f"the tracker state is damaged: skipped must be two counts, got {skipped!r}")
    return total, count, np.array(skipped, np.int64)


def _contradict(total: npt.NDArray[np.int64], count: npt.NDArray[np.int32]) -> bool:
    """Whether these can't be sums and counts of the same recordings."""
    return bool(count.min() < 0 or total[count == 0].any())


def summed(states: Sequence[CheckedState]) -> CheckedState:
    """What one tracker would hold that had recorded everything; of one state, its own arrays.

    Raises
    ------
    ValueError
        If there are no states, or if a sample's sum would be beyond 1.5 * 2**22.
    """
    if not states:
        raise ValueError("not a tracker state: an empty list")
    arrays = [*zip(*states, strict=True)]
    for total in (x for x in arrays if x[0].dtype == np.int64):
        for block in blocks(len(total[0])):
            if np.abs(sum(t[block].astype(np.float64) for t in total)).max() > MAX_REACH:
                raise ValueError(
                    "the recorded values are too large to be summed over the ranks: scale them down"
                )
    return states[0] if len(states) == 1 else tuple(sum(x) for x in arrays)


def _sums_by_index(indices: Array, values: Array) -> Array:
    """For each row, the sum of the values of all rows with its index. Waits for no device."""
    ordered, order = indices.sort()
    group = (ordered != ordered.roll(1)).cumsum(0)  # from 0, or from 1 where the first differs from the last
    sums = values.new_zeros(len(values) + 1).index_add_(0, group, values.index_select(0, order))
    return values.new_zeros(len(values)).scatter_(0, order, sums.index_select(0, group))
