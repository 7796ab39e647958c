"""How a sample's value is made from its recordings: their mean, the mean of a window of them, or their variance.

A tracker keeps one kind of sums, `ValueSums` by default. The others keep more: `SquaredSums` a second sum, and
`WindowSums` what was found in the windows that are over.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .base import distributed
from .base.arguments import checked_choice
from .base.arrays import Array, state_array, to_numpy
from .sums import CheckedState, Sums, ValueSums, mean

__all__ = [
    "AT_ONCE",
    "KINDS",
    "WINDOWS",
    "Settled",
    "SquaredSums",
    "StatisticName",
    "WindowSums",
    "check_wanted",
    "over_ranks",
    "settled",
    "wanted",
]

StatisticName = Literal["mean", "stage_mean", "last", "variance"]

AT_ONCE = 1 << 18  # samples whose sums are copied, and sent to other ranks, together

#: At the end of what a window of recordings ends, by the statistic.
WINDOWS = {"stage_mean": "stage", "last": "epoch"}


class SquaredSums(ValueSums):
    """Also sums of the values' squares, for their variance.

    Parameters
    ----------
    squares : int64 [N]
        Sums of ``round(value**2 * 2**40)``. A value whose square is larger than `ValueSums` takes is not recorded.
    """

    keys = (*ValueSums.keys, "squares")
    largest = "2**10"

    def __init__(
        self, total: Array, count: Array, skipped: Array, squares: Array, *, device: Any = None
    ) -> None:
        super().__init__(total, count, skipped, device=device)
        self.squares = squares

    @staticmethod
    def nothing(num_samples: int) -> CheckedState:
        return *ValueSums.nothing(num_samples), np.zeros(num_samples, np.int64)

    @property
    def totals(self) -> tuple[Array, ...]:
        return self.total, self.squares

    @staticmethod
    def powers(values: Array) -> tuple[Array, ...]:
        with np.errstate(over="ignore"):
            return values, values * values

    @property
    def arrays(self) -> tuple[Array, ...]:
        return *super().arrays, self.squares

    def part(self, samples: slice = slice(None)) -> Sums:
        return *super().part(samples), to_numpy(self.squares[samples]).copy()

    def of_sums(self, sums: Sums, samples: slice = slice(None)) -> tuple[Any, Any]:
        total, count, squares = sums
        # Rounding may leave less than nothing of recordings that are all the same.
        return np.maximum(mean(squares, count) - mean(total, count) ** 2, 0), count

    def value(self) -> Array:
        return _placed(self.of_sums(self.part())[0], self.device)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "squares": state_array(to_numpy(self.squares))}

    @staticmethod
    def checked(state: Mapping[str, Any], num_samples: int) -> CheckedState:
        total, count, skipped = ValueSums.checked(state, num_samples)
        squares = to_numpy(state["squares"])
        if squares.shape != (num_samples,) or squares.dtype != np.int64:
            raise ValueError(
                f"the tracker state is damaged: squares must be int64 of shape {(num_samples,)}, got "
                f"{squares.dtype} {squares.shape}"
            )
        if squares.min() < 0 or squares[count == 0].any():
            raise ValueError("the tracker state is damaged: counts and squares contradict each other")
        return total, count, skipped, squares


class WindowSums(ValueSums):
    """The sums of a window of recordings, and for each sample, what was found in the last window that had some of it.

    Parameters
    ----------
    total, count, skipped, device
        See `ValueSums`. Sums and counts are those of this rank, in the window that has not ended.
    held : float64 [N], in host memory
        The mean over all ranks in the last window that ended with recordings of the sample; NaN where none did.
    held_count : int32 [N], in host memory
        How many recordings all ranks made in windows that ended. Neither array is ever changed.
    """

    keys = (*ValueSums.keys, "held", "held_count")

    def __init__(
        self,
        total: Array,
        count: Array,
        skipped: Array,
        held: npt.NDArray[np.float64],
        held_count: npt.NDArray[np.int32],
        *,
        device: Any = None,
    ) -> None:
        super().__init__(total, count, skipped, device=device)
        self.held, self.held_count = held, held_count

    @staticmethod
    def nothing(num_samples: int) -> CheckedState:
        held = np.full(num_samples, np.nan), np.zeros(num_samples, np.int32)
        return *ValueSums.nothing(num_samples), *held

    def made_of(self, arrays: Sequence[Array], device: Any = None) -> WindowSums:
        total, count, skipped = arrays
        return type(self)(total, count, skipped, self.held, self.held_count, device=device)

    def of_sums(self, sums: Sums, samples: slice = slice(None)) -> tuple[Any, Any]:
        total, count = sums
        value = np.where(count > 0, mean(total, count), self.held[samples])
        return value, self.held_count[samples] + count

    def value(self) -> Array:
        return _placed(self.of_sums(self.part())[0], self.device)

    def recorded(self) -> Array:
        return _placed(self.of_sums(self.part())[1], self.device)

    def state(self) -> dict[str, Any]:
        return {
            **super().state(),
            "held": state_array(self.held),
            "held_count": state_array(self.held_count),
        }

    @staticmethod
    def checked(state: Mapping[str, Any], num_samples: int) -> CheckedState:
        held, count = to_numpy(state["held"]), to_numpy(state["held_count"])
        shape = (num_samples,)
        if held.shape != shape or held.dtype != np.float64 or count.shape != shape or count.dtype != np.int32:
            raise ValueError(
                f"the tracker state is damaged: held and held_count must be float64 and int32 of shape {shape}, got "
                f"{held.dtype} {held.shape} and {count.dtype} {count.shape}"
            )
        if count.min() < 0 or not np.array_equal(np.isfinite(held), count > 0):
            raise ValueError(
                "the tracker state is damaged: what is held and its counts contradict each other"
            )
        return *ValueSums.checked(state, num_samples), held.copy(), count.copy()

    @classmethod
    def joined(cls, states: Sequence[CheckedState], rank: int = 0) -> CheckedState:
        current = ValueSums.joined([state[:3] for state in states], rank)
        held, held_count = states[0][3:]
        for _, _, _, other, others_count in states[1:]:
            if not (np.array_equal(held, other, equal_nan=True) and np.array_equal(held_count, others_count)):
                raise ValueError(
                    "these tracker states were not saved at one step: windows of others have ended in them"
                )
        return *current, held, held_count

    def digest(self) -> str:
        """A short name of what is held."""
        return hashlib.sha256(self.held.tobytes() + self.held_count.tobytes()).hexdigest()

    def without(
        self, window: ValueSums, held: npt.NDArray[np.float64], held_count: npt.NDArray[np.int32]
    ) -> WindowSums:
        """What is left when ``window`` has ended, in new arrays: what was recorded since it was copied."""
        torch = sys.modules.get("torch")
        with nullcontext() if self.device is None or torch is None else torch.inference_mode(False):
            left = self.total - window.total, self.count - window.count, self.skipped + 0
        return type(self)(*left, held, held_count, device=self.device)


#: The sums that each statistic needs.
KINDS: dict[str, type[ValueSums]] = {
    "mean": ValueSums,
    "stage_mean": WindowSums,
    "last": WindowSums,
    "variance": SquaredSums,
}


class Settled(NamedTuple):
    """A window over all ranks: what of it is this rank's, and what every rank holds when it has ended."""

    window: WindowSums
    held: npt.NDArray[np.float64]
    held_count: npt.NDArray[np.int32]

    def apply(self, sums: ValueSums) -> WindowSums:
        """``sums`` after the end of the window."""
        if not isinstance(sums, WindowSums):
            raise TypeError(f"{type(sums).__name__} has no windows")
        return sums.without(*self)


