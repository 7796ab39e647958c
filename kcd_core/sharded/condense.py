"""The EM step over slices: each rank owns a slice of the index range, records it, and draws from it.

For data sets of which not even 12 bytes a sample belong on every rank. A rank has an ordinary tracker of
its slice's length, and a `ShardedSampler`; `condense_sharded` ranks all samples by exchanging counts
(`kcd_core.algorithms.radix_select`) and gives exactly the set that `condense` gives on the whole. The data set
must be readable everywhere only if samples are mixed: a sample takes in one of any slice.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from ..algorithms.bitset import Members
from ..algorithms.radix_select import Counting, Counts, ScoreBlocks, find_cuts, gather, split
from ..algorithms.ranks import Indices, Scores, blocks, rank_scores
from ..all_ranks import nothing_recorded
from ..base import distributed
from ..base.arguments import check_kind
from ..condense import check_settings, no_indices, weights_of
from ..em_step import check_share
from ..history import MOST
from ..rules import Criteria, check_rule
from ..schedule import CondensationSchedule
from ..tracker import KnowledgeValueTracker
from ..unused import check_used
from .sampler import ShardedSampler
from .slices import ShardedSet, bounds, check_sizes

T = TypeVar("T")

__all__ = ["choose_sharded", "condense_shard", "condense_sharded", "for_history"]


class TrackerScores:
    """The ranking scores of a tracker's samples, made block by block as they are read."""

    def __init__(self, tracker: KnowledgeValueTracker, alpha: float, first: int = 0) -> None:
        self._tracker, self._alpha, self._first = tracker, alpha, first

    def __len__(self) -> int:
        return self._tracker.num_samples

    def __getitem__(self, block: slice) -> Scores:
        total, count = self._tracker.sums(block)
        value = self._tracker.mean(total, count)
        return rank_scores(value, count, self._alpha, first=self._first + block.start)

    def recorded(self) -> int:
        """How many samples were ever recorded."""
        return sum(int(np.count_nonzero(self._tracker.sums(block)[1])) for block in blocks(len(self)))


