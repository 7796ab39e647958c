"""What only pads a rank's length: drawn, so that ranks are of equal length, and never recorded."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import is_tensor

__all__ = ["PADDING", "without_padding"]

PADDING = -1  # the index of such a sample


def without_padding(indices: npt.NDArray[Any], *others: Any) -> tuple[Any, ...]:
    """What has a row for each of ``indices`` [B], or is None: without the rows that only pad.

    Raises
    ------
    ValueError
        If one has another number of rows.
    """
    rows = np.flatnonzero(indices != PADDING)
    for x in others:
        if x is not None and len(x) != len(indices):
            raise ValueError(f"each index must have one row, got {len(x)} rows for {len(indices)} indices")
    return tuple(None if x is None else _take(x, rows) for x in others)


def _take(x: Any, rows: npt.NDArray[np.int64]) -> Any:
    if is_tensor(x):
        return x[sys.modules["torch"].from_numpy(rows).to(x.device, non_blocking=True)]
    return np.asarray(x)[rows]
