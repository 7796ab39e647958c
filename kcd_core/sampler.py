"""Which samples an epoch draws, in which order, on which rank."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .algorithms.permutation import permute, round_keys
from .base import distributed
from .base.arrays import checked_int, state_array, to_numpy
from .base.states import check_same, state_int
from .recipes import MODES, MixRecipes, Steps

if TYPE_CHECKING:
    from .condense import CondensedSet

__all__ = ["CondensedSampler", "InForce"]

STATE_VERSION = 1
MIX_ARRAYS = ("mix_target", "mix_source", "mix_weight", "mix_stage")
Indices = npt.NDArray[np.int64]
Blocks = Iterator[tuple[Indices, npt.NDArray[np.bool_]]]  # indices, and which of them only pad


class InForce(NamedTuple):
    """All that a `CondensedSampler` changes in the course of a run; what an epoch draws depends on it.

    Attributes
    ----------
    epoch : int
    stage : int
        0 before the first.
    kept : int64 [n], ascending, or None
        None is everything, without a list of it.
    recipes : MixRecipes
    """

    epoch: int = 1
    stage: int = 0
    kept: Indices | None = None
    recipes: MixRecipes = MixRecipes()


CheckedState = InForce


class CondensedSampler:
    """Draws the kept samples once an epoch. A torch ``Sampler`` in all but inheritance.

    Parameters
    ----------
    num_samples : int, at least 1
        N, all samples of the data set.
    shuffle : bool
        Off: ascending order.
    seed : int, 0 .. 2**64 - 1
        The order of an epoch is a function of seed, epoch and set, and of nothing else.
    num_replicas, rank : int, optional
        Ranks share one global order, round robin. Default: the initialised process group's, else 1
        and 0.
    drop_last : bool
        Ranks get equal lengths: by repeating samples from the start of the order, or, with
        ``drop_last``, by leaving out its end.
    mixing : {"cumulative", "fresh", None}
        Which mixtures to keep recipes for: those of all stages one on top of the other (the authors'
        behaviour), those of the newest stage, or none. The indices drawn are the same.

    Attributes
    ----------
    in_force : InForce
        Epoch, stage, set and recipes, immutable: every change replaces it as a whole. Putting an
        earlier one back undoes whatever was installed since.

    Raises
    ------
    ValueError
        If a number is outside its range, or ``mixing`` is not one of those named.
    TypeError
        If a number is not an integer.

    Notes
    -----
    The order is a keyed permutation of positions (a Feistel network over the index range, with cycle
    walking), evaluated in blocks: the first index costs the same for any N, nothing of length N is
    made, and a resume skips positions instead of drawing them.

    Examples
    --------
    >>> sampler = CondensedSampler(5, shuffle=False)
    >>> list(sampler), len(sampler)
    ([0, 1, 2, 3, 4], 5)
    """

    def __init__(
        self,
        num_samples: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
        drop_last: bool = False,
        mixing: str | None = "cumulative",
    ) -> None:
        self._num_samples = checked_int(num_samples, "num_samples", 1)
        self.shuffle = bool(shuffle)
        self.seed = checked_int(seed, "seed", 0)
        if self.seed >= 2**64:
            raise ValueError(f"seed must be below 2**64, got {seed}")
        self.num_replicas = checked_int(
            distributed.world_size() if num_replicas is None else num_replicas, "num_replicas", 1
        )
        self.rank = checked_int(distributed.rank() if rank is None else rank, "rank", 0)
        if self.rank >= self.num_replicas:
            raise ValueError(f"rank must be below num_replicas = {self.num_replicas}, got {self.rank}")
        self.drop_last = bool(drop_last)
        if mixing not in MODES:
            raise ValueError(f"mixing must be 'cumulative', 'fresh' or None, got {mixing!r}")
        self.mixing = mixing
        self.in_force = InForce()

    @property
    def num_samples(self) -> int:
        """N, all samples."""
        return self._num_samples

    @property
    def epoch(self) -> int:
        """Which order the next iteration draws in. Set it with `set_epoch`."""
        return self.in_force.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.in_force = self.in_force._replace(epoch=epoch)

    @property
    def stage(self) -> int:
        """How many sets were installed."""
        return self.in_force.stage

    @property
    def kept(self) -> Indices:
        """The set in force: int64, ascending. All indices before the first stage."""
        kept = self.in_force.kept
        return np.arange(self._num_samples) if kept is None else kept.copy()

    @property
    def num_kept(self) -> int:
        """The size of the set in force."""
        kept = self.in_force.kept
        return self._num_samples if kept is None else len(kept)

    @property
    def recipes(self) -> MixRecipes:
        """The mixtures in force."""
        return self.in_force.recipes

    def steps(self, index: int) -> Steps:
        """The mix recipe of one sample, for ``mix_arrays`` or ``mix_samples``; empty if it is not mixed."""
        return self.in_force.recipes.steps(index)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration. At least 0; every epoch needs its own number."""
        self.epoch = checked_int(epoch, "epoch", 0)

    def install(self, condensed_set: CondensedSet) -> None:
        """Draw and mix by ``condensed_set`` from the next iteration on.

        Raises
        ------
        ValueError
            If it was made for another number of samples.
        """
        if condensed_set.num_samples != self._num_samples:
            raise ValueError(
                f"the set is of {condensed_set.num_samples} samples, this sampler of {self._num_samples}"
            )
        everything = len(condensed_set.kept) == self._num_samples
        self.in_force = self.in_force._replace(
            stage=self.stage + 1,
            kept=None if everything else condensed_set.kept.copy(),
            recipes=self._recipes_after(condensed_set.tail, condensed_set.dropped, condensed_set.weights),
        )

    def _recipes_after(self, tail: Indices, dropped: Indices, weights: npt.NDArray[np.float32]) -> MixRecipes:
        if self.mixing is None:
            return self.recipes
        before = self.recipes if self.mixing == "cumulative" else MixRecipes()
        return before.with_stage(tail, dropped[: len(tail)], weights, self.stage + 1)

    def __len__(self) -> int:
        """Number of indices this rank draws in an epoch."""
        return self.length(self.num_kept)

    def length(self, size: int) -> int:
        """Number of indices a rank draws in an epoch on a set of ``size`` points."""
        return size // self.num_replicas if self.drop_last else -(-size // self.num_replicas)

    def __iter__(self) -> Iterator[int]:
        """Indices, as Python ints, made as they are asked for. The set is that of this call."""
        blocks = self.blocks()
        return (index for indices, _ in blocks for index in indices.tolist())

    def blocks(self, epoch: int | None = None, start: int = 0) -> Blocks:
        """This rank's indices in blocks, with a mask of those that only pad the rank's length.

        Parameters
        ----------
        epoch : int, optional
            Default: that of `set_epoch`.
        start : int
            Global position to start from: samples that all ranks together have drawn already.
        """
        epoch = self.epoch if epoch is None else epoch
        # All state is read here, at the call, and not at the first next().
        return self._blocks(self.in_force.kept, self.num_kept, epoch, start)

    def _blocks(self, kept: Indices | None, size: int, epoch: int, start: int) -> Blocks:
        ranks = self.num_replicas
        left = max(0, size - start)
        length = left // ranks if self.drop_last else -(-left // ranks)
        key = round_keys(self.seed, epoch)
        done, block = 0, 256  # small first, so that the first batch comes at once
        while done < length:
            many = min(block, length - done)
            places = start + self.rank + ranks * np.arange(done, done + many, dtype=np.int64)
            padding = places >= size
            places %= size
            if self.shuffle:
                places = permute(places, size, key)
            yield (places if kept is None else kept[places]), padding
            done += many
            block = min(2 * block, 8192)

    def order(self, epoch: int | None = None) -> Indices:
        """This rank's indices of an epoch as one array: int64 [len(self)], as iterating gives them.

        For data that lie on the device whole: ``for indices in np.array_split(sampler.order(epoch), steps)``.

        Parameters
        ----------
        epoch : int, at least 0, optional
            Default: that of `set_epoch`.
        """
        epoch = self.epoch if epoch is None else checked_int(epoch, "epoch", 0)
        order = np.empty(len(self), np.int64)
        done = 0
        for indices, _ in self.blocks(epoch):
            order[done : done + len(indices)] = indices
            done += len(indices)
        return order

    def fingerprint(self, in_force: InForce | None = None) -> str:
        """A short name of set and recipes (default: of those in force): equal on two ranks if these are."""
        _, stage, kept, recipes = in_force or self.in_force
        return fingerprint(stage, kept, recipes)

    def state_dict(self) -> dict[str, Any]:
        """Set, recipes and what defines the order, as plain numbers and tensors. Copies."""
        epoch, stage, kept, recipes = self.in_force
        return {
            **self._identity(),
            "epoch": epoch,
            "stage": stage,
            "kept": state_array(np.empty(0, np.int64) if kept is None else kept),  # empty: everything
            **_recipe_state(recipes),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state. Rank and number of ranks stay: another number resumes the same order.

        Raises
        ------
        ValueError
            If it is of another version, N, seed, shuffle or mixing, or not a sampler's state. Nothing
            is changed then.
        """
        self.in_force = self.check_state(state)

    def _identity(self) -> dict[str, Any]:
        return {
            "version": STATE_VERSION,
            "num_samples": self._num_samples,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "mixing": self.mixing,
        }

    def check_state(self, state: Mapping[str, Any]) -> InForce:
        """What `load_state_dict` would put in force; nothing is changed. Raises as it does."""
        arrays = ("kept", *MIX_ARRAYS)
        check_same(state, self._identity(), "sampler", needs=("epoch", "stage", *arrays))
        kept, target, source, weight, stage = (to_numpy(state[name]) for name in arrays)
        for indices in (kept, target, source, stage):
            if indices.ndim != 1 or indices.dtype != np.int64:
                raise ValueError(
                    f"the sampler state is damaged: expected int64 vectors, got {indices.dtype} {indices.shape}"
                )
        for indices in (kept, target, source):
            if len(indices) and not 0 <= indices.min() <= indices.max() < self._num_samples:
                raise ValueError("the sampler state is damaged: an index lies outside the data set")
        if (np.diff(kept) <= 0).any():
            raise ValueError("the sampler state is damaged: kept is not ascending")
        if not target.shape == source.shape == weight.shape == stage.shape:
            raise ValueError("the sampler state is damaged: its recipes differ in length")
        if weight.dtype != np.float32 or not ((weight >= 0) & (weight <= 1)).all():
            raise ValueError("the sampler state is damaged: a mixing weight lies outside [0, 1]")
        return InForce(
            epoch=state_int(state, "epoch", 0, "sampler"),
            stage=state_int(state, "stage", 0, "sampler"),
            kept=kept.copy() if len(kept) else None,
            recipes=MixRecipes(target, source, weight, stage),
        )

    _checked_state = check_state

    def _apply_state(self, checked: InForce) -> None:
        self.in_force = checked


def _recipe_state(recipes: MixRecipes) -> dict[str, Any]:
    return {
        "mix_target": state_array(recipes.target),
        "mix_source": state_array(recipes.source),
        "mix_weight": state_array(recipes.weight),
        "mix_stage": state_array(recipes.stage),
    }


def fingerprint(stage: int, kept: Indices | None, recipes: MixRecipes) -> str:
    """A short name of a set and its recipes."""
    digest = hashlib.sha256(str(stage).encode())
    for array in (kept, recipes.target, recipes.source, recipes.weight):
        digest.update(b"" if array is None else array.tobytes())
    return digest.hexdigest()