def condense_shard(
    score: ScoreBlocks,
    *,
    num_samples: int,
    rank: int,
    ranks: int,
    previous: int,
    target: int,
    min_weight: float = 0.7,
    stage: int = 1,
    mixing: bool = True,
) -> Counting[ShardedSet]:
    """`condense` on one shard, as a generator that exchanges counts with those of the other shards.

    Parameters
    ----------
    score : float64 [n], or what gives its slices
        The ranking scores of this shard's samples; +inf where never recorded, nowhere NaN.
    num_samples, rank, ranks : int
        The shard is the slice ``bounds(num_samples, rank, ranks)``.
    previous, target, min_weight, stage
        See `condense`. Sizes are those over all ranks.
    mixing : bool
        Whether to pair the tail with what was dropped, which costs another exchange, of 32 bytes a pair.

    Raises
    ------
    ValueError
        If a rank would keep no sample at all. On every rank.
    """
    mixed = min(max(0, previous - target), target) if mixing else 0
    sizes = [target - mixed, target, target + mixed] if mixed else [target]
    cuts = yield from find_cuts(score, sizes, shard=rank, shards=ranks)
    at = len(sizes) // 2
    share = cuts.share[:, at]
    check_sizes(share)
    start, _ = bounds(num_samples, rank, ranks)
    bits = np.empty(-(-len(score) // 8), np.uint8)
    sides: list[list[tuple[Indices, Scores]]] = [[], []]  # tail, dropped
    for block, part, above in split(score, cuts):
        bits[block.start // 8 : -(-block.stop // 8)] = np.packbits(above[at])
        for side, inner, outer in zip(sides, above[:-1], above[1:], strict=False):
            places = np.flatnonzero(outer > inner)
            side.append((places + (start + block.start), part[places]))
    tail, dropped = no_indices(), no_indices()
    if mixed:
        ordered = []
        for side, has in zip(sides, np.diff(cuts.share).T, strict=True):
            index, highest = (np.concatenate(x) for x in zip(*side, strict=True))
            side.clear()
            ordered.append((yield from gather(index, highest, has, shard=rank)))
        tail, dropped = ordered
    return ShardedSet(
        members=Members(bits, len(score)),
        sizes=share,
        num_samples=num_samples,
        rank=rank,
        stage=stage,
        dropped=dropped,
        tail=tail,
        weights=weights_of(mixed, min_weight),
        cut=float(cuts.score[at]),
    )


def condense_sharded(
    tracker: KnowledgeValueTracker,
    sampler: ShardedSampler,
    schedule: CondensationSchedule,
    *,
    alpha: float = 0.03,
    min_weight: float = 0.7,
    group: Any = None,
) -> ShardedSet:
    """`condense_step` for ranks that each record and draw from a slice of their own. Every rank must call it.

    Parameters
    ----------
    tracker : KnowledgeValueTracker
        The tracker of this rank's slice: sample ``i`` of the data set is its sample ``i - sampler.start``.
    sampler : ShardedSampler
    schedule : CondensationSchedule
    alpha, min_weight
        See `condense`.
    group : torch.distributed.ProcessGroup, optional
        The ranks that train this student. Default: all.

    Returns
    -------
    ShardedSet
        Installed in ``sampler``. The ranks' sets together are the set that `condense_step` would have chosen.

    Raises
    ------
    ValueError
        If ``tracker`` is not of the slice's length or of another statistic than "mean", ``alpha`` is so large that a
        score is not finite, a rank would keep no sample, or ``min_weight`` is given and ``sampler`` mixes nothing.
    TypeError
        If one of the arguments is of another type.
    RuntimeError
        If ranks disagree in anything that decides the set, there are not as many as the sampler draws for, or
        nothing was ever recorded on any of them. On every rank; nothing is changed then.
    """
    distributed.check_group(group)

    def checked() -> Criteria:
        check_kind(tracker, "tracker", KnowledgeValueTracker)
        check_kind(sampler, "sampler", ShardedSampler)
        check_kind(schedule, "schedule", CondensationSchedule)
        check_rule(None, schedule, sampler)
        if tracker.statistic != "mean":
            raise ValueError(
                f"tracker must be of statistic 'mean', got {tracker.statistic!r}: see condense_step"
            )
        numbers = check_settings(alpha, min_weight)
        check_used({"min_weight": numbers[1], "mixing": sampler.mixing})
        return Criteria(schedule, *numbers)

    criteria = distributed.together(checked, group)
    settings = {
        "num_samples": sampler.num_samples,
        **tracker.alike,
        **criteria.alike,
        "seed": sampler.seed,
        "mixing": sampler.mixing,
        "num_replicas": sampler.num_replicas,
        "set": sampler.fingerprint(),
    }
    distributed.check_agreement(settings, shard=sampler.rank, shards=sampler.num_replicas, group=group)
    check_share(sampler, group, begun=True)
    chosen = choose_sharded(tracker, sampler, criteria, group)
    sampler.install(chosen)
    return chosen


def choose_sharded(
    tracker: KnowledgeValueTracker, sampler: ShardedSampler, criteria: Criteria, group: Any
) -> ShardedSet:
    """`condense_sharded` on ranks that are known to agree, without installing the set."""
    target = distributed.together(
        lambda: criteria.schedule.target(sampler.num_samples, sampler.num_kept), group
    )
    distributed.check_agreement({"target": target}, shard=0, shards=1, group=group)
    return over_ranks(choosing(tracker, sampler, target, criteria, group), group)


def choosing(
    tracker: KnowledgeValueTracker,
    sampler: ShardedSampler,
    target: int,
    criteria: Criteria,
    group: Any,
) -> Counting[ShardedSet]:
    """`choose_sharded` as a generator that exchanges counts with those of the other ranks."""
    length = sampler.stop - sampler.start
    if tracker.num_samples != length:
        raise ValueError(
            f"tracker must be of this rank's slice, num_samples = {length} (samples {sampler.start} .. "
            f"{sampler.stop - 1}), got {tracker.num_samples}"
        )
    if unsummed := distributed.unsummed(sampler.num_replicas, group):
        raise RuntimeError(unsummed)
    score = TrackerScores(tracker, criteria.alpha, sampler.start)
    if not (yield np.array([score.recorded()])).any():
        raise nothing_recorded(tracker, group)
    return (
        yield from condense_shard(
            score,
            num_samples=sampler.num_samples,
            rank=sampler.rank,
            ranks=sampler.num_replicas,
            previous=sampler.num_kept,
            target=target,
            min_weight=criteria.min_weight,
            stage=sampler.stage + 1,
            mixing=sampler.mixing is not None,
        )
    )


def over_ranks(counting: Counting[T], group: Any) -> T:
    """Run on every rank of the process group; alone without one.

    What goes wrong on one rank is raised on every rank, so that none waits for another.
    """
    total: Counts | None = None  # what a generator is started with
    results: list[T] = []
    while not results:
        problem: Exception | None = None
        try:
            counts = counting.send(total)  # type: ignore[arg-type]
        except StopIteration as end:
            results.append(end.value)
        except Exception as error:
            problem = error
        distributed.raise_together(problem, group)
        if not results:
            (total,) = distributed.sum_over_ranks(counts, group=group)
    return results[0]


def for_history(tracker: KnowledgeValueTracker, sampler: ShardedSampler, group: Any = None) -> dict[str, Any]:
    """What `CondensationHistory.entry` needs of all ranks: ``value``, ``count`` and ``unseen``.

    Values and counts are those of every k-th sample, which a history looks at: 16 MB at most.
    """
    every = -(-sampler.num_samples // MOST)
    first = -(-sampler.start // every)
    total, count = tracker.sums(slice(first * every - sampler.start, None, every))
    table = np.zeros((2, -(-sampler.num_samples // every)), np.int64)
    table[:, first : first + len(total)] = total, count
    recorded = np.array([TrackerScores(tracker, 0.0).recorded()])
    (total, count), (seen,) = distributed.sum_over_ranks(table, recorded, group=group)
    value = tracker.mean(total, count.astype(np.int32))
    return {"value": value, "count": count, "unseen": sampler.num_samples - int(seen)}
