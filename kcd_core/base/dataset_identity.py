"""What a data set is, as a few short digests: "sample i" means one sample on all ranks, and after a resume.

None of the user's code is run but ``__len__``: attributes are read where the object keeps them, so no property
and no ``__getitem__`` is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from hashlib import blake2b
from typing import Any

import numpy as np

from .arguments import checked_length
from .arrays import is_tensor, to_numpy

__all__ = [
    "FILES",
    "MOST_LEVELS",
    "TEXTS",
    "DatasetIdentity",
    "columns",
    "dataset_identity",
    "digest",
    "told_apart",
]

DatasetIdentity = dict[str, int | str]

#: Attributes that say which samples these are: by name, since others of their length may be caches or counters.
#: A leading underscore does not matter.
LABELS = ["targets", "labels", "y", "img_labels", "annotations", "annots"]
FILES = [
    "files",
    "paths",
    "images",
    "imgs",
    "file_list",
    "filenames",
    "file_names",
    "filepaths",
    "image_list",
    "ids",
]
FILES += [f"{image}_{what}" for image in ("image", "img") for what in ("files", "paths", "ids")]
SAMPLES = [
    "samples",
    "items",
    "records",
    "examples",
    "data",
    "tensors",
    "encodings",
    "texts",
    "x",
    "df",
    "frame",
]
NAMES = frozenset([*LABELS, *FILES, *SAMPLES])
MOST = 1 << 20  # numbers of a column that are looked at; of more, every k-th
MOST_OBJECTS = 1 << 18  # of texts, and of samples that are tuples or dicts
MOST_ROWS = 1 << 12  # of what has many numbers a sample
MOST_COLUMNS = 8  # of a sample that is itself a tuple or dict
MOST_LEVELS = 8  # of data sets around data sets
LONGEST = 128  # characters of a text, its last ones
TEXTS = (str, os.PathLike)


def dataset_identity(dataset: Any) -> DatasetIdentity:
    """What tells a data set from another of its length, as plain text and numbers.

    Parameters
    ----------
    dataset
        Anything with ``len()``.

    Returns
    -------
    dict
        ``length``, and for each attribute that says which samples these are a digest of 16 digits: ``indices`` of a
        ``Subset``, and what the data set in it has, as ``dataset.targets``; ``targets``, ``labels``, ``samples``,
        ``imgs`` and others like them (`NAMES`), where they hold whole numbers or text. Floating-point numbers, which
        may differ in their last bit between machines, are left out, and pictures, which may be a cache that fills. A data set that keeps nothing of this kind
        has its length alone.

    Raises
    ------
    TypeError
        If it has no ``len()``.

    Notes
    -----
    Equal for copies of a data set on different machines: what all paths begin with does not count, nor do separators,
    nor whether labels are a list, an array or a tensor. For an ``ImageFolder`` of a million files it takes half a second.
    """
    about: DatasetIdentity = {"length": checked_length(dataset, "dataset")}
    with suppress(Exception):
        _look_into(dataset, "", about)
    return about


def told_apart(one: Any, other: Any) -> tuple[Any, Any]:
    """What two identities differ in: equal if in nothing.

    An attribute that one alone has tells nothing, since data sets open their files at the first access; but
    ``indices``, which a ``Subset`` always has, do.
    """
    if not all(isinstance(x, Mapping) and "length" in x for x in (one, other)):
        return one, other
    both = {key for key in one.keys() & other.keys() if repr(one[key]) != repr(other[key])}
    both |= {key for key in one.keys() ^ other.keys() if str(key).endswith("indices")}
    return tuple({key: x[key] for key in sorted(both & x.keys())} for x in (one, other))  # type: ignore[return-value]


def _look_into(dataset: Any, where: str, about: DatasetIdentity) -> None:
    """Add what ``dataset`` has, and what the data sets in it have. Errors leave out what they concern."""
    own = getattr(dataset, "__dict__", {})
    named = {name: x for name, x in sorted(own.items()) if name.lstrip("_") in NAMES}
    if "dataset" in own and "indices" in own:
        named["indices"] = own["indices"]
    if type(dataset) in (list, tuple, np.ndarray) or is_tensor(dataset):
        named["itself"] = dataset
    with suppress(Exception):
        about.update((where + name, digest(column)) for name, column in _integer_columns(dataset).items())
    length, seen = len(dataset), set[int]()
    for name, x in named.items():
        if id(x) not in seen:  # an ImageFolder has one list under two names
            seen.add(id(x))
            with suppress(Exception):
                new = [(where + column, digest(entries)) for column, entries in columns(x, name, length)]
                about.update(
                    (column, short) for column, short in new if short and short not in about.values()
                )
    if "dataset" in own and where.count(".") < MOST_LEVELS:
        with suppress(Exception):
            about[f"{where}dataset.length"] = len(own["dataset"])
            _look_into(own["dataset"], f"{where}dataset.", about)
    if "datasets" in own and where.count(".") < MOST_LEVELS:
        with suppress(Exception):
            parts = own["datasets"].values() if isinstance(own["datasets"], dict) else own["datasets"]
            about[f"{where}datasets"] = _hash(repr([dataset_identity(part) for part in parts]).encode())


def _integer_columns(dataset: Any) -> dict[str, Any]:
    """Those of a Hugging Face data set, past its format and transform."""
    library = sys.modules.get("datasets")
    if library is None or not isinstance(dataset, library.Dataset):
        return {}
    dtypes = {name: str(getattr(feature, "dtype", "")) for name, feature in dataset.features.items()}
    names = [name for name, dtype in dtypes.items() if dtype.startswith(("int", "uint", "bool"))]
    some = range(0, len(dataset), -(-len(dataset) // MOST_ROWS))
    return dict(dataset.select_columns(names).with_format("numpy")[some]) if names else {}


def columns(x: Any, name: str, length: int) -> Iterator[tuple[str, Any]]:
    """The columns of ``x``, by name: itself, those of its rows, or several. Of what is long, every k-th entry."""
    if hasattr(type(x), "to_numpy"):  # a pandas frame or series
        names = list(getattr(x, "columns", ()))[:MOST_COLUMNS]
        x = {column: x[column].to_numpy() for column in names} if names else x.to_numpy()
    if isinstance(x, np.ndarray) and x.dtype.kind in "OU":
        x = x.tolist()
    if len(x) != length:  # columns, and not rows
        members = x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, (list, tuple)) else ()
        for key, column in list(members)[:MOST_COLUMNS]:
            if hasattr(column, "__len__") and len(column) == length:
                yield from columns(column, f"{name}[{key!r}]", length)
    elif isinstance(x, (list, tuple)) and x and isinstance(x[0], (list, tuple, dict)):
        rows, first = _some(x), x[0]
        for key in list(first if isinstance(first, dict) else range(len(first)))[:MOST_COLUMNS]:
            yield from columns([row[key] for row in rows], f"{name}[{key!r}]", len(rows))
    elif (
        isinstance(x, (list, tuple, range)) or getattr(x, "ndim", 3) < 3
    ):  # pictures may be a cache that is filled later
        yield name, _some(x)


def _some(x: Any) -> Any:
    """``x``, or every k-th entry of what is long."""
    most = MOST
    if isinstance(x, (list, tuple)) and x and not isinstance(x[0], (int, np.integer)):
        most = MOST_OBJECTS
    elif getattr(x, "ndim", 1) > 1:
        most = max(1, min(MOST_ROWS, MOST // max(1, int(np.prod(x.shape[1:])))))
    return x[:: max(1, -(-len(x) // most))]


def digest(x: Any) -> str:
    """Of whole numbers or text, a short name of them; of anything else, none."""
    if is_tensor(x):
        x = to_numpy(x)
    if isinstance(x, (list, tuple)) and x:
        if isinstance(x[0], TEXTS):
            return _hash(_joined([os.fspath(text) for text in x]))
        if not isinstance(x[0], (int, np.integer)):
            return ""
    x = np.asarray(x)
    return _hash(np.ascontiguousarray(x, "<i8").data) if x.dtype.kind in "iub" else ""


def _joined(texts: list[str]) -> bytes:
    """Of paths, what comes after the folder that they have in common."""
    common = len(os.path.commonprefix(texts))  # noqa: RUF071  (characters are meant)
    return (
        "\0".join([text[common:][-LONGEST:] for text in texts])
        .replace("\\", "/")
        .encode("utf-8", "surrogatepass")
    )


def _hash(data: Any) -> str:
    return blake2b(data, digest_size=8).hexdigest()
