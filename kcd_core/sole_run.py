"""That the stages of one run alone end the windows of a tracker with statistic "stage_mean".

A run is refused as it is used, and not as it is made: where a notebook's cell makes a run anew, the one before is often
still there, and of no harm.
"""

from __future__ import annotations

import gc
from typing import Any
from weakref import WeakKeyDictionary, ref

from .tracker import KnowledgeValueTracker

__all__ = ["check_sole", "note_made"]

#: The run that was made last with a tracker, while it is there.
_LAST: WeakKeyDictionary[KnowledgeValueTracker, ref[Any]] = WeakKeyDictionary()


def note_made(run: Any) -> None:
    """Take note of a run that was made, other than one whose epochs another ends."""
    if not run.beside:
        _LAST[run.tracker] = ref(run)


def check_sole(run: Any) -> None:
    """RuntimeError if the run is used although another was made after it whose stages end the same windows."""
    if run.beside or run.tracker.window != "stage" or _is_last(run):
        return
    gc.collect()  # one that nobody holds any more may refer to itself
    if not _is_last(run):
        raise RuntimeError(
            f"this run can't continue, since another was made after it with its tracker, {run.tracker!r}: with this statistic, "
            "the end of a stage ends a window of the tracker, so each run needs a tracker of its own. If the other was "
            "made in its place, continue with that"
        )


def _is_last(run: Any) -> bool:
    last = _LAST.get(run.tracker)
    return last is None or last() in (None, run)
