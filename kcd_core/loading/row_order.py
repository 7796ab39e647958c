"""Whether a collate function keeps the samples of a batch in their order, as far as that can be seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from operator import ne
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
PARTS = 16  # of a sample or batch that are looked at, on each level
DEPTH = 3  # levels


def fields_of(samples: list[Any]) -> dict[Place, Rows]:
    """What can be compared of a batch's samples: the numbers or names of each field, row by row.

    Taken before they are collated, since a collate function may write to its samples.
    """
    return {place: rows for place, rows in _columns(samples, (), DEPTH) if len(set(rows)) > 1}


def reordered(fields: Mapping[Place, Rows], batch: Any) -> bool | None:
    """Whether the rows of ``batch`` are the samples' in another order; None if nothing shows it.

    A field in its order says that they are not. A field in another order says that they are where it has kept its
    place, or has too many different values for chance; and so does one that is the samples' without a few, moved up and
    filled up again.
    """
    verdict = None
    for place, rows in fields.items():
        for where, leaf in _leaves(batch, len(rows), (), DEPTH):
            mine, found = _alike(rows, leaf)
            if found == mine:
                return False
            by_chance = len(mine) < 4 or len(set(mine)) < 3
            moved = (where == place or not by_chance) and Counter(found) == Counter(mine)
            if len(set(mine)) == 2 and all(map(ne, mine, found)):
                continue  # two classes that are swapped
            if moved or (not by_chance and _refilled(mine, found)):
                verdict = True
    return verdict


def _alike(rows: Rows, found: Rows) -> tuple[Rows, Rows]:
    """Both, without what padding or cutting to one length did to sequences."""
    longest, width = max(map(len, rows)), max(map(len, found))
    if isinstance(rows[0], (str, bytes)) or isinstance(found[0], (str, bytes)) or min(longest, width) < 2:
        return rows, found
    rows = [row[:width] for row in rows]
    known = set(rows)
    lengths = sorted({len(row) for row in known if row}, reverse=True)
    return rows, [next((row[:n] for n in lengths if row[:n] in known), row) for row in found]


def _refilled(rows: Rows, found: Rows) -> bool:
    """Whether ``found`` is ``rows`` without up to a quarter of them, moved up, and then others of them."""
    at = kept = moved = 0
    for row in found:
        try:
            at = rows.index(row, at) + 1
        except ValueError:
            break
        moved += row != rows[kept]
        kept += 1
    return moved > 2 and 4 * kept >= 3 * len(rows) and set(found) <= set(rows)


def _columns(column: Sequence[Any], place: Place, depth: int) -> Iterator[tuple[Place, Rows]]:
    """The fields of samples, as far down as they are alike."""
    rows = _rows(column, len(column))
    if rows is not None:
        yield place, rows
    if depth and len({type(sample) for sample in column}) == 1:
        parts = [_parts(sample) for sample in column]
        for key in parts[0]:
            if all(key in part for part in parts):
                yield from _columns([part[key] for part in parts], (*place, key), depth - 1)


def _leaves(batch: Any, size: int, place: Place, depth: int) -> Iterator[tuple[Place, Rows]]:
    if isinstance(batch, (list, tuple)) and len(batch) == size:
        yield from _columns(batch, place, depth)
    elif isinstance(batch, (torch.Tensor, np.ndarray)):
        rows = _rows(batch, size)
        if rows is not None:
            yield place, rows
    if depth:
        for key, part in _parts(batch).items():
            yield from _leaves(part, size, (*place, key), depth - 1)


def _parts(whole: Any) -> dict[Any, Any]:
    """What a sample or a batch consists of: items, elements or attributes."""
    if isinstance(whole, (torch.Tensor, np.ndarray, str, bytes)):
        return {}
    if isinstance(whole, Mapping):
        return dict(islice(whole.items(), PARTS))
    if isinstance(whole, (list, tuple)):
        return dict(enumerate(whole[:PARTS]))
    return dict(islice(getattr(whole, "__dict__", {}).items(), PARTS))


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
    if issubclass(kind, (list, tuple)):
        heads = [row[:HEAD] for row in column]
        if all(isinstance(number, (int, float)) for head in heads for number in head):
            return [tuple(np.asarray(head, np.float32).tolist()) for head in heads]
        return None
    if issubclass(kind, (torch.Tensor, np.ndarray)):
        found = [_heads(row, 1) for row in column]
        return None if None in found else [head[0] for head in found if head]
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
