"""Every torch.distributed call. Ranks meet once a stage, and once to see that they agree.

Torch is imported only where it is loaded already: a process group cannot exist without it.
"""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["check_agreement", "rank", "sum_over_ranks", "world_size"]


def _group() -> Any:
    """``torch.distributed`` if its default process group is initialised, else None."""
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        return dist
    return None


def world_size() -> int:
    """Number of ranks in the default process group; 1 without one."""
    dist = _group()
    return int(dist.get_world_size()) if dist else 1


def rank() -> int:
    """This process's rank in the default process group; 0 without one."""
    dist = _group()
    return int(dist.get_rank()) if dist else 0


def sum_over_ranks(
    total: npt.NDArray[np.int64], count: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """``total`` and ``count`` summed over all ranks: integers, so the order of adding is no matter.

    Changes nothing without a process group; with one, every rank must call it. 12 bytes a point.
    """
    dist = _group()
    if dist is None or world_size() == 1:
        return total, count
    return tuple(_communicate(dist, x, dist.all_reduce) for x in (total, count))  # type: ignore[return-value]


def check_agreement(what: dict[str, Any]) -> None:
    """Compare a 32-byte fingerprint of ``what`` over all ranks.

    Raises
    ------
    RuntimeError
        On every rank, if one rank's differs.
    """
    dist = _group()
    if dist is None or world_size() == 1:
        return
    mine = np.frombuffer(hashlib.sha256(repr(sorted(what.items())).encode()).digest(), np.int64)
    table = np.zeros((world_size(), len(mine)), np.int64)
    table[rank()] = mine
    table = _communicate(dist, table, dist.all_reduce)
    if (table != table[0]).any():
        others = np.flatnonzero((table != table[0]).any(1)).tolist()
        raise RuntimeError(
            f"ranks disagree: rank(s) {others} differ from rank 0 in one of {sorted(what)}; "
            f"on rank {rank()} they are {what}"
        )


def _communicate(dist: Any, x: npt.NDArray[Any], operation: Any) -> npt.NDArray[Any]:
    """Run an in-place collective on a copy of ``x``, on the device that the group's back end wants."""
    import torch

    tensor = torch.tensor(x)
    if dist.get_backend() == "nccl":
        tensor = tensor.cuda()
    operation(tensor)
    result: npt.NDArray[Any] = tensor.cpu().numpy()
    return result
