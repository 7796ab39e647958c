"""N over many ranks: each owns a slice of the index range, records it, draws from it, and keeps nothing else.

For data sets of which not even 12 bytes a sample belong on every rank. A rank has an ordinary tracker of
its slice's length, and a `ShardedSampler`, which draws from the slice; `condense_sharded` ranks all points
by exchanging counts (`kcd_core.counting`) and gives exactly the set that `condense` gives on the whole.
The data set must be readable everywhere only if samples are mixed: a sample takes in one of any slice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from . import distributed
from ._arrays import state_array, to_numpy
from .condense import CondensedSet, check_settings, no_indices, weights_of
from .counting import Counting, ScoreBlocks, find_cuts, gather, over_ranks, split
from .history import MOST
from .mixing import MixRecipes
from .sampler import MIX_ARRAYS, CondensedSampler, _mix_int, _permute, _round_keys, fingerprint
from .schedule import CondensationSchedule
from .selection import Indices, Scores, blocks, rank_scores
from .tracker import KnowledgeValueTracker, check_same, state_int
from .values import value_name

__all__ = ["Members", "ShardedSampler", "ShardedSet", "bounds", "condense_shard", "condense_sharded"]


def bounds(num_samples: int, rank: int, ranks: int) -> tuple[int, int]:
    """The slice ``start .. stop - 1`` of the index range that ``rank`` owns: all of one length, but for 1."""
    return num_samples * rank // ranks, num_samples * (rank + 1) // ranks


class Members:
    """A subset of ``range(length)`` in 9 bits for every 8 of its points, which finds its k-th member at once.

    Parameters
    ----------
    bits : uint8 [ceil(length / 8)]
        As ``numpy.packbits`` makes them.
    length : int
    """

    ROW = 64  # bytes; how many members come before each row is known

    def __init__(self, bits: npt.NDArray[np.uint8], length: int) -> None:
        self.length = length
        self._rows = np.zeros((-(-length // (8 * self.ROW)), self.ROW), np.uint8)
        self._rows.reshape(-1)[: len(bits)] = bits
        self._before = np.zeros(len(self._rows) + 1, np.int64)
        for block in blocks(len(self._rows)):
            self._before[1:][block] = _ONES[self._rows[block]].sum(1)
        np.cumsum(self._before, out=self._before)

    def __len__(self) -> int:
        return int(self._before[-1])

    @property
    def bits(self) -> npt.NDArray[np.uint8]:
        """As `numpy.packbits` makes them."""
        return self._rows.reshape(-1)[: -(-self.length // 8)]

    @property
    def nbytes(self) -> int:
        return self._rows.nbytes + self._before.nbytes

    def indices(self) -> Indices:
        """All members: int64, ascending."""
        return np.flatnonzero(np.unpackbits(self.bits, count=self.length))

    def select(self, places: Indices) -> Indices:
        """The members at the given 0-based places of the ascending list of them."""
        row = np.searchsorted(self._before, places, "right") - 1
        left = places - self._before[row]
        content = self._rows[row]
        reached = _ONES[content].cumsum(1, dtype=np.int16)
        byte = (reached <= left[:, None]).sum(1)
        each = np.arange(len(places))
        left -= np.where(byte > 0, reached[each, byte - 1], 0)
        found: Indices = (row * self.ROW + byte) * 8 + _PLACES[content[each, byte], left]
        return found


_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
_ONES = _BITS.sum(1, dtype=np.uint8)  # how many ones a byte has
_PLACES = np.argsort(1 - _BITS.astype(np.int8), 1, kind="stable")  # and where


@dataclass(frozen=True, eq=False)
class ShardedSet:
    """What one stage decided, as one rank needs it.

    Attributes
    ----------
    members : Members
        The points of this rank's slice that are kept, counted from the slice's start.
    sizes : int64 [ranks]
        How many points every rank keeps.
    num_samples, rank, stage : int
    dropped : int64 [L], in ranking order, highest first
        The first L points that this stage dropped, of all ranks.
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
        """The kept points of this rank's slice: int64, ascending, indices of the whole data set."""
        return self.members.indices() + bounds(self.num_samples, self.rank, len(self.sizes))[0]

    @property
    def num_kept(self) -> int:
        """The size of the set, over all ranks."""
        return int(self.sizes.sum())

    def __repr__(self) -> str:
        return (
            f"ShardedSet(stage={self.stage}, kept={self.num_kept} of {self.num_samples}, {len(self.members)} "
            f"of them on rank {self.rank} of {len(self.sizes)}, mixed={len(self.tail)}, cut={self.cut:.4f})"
        )


