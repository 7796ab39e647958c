"""The order of a host's own sampler, over the positions of the kept set.

So its random numbers are consumed as before. With everything kept, that is its own order to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DistributedSampler, RandomSampler

from kcd_core.base import distributed
from kcd_core.recipes import Mixing
from kcd_core.sampler import CondensedSampler

__all__ = ["HostOrder"]

Blocks = Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]]


class HostOrder(CondensedSampler):
    """Which indices are kept, as `CondensedSampler` has it; in which order, the host's sampler says.

    Its seed, for what a `select` chooses by chance, is that which `wrap_loader` would take.
    """

    def __init__(self, host: Any, num_samples: int, *, mixing: Mixing) -> None:
        super().__init__(num_samples, seed=_seed_of(host), num_replicas=1, rank=0, mixing=mixing)
        self.adopts_seed = True
        self.follow(host)

    def follow(self, host: Any) -> None:
        """Leave the order to this sampler of the host's from now on."""
        self._host = host
        self.num_replicas, self.rank = getattr(host, "num_replicas", 1), getattr(host, "rank", 0)
        self.drop_last = getattr(host, "drop_last", False)

    def blocks(self, epoch: int | None = None, start: int = 0) -> Blocks:
        """One block, the whole epoch's; drawn when its first index is asked for, as the host would."""
        everything = self.num_kept == self.num_samples
        return self._draw(None if everything else self.kept, self.num_kept)

    def _draw(self, kept: npt.NDArray[np.int64] | None, size: int) -> Blocks:
        positions = np.fromiter(self._over(size), np.int64)
        padding = self.rank + self.num_replicas * np.arange(len(positions)) >= size
        yield (positions if kept is None else kept[positions]), padding

    def _over(self, size: int) -> Any:
        host = self._host
        if size == self.num_samples:
            return host
        if isinstance(host, DistributedSampler):
            sampler: Any = DistributedSampler(
                range(size),  # type: ignore[arg-type]
                host.num_replicas,
                host.rank,
                host.shuffle,
                host.seed,
                host.drop_last,
            )
            sampler.set_epoch(host.epoch)
            return sampler
        return RandomSampler(range(size), generator=host.generator)


def _seed_of(host: Any) -> int:
    """That of the host's sampler, or of torch, from which nothing is drawn; alike on all ranks."""
    if isinstance(host, DistributedSampler):
        return host.seed
    if distributed.ranks_announced() > 1:
        return 0
    generator = getattr(host, "generator", None) or torch.default_generator
    return int(generator.initial_seed()) % 2**64
