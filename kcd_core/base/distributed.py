"""Every torch.distributed call, and which rank draws what. Ranks meet once a stage, and once to see that they agree.

Torch is imported only where it is loaded already: a process group cannot exist without it. ``group`` is a process group of
torch's, by default the one that `torch.distributed.init_process_group` made; ranks are numbered within it.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .._version import __version__
from .arrays import checked_int
from .dataset_identity import told_apart

__all__ = [
    "check_agreement",
    "check_group",
    "check_share",
    "communicate",
    "gather",
    "raise_together",
    "rank",
    "ranks_announced",
    "share_of",
    "store",
    "sum_over_ranks",
    "together",
    "unsummed",
    "world_size",
]

T = TypeVar("T")


def _group() -> Any:
    """``torch.distributed`` if its default process group is initialised, else None."""
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        return dist
    return None


def world_size(group: Any = None) -> int:
    """Number of ranks; 1 without a process group."""
    dist = _group()
    return int(dist.get_world_size(group)) if dist else 1


def rank(group: Any = None) -> int:
    """This process's rank; 0 without a process group."""
    dist = _group()
    return int(dist.get_rank(group)) if dist else 0


def rank_announced(group: Any = None) -> int:
    """`rank`, or where no process group is initialised yet, what the launcher of several says: ``RANK``."""
    said = os.environ.get("RANK", "")
    return int(said) if _group() is None and said.isdecimal() and ranks_announced() > 1 else rank(group)


# -- who draws what ----------------------------------------------------------------------------------------


def ranks_announced(group: Any = None) -> int:
    """`world_size`, or where no process group is initialised yet, what the launcher says: ``WORLD_SIZE``."""
    said = os.environ.get("WORLD_SIZE", "")
    return int(said) if _group() is None and said.isdecimal() else world_size(group)


def check_group(group: Any) -> Any:
    """``group``, if it is None or a process group that this process is in."""
    if group is None:
        return None
    dist = _group()
    try:
        inside = dist is not None and dist.get_rank(group) >= 0
    except (KeyError, RuntimeError, TypeError, ValueError):  # as torch says that it knows no such group
        inside = None
    if inside is None or dist is None:
        raise TypeError(
            f"group must be a process group, as torch.distributed.new_group() returns, got {type(group).__name__}"
        )
    if not inside:
        raise ValueError("group must be a process group that this process is in, and it is not in this one")
    return group


def share_of(num_replicas: int | None, rank_of_it: int | None, group: Any = None) -> tuple[int, int]:
    """Number of ranks and rank, by default the group's, checked."""
    ranks = checked_int(world_size(group) if num_replicas is None else num_replicas, "num_replicas", 1)
    if rank_of_it is None and ranks > world_size(group):
        raise ValueError(
            f"rank must be given with num_replicas = {ranks}, since no process group of that many is initialised"
        )
    mine = checked_int(rank(group) if rank_of_it is None else rank_of_it, "rank", 0)
    if mine >= ranks:
        raise ValueError(f"rank must be below num_replicas = {ranks}, got {mine}")
    return ranks, mine


def check_share(shares: int, *, given: bool, group: Any, begun: bool = False) -> None:
    """See that what this process draws, one of ``shares`` shares of the samples, goes with the other ranks.

    Parameters
    ----------
    shares : int
        How many ranks the sampler shares the samples out to.
    given : bool
        Whether the user said so.
    group
        That the recordings are summed over.
    begun : bool
        Whether samples are drawn, so that a process group would be initialised by now.

    Raises
    ------
    RuntimeError
        If there are several ranks, and each draws everything in one and the same order, which nobody asked for;
        or if there are other ranks than the sampler draws for.
    """
    if shares == 1:
        ranks = ranks_announced(group) if begun else world_size(group)
        if not given and ranks > 1:
            several = (
                f"there are {ranks} ranks" if world_size(group) > 1 else f"WORLD_SIZE says {ranks} ranks"
            )
            raise RuntimeError(
                f"{several}, and each of them would draw all samples in the same order. To share the samples out, "
                "initialise the process group first, and give the loader a DistributedSampler, or pass num_replicas= and "
                "rank=; where ranks are to draw alike, as in tensor parallelism, or this process is alone, pass "
                "num_replicas=1, rank=0"
            )
    elif _group() is not None and world_size(group) != shares:
        raise RuntimeError(
            f"the sampler draws for one of num_replicas = {shares} ranks, and the process group whose recordings are "
            f"summed has {world_size(group)}: pass the process group of those {shares} ranks as group="
        )


def unsummed(shares: int | None, group: Any) -> str:
    """What the user is told where samples are shared out, and nobody can sum what was recorded; "" otherwise.

    ``shares`` is None where the data, and no sampler, say what each rank draws.
    """
    if shares == 1 or world_size(group) > 1:
        return ""
    if shares is None:
        if (ranks := ranks_announced(group)) < 2:
            return ""
        return (
            f"WORLD_SIZE says {ranks} ranks, and no process group is initialised to sum their recordings, so that each "
            "condenses by its own: call torch.distributed.init_process_group() first"
        )
    return (
        f"the sampler draws for one of num_replicas = {shares} ranks, and no process group is initialised to sum the "
        "ranks' recordings, so no stage can end: call torch.distributed.init_process_group() first, or merge the "
        "recordings yourself and use condense() and sampler.install()"
    )


# -- where ranks meet --------------------------------------------------------------------------------------


