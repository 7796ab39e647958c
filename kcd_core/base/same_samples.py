"""That "sample i" stays one sample during a run: what of a data set says which samples these are does not move.

Labels, pictures and texts may change. As in `dataset_identity`, none of the user's code is run but ``__len__``.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from .dataset_identity import FILES, MOST_LEVELS, TEXTS, columns, digest

__all__ = ["SameSamples"]

#: Whole numbers that say which samples these are: no other numbers may stand there.
ORDER = frozenset(["indices", "indexes"])
#: Lists of samples, of which a path, a name or an id is the first text.
NAMED = frozenset([*FILES, "samples", "items", "records", "examples", "data"])
CHANGED = 0.1  # share of the texts that are others, from which on that is an error: a few files may be mended


class SameSamples:
    """Compares which samples a data set has with what it had.

    Parameters
    ----------
    dataset : optional
        None has nothing to compare, as a copy of this has not. It may be replaced by another of the same samples.
    """

    def __init__(self, dataset: Any = None) -> None:
        self.dataset = dataset
        self._before: dict[str, Any] | None = None

    def note(self) -> None:
        """Take note of the samples, unless that was done: when something is drawn or recorded for the first time."""
        if self._before is None:
            self._before = _found(self.dataset)

    def check(self) -> None:
        """RuntimeError if the samples are others now, or stand elsewhere.

        For a million of them it takes a fifth of a second.
        """
        now = _found(self.dataset)
        moved = [name for name, entries in (self._before or {}).items() if _moved(entries, now.get(name))]
        if moved:
            raise RuntimeError(
                f"the data set was reordered, or its samples were drawn anew, during the run: {' and '.join(moved)} of "
                f"{type(self.dataset).__name__} changed since the first batch. Sample i must be the same sample in every "
                "epoch, or its value is that of another one. Leave the order to the loader (shuffle=True), and take "
                "shuffling out of the data set, such as out of its on_epoch_end"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return SameSamples, ()


def _found(dataset: Any, where: str = "") -> dict[str, Any]:
    """What says which samples these are, by name: a digest of numbers, or an array with a hash of each text."""
    about: dict[str, Any] = {}
    with suppress(Exception):
        length, own = len(dataset), getattr(dataset, "__dict__", {})
        named = {id(x): (name, x) for name, x in own.items() if name.lstrip("_") in ORDER | NAMED}
        if type(dataset) in (list, tuple):
            named[0] = ("the list", dataset)
        for name, x in named.values():
            with suppress(Exception):
                about |= _first(where + name, x, name.lstrip("_") in ORDER, length)
        parts = own.get("datasets", ())
        inner = parts if isinstance(parts, dict) else {f"datasets[{i}]": part for i, part in enumerate(parts)}
        for name, part in {**inner, "dataset": own.get("dataset")}.items():
            if where.count(".") < MOST_LEVELS:
                about |= _found(part, f"{where}{name}.")
    return about


def _first(name: str, x: Any, numbers: bool, length: int) -> dict[str, Any]:
    """Of ``x``, its whole numbers, one a sample, or its first column of texts."""
    for place, column in columns(x, name, length):
        if numbers and place == name and getattr(column, "ndim", 1) == 1 and (short := digest(column)):
            return {name: short}
        if not numbers and isinstance(column, (list, tuple)) and isinstance(column[0], TEXTS):
            return {name: np.fromiter(map(hash, column), np.int64, len(column))}
    return {}


def _moved(before: Any, now: Any) -> bool:
    """Whether numbers are others, or many texts are, and some of these stood elsewhere before."""
    if now is None or len(now) != len(before):
        return False
    if isinstance(before, str):
        return bool(now != before)
    changed = before != now
    return bool(changed.mean() > CHANGED and np.isin(now[changed], before).any())
