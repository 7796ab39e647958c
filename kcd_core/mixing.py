"""Adaptive knowledge augmentation: a sample of the tail takes in what a dropped sample knew.

A mixer is a stateless function that carries out a recipe (see ``recipes``) on a sample of the user's data set.
It never writes to the data set, and keeps no copy of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable
from functools import partial
from inspect import getattr_static
from typing import Any

import numpy as np

from .base.arguments import checked_choice
from .base.arrays import dtype_name, is_floating, to_numpy
from .raw_images import RawImages, has_arrays, is_array, unwrap
from .recipes import MODES, Mixing, Steps, carry_out

__all__ = [
    "Mixer",
    "default_mixer",
    "field_of",
    "holds_pixels",
    "is_built_in",
    "mix_arrays",
    "mix_samples",
    "resolve_mixing",
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
        Must have an attribute ``data``, a NumPy array or torch tensor with one entry per sample, of floating point,
        uint8, uint16 or int16, and read its image as ``self.data[index]`` or ``self.data[index, ...]``, as
        torchvision's MNIST and CIFAR families do. Integers must be intensities: ids and labels can't be mixed.
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
    images = RawImages(dataset)
    return images.view().sample(index, carry_out(index, steps, lambda i: _read(images.image, i, index)))


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
    Whatever ``dataset[index]`` returns. uint8 images are mixed as by `mix_arrays`. None, which some data sets return
    for a broken sample, stays None.

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


def resolve_mixing(mixing: str | None, mixer: Mixer) -> Mixing:
    """What ``mixing`` is short for: "auto" is "cumulative" where raw images are mixed, and "fresh" elsewhere.

    Raw images are in memory. Everywhere else a mixture of mixtures is as many samples to fetch as went into it.
    """
    checked: Any = checked_choice(mixing, "mixing", ("auto", *MODES))
    if checked == "auto":
        return "cumulative" if mixer is mix_arrays else "fresh"
    return checked  # type: ignore[no-any-return]


def is_built_in(mixer: Mixer) -> bool:
    """Whether ``mixer`` is one of this module's, with or without fields."""
    return getattr(mixer, "func", mixer) in (mix_arrays, mix_samples)


def holds_pixels(images: Iterable[Any]) -> bool:
    """Whether these uint8 arrays hold intensities.

    One-hot codes, label maps and ids have values of 0 .. 31 alone, and 255 for "ignore". An image of two
    levels, 0 and 255, is an image.
    """
    levels = np.unique(np.concatenate([to_numpy(image).ravel() for image in images]))
    if len(levels) > 2:
        levels = levels[levels < 255]
    return bool((levels >= 32).any())


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
