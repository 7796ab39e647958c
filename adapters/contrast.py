"""CRD's samples to contrast with, drawn from the condensed set.

The data sets of RepDistiller and its relatives keep, for every class, the indices of its members and of all others
(``cls_positive``, ``cls_negative``). With KCD, dropped samples are never embedded again, and their rows in the
contrastive memory become stale. Both lists are therefore restricted to the kept samples, in a shallow copy of the
data set. Indices stay absolute; neither the memory nor ``n_data`` shrinks.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["restrict"]

NAMES = ("cls_positive", "cls_negative", "cls_positives", "cls_negatives")


def why_unused(dataset: Any) -> str:
    """What to say of ``negatives="full"`` where a data set has no such lists."""
    return (
        f"negatives full changes nothing: {type(dataset).__name__} has no lists of samples to contrast with, as CRD's data "
        "sets do"
    )


def restrict(dataset: Any, kept: npt.NDArray[np.int64]) -> Any:
    """A shallow copy of ``dataset`` whose contrast lists hold only kept samples; the data set itself if it has no
    such lists."""
    names = [name for name in NAMES if hasattr(dataset, name)]
    if not names:
        return dataset
    view = copy.copy(dataset)
    for name in names:
        setattr(view, name, restricted(getattr(dataset, name), kept))
    return view


def restricted(lists: Sequence[Any], kept: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
    """Every list without what is not in ``kept``; one that would be empty is left whole.

    A list of arrays, never an array: their lengths differ.
    """
    result = []
    for members in map(np.asarray, lists):
        place = np.minimum(np.searchsorted(kept, members), len(kept) - 1)
        inside = members[kept[place] == members]
        result.append(inside if len(inside) else members)
    return result
