"""Exact selection where no process holds all scores: ranks send each other counts, never values.

Every rank holds a *shard*, a contiguous slice of the samples, shard 0 the lowest indices. A score's bits
are read as an integer in ranking order, and its digits are counted from the highest down, summed over all
shards, until the wanted place of the ranking is a single score. What is sent depends on the number of
digits, not on the number of samples.

Each algorithm is a generator that yields an int64 array, and is sent back its sum over all shards.
Whoever has a process group drives one over its ranks; `in_one_process` drives the generators of all shards
in turns, which is the same selection without any processes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from .ranks import Indices, Scores, blocks, ordinal, rank_window

__all__ = ["Counting", "Cuts", "ScoreBlocks", "find_cuts", "gather", "in_one_process", "split"]

T = TypeVar("T")
Counts = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
#: Yields arrays, is sent their sums over all shards, returns a result.
Counting = Generator[Counts, Counts, T]

_DIGIT = 16  # bits
_HIGHEST = np.int64(2**63 - 1)
_FEW = 16  # once a shard has at most 1/16 of its samples still in question, they are copied


class ScoreBlocks(Protocol):
    """The scores of a shard, read in blocks: an array, or what makes them when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, block: slice, /) -> Scores: ...


def in_one_process(countings: Sequence[Counting[T]]) -> list[T]:
    """Run the generators of all shards, lowest first, and give each one's result."""
    counts = [next(counting) for counting in countings]
    results: list[T] = []
    while not results:
        total = np.sum(counts, axis=0)
        counts = []
        for counting in countings:
            try:
                counts.append(counting.send(total.copy()))
            except StopIteration as end:
                results.append(end.value)
    return results


class Cuts(NamedTuple):
    """Where the ranking of all samples is cut, and what that means for one shard."""

    score: Scores  # [k] of the last sample above each cut
    ties: Counts  # [k] samples of this shard with that score that lie above the cut: the first ones
    share: Counts  # [shards, k] samples of every shard that lie above the cut


def find_cuts(score: ScoreBlocks, sizes: Sequence[int], *, shard: int, shards: int) -> Counting[Cuts]:
    """Cut the ranking of all samples so that the ``sizes`` highest lie above.

    Of samples that are tied with a cut, those of lower index lie above it.

    Notes
    -----
    Four exchanges of 2**16 counts for each cut that differs in its leading digits, and one of two counts
    a cut and shard. Memory beyond the scores: half a byte a sample at most.
    """
    prefix = np.zeros(len(sizes), np.uint64)  # leading digits of the score at each cut
    left = np.array(sizes, np.int64)  # samples wanted among those that share the prefix
    above = np.zeros(len(sizes), np.int64)  # samples of this shard that rank before the prefix
    few: list[Keys] | None = None  # those of this shard that share a prefix
    sharing = len(score)
    for shift in range(64 - _DIGIT, -1, -_DIGIT):
        distinct, row = np.unique(prefix, return_inverse=True)
        mine = np.zeros((len(distinct), 1 << _DIGIT), np.int64)
        copies: list[Keys] | None = [] if few is None and sharing <= len(score) // _FEW else None
        for key in _keys(score) if few is None else few:
            leading = key >> np.uint64(shift)
            for counts, digits in zip(mine, distinct, strict=True):
                chosen = np.flatnonzero(leading >> np.uint64(_DIGIT) == digits)
                last = leading[chosen] & np.uint64((1 << _DIGIT) - 1)
                counts += np.bincount(last.view(np.int64), minlength=1 << _DIGIT)
                if copies is not None:
                    copies.append(key[chosen])
        if copies is not None:
            few = [np.concatenate(copies)] if copies else []
        reached = (yield mine).cumsum(1)
        digit = np.array([np.searchsorted(reached[r], wanted) for r, wanted in zip(row, left, strict=True)])
        left -= np.where(digit > 0, reached[row, digit - 1], 0)
        above += [mine[r, :d].sum() for r, d in zip(row, digit, strict=True)]
        prefix = prefix << np.uint64(_DIGIT) | digit.astype(np.uint64)
        sharing = sum(mine[r, d] for r, d in {*zip(row.tolist(), digit.tolist(), strict=True)})
    # The prefix is the whole score now. Ties go to the lower index, and so to the lower shard.
    table = np.zeros((2, shards, len(sizes)), np.int64)
    table[:, shard] = above, mine[row, digit]
    all_above, all_tied = yield table
    ties = np.clip(left - (all_tied.cumsum(0) - all_tied), 0, all_tied)
    return Cuts(_scores(prefix), ties[shard], all_above + ties)


def split(score: ScoreBlocks, cuts: Cuts) -> Iterator[tuple[slice, Scores, npt.NDArray[np.bool_]]]:
    """This shard, block by block: the block, its scores [B], and masks [k, B] of what lies above each cut."""
    ties = cuts.ties.copy()
    for block in blocks(len(score)):
        part = score[block]
        masks = part > cuts.score[:, None]
        for number in np.flatnonzero(ties):
            tied = np.flatnonzero(part == cuts.score[number])[: ties[number]]
            masks[number, tied] = True
            ties[number] -= len(tied)
        yield block, part, masks


def gather(index: Indices, score: Scores, share: Counts, *, shard: int) -> Counting[Indices]:
    """The indices of all shards' samples, in ranking order. 16 bytes a sample.

    Parameters
    ----------
    index : int64 [n], ascending
    score : float64 [n]
        Of this shard's samples.
    share : int64 [shards]
        How many samples every shard has.
    """
    stop = int(share[: shard + 1].sum())
    table = np.zeros((2, int(share.sum())), np.int64)
    table[:, stop - len(index) : stop] = index, score.view(np.int64)
    indices, bits = yield table
    scores = bits.view(np.float64)
    ranking: Indices = indices[rank_window(scores, 0, len(scores), scores.max(), scores.min())]
    return ranking


def _keys(score: ScoreBlocks) -> Iterator[Keys]:
    """Blocks of integers that are equal for equal scores, and the lower the higher the score."""
    return ((_HIGHEST - ordinal(score[block])).view(np.uint64) for block in blocks(len(score)))


def _scores(keys: Keys) -> Scores:
    bits = _HIGHEST - keys.view(np.int64)
    bits ^= (bits >> 63) & _HIGHEST
    scores: Scores = bits.view(np.float64)
    return scores
