"""Who is mixed with whom: recipes, which travel with the sampler's keys to the process that fetches a sample.

A recipe is a tuple of steps ``(target, source, weight)``, in order: replace the image of ``target`` by
``weight * target + (1 - weight) * source``. With cumulative mixing (what the authors' code does) later stages
mix mixtures, so a recipe can have several steps; with fresh mixing it has at most one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .base.arrays import dtype_name, is_tensor

__all__ = [
    "MODES",
    "NOT_ADOPTED",
    "MixRecipes",
    "Mixing",
    "Step",
    "Steps",
    "adopted_mixing",
    "blend",
    "carry_out",
    "carry_out_all",
]

Step = tuple[int, int, float]
Steps = tuple[Step, ...]
#: Which mixtures are kept: those of all stages, those of the newest stage, or none.
Mixing = Literal["cumulative", "fresh"] | None

MODES = ("cumulative", "fresh", None)

#: What to do about the mixing of a state that `adopted_mixing` does not take over.
NOT_ADOPTED = '. mixing="auto" takes over that of a state, cumulative or fresh, but not none: give mixing=None, or --mixing none'


class MixRecipes:
    """Who was mixed with whom, stage by stage. Immutable; a mixture takes 28 bytes.

    Parameters
    ----------
    target, source : int64 [M]
    weight : float32 [M]
    stage : int64 [M]
        The stage that mixed them. The rows may come in any order; a target occurs at most once a stage.
    """

    def __init__(self, target: Any = (), source: Any = (), weight: Any = (), stage: Any = ()) -> None:
        target, stage = np.asarray(target, np.int64), np.asarray(stage, np.int64)
        order = np.lexsort((stage, target))
        self.target: npt.NDArray[np.int64] = target[order]
        self.stage: npt.NDArray[np.int64] = stage[order]
        self.source: npt.NDArray[np.int64] = np.asarray(source, np.int64)[order]
        self.weight: npt.NDArray[np.float32] = np.asarray(weight, np.float32)[order]

    def __len__(self) -> int:
        return len(self.target)

    def with_stage(self, target: Any, source: Any, weight: Any, stage: int) -> MixRecipes:
        """These recipes and those of one more stage."""
        return MixRecipes(
            np.concatenate([self.target, target]),
            np.concatenate([self.source, source]),
            np.concatenate([self.weight, weight]),
            np.concatenate([self.stage, np.full(len(target), stage, np.int64)]),
        )

    def reaching(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The rows that these samples are made by: their own, and those of all that goes into them."""
        seen = np.zeros(0, np.int64)
        found = [np.zeros(0, np.int64)]
        while len(samples):
            seen = np.union1d(seen, samples)
            first, last = (np.searchsorted(self.target, samples, side) for side in ("left", "right"))
            length = last - first
            # The rows first .. last - 1 of each sample, one after the other.
            rows = np.arange(length.sum()) + np.repeat(first - np.cumsum(length) + length, length)
            found.append(rows)
            samples = np.setdiff1d(self.source[rows], seen)
        return np.concatenate(found)

    def contains(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of ``indices`` are mixed."""
        if not len(self):
            return np.zeros(len(indices), bool)
        place = np.minimum(np.searchsorted(self.target, indices), len(self) - 1)
        mixed: npt.NDArray[np.bool_] = self.target[place] == indices
        return mixed

    def steps(self, index: int) -> Steps:
        """The recipe of one index; empty if it is not mixed.

        An image takes in its source as it was *before* that stage, so the earlier steps of the source
        belong to the recipe, too. They are found iteratively, each row once, and come in the order of
        the stages. No image is both target and source within one stage.
        """
        rows: list[int] = []
        done: dict[int, int] = {}
        todo: list[tuple[int, int]] = [(index, sys.maxsize)]
        while todo:
            sample, before = todo.pop()
            first = int(np.searchsorted(self.target, sample))
            row = done.get(sample, first)
            while row < len(self.target) and self.target[row] == sample and self.stage[row] < before:
                rows.append(row)
                todo.append((int(self.source[row]), int(self.stage[row])))
                row += 1
            done[sample] = row
        rows.sort(key=lambda row: int(self.stage[row]))
        return tuple((int(self.target[r]), int(self.source[r]), float(self.weight[r])) for r in rows)


def adopted_mixing(state: Any, own: Mixing) -> Mixing:
    """The mixing of a state, for whoever was not told one and has its ``own``: cumulative or fresh, but not none."""
    saved = state.get("mixing") if isinstance(state, Mapping) else None
    return saved if isinstance(saved, str) and saved in ("cumulative", "fresh") else own  # type: ignore[return-value]


def carry_out(index: int, steps: Steps, read: Callable[[int], Any]) -> Any:
    """The image of ``index`` after ``steps``.

    Parameters
    ----------
    index : int
    steps : tuple of (target, source, weight)
    read : callable
        Gives the unmixed image of an index; called once an image.

    Raises
    ------
    ValueError
        If two images that are mixed differ in shape.
    """
    images: dict[int, Any] = {}
    for target, source, weight in steps:
        for i in (target, source):
            if i not in images:
                images[i] = read(i)
        if images[target].shape != images[source].shape:
            raise ValueError(
                f"samples {target} and {source} can't be mixed: their shapes are "
                f"{tuple(images[target].shape)} and {tuple(images[source].shape)}; make them alike in the transform, or "
                "use mixing=None"
            )
        images[target] = blend(images[target], images[source], weight)
    return images[index] if index in images else read(index)


def carry_out_all(
    indices: npt.NDArray[np.int64], recipes: MixRecipes, read: Callable[[npt.NDArray[np.int64]], Any]
) -> Any:
    """The images of all ``indices``, as `carry_out` makes each, as one array or tensor.

    Parameters
    ----------
    indices : int64 [n]
        None twice.
    recipes : MixRecipes
    read : callable
        Gives the unmixed images of many indices, in an array of its own.
    """
    rows = recipes.reaching(indices)
    samples = np.unique(np.concatenate([indices, recipes.target[rows], recipes.source[rows]]))
    images = read(samples)
    for stage in np.unique(recipes.stage[rows]):
        now = rows[recipes.stage[rows] == stage]
        target, source = (np.searchsorted(samples, own[now]) for own in (recipes.target, recipes.source))
        weight = recipes.weight[now].astype(np.float64).reshape(-1, *[1] * (images.ndim - 1))
        # No image is both target and source within a stage.
        _put(images, target, blend(images[target], images[source], weight))
    return images[np.searchsorted(samples, indices)]


def _put(images: Any, places: npt.NDArray[np.int64], some: Any) -> None:
    """Write ``some`` of the images."""
    if is_tensor(images) and dtype_name(images) == "uint16":  # torch writes none by index
        torch = sys.modules["torch"]
        images, some = images.view(torch.int16), some.view(torch.int16)
    images[places] = some


def blend(a: Any, b: Any, weight: Any) -> Any:
    """``weight * a + (1 - weight) * b`` in at least float32, truncated back to the dtype of ``a``.

    ``weight`` is a number, or a float64 array that is broadcast with ``a``.
    """
    if is_tensor(a):
        torch = sys.modules["torch"]
        wide = torch.promote_types(a.dtype, torch.float32)
        rest = 1 - weight
        if isinstance(weight, np.ndarray):
            weight, rest = (torch.from_numpy(w).to(wide) for w in (weight, rest))
        return (a.to(wide) * weight + b.to(wide) * rest).to(a.dtype)
    wide = np.result_type(a.dtype, np.float32)
    rest = 1 - weight
    if isinstance(weight, np.ndarray):
        weight, rest = weight.astype(wide), rest.astype(wide)
    else:
        weight, rest = wide.type(weight), wide.type(rest)
    return (a.astype(wide) * weight + b.astype(wide) * rest).astype(a.dtype)
