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
    DataLoaderStateMixin,
    SeedableRandomSampler,
)
from accelerate.state import GradientState
from accelerate.utils import (
    broadcast_object_list,
    send_to_device,
    synchronize_rng_states,
)
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler

from kcd_core import CondensationSchedule, CondensedLoader, wrap_loader
from kcd_core.base.arguments import check_kind
from kcd_core.loading.rebuild import understand

__all__ = ["AcceleratedLoader", "prepare", "unprepared"]


def prepare(
    accelerator: Accelerator,
    loader: DataLoader[Any],
    *,
    schedule: CondensationSchedule,
    seed: int | None = None,
    device_placement: bool | None = None,
    **settings: Any,
) -> AcceleratedLoader:
    """A condensed loader in place of the training loader that ``accelerator.prepare`` would return.

    The samples are shared out over the accelerator's processes by the sampler of `wrap_loader`, and not by accelerate:
    every process draws equally many batches, and what only pads its last one is not recorded. The loader is registered
    for checkpoints: ``accelerator.save_state`` and ``load_state``, on every process, include it, also where
    another number of processes goes on.

    Parameters
    ----------
    accelerator : accelerate.Accelerator
    loader : DataLoader
        As `wrap_loader` takes it; not yet prepared, though one that is will do. Its batch size is one process's; with
        ``split_batches``, that of all together.
    schedule : CondensationSchedule
    seed : int, optional
        Of the order of the samples. Default: the accelerator's ``data_seed`` with ``use_seedable_sampler``; else the main
        process's, as `wrap_loader` finds it on one rank. Set it with ``accelerate.utils.set_seed``.
    device_placement : bool, optional
        Whether batches are moved to the accelerator's device. Default: what the accelerator was told.
    **settings
        Of `wrap_loader`, but for ``num_replicas``, ``rank`` and ``group``, which accelerate says.

    Returns
    -------
    AcceleratedLoader

    Raises
    ------
    TypeError, ValueError
        As `wrap_loader` does; if ``accelerator`` is none; with ``dispatch_batches``; with ``even_batches=False`` on several
        processes; with ``split_batches``, if they are not as many parts as processes; or if several processes hold one
        replica of the model (tensor, context or sequence parallelism, Megatron-LM), or under XLA.
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
    # An iterator draws its workers' seeds from the global generator, if it is given none: the pass that a resumed
    # run begins would then change what its student draws, dropout for instance.
    workers = None if plain.generator else torch.Generator(device=torch.empty(0).device)
    changed = {"batch_size": batch_size, "drop_last": drop_last, "sampler": plain.batch_sampler.sampler}
    place = accelerator.device_placement if device_placement is None else device_placement
    users = settings.pop("prefetch", None)

    def placed(batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches if users is None else users(batches):
            yield send_to_device(batch, accelerator.device, non_blocking=accelerator.non_blocking)

    condensed = wrap_loader(
        _remade(plain, generator=workers or plain.generator, **changed),
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
    """The DataLoader that accelerate made a prepared ``loader`` of, made again; any other loader as it is.

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


class AcceleratedLoader(DataLoaderStateMixin):
    """What `prepare` returns: a `CondensedLoader`, with all of its methods and attributes, that accelerate knows.

    While it is iterated, it is the accelerator's active loader: ``accelerator.accumulate`` steps at the last batch of
    an epoch. It does not look ahead. ``accelerator.prepare`` returns it as it is. ``gather_for_metrics`` leaves out
    what only pads on up to two processes; on more, do it by ``loader.indices``, which are -1 there.

    Parameters
    ----------
    accelerator : accelerate.Accelerator
    loader : CondensedLoader
    workers : torch.Generator, optional
        Of the seeds of worker processes, seeded anew for each epoch.
    """

    prefetch_factor = None  # skip_first_batches asks for it, and then meets what `Batches` says

    def __init__(
        self, accelerator: Accelerator, loader: CondensedLoader[Any], workers: torch.Generator | None
    ) -> None:
        self._loader, self._accelerator, self._workers = loader, accelerator, workers
        self._workers_seed = torch.initial_seed()
        self._open = 0  # passes under way
        self.gradient_state = GradientState()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __setattr__(self, name: str, value: Any) -> None:
        own = name.startswith("_") or name in ("gradient_state", "end_of_dataloader", "remainder")
        (super().__setattr__ if own else self._loader.__setattr__)(name, value)

    def __repr__(self) -> str:
        return repr(self._loader).replace("Condensed", "Accelerated", 1)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        """One pass over the current epoch: see `CondensedLoader.__iter__`."""
        loader = self._loader
        kinds = self._accelerator.rng_types
        synchronize_rng_states([kind for kind in kinds if str(kind) != "generator"])  # the order needs none
        if self._workers is not None:
            self._workers.manual_seed((self._workers_seed + loader.epoch) % 2**63)
        self.begin()
        self._open += 1
        try:
            for batch in loader:
                self.end_of_dataloader = loader.batches_done == len(loader)
                self.remainder = self._remainder() if self.end_of_dataloader else -1
                yield batch
        finally:
            self._open -= 1
            if not self._open:
                self.end()
                self.reset()

    def _remainder(self) -> int:
        """Rows that are samples in the last batches of all processes, if those that pad come last; 0 is all, -1 not."""
        batches, indices, ranks = (
            self._loader.batch_sampler,
            self._loader.indices,
            self._accelerator.num_processes,
        )
        assert indices is not None
        kept = batches.sampler.num_kept
        mine = batches.sampler.length(kept)
        drawn = mine - mine % batches.batch_size if batches.drop_last else mine
        padding = max(0, int(drawn * ranks - kept))
        return {0: 0, 1: int(len(indices) * ranks - 1)}.get(padding, -1)

    @property
    def batch_sampler(self) -> Batches:
        """``sampler``, ``batch_size`` and ``drop_last`` in one, for who asks; nothing to draw by."""
        return Batches(self._loader)

    def scheduler_steps(self, epochs: int) -> int:
        """How often a scheduler that ``accelerator.prepare`` returned is stepped in epochs 1 .. ``epochs``.

        That is its ``total_steps`` or ``T_max``: accelerate steps it at each step of the optimizer, once for every process,
        or with ``split_batches`` once. (``OneCycleLR`` is not stepped to its end under gradient accumulation, unless
        the accelerator has a ``GradientAccumulationPlugin`` with ``adjust_scheduler=False``.)
        """
        accelerator, state = self._accelerator, self.gradient_state
        if state.sync_with_dataloader:
            updates = self._loader.total_steps(epochs, accumulate=state.num_steps)
        else:  # what an epoch leaves over is accumulated in the next
            updates = self._loader.total_steps(epochs) // state.num_steps
        return updates if accelerator.split_batches else updates * accelerator.num_processes

    def state_dict(self) -> list[dict[str, Any]]:
        """Those of all processes, on each of them, so that every process must call it: see `CondensedLoader`."""
        return self._loader.gather_state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Go on where it was saved, on any number of processes: see `CondensedLoader`."""
        self._loader.load_state_dict(state)


class Batches:
    """How an `AcceleratedLoader` draws, for who asks; nothing to draw by."""

    def __init__(self, loader: CondensedLoader[Any]) -> None:
        self.sampler, self.batch_size, self.drop_last = loader.sampler, loader.batch_size, loader.drop_last
        self._length = len(loader)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError(
            "skip_first_batches (or whatever makes a DataLoader of this loader's batch sampler) would draw what can't be "
            "recorded: iterate the loader itself, which goes on where it was saved once accelerator.load_state() has "
            "read its state"
        )


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
