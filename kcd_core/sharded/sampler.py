"""Which samples of its slice of the index range a rank draws, in which order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..algorithms.bitset import Members
from ..algorithms.permutation import mix_int, permute, round_keys
from ..base.arrays import state_array, to_numpy
from ..base.states import state_int
from ..condense import CondensedSet
from ..epoch_sampler import Blocks, EpochSampler, Indices, spans
from ..recipes import Mixing, MixRecipes
from ..sample_weights import refuse_weights
from ..sampler_state import RECIPE_ARRAYS, checked_recipes, fingerprint, recipe_state
from .slices import ShardedSet, bounds, check_sizes

__all__ = ["ShardInForce", "ShardedSampler"]


class ShardInForce(NamedTuple):
    """All of a `ShardedSampler` that changes in the course of a run. Immutable.

    Attributes
    ----------
    epoch : int
    stage : int
        How many sets were installed.
    members : Members or None
        The kept samples of the rank's slice, counted from its start. None is everything.
    sizes : int64 [ranks]
        How many samples every rank keeps.
    recipes : MixRecipes
    seed : int
    mixing : {"cumulative", "fresh", None}
        These two change where a state is loaded and they are taken over from it.
    """

    epoch: int
    stage: int
    members: Members | None
    sizes: Indices
    recipes: MixRecipes
    seed: int
    mixing: Mixing


class ShardedSampler(EpochSampler):
    """Draws one rank's share of the kept samples from the slice of the index range that the rank owns.

    Parameters are those of `CondensedSampler`. The indices drawn are those of the whole data set.

    Attributes
    ----------
    start, stop : int
        The slice is ``start .. stop - 1``.
    in_force : ShardInForce
        Epoch, stage, set, recipes and seed. Putting an earlier one back undoes whatever was installed since.

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

    in_force: ShardInForce
    why_unweighable = "a sampler of slices keeps none"
    of_a_slice = True  # see `check_sampler`

    def everything(self, seed: int, mixing: Mixing) -> ShardInForce:
        """What is in force before the first stage."""
        num_samples = self.num_samples
        if num_samples < self.num_replicas:
            raise ValueError(
                f"num_samples must be at least the number of ranks, {self.num_replicas}, got {num_samples}"
            )
        self.start, self.stop = bounds(num_samples, self.rank, self.num_replicas)
        slices = [bounds(num_samples, rank, self.num_replicas) for rank in range(self.num_replicas)]
        sizes = np.array([stop - start for start, stop in slices], np.int64)
        return ShardInForce(1, 0, members=None, sizes=sizes, recipes=MixRecipes(), seed=seed, mixing=mixing)

    @property
    def kept(self) -> Indices:
        """The kept samples of this rank's slice: int64, ascending."""
        members = self.in_force.members
        return np.arange(self.start, self.stop) if members is None else self.start + members.indices()

    @property
    def share(self) -> int:
        """How many of all samples are this rank's."""
        return self.stop - self.start

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
        """Draw and mix by ``condensed_set`` from the next iteration on; by this rank's part of a `CondensedSet`.

        Raises
        ------
        ValueError
            If it was made for another number of samples, another rank or other slices, keeps nothing of one, or has weights.
            Nothing is changed then.
        """
        super().install(condensed_set)

    def after(self, condensed_set: CondensedSet | ShardedSet) -> ShardInForce:
        """What `install` would put in force. Changes nothing, and raises as it does."""
        self.check_size(condensed_set, CondensedSet, ShardedSet)
        if isinstance(condensed_set, CondensedSet):
            refuse_weights(condensed_set.sample_weights, self.why_unweighable)
            condensed_set = self._part_of(condensed_set)
        here, made = (self.rank, self.num_replicas), (condensed_set.rank, len(condensed_set.sizes))
        if here != made:
            raise ValueError(
                f"the set is of rank {made[0]} of {made[1]}, this sampler of {here[0]} of {here[1]}"
            )
        check_sizes(condensed_set.sizes)
        tail, dropped, weights = condensed_set.tail, condensed_set.dropped, condensed_set.weights
        if self.mixing == "fresh":
            mine = np.flatnonzero((tail >= self.start) & (tail < self.stop))
            tail, dropped, weights = tail[mine], dropped[mine], weights[mine]
        return self.in_force._replace(
            stage=self.stage + 1,
            members=None if condensed_set.num_kept == self.num_samples else condensed_set.members,
            sizes=condensed_set.sizes,
            recipes=self.recipes_after(tail, dropped, weights),
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
        """See `EpochSampler.blocks`. ``start`` is a multiple of the number of ranks."""
        epoch = self.epoch if epoch is None else epoch
        # All state is read here, at the call, and not at the first next().
        _, _, members, sizes, *_ = self.in_force
        return self._blocks(members, self.length(int(sizes.sum())), epoch, start // self.num_replicas)

    def _blocks(self, members: Members | None, length: int, epoch: int, start: int) -> Blocks:
        size = self.stop - self.start if members is None else len(members)
        key = round_keys(mix_int(self.seed ^ mix_int(self.rank)), epoch)
        # In ascending order, what an epoch draws begins after what the one before drew, around the end.
        drawn = min(length, size)
        first = epoch * drawn % size
        wrapped = max(0, first + drawn - size)
        for places in spans(start, length):
            padding = places >= size
            places %= size
            if self.shuffle:
                places = permute(places, size, key)
            else:
                places[places >= wrapped] += first - wrapped
            yield self.start + (places if members is None else members.select(places)), padding

    def fingerprint(self, in_force: ShardInForce | None = None) -> str:
        """A short name of what all ranks know of a set, by default the one in force. It is equal on all ranks of a
        run."""
        _, stage, _, sizes, recipes, _, mixing = in_force or self.in_force
        return fingerprint(stage, sizes, recipes if mixing == "cumulative" else MixRecipes())

    def state_dict(self) -> dict[str, Any]:
        """A copy of this rank's part of the set, the recipes and what defines the order, as plain numbers and
        tensors."""
        epoch, stage, members, sizes, recipes, *_ = self.in_force
        bits = np.empty(0, np.uint8) if members is None else members.bits
        return {
            **self.identity(),
            "epoch": epoch,
            "stage": stage,
            **recipe_state(recipes),
            "bits": state_array(bits),  # none: everything
            "sizes": state_array(sizes),
        }

    def check_state(self, state: Mapping[str, Any]) -> ShardInForce:
        """What `load_state_dict` would put in force. Changes nothing, and raises as it does."""
        needs = ("epoch", "stage", *RECIPE_ARRAYS, "bits", "sizes")
        seed, mixing = self.checked_seed(state, "sharded sampler", needs=needs)
        bits, sizes = to_numpy(state["bits"]), to_numpy(state["sizes"])
        length = self.stop - self.start
        if bits.dtype != np.uint8 or bits.shape not in ((0,), (-(-length // 8),)):
            raise ValueError(f"the sharded sampler state is damaged: bits are {bits.dtype} {bits.shape}")
        members = Members(bits, length) if len(bits) else None
        own = length if members is None else len(members)
        if sizes.dtype != np.int64 or sizes.shape != (self.num_replicas,) or sizes.min() < 1:
            raise ValueError(
                "the sharded sampler state is damaged: sizes are not one number of samples a rank"
            )
        beyond = len(bits) and bits[-1] & 0xFF >> (
            length % 8 or 8
        )  # the last byte's bits that stand for no sample
        if sizes[self.rank] != own or beyond:
            raise ValueError("the sharded sampler state is damaged: bits and sizes contradict each other")
        stage = state_int(state, "stage", 0, "sharded sampler")
        return ShardInForce(
            epoch=state_int(state, "epoch", 0, "sharded sampler"),
            stage=stage,
            members=members,
            sizes=sizes.copy(),
            recipes=checked_recipes(state, self.num_samples, stage),
            seed=seed,
            mixing=mixing,
        )

    def identity(self) -> dict[str, Any]:
        """The settings that a state must have been saved with."""
        return {**super().identity(), "num_replicas": self.num_replicas, "rank": self.rank}
