"""Steps that wait to be added together: which may, and what is made of them when they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .base.arrays import Array, backend
from .base.rows import HOST_CHUNK
from .values import host_entropy

MAX_PENDING = 32  # steps whose values wait to be added together
# A step's logits of fewer numbers wait, too, as a copy. In host memory a copy of more takes longer than is saved
# by reducing them together; on a device, where a step is bound by launches, it bounds what waits.
SMALL = 2**13
SMALL_ON_DEVICE = 2**17
# Numbers of logits that are reduced together: they are joined, and twice as many made of them.
MOST_JOINED = 2**20

#: Indices, and values [B] or logits [B, C] that are to be reduced.
Step = tuple[Array, Array]


def may_wait(logits: Array, device: Any) -> bool:
    """Whether logits, and not their entropies, wait in a tracker on this device."""
    numbers: int = math.prod(logits.shape)
    return 0 < numbers < (SMALL if device is None else SMALL_ON_DEVICE)


def alike(a: Step, b: Step) -> bool:
    """Whether both can be joined without a change of type or precision."""
    (indices, values), (others, wanted) = a, b
    same: bool = values.dtype == wanted.dtype and values.shape[1:] == wanted.shape[1:]
    return same and type(indices) is type(others)


def joined(steps: Sequence[Step]) -> Step:
    """The indices of all steps in one array, and their values; of logits, their entropies."""
    parts, rows = zip(*steps, strict=True)
    indices, join = backend(parts[0]).join(parts), backend(rows[0]).join
    if rows[0].ndim == 1:
        return indices, join(rows)
    most = HOST_CHUNK if isinstance(rows[0], np.ndarray) else MOST_JOINED
    together = max(1, most // max(len(x) * x.shape[1] for x in rows))
    pieces = (rows[start : start + together] for start in range(0, len(rows), together))
    values = [host_entropy(join(piece)) for piece in pieces]
    return indices, backend(values[0]).join(values)
