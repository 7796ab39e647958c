"""What a loader says of the batch yielded last: its indices, of which rows the teacher is asked, and what its losses weigh."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..gate import TeacherGate
from ..history import CondensationHistory
from .reader import Reader

__all__ = ["LastBatch"]


class LastBatch:
    """The part of a `CondensedLoader` that speaks of the batch yielded last."""

    _reader: Reader

    @property
    def indices(self) -> torch.Tensor | None:
        """Indices of the batch yielded last: int64 [B], -1 for padding; None before the epoch's first batch. A copy.

        Raises
        ------
        RuntimeError
            If ``collate_fn`` was seen to put samples in another order.
        """
        return self._reader.indices

    @property
    def gate(self) -> TeacherGate | None:
        """Which samples the teacher is asked for; None without ``ask``."""
        return None if self._reader.asking is None else self._reader.asking.gate

    @property
    def gate_history(self) -> CondensationHistory | None:
        """What each stage of the gate did: ``kept`` are the samples asked for; None without ``ask``."""
        return None if self._reader.asking is None else self._reader.asking.run.history

    @property
    def asked(self) -> torch.Tensor | None:
        """For which rows of the batch yielded last the teacher is asked: bool [B], in host memory.

        These are the rows in the gate's set and those that are mixed, never padding. Without ``ask``, they are all
        rows but padding. None before the epoch's first batch.

        Raises
        ------
        RuntimeError
            As for `indices`; and if the loop was seen to fetch ahead of the batch that it trains on, or another thread
            fetches: take them by index there, with ``loader.gate.asked(indices)``.
        """
        asked = self._reader.asked
        return None if asked is None else on_host(asked.copy())

    @property
    def asked_rows(self) -> torch.Tensor | None:
        """The numbers of those rows: int64 [A], ascending, in host memory.

        If CUDA is in use, they are pinned: neither ``rows = loader.asked_rows.to(device, non_blocking=True)`` nor
        ``images[rows]`` waits for the device.

        Raises
        ------
        RuntimeError
            As for `asked`.
        """
        asked = self._reader.asked
        return None if asked is None else on_host(np.flatnonzero(asked))

    @property
    def sample_weights(self) -> torch.Tensor | None:
        """Factors for the losses of the batch yielded last: float32 [B], in host memory. A copy.

        None if the set in force has no weights, and before the epoch's first batch. Its rows are those of `indices`;
        a padding row has its sample's weight. If CUDA is in use it is pinned, so that
        ``loader.sample_weights.to(device, non_blocking=True)`` does not wait.

        Raises
        ------
        RuntimeError
            As for `asked`: by index they are ``loader.sampler.weights_of(indices)``.
        """
        weights = self._reader.weights
        return None if weights is None else on_host(weights.copy())


def on_host(x: npt.NDArray[Any]) -> torch.Tensor:
    """A tensor in host memory; pinned where CUDA is in use, so that copying it to the device need not wait."""
    made = torch.from_numpy(x)
    return made.pin_memory() if torch.cuda.is_initialized() else made  # type: ignore[no-untyped-call]
