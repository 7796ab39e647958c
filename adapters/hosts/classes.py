"""What share of each class a set keeps, by the labels that the batches came with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

__all__ = ["Classes"]

MOST = 1000  # classes; of more, nothing is shown
UNKNOWN = -1


class Classes:
    """The labels of a data set, as far as batches have shown them: on several ranks, those of this one's batches."""

    def __init__(self, num_samples: int) -> None:
        self._labels = np.full(num_samples, UNKNOWN, np.int32)
        self._usable = True

    def see(self, indices: npt.NDArray[np.int64], targets: torch.Tensor) -> None:
        """Take note of the labels of a batch; ``indices`` below 0 are padding."""
        if not self._usable or len(indices) != len(targets):
            return
        if targets.is_cuda or targets.is_floating_point():  # no step waits for a device
            self._usable = False
            return
        labels = targets.numpy()
        self._usable = not len(labels) or bool(UNKNOWN <= labels.min() <= labels.max() < MOST)
        if self._usable:
            self._labels[indices[indices >= 0]] = labels[indices >= 0]

    def shares(self, kept: npt.NDArray[np.int64]) -> list[float | None]:
        """For each class, the share of its samples that is kept; None for one without a known sample.

        Empty if the labels are no classes.
        """
        if not self._usable:
            return []
        every, some = (np.bincount(x[x >= 0], minlength=0) for x in (self._labels, self._labels[kept]))
        result: list[Any] = [None] * len(every)
        for label in np.flatnonzero(every).tolist():
            result[label] = round(int(some[label]) / int(every[label]), 6) if label < len(some) else 0.0
        return result
