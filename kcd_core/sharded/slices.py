"""The slices of the index range that ranks own, and what one of them keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..algorithms.bitset import Members
from ..base.arrays import as_array, is_integer, is_tensor
from ..base.padding import PADDING
from ..condense import no_indices

__all__ = ["ShardedSet", "bounds", "check_sizes", "within"]

Indices = npt.NDArray[np.int64]


def bounds(num_samples: int, rank: int, ranks: int) -> tuple[int, int]:
    """The slice ``start .. stop - 1`` of the index range that ``rank`` owns: all of one length, but for 1."""
    return num_samples * rank // ranks, num_samples * (rank + 1) // ranks


def within(indices: Any, start: int, stop: int) -> Any:
    """Indices of the data set as those of its slice ``start .. stop - 1``.

    Raises
    ------
    IndexError
        If one lies outside the slice. Indices on a device are not looked at: the tracker masks and counts
        what lies outside.
    """
    indices = as_array(indices)
    if not is_integer(indices):
        return indices  # the tracker says what is wrong
    if is_tensor(indices):
        if indices.device.type != "cpu":
            shifted = indices.long() - start  # below the slice: by one more, so that nothing becomes padding
            return shifted.sub((shifted < 0).long()).where(indices != PADDING, PADDING)
        indices = indices.numpy()
    indices = indices.astype(np.int64)
    padding = indices == PADDING
    outside = indices[((indices < start) | (indices >= stop)) & ~padding]
    if len(outside):
        raise IndexError(
            f"this rank records samples {start} .. {stop - 1}, got {outside[:5].tolist()}; nothing of this batch "
            "was recorded"
        )
    return np.where(padding, PADDING, indices - start)


@dataclass(frozen=True, eq=False)
class ShardedSet:
    """What one stage decided, as one rank needs it.

    Attributes
    ----------
    members : Members
        The kept samples of this rank's slice, counted from the slice's start.
    sizes : int64 [ranks]
        How many samples every rank keeps.
    num_samples, rank, stage : int
    dropped : int64 [L], in ranking order, highest first
        The first L samples that this stage dropped, of all ranks.
    tail, weights, cut
        See `CondensedSet`. Of all ranks.
    """

    members: Members
    sizes: Indices
    num_samples: int
    rank: int
    stage: int = 1
    dropped: Indices = field(default_factory=no_indices)
    tail: Indices = field(default_factory=no_indices)
    weights: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    cut: float = float("nan")

    @property
    def kept(self) -> Indices:
        """The kept samples of this rank's slice: int64, ascending, indices of the whole data set."""
        return self.members.indices() + bounds(self.num_samples, self.rank, len(self.sizes))[0]

    @property
    def num_kept(self) -> int:
        """The size of the set, over all ranks."""
        return int(self.sizes.sum())

    def __repr__(self) -> str:
        mixed = f"mixed={len(self.tail)}, " if len(self.tail) else ""
        return (
            f"ShardedSet(stage={self.stage}, kept={self.num_kept} of {self.num_samples}, {len(self.members)} "
            f"of them on rank {self.rank} of {len(self.sizes)}, {mixed}cut={self.cut:.4f})"
        )


def check_sizes(sizes: Indices) -> None:
    """Refuse a set of which a rank keeps nothing."""
    if sizes.min() == 0:
        raise ValueError(
            f"rank(s) {np.flatnonzero(sizes == 0).tolist()} would keep none of their samples and have nothing to "
            "draw: neighbours in the data set are too alike to share it out in slices; put it in random order once"
        )
