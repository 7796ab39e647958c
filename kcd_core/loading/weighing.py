"""The weights of a batch's samples, for the loop that multiplies its losses by them."""

from __future__ import annotations

import torch

from .asking import on_host
from .reader import Reader

__all__ = ["Weigher"]


class Weigher:
    """What a loader says of the weights of samples."""

    _reader: Reader

    @property
    def sample_weights(self) -> torch.Tensor | None:
        """Factors for the losses of the batch yielded last: float32 [B], in host memory. A copy.

        None if the set in force has no weights, and before the epoch's first batch. Its rows are those of `indices`;
        a padding row has its sample's weight. If CUDA is in use it is pinned, so that
        ``loader.sample_weights.to(device, non_blocking=True)`` does not wait.

        Raises
        ------
        RuntimeError
            As for `indices`.
        """
        weights = self._reader.weights
        return None if weights is None else on_host(weights.copy())
