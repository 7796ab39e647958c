"""Adaptive knowledge augmentation: a sample of the tail takes in what a dropped sample knew.

A mixer is a stateless function that carries out a recipe (see ``recipes``) on a sample of the user's data set.
It never writes to the data set, and keeps no copy of it.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Collection, Iterable
from functools import partial
from inspect import getattr_static
from typing import Any

import numpy as np

from .base.arrays import dtype_name, is_floating, is_tensor, to_numpy
from .recipes import Steps, carry_out

__all__ = [
    "Mixer",
    "default_mixer",
    "field_of",
    "has_arrays",
    "holds_pixels",
    "is_array",
    "is_built_in",
    "mix_arrays",
    "mix_samples",
    "unwrap",
]

#: ``mixer(dataset, index, steps) -> sample``: the sample ``dataset[index]``, mixed as ``steps`` say.
Mixer = Callable[[Any, int, Steps], Any]


def mix_arrays(dataset: Any, index: int, steps: Steps) -> Any:
    """Mix raw images before the transform, as the paper does, for data sets that keep them in ``.data``.

    The data set's own ``__getitem__`` runs, transforms and target included, on a shallow copy in which
    ``data[index]`` is the mixed image. Works through any nesting of ``torch.utils.data.Subset``.

    Parameters
    ----------
    dataset
        Has an attribute ``data``, a NumPy array or torch tensor with one entry per sample, floating
        point, uint8, uint16 or int16, and reads its image as ``self.data[index]`` or ``self.data[index, ...]`` (torchvision's MNIST
        and CIFAR families do). Integers must be intensities: ids and labels have no mixture.
    index : int
    steps : tuple of (target, source, weight)

    Returns
    -------
    Whatever ``dataset[index]`` returns. What ``__getitem__`` assigns to ``self`` is lost for a mixed
    sample, since ``self`` is the copy.

    Raises
    ------
    TypeError
        If there is no such ``data``, or ``__getitem__`` did not read its image from it, or writes to it.
    RuntimeError
        If the image of a source can't be read.

    Notes
    -----
    Mixed in float32 and truncated back to the images' dtype, which reproduces the authors' images to
    the bit.
    """
    chain, base, locate = unwrap(dataset)
    if not has_arrays(dataset):
        raise TypeError(
            "mix_arrays needs a data set with one image (floating point, or integers of at most 16 bits) per sample "
            f"in .data, and {type(base).__name__} has none; use mixer=mix_samples, or mixing=None"
        )
    data = base.data
    image = carry_out(index, steps, lambda i: _read(lambda j: data[locate(j)], i, index))
    overlay = _Overlay(data, locate(index), image)
    view = _clone_with(base, "data", overlay)
    for subset in reversed(chain):
        view = _clone_with(subset, "dataset", view)
    sample = view[index]
    if not overlay.was_read:
        raise TypeError(
            f"{type(base).__name__}.__getitem__ did not read its image as self.data[index] (has it a cache?), so the "
            "mixed image was not used; use mixer=mix_samples, or mixing=None"
        )
    return sample


def mix_samples(dataset: Any, index: int, steps: Steps, *, fields: Collection[Any] | None = None) -> Any:
    """Mix samples as the data set returns them, after its transform: for any data set.

    Parameters
    ----------
    dataset
    index : int
    steps : tuple of (target, source, weight)
    fields : collection, optional
        The places of a tuple (-1 is the last), or the keys of a dict, that are mixed; the other fields are
        those of ``dataset[index]``. Default: the first element of a tuple or list, or the sample itself if
        it is an array; a dict has no default. Set it with
        ``functools.partial(mix_samples, fields=["image"])``.

    Returns
    -------
    Whatever ``dataset[index]`` returns. uint8 images are mixed as `mix_arrays` does it. None, which some
    data sets return for a broken sample, stays None.

    Raises
    ------
    TypeError
        If a field is not a floating-point tensor or array, nor a uint8 image of two dimensions or more
        (other integers and targets are never mixed), or a dict comes without ``fields``.
    ValueError
        If two samples differ in shape, or ``fields`` names none, or one that a sample does not have.
    RuntimeError
        If a source can't be read, or is None.
    """
    if fields is not None and (isinstance(fields, str) or not isinstance(fields, Collection)):
        raise TypeError(f"fields must be a list of places or keys, as in fields=[0], got {fields!r}")
    if fields is not None and not len(fields):
        raise ValueError("fields is empty, so nothing would be mixed: name a field, or use mixing=None")
    samples: dict[int, Any] = {}

    def sample(i: int) -> Any:
        if i not in samples:
            samples[i] = _read(lambda j: dataset[j], i, index)
        return samples[i]

    def field(f: Any, i: int) -> Any:
        return _mixable(sample(i)[field_of(sample(i), f)], f"field {f!r}", i)

    own = sample(index)
    if own is None:
        return None
    if fields is None and is_array(own):
        return carry_out(index, steps, lambda i: _mixable(sample(i), "the sample", i))
    if fields is None:
        if not isinstance(own, (tuple, list)):
            raise TypeError(
                f"mix_samples can't tell what to mix in a {type(own).__name__}: use "
                "mixer=functools.partial(mix_samples, fields=[...]) to name it, or mixing=None"
            )
        fields = (0,)
    mixed = {field_of(own, f): carry_out(index, steps, partial(field, f)) for f in fields}
    if isinstance(own, tuple):
        values = [mixed.get(place, x) for place, x in enumerate(own)]
        return type(own)(*values) if hasattr(own, "_fields") else tuple(values)
    result = copy.copy(own)
    for f, x in mixed.items():
        result[f] = x
    return result


def field_of(sample: Any, field: Any) -> Any:
    """The place or key that ``field`` is of a sample, counted from the front, or ValueError."""
    try:
        if is_array(sample):
            raise TypeError
        sample[field]
    except (LookupError, TypeError):
        known = "one array" if is_array(sample) else f"a {type(sample).__name__}"
        if isinstance(sample, (tuple, list)):
            known += f" of {len(sample)}"
        elif hasattr(sample, "keys"):
            known += f" with the keys {list(sample.keys())}"
        raise ValueError(f"fields names {field!r}, which the samples do not have: each is {known}") from None
    return range(len(sample))[field] if isinstance(sample, (tuple, list)) else field


def default_mixer(dataset: Any) -> Mixer:
    """`mix_arrays` where the data set keeps what are raw images beyond doubt in ``.data``, else `mix_samples`.

    That is floating-point numbers, or uint8 of two dimensions or more a sample that `holds_pixels`.
    """
    base = unwrap(dataset)[1]
    # A wrapper that only passes on another's .data does not read its images there.
    if not has_arrays(dataset) or getattr_static(base, "data", None) is None:
        return mix_samples
    data = base.data
    some = range(0, len(data), max(1, len(data) // 64))
    images = is_floating(data) or (_is_image(data[0]) and holds_pixels(data[i] for i in some))
    return mix_arrays if images else mix_samples


def is_built_in(mixer: Mixer) -> bool:
    """Whether ``mixer`` is one of this module's, with or without fields."""
    return getattr(mixer, "func", mixer) in (mix_arrays, mix_samples)


