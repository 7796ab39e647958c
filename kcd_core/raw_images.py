"""Data sets that keep their raw images in ``.data``, and a sample of one with another image instead of its own."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .base.arrays import dtype_name, is_floating, is_tensor

__all__ = ["RawImages", "has_arrays", "is_array", "unwrap"]


class RawImages:
    """The raw images of a data set, through any nesting of ``torch.utils.data.Subset``.

    Parameters
    ----------
    dataset
        See `mix_arrays`.

    Raises
    ------
    TypeError
        If it has none.
    """

    def __init__(self, dataset: Any) -> None:
        self._chain, self._base, self._locate = unwrap(dataset)
        if not has_arrays(dataset):
            raise TypeError(
                "mix_arrays needs a data set with one image (floating point, or integers of at most 16 bits) per sample "
                f"in .data, and {type(self._base).__name__} has none; use mixer=mix_samples, or mixing=None"
            )
        self._links = [(obj, "dataset", _is_plain(type(obj))) for obj in reversed(self._chain)]
        self._plain = _is_plain(type(self._base))

    @property
    def data(self) -> Any:
        """The data set's own array or tensor, as it is now."""
        return self._base.data

    def image(self, index: int) -> Any:
        """The image of one sample."""
        return self._base.data[self._locate(index)]

    def images(self, indices: npt.NDArray[np.int64]) -> Any:
        """Those of many, as one array or tensor. A copy."""
        data, places = self._base.data, indices
        if self._chain:
            places = np.array([self._locate(int(index)) for index in indices], np.int64)
        if is_tensor(data):
            return data.detach()[sys.modules["torch"].from_numpy(places)]
        return np.asarray(data[places])

    def view(self) -> View:
        """The data set as it is now, to fetch samples with other images."""
        overlay = _Overlay(self._base.data)
        view = _clone_with(self._base, "data", overlay, self._plain)
        for subset, name, plain in self._links:
            view = _clone_with(subset, name, view, plain)
        return View(view, overlay, self._locate, type(self._base).__name__)


class View:
    """A shallow copy of a data set, whose samples have the images that they are given. `RawImages.view` makes it."""

    def __init__(self, dataset: Any, overlay: _Overlay, locate: Callable[[int], int], name: str) -> None:
        self._dataset, self._overlay, self._locate, self._name = dataset, overlay, locate, name

    def sample(self, index: int, image: Any) -> Any:
        """What ``dataset[index]`` returns where this is its image.

        Raises
        ------
        TypeError
            If ``__getitem__`` did not read its image from ``data``, or writes to it.
        """
        overlay = self._overlay
        overlay.index, overlay.image, overlay.was_read = self._locate(index), image, False
        sample = self._dataset[index]
        if not overlay.was_read:
            raise TypeError(
                f"{self._name}.__getitem__ did not read its image as self.data[index] (has it a cache?), so the "
                "mixed image was not used; use mixer=mix_samples, or mixing=None"
            )
        return sample


def has_arrays(dataset: Any) -> bool:
    """Whether the data set (through ``Subset``, too) has one array or tensor entry per sample in ``.data``."""
    base = unwrap(dataset)[1]
    data: Any = getattr(base, "data", None)
    if is_array(base) or not is_array(data) or data.ndim < 2 or not 0 < len(data) == len(base):
        return False
    # Wide integers are labels or tokens, which have no mixture.
    return is_floating(data) or dtype_name(data) in {"uint8", "uint16", "int16"}


def is_array(x: Any) -> bool:
    """A NumPy array or a torch tensor."""
    return isinstance(x, np.ndarray) or is_tensor(x)


def unwrap(dataset: Any) -> tuple[list[Any], Any, Callable[[int], int]]:
    """The chain of subsets, the data set at its end, and where an index of the first lies in the last."""
    utils = sys.modules.get("torch.utils.data")
    chain: list[Any] = []
    while utils is not None and isinstance(dataset, utils.Subset):
        chain.append(dataset)
        dataset = dataset.dataset

    def locate(index: int) -> int:
        for subset in chain:
            index = int(subset.indices[index])
        return index

    return chain, dataset, locate


class _Overlay:
    """An image array in which one entry, ``index``, is another."""

    def __init__(self, data: Any) -> None:
        self._data, self._size = data, len(data)
        self.ndim, self.shape, self.dtype = (
            data.ndim,
            data.shape,
            data.dtype,
        )  # faster than through __getattr__
        self.index, self.image, self.was_read = -1, None, False

    def __getitem__(self, key: Any) -> Any:
        if type(key) is not int:
            if isinstance(key, tuple) and key:
                return self[key[0]][key[1:]]
            if not isinstance(key, (int, np.integer)) and not (is_tensor(key) and key.ndim == 0):
                raise TypeError(
                    f"mix_arrays needs a data set that reads one image as self.data[index], got self.data[{key!r}]; "
                    "use mixer=mix_samples"
                )
            key = int(key)
        if key == self.index or key == self.index - self._size:
            self.was_read = True
            return self.image
        return self._data[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError(
            "mix_arrays needs a data set that only reads its .data, and this one writes to it (a cache?); use "
            "mixer=mix_samples, or mixing=None"
        )

    def __len__(self) -> int:
        return self._size

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # __array__ and its like would hand out unmixed images
            raise AttributeError(name)
        return getattr(self._data, name)


def _is_plain(cls: Any) -> bool:
    """Whether a shallow copy of an object of this class is a matter of its ``__dict__`` alone."""
    return cls.__new__ is object.__new__ and not any(vars(c).get("__slots__") for c in cls.__mro__)


def _clone_with(obj: Any, name: str, value: Any, plain: bool) -> Any:
    """A shallow copy of ``obj`` in which one attribute is another."""
    # By hand where that is all there is to it: copy.copy would go through the user's __getstate__.
    if plain:
        clone = object.__new__(type(obj))
        clone.__dict__.update(obj.__dict__)
    else:
        clone = copy.copy(obj)
    try:
        setattr(clone, name, value)
    except AttributeError:
        raise TypeError(
            f"mix_arrays needs to replace {type(obj).__name__}.{name} in a copy, and it can't be set; use "
            "mixer=mix_samples, or mixing=None"
        ) from None
    return clone