class TrackerScores:
    """The ranking scores of a tracker's points, made block by block as they are read."""

    def __init__(self, tracker: KnowledgeValueTracker, alpha: float) -> None:
        self._tracker, self._alpha = tracker, alpha

    def __len__(self) -> int:
        return self._tracker.num_samples

    def __getitem__(self, block: slice) -> Scores:
        total, count = self._tracker.sums(block)
        return rank_scores(self._tracker.mean(total, count), count, self._alpha)

    def recorded(self) -> int:
        """How many points were ever recorded."""
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
        The ranking scores of this shard's points; +inf where never recorded, nowhere NaN.
    num_samples, rank, ranks : int
        The shard is the slice ``bounds(num_samples, rank, ranks)``.
    previous, target, min_weight, stage
        See `condense`. Sizes are those over all ranks.
    mixing : bool
        Whether to pair the tail with what was dropped, which costs another exchange, of 32 bytes a pair.

    Raises
    ------
    ValueError
        If a rank would keep no point at all. On every rank.
    """
    mixed = min(max(0, previous - target), target) if mixing else 0
    sizes = [target - mixed, target, target + mixed] if mixed else [target]
    cuts = yield from find_cuts(score, sizes, shard=rank, shards=ranks)
    at = len(sizes) // 2
    share = cuts.share[:, at]
    _check_sizes(share)
    start, _ = bounds(num_samples, rank, ranks)
    bits = np.empty(-(-len(score) // 8), np.uint8)
    sides: list[list[tuple[Indices, Scores]]] = [[], []]  # tail, dropped
    for block, part, above in split(score, cuts):
        bits[block.start // 8 : -(-block.stop // 8)] = np.packbits(above[at])
        for side, inner, outer in zip(sides, above[:-1], above[1:], strict=False):
            points = np.flatnonzero(outer > inner)
            side.append((points + (start + block.start), part[points]))
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
) -> ShardedSet:
    """`condense_step` where every rank records and draws from a slice of its own. Every rank must call it.

    Parameters
    ----------
    tracker : KnowledgeValueTracker
        Of this rank's slice: sample ``i`` of the data set is its ``i - sampler.start``.
    sampler : ShardedSampler
    schedule : CondensationSchedule
    alpha, min_weight
        See `condense`.

    Returns
    -------
    ShardedSet
        Installed in ``sampler``. Together the ranks' sets are what `condense_step` would have chosen.

    Raises
    ------
    ValueError
        If ``tracker`` is not of the slice's length, ``alpha`` is so large that a score is not finite, or a
        rank would keep no sample.
    RuntimeError
        If ranks disagree in anything that decides the set, there are not as many as the sampler draws for, or
        nothing was ever recorded on any of them. On every rank; nothing is changed then.
    """
    settings = {
        "num_samples": sampler.num_samples,
        "value": value_name(tracker._function),
        "schedule": schedule.state_dict(),
        "alpha": alpha,
        "min_weight": min_weight,
        "seed": sampler.seed,
        "mixing": sampler.mixing,
        "num_replicas": sampler.num_replicas,
        "set": sampler.fingerprint(),
    }
    distributed.check_agreement(settings, shard=sampler.rank, shards=sampler.num_replicas)
    chosen = over_ranks(_stage(tracker, sampler, schedule, alpha, min_weight))
    sampler.install(chosen)
    return chosen


def _stage(
    tracker: KnowledgeValueTracker,
    sampler: ShardedSampler,
    schedule: CondensationSchedule,
    alpha: float,
    min_weight: float,
) -> Counting[ShardedSet]:
    alpha, min_weight = check_settings(alpha, min_weight)
    length = sampler.stop - sampler.start
    if tracker.num_samples != length:
        raise ValueError(
            f"tracker must be of this rank's slice, num_samples = {length} (samples {sampler.start} .. "
            f"{sampler.stop - 1}), got {tracker.num_samples}"
        )
    if sampler.num_replicas != distributed.world_size():
        raise RuntimeError(
            f"the sampler draws for rank {sampler.rank} of {sampler.num_replicas}, and the process group has "
            f"{distributed.world_size()} ranks"
        )
    score = TrackerScores(tracker, alpha)
    if not (yield np.array([score.recorded()])).any():
        raise RuntimeError(
            "a stage ends, but no value was ever recorded: call record(student_logits) after the "
            "student's forward pass"
        )
    return (
        yield from condense_shard(
            score,
            num_samples=sampler.num_samples,
            rank=sampler.rank,
            ranks=sampler.num_replicas,
            previous=sampler.num_kept,
            target=schedule.target(sampler.num_samples, sampler.num_kept),
            min_weight=min_weight,
            stage=sampler.stage + 1,
            mixing=sampler.mixing is not None,
        )
    )


class ShardedSampler(CondensedSampler):
    """Draws one rank's share of the kept samples from the slice of the index range that the rank owns.

    Parameters are those of `CondensedSampler`. The indices drawn are those of the whole data set.

    Attributes
    ----------
    start, stop : int
        The slice is ``start .. stop - 1``.

    Raises
    ------
    ValueError
        As `CondensedSampler` does, and if there are fewer samples than ranks.

    Notes
    -----
    Every rank draws the n-th part of the kept samples, rounded up, or down with ``drop_last``: lengths are
    equal and known ahead. Slices never keep exactly as many. A rank that keeps more leaves some out, others in
    each epoch; one that keeps fewer repeats some, unrecorded. In a data set in random order that
    concerns about one in ``sqrt(kept samples of a rank)``; one in order of class or difficulty should be put in
    random order once.

    The set takes 9 bits for every 8 samples of the slice. With ``mixing="fresh"`` a rank holds the recipes
    of its own samples; ``"cumulative"`` mixes mixtures, also other ranks', and holds all: 28 bytes each.

    Examples
    --------
    >>> sampler = ShardedSampler(10, shuffle=False, rank=1, num_replicas=2)
    >>> list(sampler), sampler.start, sampler.stop
    ([5, 6, 7, 8, 9], 5, 10)
    """

    def __init__(self, num_samples: int, **settings: Any) -> None:
        super().__init__(num_samples, **settings)
        if num_samples < self.num_replicas:
            raise ValueError(
                f"num_samples must be at least the number of ranks, {self.num_replicas}, got {num_samples}"
            )
        self.start, self.stop = bounds(num_samples, self.rank, self.num_replicas)
        self._members: Members | None = None  # None is everything
        self._sizes = np.diff(
            [bounds(num_samples, rank, self.num_replicas) for rank in range(self.num_replicas)]
        )[:, 0]

    @property
    def kept(self) -> Indices:
        """The kept samples of this rank's slice: int64, ascending."""
        return (
            np.arange(self.start, self.stop)
            if self._members is None
            else self.start + self._members.indices()
        )

    @property
    def sizes(self) -> Indices:
        """How many samples every rank keeps: int64 [ranks]."""
        sizes: Indices = self._sizes.copy()
        return sizes

    @property
    def num_kept(self) -> int:
        """The size of the set in force, over all ranks."""
        return int(self._sizes.sum())

    def install(self, condensed_set: CondensedSet | ShardedSet) -> None:
        """Draw and mix by ``condensed_set`` (of a `CondensedSet`: by this rank's part) from the next iteration on.

        Raises
        ------
        ValueError
            If it was made for another number of samples, another rank or other slices, or keeps nothing of one.
        """
        if condensed_set.num_samples != self.num_samples:
            raise ValueError(
                f"the set is of {condensed_set.num_samples} samples, this sampler of {self.num_samples}"
            )
        if isinstance(condensed_set, CondensedSet):
            condensed_set = self._part_of(condensed_set)
        here, made = (self.rank, self.num_replicas), (condensed_set.rank, len(condensed_set.sizes))
        if here != made:
            raise ValueError(
                f"the set is of rank {made[0]} of {made[1]}, this sampler of {here[0]} of {here[1]}"
            )
        _check_sizes(condensed_set.sizes)
        everything = condensed_set.sizes.sum() == self.num_samples
        self._members = None if everything else condensed_set.members
        self._sizes = condensed_set.sizes
        tail = condensed_set.tail
        mine = (tail >= self.start) & (tail < self.stop) if self.mixing == "fresh" else slice(None)
        self._begin_stage(tail[mine], condensed_set.dropped[: len(tail)][mine], condensed_set.weights[mine])

    def _part_of(self, whole: CondensedSet) -> ShardedSet:
        kept, ranks = whole.kept, self.num_replicas
        ends = np.searchsorted(kept, [bounds(self.num_samples, rank, ranks)[1] for rank in range(ranks)])
        member = np.zeros(self.stop - self.start, bool)
        member[kept[(kept >= self.start) & (kept < self.stop)] - self.start] = True
        return ShardedSet(
            members=Members(np.packbits(member), len(member)),
            sizes=np.diff(ends, prepend=0),
            num_samples=self.num_samples,
            rank=self.rank,
            dropped=whole.dropped,
            tail=whole.tail,
            weights=whole.weights,
        )

    def blocks(
        self, epoch: int | None = None, start: int = 0
    ) -> Iterator[tuple[Indices, npt.NDArray[np.bool_]]]:
        """See `CondensedSampler.blocks`. ``start`` is a multiple of the number of ranks."""
        epoch = self.epoch if epoch is None else epoch
        return self._draw(self._members, len(self), epoch, start // self.num_replicas)

    def _draw(
        self, members: Members | None, length: int, epoch: int, start: int
    ) -> Iterator[tuple[Indices, npt.NDArray[np.bool_]]]:
        size = self.stop - self.start if members is None else len(members)
        key = _round_keys(_mix_int(self.seed ^ _mix_int(self.rank)), epoch)
        block = 256  # small first, so that the first batch comes at once
        while start < length:
            places = np.arange(start, min(start + block, length))
            padding = places >= size
            places %= size
            if self.shuffle:
                places = _permute(places, size, key)
            yield self.start + (places if members is None else members.select(places)), padding
            start += block
            block = min(2 * block, 8192)

    def fingerprint(self) -> str:
        """A short name of what all ranks know of the set in force: equal on two ranks of one run."""
        return fingerprint(
            self.stage, self._sizes, self._recipes if self.mixing == "cumulative" else MixRecipes()
        )

    def state_dict(self) -> dict[str, Any]:
        """This rank's part of the set, recipes and what defines the order, as plain numbers and tensors."""
        state = super().state_dict()
        del state["kept"]
        bits = np.empty(0, np.uint8) if self._members is None else self._members.bits
        return {**state, "bits": state_array(bits), "sizes": state_array(self._sizes)}  # no bits: everything

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "num_replicas": self.num_replicas, "rank": self.rank}

    def _checked_state(self, state: Mapping[str, Any]) -> Any:
        check_same(state, self._identity(), "sharded sampler", needs=("bits", "sizes"))
        epoch, stage, _, recipes = super()._checked_state({**state, "kept": no_indices()})
        bits, sizes = to_numpy(state["bits"]), to_numpy(state["sizes"])
        length = self.stop - self.start
        if len(bits) and (bits.dtype != np.uint8 or bits.shape != (-(-length // 8),)):
            raise ValueError(f"the sharded sampler state is damaged: bits are {bits.dtype} {bits.shape}")
        members = Members(bits, length) if len(bits) else None
        own = length if members is None else len(members.indices())
        if sizes.dtype != np.int64 or sizes.shape != (self.num_replicas,) or sizes.min() < 1:
            raise ValueError(
                "the sharded sampler state is damaged: sizes are not one number of samples a rank"
            )
        if sizes[self.rank] != own or (members is not None and len(members) != own):
            raise ValueError("the sharded sampler state is damaged: bits and sizes contradict each other")
        return epoch, stage, members, sizes.copy(), recipes

    def _apply_state(self, checked: Any) -> None:
        self.epoch, self.stage, self._members, self._sizes, self._recipes = checked


def _check_sizes(sizes: Indices) -> None:
    if sizes.min() == 0:
        raise ValueError(
            f"rank(s) {np.flatnonzero(sizes == 0).tolist()} would keep none of their samples and have nothing to "
            "draw: neighbours in the data set are too alike to share it out in slices; put it in random order once"
        )


def resliced(states: Sequence[Any], rank: int, ranks: int) -> dict[str, Any]:
    """The state that ``rank`` of ``ranks`` would have saved, from what all ranks of any number saved.

    Raises
    ------
    ValueError
        If a rank is missing or there twice, if the states were not saved at one step, or if another number of
        ranks saved them within an epoch: orders are the slices' own, and other slices have no place in them.
    """
    for state in states:
        check_same(state, {"sharded": True}, "loader", needs=("num_replicas", "epoch", "position"))
        check_same(state.get("tracker"), {}, "tracker", needs=("total", "count", "skipped"))
        check_same(
            state.get("sampler"),
            {},
            "sharded sampler",
            needs=("stage", "bits", "sizes", "mixing", *MIX_ARRAYS),
        )
    first, of = states[0], len(states)
    states = sorted(states, key=lambda state: state_int(state, "rank", 0, "loader"))
    moments = [(s["rank"], s["num_replicas"], s["epoch"], s["sampler"]["stage"]) for s in states]
    if moments != [(r, of, first["epoch"], first["sampler"]["stage"]) for r in range(of)]:
        raise ValueError(
            "the states of all ranks are needed, each once, saved at one step, got (rank, ranks, epoch, stage) = "
            f"{moments}"
        )
    if of == ranks:
        return dict(states[rank])
    if any(state["position"] for state in states):
        raise ValueError(
            f"a sharded loader goes on with another number of ranks ({ranks} instead of {of}) between epochs only: "
            "save the state after end_epoch()"
        )
    n = int(first["num_samples"])
    old, new = ([bounds(n, r, number) for r in range(number)] for number in (of, ranks))
    start, stop = new[rank]

    def own(owner: str, name: str) -> Any:
        parts = [to_numpy(state[owner][name]) for state in states]
        return np.concatenate(
            [x[max(0, start - a) : max(0, stop - a)] for x, (a, _) in zip(parts, old, strict=True)]
        )

    bits = [to_numpy(state["sampler"]["bits"]) for state in states]
    member = np.concatenate(
        [
            np.unpackbits(x, count=b - a) if len(x) else np.ones(b - a, np.uint8)
            for x, (a, b) in zip(bits, old, strict=True)
        ]
    )
    if (
        np.add.reduceat(member, [a for a, _ in old], dtype=np.int64).tolist()
        != first["sampler"]["sizes"].tolist()
    ):
        raise ValueError("the sharded sampler state is damaged: bits and sizes contradict each other")
    everything = not any(map(len, bits))
    sampler = {
        **first["sampler"],
        "num_replicas": ranks,
        "rank": rank,
        "bits": bits[0] if everything else np.packbits(member[start:stop]),
        "sizes": np.add.reduceat(member, [a for a, _ in new], dtype=np.int64),
    }
    if sampler["mixing"] == "fresh":  # else every rank has the recipes of all
        mixed = {name: np.concatenate([to_numpy(s["sampler"][name]) for s in states]) for name in MIX_ARRAYS}
        mine = (mixed["mix_target"] >= start) & (mixed["mix_target"] < stop)
        sampler.update({name: x[mine] for name, x in mixed.items()})
    skipped = (
        np.sum([state["tracker"]["skipped"] for state in states], axis=0) if rank == 0 else np.zeros(2, int)
    )
    tracker = {
        **first["tracker"],
        "num_samples": stop - start,
        "total": own("tracker", "total"),
        "count": own("tracker", "count"),
        "skipped": skipped.tolist(),
    }
    return {**first, "num_replicas": ranks, "rank": rank, "tracker": tracker, "sampler": sampler}


def for_history(tracker: KnowledgeValueTracker, sampler: ShardedSampler) -> dict[str, Any]:
    """Arguments for `CondensationHistory.append`: every k-th point of all ranks, which it looks at, 16 MB at most."""
    every = -(-sampler.num_samples // MOST)
    first = -(-sampler.start // every)
    total, count = tracker.sums(slice(first * every - sampler.start, None, every))
    table = np.zeros((2, -(-sampler.num_samples // every)), np.int64)
    table[:, first : first + len(total)] = total, count
    recorded = np.array([TrackerScores(tracker, 0.0).recorded()])
    (total, count), (seen,) = distributed.sum_over_ranks(table, recorded)
    value = tracker.mean(total, count.astype(np.int32))
    return {"value": value, "count": count, "unseen": sampler.num_samples - int(seen)}
