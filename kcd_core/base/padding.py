"""What only pads a rank's length: drawn, so that ranks are of equal length, and never recorded."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import is_tensor, to_numpy

__all__ = ["PADDING", "without_padding"]

PADDING = -1  # the index of such a sample


def without_padding(indices: Any, *others: Any) -> tuple[Any, ...]:
    """``indices`` [B] and what has a row for each of them (or is None), without the rows that only pad.

    Indices on a device are not looked at.
    """
    unseen = is_tensor(indices) and not indices.is_cpu
    padding = None if unseen else to_numpy(indices) == PADDING
    if padding is None or not padding.any():
        return indices, *others
    rows = np.flatnonzero(~padding)
    return tuple(None if x is None else _take(x, rows) for x in (indices, *others))


def _take(x: Any, rows: npt.NDArray[np.int64]) -> Any:
    if is_tensor(x):
        return x[sys.modules["torch"].from_numpy(rows).to(x.device, non_blocking=True)]
    return np.asarray(x)[rows]