def sum_over_ranks(*arrays: npt.NDArray[Any], group: Any = None) -> tuple[npt.NDArray[Any], ...]:
    """Each array summed over all ranks: integers, so the order of adding is no matter.

    Changes nothing without a process group; with one, every rank must call it, with equal shapes.
    """
    dist = _group()
    if dist is None or world_size(group) == 1:
        return arrays
    return tuple(communicate(dist, x, dist.all_reduce, group) for x in arrays)


def raise_together(problem: Exception | None, group: Any = None) -> None:
    """Raise on every rank if any rank has a problem, so that no other waits for it in a collective."""
    dist = _group()
    if dist is not None and world_size(group) > 1:
        flags = np.zeros(world_size(group), np.int64)
        flags[rank(group)] = problem is not None
        flags = communicate(dist, flags, dist.all_reduce, group)
        if problem is None and flags.any():
            raise RuntimeError(
                f"rank(s) {np.flatnonzero(flags).tolist()} could not continue; see their errors"
            )
    if problem is not None:
        raise problem


def together(function: Callable[[], T], group: Any = None) -> T:
    """What ``function`` returns here; what it raises on one rank is raised on every rank. It does not communicate."""
    problem: Exception | None = None
    try:
        result = function()
    except Exception as error:
        problem = error
    raise_together(problem, group)
    return result


def gather(function: Callable[[], T], group: Any = None) -> list[T]:
    """What ``function`` returns on every rank, in the order of ranks, on each of them."""
    mine = together(function, group)
    dist = _group()
    if dist is None or world_size(group) == 1:
        return [mine]
    everyones: list[Any] = [None] * world_size(group)
    dist.all_gather_object(everyones, mine, group=group)
    return everyones


def check_agreement(what: Mapping[str, Any], *, shard: int, shards: int, group: Any = None) -> None:
    """Compare a 32-byte fingerprint of ``what`` over all ranks, and see that they draw different shards.

    Raises
    ------
    RuntimeError
        On every rank, if one rank's fingerprint differs, or ``shard`` of ``shards`` is not drawn by
        equally many ranks each.
    """
    dist, ranks = _group(), world_size(group)
    if dist is None or ranks == 1:
        return
    texts = {name: _written(x) for name, x in {**what, "kcd_core": __version__}.items()}
    mine = np.frombuffer(hashlib.sha256(repr(sorted(texts.items())).encode()).digest(), np.int64)
    table = np.zeros((ranks, len(mine) + 1), np.int64)
    table[rank(group), :-1], table[rank(group), -1] = mine, shard
    table = communicate(dist, table, dist.all_reduce, group)
    table, drawn = table[:, :-1], np.bincount(table[:, -1], minlength=shards)
    if (table != table[0]).any() and (
        found := _differences(gather(lambda: (texts, what.get("dataset")), group))
    ):
        raise RuntimeError(
            f"ranks disagree: {'; '.join(found)}. Every rank needs the same settings and samples, makes its loaders in the "
            "same order, draws every epoch, records what it drew itself (ranks' recordings are summed: gather no logits), and "
            "ends the epoch once"
        )
    if drawn.min() < drawn.max():
        raise RuntimeError(
            f"the ranks' samplers must draw each of the {shards} shards equally often, and they draw them "
            f"{drawn.tolist()} times: give each rank's DistributedSampler its own rank, and the world's size"
        )


def _differences(everyones: list[tuple[dict[str, str], Any]]) -> list[str]:
    """In what the ranks differ, from what all of them have: their settings, and what their data sets are."""
    found = []
    settings = [texts for texts, _ in everyones]
    for name in sorted(set().union(*settings)):
        values = [texts.get(name, "not there") for texts in settings]
        pairs = [(value, values[0]) for value in values]
        if name == "dataset":  # what one rank alone knows of it says nothing
            apart = (told_apart(about, everyones[0][1]) for _, about in everyones)
            pairs = [(_written(one), _written(here)) for one, here in apart]
        others = [number for number, (one, here) in enumerate(pairs) if one != here]
        if others:
            one, here = pairs[others[0]]
            found.append(
                f"rank(s) {others} differ from rank 0 in {name}: {one:.200} there, and {here:.200} on rank 0"
            )
    return found


def _written(x: Any) -> str:
    """The same text for equal settings, whatever the type of their numbers."""
    if isinstance(x, Mapping):
        return "{" + ", ".join(f"{key}: {_written(x[key])}" for key in sorted(x)) + "}"
    if isinstance(x, (list, tuple)):
        return f"[{', '.join(map(_written, x))}]"
    if isinstance(x, np.generic):
        x = x.item()
    return repr(int(x) if isinstance(x, float) and x.is_integer() else x)


def store(group: Any = None) -> Any:
    """The key-value store that the ranks of a group share, or None where torch has no public way to it."""
    dist = _group()
    found = getattr(group or dist.group.WORLD, "get_group_store", None) if dist else None
    return found() if found else None


def communicate(dist: Any, x: npt.NDArray[Any], operation: Any, group: Any = None) -> npt.NDArray[Any]:
    """Run an in-place collective on a copy of ``x``, on the device that the group's back end wants."""
    import torch

    tensor = torch.tensor(x)
    backend = str(dist.get_backend(group))  # "nccl", or "cpu:gloo,cuda:nccl"
    if backend == "nccl" or ("cuda:" in backend and "cpu:" not in backend):
        tensor = tensor.cuda()
    try:
        operation(tensor, group=group)
        result: npt.NDArray[Any] = tensor.cpu().numpy()
    except RuntimeError as error:  # as gloo and NCCL say that a peer is gone, or their timeout is over
        raise RuntimeError(
            f"rank {rank(group)} waited in vain for the other ranks ({error}). If one has died, or did not call "
            "end_epoch() (or condense_step()) within the process group's timeout, start again from the last checkpoint"
        ) from error
    return result
