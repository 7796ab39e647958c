"""Timing in turns, and what a ratio of two arms' times is known to be."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.stats

from .progress import Progress

__all__ = ["best", "in_turns", "interval", "of_turns"]


def in_turns(
    arms: Mapping[str, Callable[[], Any]], rounds: int, progress: Progress | None = None
) -> dict[str, Any]:
    """Seconds per call, [rounds] for each arm. Arms take turns, so that other load hits all of them."""
    for call in arms.values():
        call()
    times = {name: np.zeros(rounds) for name in arms}
    for number in range(rounds):
        for name, call in arms.items():
            start = time.perf_counter()
            call()
            times[name][number] = time.perf_counter() - start
        if progress is not None:
            progress.at(number + 1, rounds)
    return times


def best(times: Any) -> float:
    """Seconds of the best turn. What else runs on the machine only ever adds."""
    return float(np.min(times))


def interval(ratios: Any) -> tuple[float, float] | None:
    """Of the median, 95 % at least, whatever the distribution: between two of the ratios. None of fewer than six.

    The median lies below the k-th smallest of n with the chance that fewer than k of n coins show heads.
    """
    place = int(scipy.stats.binom.ppf(0.025, len(ratios), 0.5))
    if not place:
        return None
    ordered = np.sort(ratios)
    return float(ordered[place - 1]), float(ordered[-place])


def of_turns(own: Any, base: Any) -> dict[str, Any]:
    """For `Report.add`: the median of the turns' own ratios, its interval, and how many turns there were."""
    ratios = np.asarray(own) / np.asarray(base)
    return {"ratio": float(np.median(ratios)), "interval": interval(ratios), "rounds": len(ratios)}
