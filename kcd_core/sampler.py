"""Which samples an epoch draws, in which order, on which rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .algorithms.permutation import permute, round_keys
from .base.arrays import as_indices, checked_range, state_array
from .base.padding import PADDING
from .base.states import state_int
from .condense import CondensedSet
from .epoch_sampler import Blocks, EpochSampler, Indices, spans
from .recipes import Mixing, MixRecipes
from .sample_weights import SampleWeights, Weights, checked_weights
from .sampler_state import RECIPE_ARRAYS, checked_indices, checked_recipes, fingerprint, recipe_state

__all__ = ["CondensedSampler", "InForce"]


class InForce(NamedTuple):
    """All of a `CondensedSampler` that changes in the course of a run. Immutable.

    Attributes
    ----------
    epoch : int
    stage : int
        How many sets were installed.
    kept : int32 [n], ascending, or None
        int64 where there are more than 2**31 samples. None is everything, without a list of it.
    recipes : MixRecipes
    seed : int
    mixing : {"cumulative", "fresh", None}
        These two change where a state is loaded and they are taken over from it.
    weights : float32 [n] or None
        What the kept samples' losses are multiplied by.
    """

    epoch: int = 1
    stage: int = 0
    kept: npt.NDArray[np.signedinteger[Any]] | None = None
    recipes: MixRecipes = MixRecipes()
    seed: int = 0
    mixing: Mixing = "cumulative"
    weights: Weights | None = None


class CondensedSampler(EpochSampler):
    """Draws each kept sample once an epoch. It behaves like a torch ``Sampler`` without inheriting from it.

    Parameters
    ----------
    num_samples : int, at least 1
        N, all samples of the data set.
    shuffle : bool
        Whether every epoch has a new random order. Otherwise samples are drawn by ascending index.
    seed : int, 0 .. 2**64 - 1
        The order of an epoch is a function of seed, epoch and set, and of nothing else.
    num_replicas, rank : int, optional
        Ranks share one global order, round robin. Default: those of the initialised process group, else 1 and 0. Use
        ``num_replicas=1, rank=0`` for a trainer that distributes a sampler's indices itself (accelerate, Hugging
        Face's, Lightning with ``use_distributed_sampler``); it would otherwise take a share of a share, and the ranks
        together draw only a part of the set.
    drop_last : bool
        Whether ranks get equal lengths by leaving out the end of the order. Otherwise they repeat samples from its
        start.
    mixing : {"cumulative", "fresh", None}
        Which mixtures to keep recipes for: those of all stages, one on top of the other (the authors' behaviour),
        those of the newest stage, or none. The indices drawn are the same.

    Attributes
    ----------
    in_force : InForce
        Epoch, stage, set, recipes and seed. Putting an earlier one back undoes whatever was installed since.

    Raises
    ------
    ValueError
        If a number is outside its range, ``mixing`` is not one of those named, or ``num_replicas`` is given without
        ``rank`` and there is no process group of that many ranks.
    TypeError
        If a number is not an integer.

    Notes
    -----
    The order is a keyed permutation of positions (a Feistel network over the index range, with cycle
    walking), evaluated in blocks. The first index costs the same for any N, nothing of length N is made, and a resumed
    epoch skips positions instead of drawing them. The set takes 4 bytes a kept sample (8 if there are more than 2**31
    samples), and a mixture 28.

    Examples
    --------
    >>> sampler = CondensedSampler(5, shuffle=False)
    >>> list(sampler), len(sampler)
    ([0, 1, 2, 3, 4], 5)
    """

    in_force: InForce

    def everything(self, seed: int, mixing: Mixing) -> InForce:
        """What is in force before the first stage."""
        return InForce(seed=seed, mixing=mixing)

    @property
    def kept(self) -> Indices:
        """The set in force: int64, ascending. All indices before the first stage."""
        kept = self.in_force.kept
        return np.arange(self.num_samples) if kept is None else kept.astype(np.int64)

    @property
    def num_kept(self) -> int:
        """The size of the set in force."""
        kept = self.in_force.kept
        return self.num_samples if kept is None else len(kept)

    def after(self, condensed_set: CondensedSet) -> InForce:
        """What `install` would put in force. Changes nothing, and raises as it does."""
        self.check_size(condensed_set, CondensedSet)
        everything = len(condensed_set.kept) == self.num_samples
        return self.in_force._replace(
            stage=self.stage + 1,
            kept=None if everything else self._held(condensed_set.kept),
            recipes=self.recipes_after(condensed_set.tail, condensed_set.dropped, condensed_set.weights),
            weights=None if condensed_set.sample_weights is None else condensed_set.sample_weights.copy(),
        )

    @property
    def sample_weights(self) -> SampleWeights | None:
        """Factors for the losses of the set in force; None means 1."""
        in_force = self.in_force
        return None if in_force.weights is None else SampleWeights(in_force.weights, in_force.kept)

    def weights_of(self, indices: Any) -> Weights | None:
        """Factors for the losses of these samples: float32 [B]; None if the set in force has no weights.

        Parameters
        ----------
        indices : integer array [B]
            In host memory. The weight of -1, which is padding, and of samples outside the set is 0.

        Raises
        ------
        TypeError
            If they are not integers, or on a device.
        IndexError
            If one lies outside ``0 .. N-1``, and is not -1.
        """
        given = as_indices(indices, "indices")
        if not isinstance(given, np.ndarray):
            raise TypeError(f"indices must be in host memory, got a tensor on {given.device}")
        places = checked_range(given, "indices", self.num_samples, lower=PADDING)
        self.note_weights_read()
        weights = self.sample_weights
        return None if weights is None else weights.of(places)

    def _held(self, kept: npt.NDArray[Any]) -> npt.NDArray[np.signedinteger[Any]]:
        """A copy of a set's indices, as they are held."""
        return kept.astype(np.int32 if self.num_samples <= 2**31 else np.int64)

    def blocks(self, epoch: int | None = None, start: int = 0) -> Blocks:
        """See `EpochSampler.blocks`."""
        epoch = self.epoch if epoch is None else epoch
        # All state is read here, at the call, and not at the first next().
        return self._blocks(self.in_force.kept, epoch, start)

    def _blocks(self, kept: npt.NDArray[Any] | None, epoch: int, start: int) -> Blocks:
        size = self.num_samples if kept is None else len(kept)
        ranks, key = self.num_replicas, round_keys(self.seed, epoch)
        for span in spans(0, self.length(max(0, size - start))):
            places = start + self.rank + ranks * span
            padding = places >= size
            places %= size
            if self.shuffle:
                places = permute(places, size, key)
            yield (places if kept is None else kept[places].astype(np.int64, copy=False)), padding

    def places(self, indices: Indices, epoch: int) -> Indices:
        """See `EpochSampler.places`."""
        kept, size = self.in_force.kept, self.num_kept
        places = indices.astype(np.int64)
        drawn = np.ones(len(places), bool)
        if kept is not None:
            places = np.searchsorted(kept, indices) % size
            drawn = kept[places] == indices
        if self.shuffle:
            places = permute(places, size, round_keys(self.seed, epoch), inverse=True)
        return np.where(drawn, places, self.num_samples)

    def fingerprint(self, in_force: InForce | None = None) -> str:
        """A short name of set, recipes and weights, by default those in force. Two ranks have the same name if these
        are equal."""
        of = in_force or self.in_force
        return fingerprint(of.stage, of.kept, of.recipes, of.weights)

    def state_dict(self) -> dict[str, Any]:
        """A copy of the set, the recipes and what defines the order, as plain numbers and tensors."""
        epoch, stage, kept, recipes, _, _, weights = self.in_force
        weighed = {} if weights is None else {"sample_weights": state_array(weights)}
        return {
            **self.identity(),
            "epoch": epoch,
            "stage": stage,
            "kept": state_array(np.empty(0, np.int32) if kept is None else kept),  # empty: everything
            **recipe_state(recipes),
            **weighed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state. Rank and number of ranks stay; another number of ranks resumes the same order.

        Raises
        ------
        ValueError
            If it is of another version, N, seed, shuffle or mixing, or not a sampler's state. Nothing
            is changed then.
        """
        super().load_state_dict(state)

    def check_state(self, state: Mapping[str, Any]) -> InForce:
        """What `load_state_dict` would put in force. Changes nothing, and raises as it does."""
        seed, mixing = self.checked_seed(state, "sampler", needs=("epoch", "stage", "kept", *RECIPE_ARRAYS))
        kept = checked_indices(state["kept"], self.num_samples, np.int32)
        if (kept[1:] <= kept[:-1]).any():
            raise ValueError("the sampler state is damaged: kept is not ascending")
        stage = state_int(state, "stage", 0, "sampler")
        weights = None
        if "sample_weights" in state:
            try:
                weights = checked_weights(state["sample_weights"], len(kept) or self.num_samples).copy()
            except (TypeError, ValueError) as error:
                raise ValueError(f"the sampler state is damaged: {error}") from None
        return InForce(
            epoch=state_int(state, "epoch", 0, "sampler"),
            stage=stage,
            kept=self._held(kept) if len(kept) else None,
            recipes=checked_recipes(state, self.num_samples, stage),
            seed=seed,
            mixing=mixing,
            weights=weights,
        )
