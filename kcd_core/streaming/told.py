"""What looks wrong in the ids that a stream is given, and is told at the end of an epoch."""

from __future__ import annotations

from dataclasses import dataclass
from math import log1p
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Drawn", "ids_of", "why_never_again", "why_repeated"]

REPEATED = 2.5  # recordings of an id a pass from which on a warning says so: two views of a sample are none
SHARED = 1.5  # where two workers are known to have read the same sample
AGAIN = 0.1  # recordings of known ids for each new id, below which nothing seems to come twice
UNFILTERED = 0.5  # of the dropped ones' share in the recordings, if nothing were filtered


def why_repeated(
    count: npt.NDArray[Any], slots: int, epochs: int, passes: int, *, shared: bool = False
) -> str:
    """What is odd in how often ids were recorded; empty if nothing is.

    Parameters
    ----------
    count : integer array
        How often each slot was recorded; those that never were may be left out.
    slots : int
    epochs, passes : int
        How many epochs that took, and how many passes over the data set began, as far as is known.
    shared : bool
        Whether two workers were seen to read the same sample.
    """
    ids, total = _ids(int(np.count_nonzero(count)), slots), int(count.sum())
    each = total / (ids * max(epochs, passes)) if ids else 0
    if each <= (SHARED if shared else REPEATED):
        return ""
    return (
        f"{total} recordings were of about {ids:.0f} ids: each was recorded {each:.0f} times in one pass. Where names "
        "begin anew in every shard, several samples share one id, one value and one fate: make the id of both, as in "
        "f\"{sample['__url__']}/{sample['__key__']}\". Where every worker or every rank reads all shards, share them out. "
        "Where the stream repeats its samples on purpose, nothing is wrong"
    )


def why_never_again(count: npt.NDArray[Any], slots: int, before: int, epochs: int, passes: int) -> str:
    """What is odd if nearly no id was recorded twice, although the stream was gone through twice; empty if nothing is.

    Parameters
    ----------
    count, slots, epochs, passes
        See `why_repeated`.
    before : int
        How many slots were taken at the end of the stage before.
    """
    ids, total = _ids(int(np.count_nonzero(count)), slots), int(count.sum())
    new, again = ids - _ids(before, slots), max(0.0, total - ids)
    if min(epochs, passes) < 2 or again >= AGAIN * new:
        return ""
    return (
        f"the {total} recordings of {epochs} epochs were of about {min(ids, total):.0f} ids: nearly none came twice, so nothing that a "
        "stage drops would be met again. The id of a sample must be the same in every epoch: no random number, counter "
        "or time. If each pass reads other samples on purpose, ignore this"
    )


def ids_of(taken: int, slots: int) -> float:
    """How many ids fall into so many slots, on average. Where all are taken, as many as would leave half a slot."""
    return -slots * log1p(-min(taken, slots - 0.5) / slots)


def _ids(taken: int, slots: int) -> float:
    """`ids_of`; 0 of a crowded table, which has a warning of its own, and of which ids can't be told apart."""
    return 0 if taken > slots / 2 else ids_of(taken, slots)


@dataclass
class Drawn:
    """Of the recordings of an epoch, how many were of samples that the set in force has dropped.

    One epoch may have been read ahead, from before the set was in force; two in a row were not.
    """

    epoch: int = 1
    rows: int = 0
    dropped: int = 0
    before: bool = False  # whether they were too many in the epoch before
    now: bool = False  # and in this one, as far as is known

    def during(self, epoch: int) -> Drawn:
        """This, or a new one for a new epoch."""
        return self if epoch == self.epoch else Drawn(epoch, before=self.now)

    def note(self, passes: npt.NDArray[np.bool_]) -> None:
        """Add a batch: whether each of its samples passes."""
        self.rows += len(passes)
        self.dropped += len(passes) - int(np.count_nonzero(passes))

    def why_unfiltered(self, share: float) -> str:
        """What is odd if dropped samples, a ``share`` of all, go on being recorded; empty if nothing is."""
        self.now = self.dropped > UNFILTERED * share * self.rows
        if not (self.before and self.now):
            return ""
        return (
            f"{self.dropped} of {self.rows} recordings of this epoch were of samples that are dropped: give the stream to the "
            "DataLoader, or put .select(stream.keep) into the pipeline; and record the very ids that key gives there, "
            "since the number 1 and the text '1' are two ids"
        )
