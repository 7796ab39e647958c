"""Which batch the logits belong to, and up to where an epoch is done: what was yielded is set against what was recorded.

Positions are global: samples that all ranks together have drawn in an epoch.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch

from ..base.users_line import warn

__all__ = ["Drawn", "Pass", "Place"]

HINT = "; or pass indices= (see return_index)"
WAITING = 256  # batches of a pass that are remembered until they are recorded


class Drawn(NamedTuple):
    """A batch that was yielded.

    Attributes
    ----------
    indices : int64 array [B]
    begin, end : int
        Its positions.
    held : weakref.ref or None
        Its largest array: alive for as long as somebody holds it.
    """

    indices: Any
    begin: int
    end: int
    held: weakref.ref[Any] | None


class Pass:
    """What was yielded and recorded in one iteration over a loader.

    Attributes
    ----------
    place : Place
        That of the epoch it is a pass of.
    end : int
        Up to which it has yielded.
    owed : deque of Drawn
        The batches yielded since the last one that was recorded.
    exhausted : bool
        Whether a batch was asked for after the last one.
    in_step : bool
        Whether an earlier pass was recorded batch by batch: then this loop is no prefetcher's, and a first batch
        without a record was skipped.
    """

    def __init__(self, place: Place, in_step: bool = False) -> None:
        self.place, self._in_step = place, in_step
        self.end = self._settled = place.start
        self.owed: deque[Drawn] = deque(maxlen=WAITING)
        self.exhausted = False
        self._yielded = self._records = self._passed_over = self._lost = self._thread = 0
        self._ahead = self._by_indices = self._look = False

    def note_batch(self, indices: Any, positions: int, batch: Any) -> None:
        """The next batch was yielded."""
        recording = self.place.recording
        self._look = (
            self._yielded == 0 and recording is not None and recording is not self and not recording.owed
        )
        begin = self.next
        self.end, self._lost = begin + positions, 0
        self.owed.append(Drawn(indices, begin, self.end, _largest(batch)))
        self._yielded += 1
        self._thread = threading.get_ident()
        self.place.current, self.place.last = self, indices
        self.place.reached = max(self.place.reached, self.end)

    @property
    def next(self) -> int:
        """Where the next batch begins."""
        return self.end + self._lost

    def note_loss(self, positions: int) -> None:
        """A batch could not be fetched: passed over if the caller continues, drawn again if it resumes here."""
        self._lost += positions

    def note_record(self, drawn: Drawn, *, by_indices: bool) -> None:
        """A batch that was owed is recorded; those before it were passed over. An interrupted call can be repeated."""
        self.note_done(drawn, by_indices=by_indices)
        self.place.recorded = drawn.end

    def note_done(self, drawn: Drawn, *, by_indices: bool) -> None:
        """A batch owes no record any more."""
        self._settled, self._by_indices = drawn.end, by_indices
        self.place.recording = self
        self._records += 1
        later = [one for one in self.owed if one.begin > drawn.begin]
        self._passed_over += max(0, len(self.owed) - len(later) - 1)
        self._ahead |= bool(later)
        self.owed = deque(later, WAITING)

    @property
    def position(self) -> int:
        """Up to which a resumed run draws nothing again: all but the last batch, if that owes its record.

        Where records come with indices, a batch that is owed may have been fetched ahead: up to what is recorded.
        """
        if self._by_indices or not self.owed:
            return self._settled
        return self.end if self.exhausted else self.owed[-1].begin

    def holding(self, index: int) -> Drawn | None:
        """The batch that owes its record and has this sample."""
        return next((drawn for drawn in self.owed if (drawn.indices == index).any()), None)

    def check(
        self, others: Iterable[Pass], left: Callable[[int], int], on_device: Callable[[], bool]
    ) -> Drawn:
        """The batch yielded last; RuntimeError unless it is beyond doubt that it is what is recorded now.

        ``others`` are the passes that somebody still holds; ``left`` gives the batches from a position on; ``on_device``
        tells whether batches may be copied to a device.
        """
        if not self.owed:
            raise RuntimeError(self._nothing_owed() + HINT)
        last = self.owed[-1]
        if self._thread != threading.get_ident():
            raise RuntimeError(
                "record() can't tell which batch the logits belong to: another thread fetched the last one, and "
                "may be ahead" + HINT
            )
        for other in others:
            # One batch, taken while this pass owed none: a look, whose iterator is kept in a variable.
            if other is self or (other._look and self is self.place.recording):
                continue
            # The first batches of two passes are one and the same.
            same = other.place is self.place and other.owed and other.owed[-1].begin == last.begin
            if other.owed and not other.exhausted and not same:
                raise RuntimeError(
                    "record() can't tell which batch the logits belong to: a second iteration was started while "
                    "a batch of the first was not recorded yet, or two are read in turns" + HINT
                )
        if self._ahead or len(self.owed) > 1:
            self._check_earlier(last, on_device)
        self.place.check_once(self, last, left)
        return last

    def _earlier(self) -> list[Drawn]:
        """The batches that owe a record, but for the last; one of no samples, which were all None, has none."""
        return [one for one in [*self.owed][:-1] if len(one.indices)]

    @property
    def ahead(self) -> bool:
        """Whether the batch yielded last was seen not to be the one that the caller is at."""
        fetched = any(_alive(one, self.owed[-1]) for one in self._earlier())
        return self._ahead or fetched or self._thread != threading.get_ident()

    def _check_earlier(self, last: Drawn, on_device: Callable[[], bool]) -> None:
        """RuntimeError unless the batches yielded before the ``last``, and not recorded, were skipped."""
        earlier = self._earlier()
        # A prefetcher that fetches ahead from the start may hold copies on a device alone, so there, two are one too many.
        first = self._records == 0 and not self._in_step
        hidden = first and earlier and (on_device() or any(one.held is None for one in earlier))
        if self._ahead or hidden:
            raise RuntimeError(
                f"record() can't tell which batch the logits belong to: {self._yielded} batches were fetched "
                "before the first record, so something (a prefetcher?) looks ahead, or the first batches "
                "were not recorded" + HINT
            )
        if any(_alive(one, last) for one in earlier):
            since = "the last record" if self._records else "the pass began"
            raise RuntimeError(
                f"record() can't tell which batch the logits belong to: {len(self.owed)} batches were fetched since "
                f"{since}, and an earlier one is still in use, so the loop looks ahead (a prefetcher?), or it keeps a "
                "batch that it skipped" + HINT
            )

    def _nothing_owed(self) -> str:
        if not self.exhausted:
            return "record() was called twice for one batch: call it once per batch of the loader"
        over = (
            f"record() was called after the pass over epoch {self.place.epoch} had ended and its last batch was recorded: "
            "this batch was not drawn from it. Call end_epoch() and iterate the loader anew for each epoch; "
            "itertools.cycle replays the batches of the first"
        )
        if not self._passed_over:
            return over
        return (
            f"{over}. If the loop looks ahead, and keeps copies of its batches alone, {self._passed_over} batches were "
            "never recorded, and values belong to other samples: go back to a state saved before"
        )


class Place:
    """Where in an epoch a loader is.

    Parameters
    ----------
    epoch : int
    position, recorded : int
        As saved.

    Attributes
    ----------
    reached : int
        Up to which any pass has yielded.
    recorded : int
        Up to which it is recorded.
    last : int64 array [B] or None
        The indices of the batch yielded last.
    asked : bool array [B] or None
        For which of its rows the teacher is asked.
    weights : float32 array [B] or None
        What its losses are multiplied by.
    current, recording : Pass or None
        The pass that yielded last, and that which recorded last.
    """

    def __init__(self, epoch: int, position: int = 0, recorded: int = 0) -> None:
        self.epoch, self.reached, self.recorded = epoch, position, recorded
        self._resumed = position
        self._told = False
        self.last: Any = None
        self.asked: Any = None
        self.weights: Any = None
        self.current: Pass | None = None
        self.recording: Pass | None = None

    @property
    def start(self) -> int:
        """Where a pass begins: where the run was resumed, until something was recorded since."""
        return 0 if self.recording else self._resumed

    @property
    def position(self) -> int:
        """Where a resumed run continues. A pass in which nothing is recorded moves nothing."""
        return self.recording.position if self.recording else self._resumed

    def check_once(self, now: Pass, drawn: Drawn, left: Callable[[int], int]) -> None:
        """RuntimeError if a whole pass over this epoch was recorded before; a warning if a part of one was."""
        if now is self.recording or drawn.begin >= self.recorded:
            return
        if not left(self.position):
            raise RuntimeError(
                f"this part of epoch {self.epoch} was recorded before: call end_epoch() once after each epoch "
                "(and record only one pass over it)" + HINT
            )
        if not self._told:
            warn(
                f"epoch {self.epoch} is recorded again from its start, after a pass that was broken off: its samples "
                "count twice. If passes are broken off on purpose, call end_epoch() after each; if each step calls "
                "next(iter(loader)), it gets the epoch's first batch each time: keep one iterator for an epoch"
            )
            self._told = True


def _largest(batch: Any) -> weakref.ref[Any] | None:
    """The batch's largest array, weakly: what a loop has to hold until the student was given it."""
    found, size, parts = batch, -1, [batch]
    for _ in range(16):
        if not parts:
            break
        part = parts.pop()
        if isinstance(part, (torch.Tensor, np.ndarray)):
            numbers = part.numel() if isinstance(part, torch.Tensor) else part.size
            if numbers > size:
                found, size = part, numbers
        elif isinstance(part, (list, tuple)):
            parts += part[:8]
        elif isinstance(part, Mapping):
            parts += islice(part.values(), 8)
    try:
        return weakref.ref(found)
    except TypeError:  # of lists alone
        return None


def _alive(earlier: Drawn, last: Drawn) -> bool:
    held = earlier.held and earlier.held()
    # One buffer for all batches says nothing.
    return held is not None and not (last.held and last.held() is held)
