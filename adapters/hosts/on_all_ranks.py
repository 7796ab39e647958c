"""Whether the student is observed on all ranks: where it is on some, these would wait for the others at a stage's end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kcd_core.base import distributed

if TYPE_CHECKING:
    from .loader import HostedLoader

__all__ = ["OnAllRanks"]


class OnAllRanks:
    """Asks all ranks once, after the first pass that was observed on one of them.

    Parameters
    ----------
    observed_at : str
        Where the student is observed, for people to read.
    """

    def __init__(self, observed_at: str) -> None:
        self._observed_at = observed_at
        self._agreed = False

    def check(self, hosted: HostedLoader) -> None:
        """RuntimeError if what was drawn of a loader until now was observed on some ranks alone."""
        if self._agreed or hosted.sampler.num_replicas == 1 or not hosted.passes:
            return
        (ranks,) = distributed.sum_over_ranks(np.array([bool(hosted.observed)], np.int64))
        if 0 < ranks[0] < distributed.world_size():
            raise RuntimeError(
                f"the student was observed (at {self._observed_at}) on {ranks[0]} of {distributed.world_size()} ranks: "
                "KCD needs the predictions of all; let the script call it on every rank, or run without KCD"
            )
        self._agreed = bool(ranks[0])
