"""What all ranks recorded, taken together: as scores to rank by, or as values; or why no stage can end."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from .algorithms.ranks import Scores, rank_scores
from .base import distributed
from .history import MOST
from .statistics import AT_ONCE, over_ranks
from .tracker import KnowledgeValueTracker

__all__ = ["nothing_recorded", "scores_of_all", "values_of_all"]


def scores_of_all(
    tracker: KnowledgeValueTracker, alpha: float, group: Any
) -> tuple[Scores, npt.NDArray[np.float64], npt.NDArray[np.int32], int]:
    """`values_of_all` as ranking scores, +inf where never recorded; made some at a time, so that these alone are held.

    Beside them, for the history: value and count of every k-th sample, and how many samples were never recorded.
    """
    n, every = tracker.num_samples, -(-tracker.num_samples // MOST)
    some = -(-n // every)
    score, values, counts, unseen = np.empty(n), np.empty(some), np.empty(some, np.int32), 0
    for start in range(0, n, AT_ONCE):
        value, count = part_of_all(tracker, slice(start, start + AT_ONCE), group)
        score[start : start + AT_ONCE] = rank_scores(value, count, alpha, first=start)
        looked_at = slice(-(-start // every), -(-(start + len(value)) // every))
        values[looked_at], counts[looked_at] = (x[-start % every :: every] for x in (value, count))
        unseen += int(np.count_nonzero(count == 0))
    if unseen == n:
        raise nothing_recorded(tracker, group)
    return score, values, counts, unseen


def values_of_all(
    tracker: KnowledgeValueTracker, group: Any
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]:
    """V and F over all ranks, or an error on every one of them."""
    value, count = part_of_all(tracker, slice(None), group)
    if not count.any():
        raise nothing_recorded(tracker, group)
    return value, count


def part_of_all(
    tracker: KnowledgeValueTracker, part: slice, group: Any
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]:
    """V and F of these samples over all ranks, or an error on every one of them."""
    return tracker.of_sums(over_ranks(partial(tracker.sums, part), group), part)


def nothing_recorded(tracker: KnowledgeValueTracker, group: Any) -> RuntimeError:
    """Why no stage can end: an error that says what became of the recordings. All ranks meet in it."""
    (skipped,) = distributed.sum_over_ranks(np.array([*tracker.skipped.values()], np.int64), group=group)
    nonfinite, out_of_range = skipped.tolist()
    if nonfinite:
        return RuntimeError(
            f"a stage ends, but no value was ever recorded: all {nonfinite} predictions of the student were not "
            "finite. Is the learning rate too high, or is it half precision? Or are classes masked with -inf? Mask them "
            "with a finite number such as -1e4, or record values= of your own"
        )
    if out_of_range:
        return RuntimeError(
            f"a stage ends, but no value was ever recorded: all {out_of_range} had an index outside the data set"
        )
    return RuntimeError(
        "a stage ends, but no value was ever recorded: call record(student_logits) after the "
        "student's forward pass"
    )
