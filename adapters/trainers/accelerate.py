"""Hugging Face Accelerate: a DataLoader becomes the condensed loader of an Accelerator's processes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import (
    BatchSamplerShard,
    DataLoaderDispatcher,
    DataLoaderShard,
    SeedableRandomSampler,
)
from accelerate.utils import broadcast_object_list, send_to_device
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler

from kcd_core import CondensationSchedule, wrap_loader
from kcd_core.base.arguments import check_callable, check_kind
from kcd_core.loading.rebuild import understand

from .accelerate_loader import AcceleratedLoader

__all__ = ["AcceleratedLoader", "prepare", "unprepared"]


def prepare(
    accelerator: Accelerator,
    loader: DataLoader[Any],
    *,
    schedule: CondensationSchedule | None,
    seed: int | None = None,
    device_placement: bool | None = None,
    **settings: Any,
) -> AcceleratedLoader:
    """A condensed loader, instead of the training loader that ``accelerator.prepare`` would return.

    The sampler of `wrap_loader`, not accelerate, shares the samples among the accelerator's processes: every process
    draws equally many batches, and padding of the last one is not recorded. The loader is registered for checkpoints:
    ``accelerator.save_state`` and ``load_state``, on every process, include it, also if another number of processes
    resumes. ``use_stateful_dataloader`` would serve the same purpose, and changes nothing here.

    Parameters
    ----------
    accelerator : accelerate.Accelerator
    loader : DataLoader
        As for `wrap_loader`, and preferably not prepared yet. Its batch size is that of one process; with
        ``split_batches``, that of all together. Its generator only gives a seed; nothing is drawn from it.
    schedule : CondensationSchedule or None
        None is for ``ask`` alone, or for a ``select`` that has its own schedule: see `wrap_loader`.
    seed : int, optional
        The seed of the samples' order, and of the workers in each epoch. Default: the accelerator's ``data_seed``
        with ``use_seedable_sampler``; else the main process's, as `wrap_loader` finds it on one rank. Set it with
        ``accelerate.utils.set_seed``.
    device_placement : bool, optional
        Whether batches are moved to the accelerator's device. Default: the accelerator's setting.
    **settings
        Those of `wrap_loader`, except ``num_replicas``, ``rank`` and ``group``, which accelerate gives.

    Returns
    -------
    AcceleratedLoader

    Raises
    ------
    TypeError, ValueError
        As `wrap_loader` does; if ``accelerator`` is not an Accelerator; with ``dispatch_batches``; with
        ``even_batches=False`` on several processes; with ``split_batches``, if they are not as many parts as
        processes; or if several processes hold one replica of the model (tensor, context or sequence parallelism,
        Megatron-LM), or under XLA.
    """
    check_kind(accelerator, "accelerator", Accelerator)
    _check_accelerator(accelerator)
    for name in settings.keys() & {"num_replicas", "rank", "group"}:
        raise TypeError(f"{name} is accelerate's to say here: leave it out")
    ranks = accelerator.num_processes
    plain = unprepared(loader)
    batch_size, drop_last = understand(plain)
    if accelerator.split_batches:
        if batch_size % ranks:
            raise ValueError(
                f"with split_batches, the batch size must be a multiple of the {ranks} processes, got {batch_size}"
            )
        batch_size //= ranks
    chosen = _common_seed(accelerator, plain) if seed is None else seed
    # Each iterator draws its workers' seeds from the loader's generator, or else the global one: a resumed run, which
    # begins a pass more or less, would then have others, and draw other things itself, dropout for instance.
    workers = torch.Generator(device=torch.empty(0).device)
    changed = {"batch_size": batch_size, "drop_last": drop_last, "sampler": plain.batch_sampler.sampler}
    place = accelerator.device_placement if device_placement is None else device_placement
    users = settings.pop("prefetch", None)
    if users is not None:  # wrap_loader would be asked of `placed`
        check_callable(users, "prefetch", "a callable prefetch(batches) -> iterator", places=1)

    def placed(batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches if users is None else users(batches):
            yield send_to_device(batch, accelerator.device, non_blocking=accelerator.non_blocking)

    condensed = wrap_loader(
        _remade(plain, generator=workers, **changed),
        schedule=schedule,
        seed=chosen,
        prefetch=placed if place else users,
        **({"num_replicas": ranks, "rank": accelerator.process_index} if ranks > 1 else {}),
        **settings,
    )
    condensed.sampler.adopts_seed = seed is None
    prepared = AcceleratedLoader(accelerator, condensed, workers)
    accelerator.register_for_checkpointing(prepared)
    return prepared


def unprepared(loader: Any) -> Any:
    """A new DataLoader like the one from which accelerate made a prepared ``loader``; any other loader as it is.

    Raises
    ------
    TypeError
        If it reads on the main process for all (``dispatch_batches``).
    """
    if isinstance(loader, DataLoaderDispatcher):
        raise TypeError(
            "loader was prepared with dispatch_batches=True, so that the main process reads for all: prepare it without"
        )
    prepared = isinstance(loader, DataLoaderShard)
    batches = getattr(loader, "batch_sampler", None)
    if isinstance(batches, BatchSamplerShard):
        batches = batches.batch_sampler
    sampler = getattr(batches, "sampler", None)
    if isinstance(sampler, SeedableRandomSampler):  # also that of a DataLoader that prepare() was given
        seeded = torch.Generator().manual_seed(sampler.initial_seed)
        sampler = RandomSampler(sampler.data_source, sampler.replacement, sampler.num_samples, seeded)
    elif not prepared:
        return loader
    base = loader.base_dataloader if prepared else loader
    if type(batches) is not BatchSampler:
        return base
    return _remade(base, sampler=sampler, batch_size=batches.batch_size, drop_last=batches.drop_last)


def _check_accelerator(accelerator: Accelerator) -> None:
    """ValueError if batches could not be shared out as it was told."""
    shape = getattr(accelerator, "parallelism_config", None)
    split = [name for name in ("tp_size", "cp_size", "sp_size") if (getattr(shape, name, None) or 1) > 1]
    kind = accelerator.distributed_type.value  # accelerate had TP as one before it had a parallelism_config
    if split or kind in ("MEGATRON_LM", "TP", "XLA"):
        raise ValueError(
            f"accelerate is not supported with {', '.join(split) or kind}: each process must "
            "hold a replica of the model, or a shard of it (data parallelism, FSDP), and draw batches of its own"
        )
    if accelerator.dispatch_batches:
        raise ValueError(
            "dispatch_batches=True lets the main process read for all, and no index goes along with a row: leave it out"
        )
    if not accelerator.even_batches and accelerator.num_processes > 1:
        raise ValueError(
            "even_batches=False asks for unequal numbers of batches: leave it out; padding is not recorded"
        )


def _common_seed(accelerator: Accelerator, loader: DataLoader[Any]) -> int | None:
    """The seed of the order on all processes, of those that were set somewhere; None is a DistributedSampler's."""
    sampler: Any = loader.batch_sampler.sampler  # type: ignore[union-attr]
    if isinstance(sampler, DistributedSampler):
        return None
    data_seed = getattr(accelerator.dataloader_config, "data_seed", None)
    if accelerator.use_seedable_sampler and data_seed is not None:
        return int(data_seed)
    generator = getattr(sampler, "generator", None) or loader.generator
    mine = generator.initial_seed() if generator else torch.initial_seed()
    return int(broadcast_object_list([mine])[0]) % 2**64


def _remade(loader: DataLoader[Any], **changed: Any) -> DataLoader[Any]:
    """A DataLoader with other settings: its own are found by the names that the constructor takes."""
    names = set(inspect.signature(DataLoader.__init__).parameters) - {"self", "shuffle", "batch_sampler"}
    settings = {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    return DataLoader(**{**settings, **changed})
