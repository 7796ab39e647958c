"""Which samples of its slice of the index range a rank draws, in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..algorithms.bitset import Members
from ..algorithms.permutation import mix_int, permute, round_keys
from ..algorithms.ranks import Indices
from ..base.arrays import state_array, to_numpy
from ..base.states import check_same
from ..condense import CondensedSet, no_indices
from ..recipes import MixRecipes
from ..sampler import Blocks, CondensedSampler, _recipe_state, fingerprint
from ..tracker import CheckedState as TrackerState
from .condense import ShardedSet, bounds, check_sizes

__all__ = ["ShardedSampler", "resliced"]


class ShardInForce(NamedTuple):
    """All that a `ShardedSampler` changes in the course of a run.

    Attributes
    ----------
    epoch, stage, recipes
        See `kcd_core.sampler.InForce`.
    members : Members or None
        The kept samples of the rank's slice, counted from its start. None is everything.
    sizes : int64 [ranks]
        How many samples every rank keeps.
    """

    epoch: int
    stage: int
    members: Members | None
    sizes: Indices
    recipes: MixRecipes


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
        ends = [bounds(num_samples, rank, self.num_replicas) for rank in range(self.num_replicas)]
        self.in_force: Any = ShardInForce(
            epoch=1, stage=0, members=None, sizes=np.diff(ends)[:, 0], recipes=MixRecipes()
        )

    @property
    def kept(self) -> Indices:
        """The kept samples of this rank's slice: int64, ascending."""
        members = self.in_force.members
        return np.arange(self.start, self.stop) if members is None else self.start + members.indices()

    @property
    def sizes(self) -> Indices:
        """How many samples every rank keeps: int64 [ranks]."""
        sizes: Indices = self.in_force.sizes.copy()
        return sizes

    @property
    def num_kept(self) -> int:
        """The size of the set in force, over all ranks."""
        return int(self.in_force.sizes.sum())

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
        check_sizes(condensed_set.sizes)
        everything = condensed_set.sizes.sum() == self.num_samples
        tail = condensed_set.tail
        mine = (tail >= self.start) & (tail < self.stop) if self.mixing == "fresh" else slice(None)
        self.in_force = self.in_force._replace(
            stage=self.stage + 1,
            members=None if everything else condensed_set.members,
            sizes=condensed_set.sizes,
            recipes=self._recipes_after(
                tail[mine], condensed_set.dropped[: len(tail)][mine], condensed_set.weights[mine]
            ),
        )

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

    def blocks(self, epoch: int | None = None, start: int = 0) -> Blocks:
        """See `CondensedSampler.blocks`. ``start`` is a multiple of the number of ranks."""
        epoch = self.epoch if epoch is None else epoch
        return self._draw(self.in_force.members, len(self), epoch, start // self.num_replicas)

    def _draw(self, members: Members | None, length: int, epoch: int, start: int) -> Blocks:
        size = self.stop - self.start if members is None else len(members)
        key = round_keys(mix_int(self.seed ^ mix_int(self.rank)), epoch)
        # In ascending order, what an epoch draws begins after what the one before drew, around the end.
        drawn = min(length, size)
        first = epoch * drawn % size
        wrapped = max(0, first + drawn - size)
        block = 256  # small first, so that the first batch comes at once
        while start < length:
            places = np.arange(start, min(start + block, length))
            padding = places >= size
            places %= size
            if self.shuffle:
                places = permute(places, size, key)
            else:
                places[places >= wrapped] += first - wrapped
            yield self.start + (places if members is None else members.select(places)), padding
            start += block
            block = min(2 * block, 8192)

    def fingerprint(self, in_force: Any = None) -> str:
        """A short name of what all ranks know of a set (default: of that in force): equal on ranks of one run."""
        _, stage, _, sizes, recipes = in_force or self.in_force
        return fingerprint(stage, sizes, recipes if self.mixing == "cumulative" else MixRecipes())

    def state_dict(self) -> dict[str, Any]:
        """This rank's part of the set, recipes and what defines the order, as plain numbers and tensors."""
        epoch, stage, members, sizes, recipes = self.in_force
        bits = np.empty(0, np.uint8) if members is None else members.bits
        return {
            **self._identity(),
            "epoch": epoch,
            "stage": stage,
            **_recipe_state(recipes),
            "bits": state_array(bits),  # none: everything
            "sizes": state_array(sizes),
        }

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "num_replicas": self.num_replicas, "rank": self.rank}

    def check_state(self, state: Mapping[str, Any]) -> Any:
        check_same(state, self._identity(), "sharded sampler", needs=("bits", "sizes"))
        epoch, stage, _, recipes = super().check_state({**state, "kept": no_indices()})
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
        return ShardInForce(epoch, stage, members, sizes.copy(), recipes)

    _checked_state = check_state


def resliced(
    parts: Sequence[tuple[TrackerState, Any]], sampler: ShardedSampler, position: int
) -> tuple[TrackerState, Any]:
    """The states of tracker and sampler on ``sampler``'s rank, from the checked ones of all ranks of any number.

    Raises
    ------
    ValueError
        If another number of ranks saved them within an epoch (at a ``position``): orders are the slices' own,
        and other slices have no place in them; or if nothing is kept of a new slice.
    """
    n, ranks, before = sampler.num_samples, sampler.num_replicas, len(parts)
    if before == ranks:
        return parts[sampler.rank]
    if position:
        raise ValueError(
            f"a sharded loader goes on with another number of ranks ({ranks} instead of {before}) between epochs "
            "only: save the state after end_epoch()"
        )
    total, count, skipped = zip(*(tracker for tracker, _ in parts), strict=True)
    (epoch, *_), (stage, *_), members, _, recipes = zip(*(state for _, state in parts), strict=True)
    old = [bounds(n, rank, before) for rank in range(before)]
    start, stop = sampler.start, sampler.stop

    def own(slices: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return np.concatenate(
            [x[max(0, start - a) : max(0, stop - a)] for x, (a, _) in zip(slices, old, strict=True)]
        )

    member = [
        np.ones(b - a, np.uint8) if m is None else np.unpackbits(m.bits, count=b - a)
        for m, (a, b) in zip(members, old, strict=True)
    ]
    starts = [bounds(n, rank, ranks)[0] for rank in range(ranks)]
    sizes = np.add.reduceat(np.concatenate(member), starts, dtype=np.int64)
    check_sizes(sizes)
    kept = None if sizes.sum() == n else Members(np.packbits(own(member)), stop - start)
    mixed = recipes[0]
    if sampler.mixing == "fresh":  # else every rank has the recipes of all
        arrays = ([getattr(r, name) for r in recipes] for name in ("target", "source", "weight", "stage"))
        target, *rest = map(np.concatenate, arrays)
        mine = (target >= start) & (target < stop)
        mixed = MixRecipes(target[mine], *(x[mine] for x in rest))
    tracker = own(total), own(count), sum(skipped) if sampler.rank == 0 else np.zeros_like(skipped[0])
    return tracker, ShardInForce(epoch, stage, kept, sizes, mixed)
