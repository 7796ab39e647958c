"""Mixed raw images, made once a stage by the process that trains and read by whichever fetches a sample.

They lie in a file in memory that nobody writes to any more once a key tells of it. So a reader sees whole images, a
worker that is killed leaves nothing behind, and one that lives through several stages never reads a former one's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..base.arrays import is_tensor
from ..base.users_line import warn
from ..mixing import Mixer, mix_arrays
from ..raw_images import RawImages
from ..recipes import MixRecipes, carry_out_all
from .array_file import ArrayFile, ArrayPlace, opened, row_bytes

__all__ = ["MixedImages", "MixedSamples", "MixingCache", "mixing_cache_of"]

Indices = npt.NDArray[np.int64]
CHUNK = 2**20  # bytes of images that are made at once


class MixedImages:
    """The mixed images of one stage. Immutable; the memory is freed with it, and with the processes that read it.

    Parameters
    ----------
    targets : int64 [M], ascending
        Whose they are.
    images : iterator over arrays
        The images themselves, some at a time.
    like : array
        What images are like: an array of any number of them.

    Warns
    -----
    UserWarning
        If there is memory for some of them alone.
    """

    def __init__(self, targets: Indices, images: Iterator[Any], like: Any) -> None:
        self._file = ArrayFile(tuple(like.shape[1:]), like.dtype)
        for some in images:
            try:
                self._file.append(some)
            except OSError as error:
                warn(
                    f"mixing_cache: there is no memory for all of {len(targets)} mixed images ({error}); the others are "
                    "mixed whenever they are drawn. Choose a smaller mixing_cache"
                )
                break
        self.place = self._file.place()
        self.targets = targets[: self.place.rows]

    def slots(self, indices: Indices) -> Indices:
        """Which of the images are those of ``indices``: int64 [n], -1 where there is none."""
        found = np.searchsorted(self.targets, indices)
        found[found == len(self.targets)] = 0
        return np.where(self.targets[found] == indices, found, -1)


class MixingCache:
    """The mixed images of the stage in force, made anew where it changes.

    Parameters
    ----------
    dataset
        With raw images: see `RawImages`.
    limit : int
        In bytes.
    """

    def __init__(self, dataset: Any, limit: int) -> None:
        self._dataset, self._limit = dataset, limit
        self._stage: tuple[MixRecipes, MixedImages | None] | None = None

    def of(self, recipes: MixRecipes, kept: Indices) -> MixedImages | None:
        """Those of the kept samples that ``recipes`` mix: of as many as there is room for, the first in order."""
        stage = self._stage
        if stage is None or stage[0] is not recipes:
            self._stage = stage = None  # the memory of the former stage is free first
            self._stage = stage = recipes, self._made(recipes, kept)
        return stage[1]

    def _made(self, recipes: MixRecipes, kept: Indices) -> MixedImages | None:
        raw = RawImages(self._dataset)
        size = row_bytes(raw.data)
        targets = kept[recipes.contains(kept)][: self._limit // size]
        if not len(targets):
            return None
        step = max(1, CHUNK // size)
        parts = (targets[start : start + step] for start in range(0, len(targets), step))
        images = (carry_out_all(part, recipes, raw.images) for part in parts)
        made = MixedImages(targets, images, raw.data)
        return made if len(made.targets) else None

    def __reduce__(self) -> Any:
        return MixingCache, (self._dataset, self._limit)


def mixing_cache_of(limit: int, mixer: Mixer, dataset: Any) -> MixingCache | None:
    """The cache of a loader that mixes, None without one; ValueError if what is asked for would not be used."""
    if not limit:
        return None
    if mixer is not mix_arrays:
        name = getattr(mixer, "__name__", None) or getattr(
            getattr(mixer, "func", mixer), "__name__", repr(mixer)
        )
        why = (
            f"these samples are mixed by {name}, and only what mix_arrays mixes, raw images in .data, is kept"
        )
    else:
        data = RawImages(dataset).data
        size = row_bytes(data)
        if is_tensor(data) and not data.is_cpu:
            why = f"it is host memory, and the data set's images are on {data.device}"
        elif limit < size:
            why = f"it has room for no image, which takes {size} bytes"
        else:
            return MixingCache(dataset, limit)
    raise ValueError(f"mixing_cache would not be used: {why}; leave it out, or use mixing_cache=0")


class MixedSamples:
    """Samples of a data set by their mixed images, in the process that fetches them.

    Parameters
    ----------
    dataset
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._last: tuple[ArrayPlace, Any, RawImages] | None = None

    def of(self, place: ArrayPlace | None, slots: list[int]) -> Callable[[int], Any]:
        """What gives the samples of a batch by their indices, in order, with these of the images that lie there."""
        if place is None or not slots:
            return _none
        last = self._last
        if last is None or last[0] != place:
            self._last = last = None  # a former stage's memory is free first
            self._last = last = place, opened(place), RawImages(self._dataset)
        _, images, raw = last
        some = images[slots]  # copies, which a transform may write to
        rest = iter(some.unbind() if is_tensor(some) else some)
        sample = raw.view().sample
        return lambda index: sample(index, next(rest))

    def __reduce__(self) -> Any:
        return MixedSamples, (self._dataset,)


def _none(index: int) -> Any:
    raise RuntimeError(f"sample {index} is said to be mixed already, and its batch does not say where")
