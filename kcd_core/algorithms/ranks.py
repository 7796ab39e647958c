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

__all__ = ["around", "blocks", "ordinal", "rank_scores", "rank_window", "scores_at_ranks", "top"]

Scores = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_BLOCK = 1 << 16
_TABLE = 1 << 20  # counts beyond this are no training run's


def rank_scores(value: npt.NDArray[Any], count: npt.NDArray[Any], alpha: float, first: int = 0) -> Scores:
    """The cost-aware ranking score ``V * F ** alpha`` (KCD, section 3.2), +inf where F is 0.

    Parameters
    ----------
    value : floating array [N]
    count : integer array [N], at least 0
    alpha : float, at least 0
    first : int
        Which sample the first is, for errors.

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
        _check_finite(value, count, score, alpha, first)
    return score


def _check_finite(
    value: npt.NDArray[Any], count: npt.NDArray[Any], score: Scores, alpha: float, first: int
) -> None:
    wrong = ~np.isfinite(value)
    wrong &= count > 0
    if wrong.any():
        raise ValueError(
            f"value must be finite where count > 0; {int(wrong.sum())} samples are not, "
            f"the first at index {first + int(wrong.argmax())}"
        )
    wrong = ~np.isfinite(score)
    wrong &= count > 0
    if wrong.any():
        place = int(wrong.argmax())
        raise ValueError(
            f"alpha = {alpha} is too large: value * count ** alpha is not finite at {int(wrong.sum())} samples, "
            f"the first at index {first + place} (value {value[place]}, count {count[place]})"
        )


def around(score: Scores, first: int, last: int, some: int = 1 << 14) -> tuple[Indices | slice, int]:
    """Samples among which those of ranks ``first .. last`` are, and how many rank before all of them.

    Few where there are many samples: they lie between two scores of ``some`` samples at equal distances. All, if they
    are not few, which is so where much is tied, or if those samples mislead.

    Returns
    -------
    int64 array [n], ascending, or ``slice(None)`` for all
    int
    """
    n = len(score)
    everything = slice(None), 0
    if n < 16 * some:
        return everything
    ordered = np.sort(score[:: -(-n // some)])
    share, slack = len(ordered) / n, 2 * int(len(ordered) ** 0.5)  # four standard deviations at most
    below, above = len(ordered) - 1 - int(last * share) - slack, len(ordered) - 1 - int(first * share) + slack
    low = ordered[below] if below >= 0 else -np.inf
    high = ordered[above] if above < len(ordered) else np.inf
    places: list[Indices] = []
    found = before = 0
    for block in blocks(n):
        part = score[block]
        before += int(np.count_nonzero(part > high))
        places.append(np.flatnonzero((part >= low) & (part <= high)) + block.start)
        found += len(places[-1])
        if found > n // 4:
            return everything
    return (np.concatenate(places), before) if before <= first and last < before + found else everything


def scores_at_ranks(score: Scores, ranks: list[int]) -> list[float]:
    """The scores at the given 0-based ranks."""
    n = len(score)
    ordered, end = score.copy(), n
    for place in sorted({n - 1 - rank for rank in ranks}, reverse=True):
        ordered[:end].partition(place)  # what lies above the last place is in its place already
        end = place
    return [float(ordered[n - 1 - rank]) for rank in ranks]


def top(score: Scores, size: int, cut: float) -> Mask:
    """Which samples have ranks ``0 .. size-1``. ``cut`` is the score at rank ``size-1``."""
    keep = np.empty(len(score), bool)
    for block, above in _above(score, size, cut):
        keep[block] = above
    return keep


def _above(score: Scores, size: int, cut: float) -> Iterator[tuple[slice, Mask]]:
    """Block by block, which samples have ranks ``0 .. size-1``; ``cut`` is the score at rank ``size-1``, or ``size``."""
    ties = size - sum(int(np.count_nonzero(score[block] > cut)) for block in blocks(len(score)))
    for block in blocks(len(score)):
        part = score[block]
        above = part > cut
        if ties:
            tied = np.flatnonzero(part == cut)[:ties]
            above[tied] = True
            ties -= len(tied)
        yield block, above


def rank_window(score: Scores, start: int, stop: int, high: float, low: float) -> Indices:
    """The indices of ranks ``start .. stop-1``, in ranking order.

    ``high`` and ``low`` are the scores at ranks ``start`` and ``stop-1``. Samples tied with one of
    them but outside the window are taken out by index and never sorted, so a crowd of equal scores
    costs little.

    Sorts integers, which hold the score's distance from ``high`` in their upper bits and the index in
    the lower ones: several times faster than an ``argsort``, and stable. Where the distance has not
    enough bits to tell scores apart, the few samples concerned are sorted again.
    """
    first, last = (int(ordinal(np.array([x]))[0]) for x in (high, low))
    index_bits = (len(score) - 1).bit_length()
    lost_bits = max(0, (first - last).bit_length() + index_bits - 64)
    keys = np.empty(stop - start, np.uint64)
    filled = 0
    for (block, inner), (_, outer) in zip(_above(score, start, high), _above(score, stop, low), strict=True):
        places = np.flatnonzero(outer > inner)
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
        again = np.zeros(len(keys), bool)
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
