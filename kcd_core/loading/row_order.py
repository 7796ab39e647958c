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
    if getattr(column, "ndim", 1) == 0 or len(column) != size:
        return None
    rows = [_comparable(row) for row in column]
    return None if None in rows else rows


def _comparable(row: Any) -> Any:
    if isinstance(row, (str, bytes)):
        return row
    if isinstance(row, torch.Tensor):
        if not row.is_cpu or row.layout != torch.strided or row.is_nested or row.is_complex():
            return None
        row = row.detach().reshape(-1)[:HEAD].float().numpy()
    if isinstance(row, (bool, int, float, np.ndarray, np.generic)):
        row = np.asarray(row)
        # As float32: collate functions change the type.
        return tuple(row.reshape(-1)[:HEAD].astype(np.float32).tolist()) if row.dtype.kind in "biuf" else None
    return None
