"""What samples' losses are multiplied by."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .base.arrays import to_numpy

__all__ = ["SampleWeights", "Weights", "checked_weights", "refuse_weights"]

Weights = npt.NDArray[np.float32]


class SampleWeights(NamedTuple):
    """Those of a set. Immutable.

    Attributes
    ----------
    weights : float32 [n]
    kept : integer [n], ascending, or None
        The samples that they are of; None is all.
    """

    weights: Weights
    kept: npt.NDArray[np.signedinteger[Any]] | None

    def of(self, indices: npt.NDArray[np.int64]) -> Weights:
        """Those of some samples: float32 [B]; 0 for those outside of the set, as for -1, which is padding."""
        if self.kept is None:
            return np.where(indices >= 0, self.weights[indices], np.float32(0))
        places = np.searchsorted(self.kept, indices) % len(self.kept)
        return np.where(self.kept[places] == indices, self.weights[places], np.float32(0))


def checked_weights(weights: Any, length: int) -> Weights:
    """``sample_weights`` of a set of so many samples, in float32, or an error that says what is wrong with them."""
    given = to_numpy(weights)
    if given.ndim != 1 or given.dtype.kind not in "fiu":
        raise TypeError(f"sample_weights must be a one-dimensional array of numbers, got {weights!r}")
    if len(given) != length:
        raise ValueError(
            f"sample_weights must be [{length}], one for each of kept, got shape {tuple(given.shape)}"
        )
    with np.errstate(over="ignore"):
        checked: Weights = given.astype(np.float32, copy=False)
    if not ((checked >= 0) & (checked < np.inf)).all():
        raise ValueError("sample_weights must be finite in float32, and at least 0")
    return checked


def refuse_weights(weights: Weights | None, why: str) -> None:
    """ValueError if a set has weights where nobody would multiply by them."""
    if weights is not None:
        raise ValueError(f"the set has sample_weights, but {why}: leave them out")
