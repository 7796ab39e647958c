"""Exact ranks at the cut points, without a full sort.

A *ranking* puts the highest score first and breaks ties by the lower index. Only three places of it
are ever needed (the cut, and the ends of the window around it), so a partition finds the scores there
in O(N), and only the window is sorted. What runs over all samples runs in blocks that fit the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["blocks", "ordinal", "rank_scores", "rank_window", "scores_at_ranks", "top"]

Scores = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_BLOCK = 1 << 16
_TABLE = 1 << 20  # counts beyond this are no training run's


def rank_scores(value: npt.NDArray[Any], count: npt.NDArray[Any], alpha: float) -> Scores:
    """The cost-aware ranking score ``V * F ** alpha`` (KCD, section 3.2), +inf where F is 0.

    Parameters
    ----------
    value : floating array [N]
    count : integer array [N], at least 0
    alpha : float, at least 0

    Returns
    -------
    float64 array [N]

    Raises
    ------
    ValueError
        If a count is negative, a sample with F > 0 has a value that is not finite, or ``alpha`` is so large
        that a score is not finite.
    """
    # One power per distinct count instead of one per sample: counts are small integers.
    highest = max(0, int(count.max()))
    score: Scores = np.empty(len(value))
    finite = True
    # Where F is 0, the value may be anything; what overflows is seen to below.
    with np.errstate(invalid="ignore", over="ignore"):
        powers = np.arange(highest + 1, dtype=np.float64) ** alpha if highest < _TABLE else None
        for block in blocks(len(value)):
            part, counted = score[block], count[block]
            if powers is None:
                part[:] = counted.astype(np.float64) ** alpha  # as in the table, to the bit
            else:  # every count is inside the table; "clip" only spares the buffer that "raise" needs
                np.take(powers, counted.astype(np.intp, copy=False), out=part, mode="clip")
            part *= value[block]
            finite = finite and bool(np.isfinite(part).all())
            lowest = counted.min()
            if lowest < 0:
                raise ValueError("count must not be negative")
            if lowest == 0:
                part[counted == 0] = np.inf
    if not finite:
        _check_finite(value, count, score, alpha)
    return score


def _check_finite(value: npt.NDArray[Any], count: npt.NDArray[Any], score: Scores, alpha: float) -> None:
    wrong = ~np.isfinite(value)
    wrong &= count > 0
    if wrong.any():
        raise ValueError(
            f"value must be finite where count > 0; {int(wrong.sum())} samples are not, "
            f"the first at index {int(wrong.argmax())}"
        )
    wrong = ~np.isfinite(score)
    wrong &= count > 0
    if wrong.any():
        first = int(wrong.argmax())
        raise ValueError(
            f"alpha = {alpha} is too large: value * count ** alpha is not finite at {int(wrong.sum())} samples, "
            f"the first at index {first} (value {value[first]}, count {count[first]})"
        )


def scores_at_ranks(score: Scores, ranks: list[int]) -> list[float]:
    """The scores at the given 0-based ranks."""
    n = len(score)
    ordered, end = score.copy(), n
    for place in sorted({n - 1 - rank for rank in ranks}, reverse=True):
        ordered[:end].partition(place)  # what lies above the last place is in its place already
        end = place
    return [float(ordered[n - 1 - rank]) for rank in ranks]


def top(score: Scores, size: int, cut: float) -> Indices:
    """The indices of ranks ``0 .. size-1``, ascending. ``cut`` is the score at rank ``size-1``."""
    keep = score >= cut
    surplus = int(np.count_nonzero(keep)) - size
    if surplus:
        keep[np.flatnonzero(score == cut)[-surplus:]] = False
    return np.flatnonzero(keep).astype(np.int64, copy=False)


def rank_window(score: Scores, start: int, stop: int, high: float, low: float) -> Indices:
    """The indices of ranks ``start .. stop-1``, in ranking order.

    ``high`` and ``low`` are the scores at ranks ``start`` and ``stop-1``. Samples tied with one of
    them but outside the window are taken out by index and never sorted, so a crowd of equal scores
    costs little.
    """
    inside = np.empty(len(score), bool)
    for block in blocks(len(score)):
        np.logical_and(score[block] >= low, score[block] <= high, out=inside[block])
    surplus = int(np.count_nonzero(inside)) - (stop - start)
    if surplus:
        before = start - int(np.count_nonzero(score > high))  # ties with ``high`` ranked before it
        inside[np.flatnonzero(score == high)[:before]] = False
        if surplus > before:
            inside[np.flatnonzero(score == low)[before - surplus :]] = False
    return _in_ranking_order(score, inside, stop - start, high, low)


def _in_ranking_order(score: Scores, inside: Mask, size: int, high: float, low: float) -> Indices:
    """The indices where ``inside`` is set, in ranking order. ``high`` and ``low``: the ends of their scores.

    Sorts integers, which hold the score's distance from ``high`` in their upper bits and the index in
    the lower ones: several times faster than an ``argsort``, and stable. Where the distance has not
    enough bits to tell scores apart, the few samples concerned are sorted again.
    """
    first, last = (int(ordinal(np.array([x]))[0]) for x in (high, low))
    index_bits = (len(score) - 1).bit_length()
    lost_bits = max(0, (first - last).bit_length() + index_bits - 64)
    keys = np.empty(size, np.uint64)
    filled = 0
    for block in blocks(len(score)):
        places = np.flatnonzero(inside[block])
        key = (first - ordinal(score[block][places])).view(np.uint64)
        key >>= np.uint64(lost_bits)
        key <<= np.uint64(index_bits)
        places += block.start
        key |= places.view(np.uint64)
        keys[filled : filled + len(key)] = key
        filled += len(key)
    keys.sort()
    level = keys >> np.uint64(index_bits)
    keys &= np.uint64((1 << index_bits) - 1)
    order: Indices = keys.view(np.int64)
    if lost_bits:
        same = level[1:] == level[:-1]
        again = np.zeros(size, bool)
        again[1:] = same
        again[:-1] |= same
        places = np.flatnonzero(again)
        some = order[places]
        order[places] = some[np.lexsort((-score[some], level[places]))]
    return order


def ordinal(x: Scores) -> npt.NDArray[np.int64]:
    """Integers in the order of the floats, equal for equal ones: IEEE's bits, mirrored where negative."""
    bits = (x + 0.0).view(np.int64)  # -0.0 + 0.0 is 0.0
    bits ^= (bits >> 63) & np.int64(2**63 - 1)
    return bits


def blocks(length: int) -> Iterator[slice]:
    """``range(length)`` in slices, each of which fits the cache."""
    return (slice(start, min(start + _BLOCK, length)) for start in range(0, length, _BLOCK))
