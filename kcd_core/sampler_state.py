"""What a sampler saves of its set and recipes, how that is checked, and a short name of both."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .algorithms.ranks import blocks
from .base.arrays import state_array, to_numpy
from .recipes import MixRecipes
from .sample_weights import Weights

__all__ = ["RECIPE_ARRAYS", "checked_indices", "checked_recipes", "fingerprint", "recipe_state"]

#: What recipes are called in a state.
RECIPE_ARRAYS = ("mix_target", "mix_source", "mix_weight", "mix_stage")


def recipe_state(recipes: MixRecipes) -> dict[str, Any]:
    """Recipes as a part of a sampler's state."""
    return {
        "mix_target": state_array(recipes.target),
        "mix_source": state_array(recipes.source),
        "mix_weight": state_array(recipes.weight),
        "mix_stage": state_array(recipes.stage),
    }


def checked_recipes(state: Mapping[str, Any], num_samples: int, stage: int) -> MixRecipes:
    """The recipes in a sampler's state, which was saved in ``stage``."""
    target, source = (checked_indices(state[name], num_samples) for name in ("mix_target", "mix_source"))
    weight, stages = to_numpy(state["mix_weight"]), _checked_vector(state["mix_stage"])
    if not target.shape == source.shape == weight.shape == stages.shape:
        raise ValueError("the sampler state is damaged: its recipes differ in length")
    if weight.dtype != np.float32 or not ((weight >= 0) & (weight <= 1)).all():
        raise ValueError("the sampler state is damaged: a mixing weight lies outside [0, 1]")
    if len(stages) and not 1 <= stages.min() <= stages.max() <= stage:
        raise ValueError(f"the sampler state is damaged: a mixture is of a stage outside 1 .. {stage}")
    recipes = MixRecipes(target, source, weight, stages)
    if ((np.diff(recipes.target) == 0) & (np.diff(recipes.stage) == 0)).any():
        raise ValueError("the sampler state is damaged: a sample is mixed twice in one stage")
    return recipes


def checked_indices(x: Any, num_samples: int, *dtypes: type) -> npt.NDArray[Any]:
    """Indices in a sampler's state: int64, or of another one of ``dtypes``."""
    indices = _checked_vector(x, *dtypes)
    if len(indices) and not 0 <= indices.min() <= indices.max() < num_samples:
        raise ValueError("the sampler state is damaged: an index lies outside the data set")
    return indices


def _checked_vector(x: Any, *dtypes: type) -> npt.NDArray[Any]:
    vector = to_numpy(x)
    if vector.ndim != 1 or vector.dtype not in (np.int64, *dtypes):
        raise ValueError(
            f"the sampler state is damaged: expected int64 vectors, got {vector.dtype} {vector.shape}"
        )
    return vector


def fingerprint(
    stage: int, kept: npt.NDArray[Any] | None, recipes: MixRecipes, weights: Weights | None = None
) -> str:
    """A short name of a set, its recipes and its weights."""
    digest = hashlib.sha256(str(stage).encode())
    if kept is not None:
        for block in blocks(len(kept)):
            digest.update(kept[block].astype(np.int64).data)
    for array in (recipes.target, recipes.source, recipes.weight, *(() if weights is None else (weights,))):
        digest.update(array.data)
    return digest.hexdigest()
