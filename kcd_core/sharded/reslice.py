"""What ranks of one number saved, as what ranks of another number have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..algorithms.bitset import Members
from ..recipes import MixRecipes
from ..sums import CheckedState as TrackerState
from .sampler import ShardedSampler, ShardInForce
from .slices import bounds, check_sizes

__all__ = ["resliced"]


def resliced(
    parts: Sequence[tuple[TrackerState, ShardInForce]], sampler: ShardedSampler, position: int
) -> tuple[TrackerState, ShardInForce]:
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
            f"a sharded loader resumes with another number of ranks ({ranks} instead of {before}) between epochs "
            "only: save the state after end_epoch()"
        )
    total, count, skipped = zip(*(tracker for tracker, _ in parts), strict=True)
    saved = [in_force for _, in_force in parts]
    old = [bounds(n, rank, before) for rank in range(before)]
    start, stop = sampler.start, sampler.stop

    def own(slices: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return np.concatenate(
            [x[max(0, start - a) : max(0, stop - a)] for x, (a, _) in zip(slices, old, strict=True)]
        )

    member = [
        np.ones(b - a, np.uint8) if s.members is None else np.unpackbits(s.members.bits, count=b - a)
        for s, (a, b) in zip(saved, old, strict=True)
    ]
    starts = [bounds(n, rank, ranks)[0] for rank in range(ranks)]
    sizes = np.add.reduceat(np.concatenate(member), starts, dtype=np.int64)
    check_sizes(sizes)
    recipes = saved[0].recipes
    if saved[0].mixing == "fresh":  # else every rank has the recipes of all
        target, source, weight, stage = (
            np.concatenate([getattr(s.recipes, name) for s in saved])
            for name in ("target", "source", "weight", "stage")
        )
        mine = (target >= start) & (target < stop)
        recipes = MixRecipes(target[mine], source[mine], weight[mine], stage[mine])
    in_force = saved[0]._replace(
        members=None if sizes.sum() == n else Members(np.packbits(own(member)), stop - start),
        sizes=sizes,
        recipes=recipes,
    )
    tracker = own(total), own(count), sum(skipped) if sampler.rank == 0 else np.zeros_like(skipped[0])
    return tracker, in_force
