"""Every torch.distributed call. Ranks meet once a stage, and once to see that they agree.

Torch is imported only where it is loaded already: a process group cannot exist without it.
"""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from .._version import __version__

__all__ = ["check_agreement", "raise_together", "rank", "sum_over_ranks", "world_size"]


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


def sum_over_ranks(*arrays: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    """Each array summed over all ranks: integers, so the order of adding is no matter.

    Changes nothing without a process group; with one, every rank must call it, with equal shapes.
    """
    dist = _group()
    if dist is None or world_size() == 1:
        return arrays
    return tuple(_communicate(dist, x, dist.all_reduce) for x in arrays)


def raise_together(problem: Exception | None) -> None:
    """Raise on every rank if any rank has a problem, so that no other waits for it in a collective."""
    dist = _group()
    if dist is not None and world_size() > 1:
        flags = np.zeros(world_size(), np.int64)
        flags[rank()] = problem is not None
        flags = _communicate(dist, flags, dist.all_reduce)
        if problem is None and flags.any():
            raise RuntimeError(f"rank(s) {np.flatnonzero(flags).tolist()} could not go on; see their errors")
    if problem is not None:
        raise problem


def check_agreement(what: dict[str, Any], *, shard: int, shards: int) -> None:
    """Compare a 32-byte fingerprint of ``what`` over all ranks, and see that they draw different shards.

    Raises
    ------
    RuntimeError
        On every rank, if one rank's fingerprint differs, or ``shard`` of ``shards`` is not drawn by
        equally many ranks each.
    """
    dist = _group()
    if dist is None or world_size() == 1:
        return
    what = {**what, "kcd_core": __version__}
    mine = np.frombuffer(hashlib.sha256(repr(sorted(what.items())).encode()).digest(), np.int64)
    table = np.zeros((world_size(), len(mine) + 1), np.int64)
    table[rank(), :-1], table[rank(), -1] = mine, shard
    table = _communicate(dist, table, dist.all_reduce)
    table, drawn = table[:, :-1], np.bincount(table[:, -1], minlength=shards)
    if not (table != table[0]).any() and drawn.min() < drawn.max():
        raise RuntimeError(
            f"the ranks' samplers must draw each of the {shards} shards equally often, and they draw them "
            f"{drawn.tolist()} times: give each rank's DistributedSampler its own rank, and the world's size"
        )
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
    backend = str(dist.get_backend())  # "nccl", or "cpu:gloo,cuda:nccl"
    if backend == "nccl" or ("cuda:" in backend and "cpu:" not in backend):
        tensor = tensor.cuda()
    try:
        operation(tensor)
        result: npt.NDArray[Any] = tensor.cpu().numpy()
    except RuntimeError as error:  # as gloo and NCCL say that a peer is gone, or their timeout is over
        raise RuntimeError(
            f"rank {rank()} waited in vain for the other ranks ({error}). If one has died, or did not call "
            "end_epoch() (or condense_step()) within the process group's timeout, start again from the last checkpoint"
        ) from error
    return result
