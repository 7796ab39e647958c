"""What all ranks recorded, taken together: as scores to rank by, or as sums; or why no stage can end."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .algorithms.ranks import Scores, rank_scores
from .base import distributed
from .history import MOST
from .sums import Sums
from .tracker import KnowledgeValueTracker

__all__ = ["nothing_recorded", "scores_of_all", "sums_of_all"]

AT_ONCE = 1 << 18  # samples whose sums are copied, and sent to other ranks, together


def scores_of_all(
    tracker: KnowledgeValueTracker, alpha: float, group: Any
) -> tuple[Scores, npt.NDArray[np.float64], npt.NDArray[np.int32], int]:
    """`sums_of_all` as ranking scores, +inf where never recorded; made some at a time, so that these alone are held.

    Beside them, for the history: value and count of every k-th sample, and how many samples were never recorded.
    """
    n, every = tracker.num_samples, -(-tracker.num_samples // MOST)
    some = -(-n // every)
    score, values, counts, unseen = np.empty(n), np.empty(some), np.empty(some, np.int32), 0
    for start in range(0, n, AT_ONCE):
        total, count = part_of_all(tracker, slice(start, start + AT_ONCE), group)
        value = tracker.mean(total, count)
        score[start : start + AT_ONCE] = rank_scores(value, count, alpha, first=start)
        looked_at = slice(-(-start // every), -(-(start + len(value)) // every))
        values[looked_at], counts[looked_at] = (x[-start % every :: every] for x in (value, count))
        unseen += int(np.count_nonzero(count == 0))
    if unseen == n:
        raise nothing_recorded(tracker, group)
    return score, values, counts, unseen


def sums_of_all(tracker: KnowledgeValueTracker, group: Any) -> Sums:
    """The tracker's sums over all ranks, or an error on every one of them."""
    total, count = part_of_all(tracker, slice(None), group)
    if not count.any():
        raise nothing_recorded(tracker, group)
    return total, count


def part_of_all(tracker: KnowledgeValueTracker, part: slice, group: Any) -> Sums:
    """The sums of these samples over all ranks, or an error on every one of them."""

    def sums() -> Sums:
        total, count = tracker.sums(part)
        if max(int(total.max()), -int(total.min())) > 2**63 // distributed.world_size(group) - 1:
            raise ValueError("the recorded values are too large to be summed over the ranks: scale them down")
        return total, count

    # on_nonfinite="raise" on a device, or a warning that is an error, may be one rank's alone
    total, count = distributed.sum_over_ranks(*distributed.together(sums, group), group=group)
    return total, count


def nothing_recorded(tracker: KnowledgeValueTracker, group: Any) -> RuntimeError:
    """Why no stage can end: an error that says what became of the recordings. All ranks meet in it."""
    (skipped,) = distributed.sum_over_ranks(np.array([*tracker.skipped.values()], np.int64), group=group)
    nonfinite, out_of_range = skipped.tolist()
    if nonfinite:
        return RuntimeError(
            f"a stage ends, but no value was ever recorded: all {nonfinite} predictions of the student were not "
            "finite (a learning rate that is too high, or half precision?)"
        )
    if out_of_range:
        return RuntimeError(
            f"a stage ends, but no value was ever recorded: all {out_of_range} had an index outside the data set"
        )
    return RuntimeError(
        "a stage ends, but no value was ever recorded: call record(student_logits) after the "
        "student's forward pass"
    )
