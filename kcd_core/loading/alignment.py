"""One pass over the loader: whether it is certain which batch the logits belong to."""

from __future__ import annotations

from typing import Any

__all__ = ["Pass"]

HINT = "; or pass indices= (see return_index)"


class Pass:
    """What was yielded and recorded in one iteration over a loader.

    Positions are global: samples that all ranks together have drawn in this epoch.

    Attributes
    ----------
    indices : int64 array [B]
        Of the batch yielded last.
    begin, end : int
        Its positions.
    yielded : int
        Batches.
    owes : bool
        Whether the batch yielded last was not recorded yet.
    ambiguous : bool
        Whether another pass was under way when this one began, or is now.
    """

    def __init__(self, start: int, *, ambiguous: bool) -> None:
        self.ambiguous = ambiguous
        self.indices: Any = None
        self.begin = self.end = start
        self.yielded = 0
        self.owes = False
        self._records = 0
        self._lost = 0

    def note_batch(self, indices: Any, positions: int) -> None:
        """The next batch was yielded."""
        self.indices = indices
        self.begin = self.end + self._lost
        self.end = self.begin + positions
        self._lost = 0
        self.yielded += 1
        self.owes = True

    def note_loss(self, positions: int) -> None:
        """A batch could not be fetched: passed over if the caller goes on, drawn again if it resumes here."""
        self._lost += positions

    def note_record(self) -> int:
        """The batch yielded last was recorded. Returns the position up to which that is."""
        self.owes = False
        self._records += 1
        return self.end

    def check(self, recorded: int, epoch: int) -> None:
        """RuntimeError unless it is beyond doubt that what is recorded now is the batch yielded last.

        ``recorded``: the position up to which this epoch was recorded before.
        """
        if not self.owes:
            raise RuntimeError(
                "record() was called twice for one batch: call it once per batch of the loader" + HINT
            )
        if self.ambiguous:
            raise RuntimeError(
                "record() can't tell which batch the logits belong to: a second iteration was started while "
                "a batch of the first was not recorded yet, or two are read in turns" + HINT
            )
        if self._records == 0 and self.yielded != 1:
            raise RuntimeError(
                f"record() can't tell which batch the logits belong to: {self.yielded} batches were fetched "
                "before the first record, so something (a prefetcher?) looks ahead, or the first batches "
                "were not recorded" + HINT
            )
        if self.begin < recorded:
            raise RuntimeError(
                f"this part of epoch {epoch} was recorded before: call end_epoch() once after each epoch "
                "(and record only one pass over it)" + HINT
            )