def has_arrays(dataset: Any) -> bool:
    """Whether the data set (through ``Subset``, too) has one array or tensor entry per sample in ``.data``."""
    base = unwrap(dataset)[1]
    data: Any = getattr(base, "data", None)
    if is_array(base) or not is_array(data) or data.ndim < 2 or not 0 < len(data) == len(base):
        return False
    # Wide integers are labels or tokens, which have no mixture.
    return is_floating(data) or dtype_name(data) in {"uint8", "uint16", "int16"}


def holds_pixels(images: Iterable[Any]) -> bool:
    """Whether these uint8 arrays hold intensities.

    One-hot codes, label maps and ids have values of 0 .. 31 alone, and 255 for "ignore". An image of two
    levels, 0 and 255, is an image.
    """
    levels = np.unique(np.concatenate([to_numpy(image).ravel() for image in images]))
    if len(levels) > 2:
        levels = levels[levels < 255]
    return bool((levels >= 32).any())


class _Overlay:
    """An image array in which one entry is another, for one ``__getitem__``."""

    def __init__(self, data: Any, index: int, image: Any) -> None:
        self._data, self._index, self._image = data, index, image
        self.was_read = False

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple) and key:
            return self[key[0]][key[1:]]
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

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError(
            "mix_arrays needs a data set that only reads its .data, and this one writes to it (a cache?); use "
            "mixer=mix_samples, or mixing=None"
        )

    def __len__(self) -> int:
        return len(self._data)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # __array__ and its like would hand out unmixed images
            raise AttributeError(name)
        return getattr(self._data, name)


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


def _read(read: Callable[[int], Any], i: int, index: int) -> Any:
    """What ``read`` gives of sample ``i``, which goes into ``index``; of another one, never a bare error."""
    try:
        image = read(i)
        if image is None and i != index:
            raise ValueError("it is None")
    except Exception as error:
        if i == index:
            raise
        raise RuntimeError(
            f"sample {i} could not be read, to be mixed into sample {index}: {type(error).__name__}: {error}. While "
            "mixing is on, dropped samples are read, too: bring it back, or pass mixer= a function that returns "
            "dataset[index] where a source is gone"
        ) from error
    return image


def is_array(x: Any) -> bool:
    """A NumPy array or a torch tensor."""
    return isinstance(x, np.ndarray) or is_tensor(x)


def _is_image(x: Any) -> bool:
    return dtype_name(x) == "uint8" and x.ndim >= 2


def _mixable(x: Any, what: str, index: int) -> Any:
    way_out = f"in sample {index}; convert images in the transform, name other fields, or use mixing=None"
    if not is_array(x) or not (is_floating(x) or _is_image(x)):
        got = f"dtype {dtype_name(x)} and shape {tuple(x.shape)}" if is_array(x) else type(x).__name__
        raise TypeError(
            f"{what} can't be mixed: expected a floating-point tensor or array, or a uint8 image of two dimensions or "
            f"more (other integers are never mixed), got {got} {way_out}"
        )
    return x
