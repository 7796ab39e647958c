"""Exact ranks at the cut points, without a full sort.

A *ranking* puts the highest score first and breaks ties by the lower index. Only three places of it
are ever needed (the cut, and the ends of the window around it), so ``np.partition`` finds the scores
there in O(N), and only what lies strictly inside the window is sorted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["rank_scores", "rank_window", "scores_at_ranks", "top"]

Scores = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


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
    """
    # One power per distinct count instead of one per point: counts are small integers.
    powers = np.arange(int(count.max()) + 1, dtype=np.float64) ** alpha
    score: Scores = np.take(powers, count)
    score *= value
    score[count == 0] = np.inf
    return score


def scores_at_ranks(score: Scores, ranks: list[int]) -> list[float]:
    """The scores at the given 0-based ranks, highest first."""
    n = len(score)
    places = [n - 1 - rank for rank in ranks]
    ordered = np.partition(score, sorted(set(places)))
    return [float(ordered[place]) for place in places]


def top(score: Scores, size: int, cut: float) -> Indices:
    """The indices of ranks ``0 .. size-1``, ascending. ``cut`` is the score at rank ``size-1``."""
    keep = score > cut
    short = size - int(np.count_nonzero(keep))
    keep[np.flatnonzero(score == cut)[:short]] = True
    return np.flatnonzero(keep).astype(np.int64, copy=False)


def rank_window(score: Scores, start: int, stop: int, high: float, low: float) -> Indices:
    """The indices of ranks ``start .. stop-1``, in ranking order.

    ``high`` and ``low`` are the scores at ranks ``start`` and ``stop-1``. Points tied with one of
    them are taken by index and never sorted, so a crowd of equal scores costs nothing.
    """
    above = int(np.count_nonzero(score > high))  # ranks before the ties with ``high``
    ties = np.flatnonzero(score == high)
    if high == low:
        return ties[start - above : stop - above]
    inside = np.flatnonzero((score < high) & (score > low))
    inside = inside[np.argsort(-score[inside], kind="stable")]
    first = ties[start - above :]
    last = np.flatnonzero(score == low)[: stop - start - len(first) - len(inside)]
    return np.concatenate([first, inside, last]).astype(np.int64, copy=False)
