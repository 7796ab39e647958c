"""The condensed loader as accelerate knows it: accumulation, checkpoints, and the steps of a scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderStateMixin
from accelerate.state import GradientState
from accelerate.utils import synchronize_rng_states

from kcd_core import CondensedLoader, ShardedSampler

__all__ = ["AcceleratedLoader", "Batches"]


class AcceleratedLoader(DataLoaderStateMixin):
    """What `prepare` returns: a `CondensedLoader` that accelerate recognises, with all its methods and attributes.

    While it is iterated, it is the accelerator's active loader: ``accelerator.accumulate`` steps at the last batch of
    an epoch. It does not look ahead. ``accelerator.prepare`` returns it as it is. ``gather_for_metrics`` leaves out
    padding on up to two processes; on more, and with ``sharded``, drop the rows where ``loader.indices`` is -1.

    Parameters
    ----------
    accelerator : accelerate.Accelerator
    loader : CondensedLoader
    workers : torch.Generator
        Where ``loader`` draws the seeds of worker processes. It is seeded for each pass by the sampler's seed, which
        a loaded state brings, the epoch and the process.
    """

    prefetch_factor = None  # skip_first_batches asks for it, and then meets what `Batches` says

    def __init__(
        self, accelerator: Accelerator, loader: CondensedLoader[Any], workers: torch.Generator
    ) -> None:
        self._loader, self._accelerator, self._workers = loader, accelerator, workers
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
        """One pass over the current epoch: see `CondensedLoader.__iter__`.

        A data set with a ``set_epoch`` is told the epoch first, from 0, as accelerate's own loaders tell it.
        """
        loader = self._loader
        kinds = self._accelerator.rng_types
        synchronize_rng_states([kind for kind in kinds if str(kind) != "generator"])  # the order needs none
        sampler = loader.sampler
        own = loader.epoch * sampler.num_replicas + sampler.rank  # no other process's in any epoch
        self._workers.manual_seed((sampler.seed + own) % 2**63)
        if hasattr(loader.dataset, "set_epoch"):
            loader.dataset.set_epoch(loader.epoch - 1)
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
        """Rows that are samples in the last batches of all processes, if those that pad come last; 0 is all, -1 not.

        Of slices, each pads its own end, which may be any process's.
        """
        batches, indices, ranks = (
            self._loader.batch_sampler,
            self._loader.indices,
            self._accelerator.num_processes,
        )
        assert indices is not None
        if ranks > 1 and isinstance(batches.sampler, ShardedSampler):
            return -1
        kept = batches.sampler.num_kept
        mine = batches.sampler.length(kept)
        drawn = mine - mine % batches.batch_size if batches.drop_last else mine
        padding = max(0, int(drawn * ranks - kept))
        return {0: 0, 1: int(len(indices) * ranks - 1)}.get(padding, -1)

    def set_epoch(self, epoch: int) -> None:
        """Changes nothing, as a loop may call it that was written for accelerate's own loaders: `end_epoch` moves on."""

    @property
    def batch_sampler(self) -> Batches:
        """``sampler``, ``batch_size`` and ``drop_last`` in one, for who asks; nothing to draw by."""
        return Batches(self._loader)

    def scheduler_steps(self, epochs: int) -> int:
        """Number of steps in epochs 1 .. ``epochs`` of a scheduler that ``accelerator.prepare`` returned.

        This is its ``total_steps`` or ``T_max``. It assumes that the scheduler is stepped once a batch, as inside
        ``accumulate``. accelerate then steps it at each step of the optimizer, once for every process, or once with
        ``split_batches``. With ``step_scheduler_with_optimizer=False``, it is stepped at every call, so the total is
        the number of batches. (``OneCycleLR`` is not stepped to its end under gradient accumulation, unless the
        accelerator has a ``GradientAccumulationPlugin`` with ``adjust_scheduler=False``.)
        """
        accelerator, state = self._accelerator, self.gradient_state
        if not accelerator.step_scheduler_with_optimizer:
            return self._loader.total_steps(epochs)
        if state.sync_with_dataloader:
            updates = self._loader.total_steps(epochs, accumulate=state.num_steps)
        else:  # what an epoch leaves over is accumulated in the next
            updates = self._loader.total_steps(epochs) // state.num_steps
        return updates if accelerator.split_batches else updates * accelerator.num_processes

    def state_dict(self) -> list[dict[str, Any]]:
        """Those of all processes, on each of them, so that every process must call it: see `CondensedLoader`."""
        return self._loader.gather_state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Resume where it was saved, on any number of processes: see `CondensedLoader`."""
        self._loader.load_state_dict(state)


class Batches:
    """How an `AcceleratedLoader` draws, for information only."""

    def __init__(self, loader: CondensedLoader[Any]) -> None:
        self.sampler, self.batch_size, self.drop_last = loader.sampler, loader.batch_size, loader.drop_last
        self._length = len(loader)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError(
            "skip_first_batches (or whatever makes a DataLoader of this loader's batch sampler) would draw what can't be "
            "recorded: iterate the loader itself, which resumes where it was saved once accelerator.load_state() has "
            "read its state"
        )
