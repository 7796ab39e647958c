"""Adaptive knowledge augmentation: a sample of the tail takes in what a dropped sample knew.

A mixer is a stateless function that carries out a recipe (see ``recipes``) on a sample of the user's data set.
It never writes to the data set, and keeps no copy of it.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from .base.arrays import dtype_name, is_floating, is_tensor
from .recipes import Steps, carry_out

__all__ = ["Mixer", "default_mixer", "has_arrays", "is_built_in", "mix_arrays", "mix_samples"]

#: ``mixer(dataset, index, steps) -> sample``: the sample ``dataset[index]``, mixed as ``steps`` say.
Mixer = Callable[[Any, int, Steps], Any]


def mix_arrays(dataset: Any, index: int, steps: Steps) -> Any:
    """Mix raw images before the transform, as the paper does, for data sets that keep them in ``.data``.

    The data set's own ``__getitem__`` runs, transforms and target included, on a shallow copy in which
    ``data[index]`` is the mixed image. Works through any nesting of ``torch.utils.data.Subset``.

    Parameters
    ----------
    dataset
        Has an attribute ``data``, a NumPy array or torch tensor with one entry per sample, and reads
        its image as ``self.data[index]`` (torchvision's MNIST and CIFAR families do).
    index : int
    steps : tuple of (target, source, weight)

    Returns
    -------
    Whatever ``dataset[index]`` returns. What ``__getitem__`` assigns to ``self`` is lost for a mixed
    sample, since ``self`` is the copy.

    Raises
    ------
    TypeError
        If there is no such ``data``, or ``__getitem__`` did not read its image from it.

    Notes
    -----
    Mixed in float32 and truncated back to the images' dtype, which reproduces the authors' images to
    the bit.
    """
    chain, base, locate = _unwrap(dataset)
    if not has_arrays(dataset):
        raise TypeError(
            "mix_arrays needs a data set with one image (floating point, or integers of at most 16 bits) per sample "
            f"in .data, and {type(base).__name__} has none; use mixer=mix_samples, or mixing=None"
        )
    data = base.data
    image = carry_out(index, steps, lambda i: data[locate(i)])
    overlay = _Overlay(data, locate(index), image)
    view = _clone_with(base, "data", overlay)
    for subset in reversed(chain):
        view = _clone_with(subset, "dataset", view)
    sample = view[index]
    if not overlay.was_read:
        raise TypeError(
            f"{type(base).__name__}.__getitem__ did not read its image as self.data[index], so the mixed image "
            "was not used; use mixer=mix_samples, or mixing=None"
        )
    return sample


def mix_samples(dataset: Any, index: int, steps: Steps, *, fields: Sequence[Any] | None = None) -> Any:
    """Mix samples as the data set returns them, after its transform: for any data set.

    Parameters
    ----------
    dataset
    index : int
    steps : tuple of (target, source, weight)
    fields : sequence, optional
        The places of a tuple, or the keys of a dict, that are mixed; the other fields are those of
        ``dataset[index]``. Default: the first element of a tuple or list, or the sample itself if it is an
        array; a dict has no default. Set it with ``functools.partial(mix_samples, fields=["image"])``.

    Raises
    ------
    TypeError
        If a field is not a floating-point tensor or array (integers and targets are never mixed), or
        a dict comes without ``fields``.
    ValueError
        If two samples differ in shape.
    """
    samples: dict[int, Any] = {}

    def sample(i: int) -> Any:
        if i not in samples:
            samples[i] = dataset[i]
        return samples[i]

    def field(f: Any, i: int) -> Any:
        return _mixable(sample(i)[f], f"field {f!r}")

    own = sample(index)
    if _is_array(own):
        return carry_out(index, steps, lambda i: _mixable(sample(i), "the sample"))
    if fields is None:
        if not isinstance(own, (tuple, list)):
            raise TypeError(
                f"mix_samples can't tell what to mix in a {type(own).__name__}: use "
                "mixer=functools.partial(mix_samples, fields=[...]) to name it, or mixing=None"
            )
        fields = (0,)
    mixed = {f: carry_out(index, steps, partial(field, f)) for f in fields}
    if isinstance(own, tuple):
        values = [mixed.get(place, x) for place, x in enumerate(own)]
        return type(own)(*values) if hasattr(own, "_fields") else tuple(values)
    result = copy.copy(own)
    for f, x in mixed.items():
        result[f] = x
    return result


def default_mixer(dataset: Any) -> Mixer:
    """`mix_arrays` where the data set keeps raw arrays in ``.data``, else `mix_samples`."""
    return mix_arrays if has_arrays(dataset) else mix_samples


def is_built_in(mixer: Mixer) -> bool:
    """Whether ``mixer`` is one of this module's, with or without fields."""
    return getattr(mixer, "func", mixer) in (mix_arrays, mix_samples)


def has_arrays(dataset: Any) -> bool:
    """Whether the data set (through ``Subset``, too) has one array or tensor entry per sample in ``.data``."""
    base = _unwrap(dataset)[1]
    data: Any = getattr(base, "data", None)
    if not (isinstance(data, np.ndarray) or is_tensor(data)) or data.ndim < 2 or len(data) != len(base):
        return False
    # Wide integers are labels or tokens, which have no mixture.
    return is_floating(data) or dtype_name(data) in {"uint8", "uint16", "int16"}


class _Overlay:
    """An image array in which one entry is another, for one ``__getitem__``."""

    def __init__(self, data: Any, index: int, image: Any) -> None:
        self._data, self._index, self._image = data, index, image
        self.was_read = False

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, (int, np.integer)) and not (is_tensor(key) and key.ndim == 0):
            raise TypeError(
                f"mix_arrays needs a data set that reads one image as self.data[index], got self.data[{key!r}]; "
                "use mixer=mix_samples"
            )
        key = int(key)
        if key in (self._index, self._index - len(self._data)):
            self.was_read = True
            return self._image
        return self._data[key]

    def __len__(self) -> int:
        return len(self._data)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # __array__ and its like would hand out unmixed images
            raise AttributeError(name)
        return getattr(self._data, name)


def _unwrap(dataset: Any) -> tuple[list[Any], Any, Callable[[int], int]]:
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


def _clone_with(obj: Any, name: str, value: Any) -> Any:
    """A shallow copy of ``obj`` in which one attribute is another."""
    cls: Any = type(obj)
    # By hand where that is all there is to it: copy.copy would go through the user's __getstate__.
    if cls.__new__ is object.__new__ and not any(vars(c).get("__slots__") for c in cls.__mro__):
        clone = object.__new__(cls)
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


def _is_array(x: Any) -> bool:
    return isinstance(x, np.ndarray) or is_tensor(x)


def _mixable(x: Any, what: str) -> Any:
    if not _is_array(x):
        raise TypeError(
            f"{what} can't be mixed: expected a floating-point tensor or array, got {type(x).__name__}; convert "
            "it in the transform, name other fields, or use mixing=None"
        )
    if not is_floating(x):
        raise TypeError(
            f"{what} can't be mixed: integers are never mixed, got dtype {dtype_name(x)}; convert images to "
            "floating point in the transform, name other fields, or use mixing=None"
        )
    return x
