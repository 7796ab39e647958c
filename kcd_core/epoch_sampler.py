"""What samplers of a condensed set have in common: settings, epochs, and a state that is replaced as a whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .base import distributed
from .base.arguments import check_kind, checked_bool, checked_choice
from .base.arrays import checked_int
from .base.states import check_same, state_int
from .recipes import MODES, NOT_ADOPTED, Mixing, MixRecipes, Steps, adopted_mixing
from .sample_weights import SampleWeights

__all__ = ["Blocks", "EpochSampler", "Indices", "spans"]

STATE_VERSION = 1
Indices = npt.NDArray[np.int64]
Blocks = Iterator[tuple[Indices, npt.NDArray[np.bool_]]]  # indices, and which of them only pad


class EpochSampler(ABC):
    """What the samplers of this package share: settings, epochs, iteration, and how a set is installed.

    A sampler owns one immutable object, `in_force`, and replaces it as a whole. What that holds besides
    epoch, stage and recipes, and which samples are drawn, is each sampler's own.

    Parameters
    ----------
    num_samples, shuffle, seed, num_replicas, rank, drop_last, mixing
        See `CondensedSampler`.

    Attributes
    ----------
    share_given : bool
        Whether ``num_replicas`` or ``rank`` was given, and so a share of everything is what was asked for.
    adopts_seed, adopts_mixing : bool
        Whether a state's seed is taken over, and whether its mixing is, cumulative or fresh: where the user gave none.
        False unless it is set.
    """

    #: A named tuple with ``epoch``, ``stage``, ``recipes``, ``seed``, ``mixing``, and the set.
    in_force: Any

    def __init__(
        self,
        num_samples: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
        drop_last: bool = False,
        mixing: Mixing = "cumulative",
    ) -> None:
        self._num_samples = checked_int(num_samples, "num_samples", 1)
        self.shuffle = checked_bool(shuffle, "shuffle")
        seed = checked_int(seed, "seed", 0)
        if seed >= 2**64:
            raise ValueError(f"seed must be below 2**64, got {seed}")
        self.num_replicas, self.rank = distributed.share_of(num_replicas, rank)
        self.share_given = num_replicas is not None or rank is not None
        self.adopts_seed = self.adopts_mixing = False
        self._weights_read = -1  # the stage of which they were
        self.drop_last = checked_bool(drop_last, "drop_last")
        self.in_force = self.everything(seed, checked_choice(mixing, "mixing", MODES))

    @abstractmethod
    def everything(self, seed: int, mixing: Mixing) -> Any:
        """What is in force before the first stage."""

    @property
    def seed(self) -> int:
        """Of the order."""
        return int(self.in_force.seed)

    @property
    def mixing(self) -> Mixing:
        """Which mixtures have recipes."""
        mixing: Mixing = self.in_force.mixing
        return mixing

    @property
    def num_samples(self) -> int:
        """N, all samples."""
        return self._num_samples

    @property
    @abstractmethod
    def kept(self) -> Indices:
        """The set in force: int64, ascending."""

    @property
    @abstractmethod
    def num_kept(self) -> int:
        """The size of the set in force, over all ranks."""

    def __repr__(self) -> str:
        share = f", rank={self.rank} of {self.num_replicas}" if self.num_replicas > 1 else ""
        return (
            f"{type(self).__name__}(kept={self.num_kept} of {self.num_samples}, epoch={self.epoch}, "
            f"stage={self.stage}, shuffle={self.shuffle}, seed={self.seed}, mixing={self.mixing!r}{share})"
        )

    @property
    def stage(self) -> int:
        """Number of sets installed."""
        return int(self.in_force.stage)

    @property
    def recipes(self) -> MixRecipes:
        """The mixtures in force."""
        recipes: MixRecipes = self.in_force.recipes
        return recipes

    def steps(self, index: int) -> Steps:
        """The mix recipe of one sample, for ``mix_arrays`` or ``mix_samples``; empty if it is not mixed."""
        return self.recipes.steps(checked_int(index, "index", 0))

    @property
    def sample_weights(self) -> SampleWeights | None:
        """Factors for the losses of the set in force; None means 1."""
        return None

    def note_weights_read(self) -> None:
        """Note that the weights were read: see `why_unweighed`."""
        self._weights_read = self.stage

    @property
    def why_unweighed(self) -> str:
        """Why weights of the set in force have no effect; empty if there are none, or if they were read."""
        if self.sample_weights is None or self._weights_read == self.stage:
            return ""
        return (
            "the set has sample weights, and nobody asked for them: multiply the losses of each batch by loader.sample_weights "
            "before the mean is taken, or by sampler.weights_of(indices), or learning is of another loss than the rule's"
        )

    @property
    def epoch(self) -> int:
        """The epoch whose order the next iteration has."""
        return int(self.in_force.epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration. At least 0; every epoch needs its own number."""
        self.in_force = self.in_force._replace(epoch=checked_int(epoch, "epoch", 0))

    def install(self, condensed_set: Any) -> None:
        """Draw and mix by ``condensed_set`` from the next iteration on.

        Raises
        ------
        ValueError
            If it was made for another number of samples. Nothing is changed then.
        TypeError
            If it is no set of this kind.
        """
        self.in_force = self.after(condensed_set)

    @abstractmethod
    def after(self, condensed_set: Any) -> Any:
        """What `install` would put in force. Changes nothing, and raises as it does."""

    def check_size(self, condensed_set: Any, *kinds: type) -> None:
        """Check that a set is of one of ``kinds``, and was made for this number of samples."""
        check_kind(condensed_set, "condensed_set", *kinds)
        if condensed_set.num_samples != self._num_samples:
            raise ValueError(
                f"the set is of {condensed_set.num_samples} samples, this sampler of {self._num_samples}"
            )

    def recipes_after(self, tail: Indices, dropped: Indices, weights: npt.NDArray[np.float32]) -> MixRecipes:
        """The recipes of the next stage, in which one of ``dropped`` is mixed into each of ``tail``."""
        if self.mixing is None:
            return self.recipes
        before = self.recipes if self.mixing == "cumulative" else MixRecipes()
        return before.with_stage(tail, dropped[: len(tail)], weights, self.stage + 1)

    def length(self, size: int) -> int:
        """Number of indices that a rank draws in an epoch from a set of ``size`` samples."""
        return size // self.num_replicas if self.drop_last else -(-size // self.num_replicas)

    @property
    def share(self) -> int:
        """How many of all samples are this rank's."""
        return len(range(self.rank, self.num_samples, self.num_replicas))

    def __len__(self) -> int:
        """Number of indices this rank draws in an epoch."""
        return self.length(self.num_kept)

    def __iter__(self) -> Iterator[int]:
        """Indices, as Python ints, made as they are asked for. The set is that of this call."""
        blocks = self.blocks()
        return (index for indices, _ in blocks for index in indices.tolist())

    @abstractmethod
    def blocks(self, epoch: int | None = None, start: int = 0) -> Blocks:
        """This rank's indices in blocks, with a mask of those that are padding.

        Parameters
        ----------
        epoch : int, optional
            Default: that of `set_epoch`.
        start : int
            Global position to start from: samples that all ranks together have drawn already.
        """

    def places(self, indices: Indices, epoch: int) -> Indices:
        """Positions of these samples in an epoch's global order: int64 [n]; num_samples for those that are not drawn.

        0 if a sampler does not know.
        """
        return np.zeros(len(indices), np.int64)

    def order(self, epoch: int | None = None) -> Indices:
        """This rank's indices of an epoch as one array: int64 [len(self)], as iterating gives them.

        For data that are entirely on the device: ``for indices in np.array_split(sampler.order(epoch), steps)``.

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

    @abstractmethod
    def fingerprint(self, in_force: Any = None) -> str:
        """A short name of set and recipes, by default those in force. Two ranks have the same name if these are
        equal."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """A copy of the set, the recipes and what defines the order, as plain numbers and tensors."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state.

        Raises
        ------
        ValueError
            If it was saved with other settings or by another version, or is not such a sampler's state.
            Nothing is changed then.
        """
        self.in_force = self.check_state(state)

    @abstractmethod
    def check_state(self, state: Mapping[str, Any]) -> Any:
        """What `load_state_dict` would put in force. Changes nothing, and raises as it does."""

    def checked_seed(
        self, state: Mapping[str, Any], owner: str, *, needs: tuple[str, ...]
    ) -> tuple[int, Mixing]:
        """Seed and mixing of a state, which is refused if it was saved with other settings or lacks what it ``needs``."""
        mine = self.identity()
        if self.adopts_seed:
            del mine["seed"]
        if self.adopts_mixing:
            mine["mixing"] = adopted_mixing(state, self.mixing)
        hints = {"mixing": NOT_ADOPTED} if self.adopts_mixing else {}
        check_same(state, mine, owner, needs=("seed", *needs), hints=hints)
        seed = state_int(state, "seed", 0, owner)
        if seed >= 2**64:
            raise ValueError(f"the {owner} state is damaged: seed must be below 2**64, got {seed}")
        return seed, state["mixing"]

    def identity(self) -> dict[str, Any]:
        """The settings that a state must have been saved with."""
        return {
            "version": STATE_VERSION,
            "num_samples": self._num_samples,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "mixing": self.mixing,
        }


def spans(start: int, stop: int) -> Iterator[Indices]:
    """``arange(start, stop)`` in blocks: small ones first, so that an epoch's first batch comes at once."""
    size = 256
    while start < stop:
        yield np.arange(start, min(start + size, stop), dtype=np.int64)
        start += size
        size = min(2 * size, 8192)
