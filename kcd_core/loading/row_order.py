"""Whether a collate function keeps the samples of a batch in their order, as far as that can be seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["REORDERED", "fields_of", "reordered"]

REORDERED = (
    "collate_fn puts the samples of a batch in another order, so the logits' rows are not in the order of the indices: "
    "let it keep the same order, or let the data set return its index with each sample, and pass that to "
    "record(logits, indices=...), without return_index"
)

Place = tuple[Any, ...]  # the keys that lead to a field
Rows = list[Any]  # a comparable object for each row

HEAD = 16  # numbers of a row that are compared


def fields_of(samples: list[Any]) -> dict[Place, Rows]:
    """What can be compared of a batch's samples: the numbers or names of each field, row by row.

    Taken before they are collated, since a collate function may write to its samples.
    """
    first = samples[0]
    if any(type(sample) is not type(first) for sample in samples):
        return {}
    columns: dict[Place, Any]
    if isinstance(first, Mapping):
        columns = {(key,): [sample.get(key) for sample in samples] for key in first}
    elif isinstance(first, (tuple, list)):
        shortest = min(map(len, samples))
        columns = {(at,): [sample[at] for sample in samples] for at in range(shortest)}
    else:
        columns = {(): samples}
    found = {place: _rows(column, len(samples)) for place, column in columns.items()}
    return {place: rows for place, rows in found.items() if rows is not None and len(set(rows)) > 1}


def reordered(fields: Mapping[Place, Rows], batch: Any) -> bool | None:
    """Whether the rows of ``batch`` are the samples' in another order; None if nothing shows it.

    A field in its order says that they are not. A field in another order says that they are where it has kept its
    place, or has too many different values for chance.
    """
    verdict = None
    for place, rows in fields.items():
        for where, found in _leaves(batch, len(rows)):
            if found == rows:
                return False
            by_chance = len(rows) < 4 or len(set(rows)) < 3
            if (where == place or not by_chance) and Counter(found) == Counter(rows):
                verdict = True
    return verdict


def _leaves(batch: Any, size: int, place: Place = ()) -> Iterator[tuple[Place, Rows]]:
    if isinstance(batch, (torch.Tensor, np.ndarray, list, tuple)):
        rows = _rows(batch, size)
        if rows is not None:
            yield place, rows
    if len(place) < 2 and isinstance(batch, (Mapping, list, tuple)):
        for key, part in batch.items() if isinstance(batch, Mapping) else enumerate(batch):
            yield from _leaves(part, size, (*place, key))


def _rows(column: Any, size: int) -> Rows | None:
    """A comparable object for each of ``size`` rows, or None."""
    if isinstance(column, (torch.Tensor, np.ndarray)):
        return _heads(column, size) if column.ndim and len(column) == size else None
    kinds = {type(row) for row in column}
    if len(column) != size or len(kinds) != 1:
        return None
    (kind,) = kinds
    if issubclass(kind, (str, bytes)):
        return list(column)
    if issubclass(kind, (int, float, np.generic)):
        return _heads(np.asarray(column), size)
    if issubclass(kind, (torch.Tensor, np.ndarray)):
        heads = [_heads(row, 1) for row in column]
        return None if None in heads else [head[0] for head in heads if head]
    return None


def _heads(array: Any, rows: int) -> Rows | None:
    """The first numbers of each row as float32, since collate functions change the type."""
    if isinstance(array, torch.Tensor):
        if (
            not array.is_cpu
            or array.layout != torch.strided
            or array.is_nested
            or array.is_complex()
            or not array.numel()
        ):
            return None
        array = array.detach().reshape(rows, -1)[:, :HEAD].float().numpy()
    elif array.dtype.kind not in "biuf" or not array.size:
        return None
    return [tuple(row) for row in array.reshape(rows, -1)[:, :HEAD].astype(np.float32).tolist()]
