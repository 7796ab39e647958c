"""What can't be mixed is found at the first batch: mixing is tried on different samples of the data.

A failure is an error then, and not in the epoch of the first mixture. The mixtures are thrown away.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from .base.arrays import dtype_name, is_floating, to_numpy
from .mixing import Mixer, field_of, holds_pixels, is_built_in, mix_arrays, mix_samples
from .raw_images import is_array, unwrap

__all__ = ["check_fetching", "rehearse"]


def rehearse(mixer: Mixer, dataset: Any, samples: Mapping[int, Any]) -> None:
    """Try ``mixer`` on different samples, or raise why they can't be mixed.

    It fetches one sample more, far from the first, and with `mix_arrays` or a mixer of the user's own, those of two
    mixtures. The global random number generators are left as they were.

    Parameters
    ----------
    mixer
    dataset
        The user's.
    samples : mapping
        Index to sample, as the data set gave them: the first batch.

    Raises
    ------
    TypeError
        If a sample would be one that never was: ids or labels are mixed, or numbers that belong to the unmixed
        image stay beside a mixed one; or if a mixer of the user's own returns nothing, or what has another form than
        all of the samples.
    TypeError, ValueError, RuntimeError
        As the mixer does.
    """
    kind, fields = getattr(mixer, "func", mixer), getattr(mixer, "keywords", {}).get("fields")
    known = {i: sample for i, sample in samples.items() if sample is not None}
    with _undisturbed():
        _add_another(known, dataset, reads_raw=kind is mix_arrays)
        order = list(known)
        if len(order) < 2:
            return
        # Shapes differ now and then only: after the transform, where it costs no fetch, all samples are tried.
        after = kind is mix_samples
        weight = 0.25 if kind is mix_arrays else 0.75  # enough of the other for a label to become another
        pairs: Iterable[tuple[int, int]] = itertools.pairwise(order)
        if not after:  # else two that differ in most: in their labels, too
            first, *others = order
            source = max(reversed(others), key=lambda i: len(_differing(known[first], known[i])))
            pairs = (first, source), (source, first)
        for target, source in pairs:
            own, other = known[target], known[source]
            with _undisturbed():  # a plain fetch that follows draws the same
                mixed = mixer(known if after else dataset, target, ((target, source, weight),))
            if kind is mix_arrays:
                _check_is_no_id(own)
                _check_labels_stay(mixed, target, known, dataset)
            if not is_built_in(mixer):
                _check_form(mixer, mixed, list(known.values()))
            if is_built_in(mixer) and fields is None:
                _check_all_is_mixed(mixed, own, other)
        if after:
            _check_pixels(fields or (0,), list(known.values()))


def check_fetching(dataset: Any) -> None:
    """TypeError if a DataLoader's way to plain samples is another than ``dataset[index]``, a mixer's."""
    chain, base, _ = unwrap(dataset)
    for name in filter(None, map(_passed_by, (*chain, base))):
        raise TypeError(
            f"{name} has a __getitem__ of its own, and DataLoader fetches batches through a __getitems__ that passes it "
            f"by: plain samples would be made in another way than mixed ones. Give {name} a "
            "__getitems__(self, indices), too, that returns [self[i] for i in indices]; or use mixing=None"
        )


def _passed_by(dataset: Any) -> str:
    """The class whose ``__getitem__`` an inherited or delegated ``__getitems__`` does not know of, or ""."""
    for cls in type(dataset).__mro__:
        if "__getitems__" in vars(cls):
            break
        if "__getitem__" in vars(cls):
            return cls.__name__ if getattr(dataset, "__getitems__", None) else ""
    return ""


def _add_another(known: dict[int, Any], dataset: Any, reads_raw: bool) -> None:
    """Add a sample that was not fetched with the others: what a stage drops was not, either."""
    size, first = len(dataset), next(iter(known), 0)
    others = (i % size for i in range(first + size // 2, first + size))
    far = next((i for i in others if i not in known), first)
    try:
        before = _raw(dataset, far) if reads_raw else None
        sample = dataset[far]
    except Exception:
        return  # it says so itself, when it is drawn
    if before is not None and before != _raw(dataset, far):
        raise TypeError(
            f"{type(unwrap(dataset)[1]).__name__}.__getitem__ writes to its .data, so what a mixture reads there may not "
            "be the image yet; use mixer=mix_samples, or mixing=None"
        )
    if sample is not None:
        known[far] = sample


def _raw(dataset: Any, index: int) -> bytes | None:
    _, base, locate = unwrap(dataset)
    return to_numpy(base.data[locate(index)]).tobytes() if is_array(getattr(base, "data", None)) else None


def _check_is_no_id(sample: Any) -> None:
    image = sample
    while isinstance(image, (tuple, list, Mapping)) and len(image):
        image = next(iter(image.values())) if isinstance(image, Mapping) else image[0]
    if is_array(image) and dtype_name(image) == "int64" and image.ndim:
        raise TypeError(
            "the samples are of dtype int64: ids, which have no mixture, though .data looks like images; use "
            "mixing=None, or a mixer of your own"
        )


def _check_all_is_mixed(mixed: Any, own: Any, source: Any) -> None:
    for where in _left_alone(mixed, own, source):
        raise TypeError(
            f"sample{where} is floating point and no part of the mixture: it would stay that of the unmixed image (stored "
            "teacher outputs? a second view?). Say what is mixed, mixer=functools.partial(mix_samples, fields=[0, 2]), or "
            "fields=[0] if the rest is right for a mixture, too; or call mix_arrays in a mixer of your own; or use "
            "mixing=None"
        )


def _left_alone(mixed: Any, own: Any, source: Any) -> Iterator[str]:
    """The places of floating-point numbers that two samples have each of its own, and a mixture has not.

    A single number, or zeros and ones, are labels, and stay.
    """
    parts, others = _parts(mixed), _parts(source)
    for where, part in _parts(own).items():
        if not type(parts.get(where)) is type(part) is type(others.get(where)):
            continue
        if isinstance(part, (tuple, list)) or (is_array(part) and is_floating(part)):
            now, before, other = (to_numpy(x) for x in (parts[where], part, others[where]))
            left = now.size > 1 and np.array_equal(now, before) and not np.array_equal(before, other)
            if left and not np.isin(now, (0, 1)).all():
                yield where


def _check_form(mixer: Mixer, mixed: Any, samples: list[Any]) -> None:
    """What all samples have alike, a mixture has, too: places, types, dtypes and shapes."""
    forms = [{where: _form(part) for where, part in _parts(sample).items()} for sample in samples]
    now = {where: _form(part) for where, part in _parts(mixed).items()}
    for where in {**forms[0], **now}:
        expected = {form.get(where, "nothing") for form in forms}
        if len(expected) == 1 and now.get(where, "nothing") not in expected:
            raise TypeError(
                f"the mixer {mixer!r} returned {now.get(where, 'nothing')} as sample{where}, where dataset[index] has "
                f"{expected.pop()}: it must return dataset[index], mixed"
            )


def _form(part: Any) -> str:
    if is_array(part):
        kind = "an array" if isinstance(part, np.ndarray) else "a tensor"
        return f"{kind} of {dtype_name(part)} and shape {tuple(part.shape)}"
    if isinstance(part, (tuple, list)):
        return f"{len(part)} numbers"
    if isinstance(part, np.generic):
        part = part.item()
    return type(part).__name__ if part is None or isinstance(part, _SINGLE) else "an object"


def _check_labels_stay(mixed: Any, target: int, known: Mapping[int, Any], dataset: Any) -> None:
    """A label that ``__getitem__`` reads from ``.data``, too, would be mixed with the image."""
    own, parts = _parts(known[target]), _parts(mixed)
    changed = [where for where in _differing(known[target], mixed) if where in parts]
    labels = {where for where in changed if _is_label([_parts(x).get(where) for x in known.values()])}
    beside_image = len(labels) < len(changed)
    labels = {where for where in labels if beside_image or np.ndim(own[where]) == 0}
    # What is drawn at random is no label that was mixed, whichever generator it is drawn from.
    again = [_parts(dataset[target]) for _ in range(8 if labels else 0)]
    for where in sorted(labels):
        if all(where in parts and _same(parts[where], own[where]) for parts in again):
            raise TypeError(
                f"sample{where} is a label (a single number, integers, or whole numbers below 32), and another one in a "
                f"mixture: __getitem__ reads it from .data, together with the image. Use mixer=mix_samples, which mixes "
                "the image alone; or, if that is right, call mix_arrays in a mixer of your own; or use mixing=None"
            )


def _differing(one: Any, other: Any) -> list[str]:
    """The places of the first sample where the second has something else, or nothing."""
    parts = _parts(other)
    return [
        where for where, part in _parts(one).items() if where not in parts or not _same(parts[where], part)
    ]


def _same(a: Any, b: Any) -> bool:
    """Whether two parts are equal, as far as parts of their type can be compared."""
    if type(a) is not type(b):
        return False
    if is_array(a) or isinstance(a, (tuple, list)):
        return np.array_equal(to_numpy(a), to_numpy(b))
    return bool(a == b) if isinstance(a, _SINGLE) else True


def _is_label(parts: list[Any]) -> bool:
    """Whether what these samples have in one place has no mixture, as far as types and values tell."""
    first = parts[0]
    if isinstance(first, (tuple, list)):
        parts = [to_numpy(x) for x in parts if type(x) is type(first)]
    elif not is_array(first):
        return isinstance(first, _SINGLE)
    arrays = [to_numpy(x) for x in parts if is_array(x)]
    if arrays[0].size == 1 or not (is_floating(arrays[0]) or arrays[0].dtype == np.uint8):
        return True
    return all(np.array_equal(x, np.trunc(x)) for x in arrays) and not holds_pixels(arrays)


_SINGLE = (str, bytes, int, float, np.generic)


def _parts(sample: Any, where: str = "") -> dict[str, Any]:
    """What a sample consists of, each by its place: a list of numbers within it is one part."""
    parts: Iterable[tuple[Any, Any]]
    if isinstance(sample, Mapping):
        parts = sample.items()
    elif isinstance(sample, (tuple, list)) and not (where and all(map(_is_number, sample))):
        parts = enumerate(sample)
    else:
        return {where: sample}
    return {place: x for key, part in parts for place, x in _parts(part, f"{where}[{key!r}]").items()}


def _is_number(x: Any) -> bool:
    single = is_array(x) and x.ndim == 0 and is_floating(x)
    return single or isinstance(x, (float, np.floating))


def _check_pixels(fields: Collection[Any], samples: list[Any]) -> None:
    """uint8 fields that `mix_samples` mixes are images, as far as their values tell."""
    for field in fields:
        images = [x if is_array(x) else x[field_of(x, field)] for x in samples]
        if dtype_name(images[0]) == "uint8" and not holds_pixels(images):
            raise TypeError(
                f"field {field!r} holds whole numbers below 32 alone: ids, labels or one-hot codes, which have no "
                "mixture. Convert it to floating point in the transform if it is an image, or use mixing=None"
            )


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Leaves the global random number generators where they were: augmentation goes on as if nothing had been fetched."""
    torch = sys.modules.get("torch")
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    tensors = torch.get_rng_state() if torch else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        if torch:
            torch.set_rng_state(tensors)