def settled(copied: Callable[[], WindowSums], group: Any) -> Settled:
    """What the end of a window changes; all ranks meet in it.

    ``copied``: gives a copy of this rank's sums.
    """
    window = distributed.together(copied, group)
    n = len(window.held)
    held, count = np.empty(n), np.empty(n, np.int32)
    for start in range(0, n, AT_ONCE):
        block = slice(start, start + AT_ONCE)
        held[block], count[block] = window.of_sums(over_ranks(partial(window.part, block), group), block)
    return Settled(window, held, count)


def over_ranks(part: Callable[[], Sums], group: Any) -> Sums:
    """The sum over all ranks of what ``part`` gives on each, or an error on every one of them."""

    def sums() -> Sums:
        given = part()
        for total in (x for x in given if x.dtype == np.int64 and len(x)):
            if max(int(total.max()), -int(total.min())) > 2**63 // distributed.world_size(group) - 1:
                raise ValueError(
                    "the recorded values are too large to be summed over the ranks: scale them down"
                )
        return given

    # on_nonfinite="raise" on a device, or a warning that is an error, may be one rank's alone
    return tuple(distributed.sum_over_ranks(*distributed.together(sums, group), group=group))


def wanted(statistic: StatisticName | None, select: Any) -> StatisticName:
    """The statistic that is given; else the one that ``select`` wants; else the mean."""
    if statistic is None:
        statistic = getattr(select, "statistic", None) or "mean"
    checked: StatisticName = checked_choice(statistic, "statistic", tuple(KINDS))
    return checked


def check_wanted(statistic: StatisticName, select: Any) -> None:
    """ValueError if ``select`` wants another statistic than that of a tracker that is there already."""
    if getattr(select, "statistic", None) is not None and (wish := wanted(None, select)) != statistic:
        raise ValueError(
            f"select={select!r} is for values of statistic {wish!r}, and the tracker's is {statistic!r}: see the "
            "tracker's setting statistic="
        )


def _placed(x: npt.NDArray[Any], device: Any) -> Array:
    """An array where the sums are."""
    return x if device is None else sys.modules["torch"].from_numpy(x).to(device)
