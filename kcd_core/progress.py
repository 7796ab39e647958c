"""What was recorded in the epoch under way, and what that looks like."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["EpochProgress"]


class EpochProgress(NamedTuple):
    """The recordings of the epoch under way. Immutable.

    Attributes
    ----------
    batches : int
        That the tracker had recorded when the epoch began.
    seen_before : bool
        Whether the epoch was recorded in before its state was saved.
    begun : bool
        Whether anything of it was drawn or recorded.
    rows, largest : int
        Samples recorded by the run itself, in all and in one batch.
    """

    batches: int
    seen_before: bool = False
    begun: bool = False
    rows: int = 0
    largest: int = 0

    def with_batch(self, rows: int) -> EpochProgress:
        """After one more batch of so many samples."""
        batches, seen_before, begun, before, largest = self  # _replace() takes three times as long
        return EpochProgress(batches, seen_before, begun, before + rows, max(largest, rows))

    def why_shared_out_twice(self, epoch: int, share: int, ranks: int) -> str:
        """What to say of an epoch in which, to a batch, a rank's share of this rank's ``share`` was recorded.

        A trainer that shares out a sampler's share again leaves that. Empty where it is not so.
        """
        if ranks == 1 or self.seen_before or not self.rows:
            return ""
        if abs(self.rows - share / ranks) > self.largest or self.rows + 2 * self.largest > share:
            return ""
        return (
            f"this rank's share of epoch {epoch} is {share} samples, and {self.rows} were recorded, as if "
            f"the share were shared out to {ranks} ranks again: a trainer that does so with a sampler's indices needs "
            "CondensedSampler(num_replicas=1, rank=0). If a part of each epoch is left out on purpose, ignore this"
        )
