"""A user's DataLoader, understood and rebuilt: its settings are carried over by the signature of its constructor."""

from __future__ import annotations

import inspect
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from ..base.arguments import check_callable, checked_choice
from ..mixing import Mixer, default_mixer, mix_arrays, mix_samples
from .keys import IndexedCollate, KeyBatches, KeyedDataset

__all__ = ["rebuild", "resolve_mixer", "understand"]

MANUAL = "; use KnowledgeValueTracker, CondensedSampler and condense_step() by hand (docs/by-hand.md in the repository)"
# What the rebuilt loader sets itself; every other argument of DataLoader is carried over by name.
OWN_ARGUMENTS = ("dataset", "batch_size", "shuffle", "sampler", "batch_sampler", "collate_fn", "drop_last")


def understand(loader: Any, seed: int) -> tuple[tuple[int, bool], dict[str, Any]]:
    """((batch size, drop_last), arguments for CondensedSampler), or why the loader can't be wrapped."""
    if not isinstance(loader, DataLoader):
        raise TypeError(f"loader must be a torch.utils.data.DataLoader, got {type(loader).__name__}" + MANUAL)
    for method in ("__iter__", "__len__", "_get_iterator"):
        if getattr(type(loader), method) is not getattr(DataLoader, method):
            raise TypeError(
                f"{type(loader).__name__} overrides DataLoader.{method}, which a rebuilt loader would lose"
                + MANUAL
            )
    dataset, batch_sampler = loader.dataset, loader.batch_sampler
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            "an IterableDataset has no indices to choose from; CondensedStream goes by ids" + MANUAL
        )
    if batch_sampler is None:
        raise TypeError("loader has batch_size=None: it yields single samples, not batches" + MANUAL)
    if type(batch_sampler) is not BatchSampler:
        raise TypeError(f"loader has a batch sampler of its own, {type(batch_sampler).__name__}" + MANUAL)
    sampler: Any = batch_sampler.sampler
    try:
        size = len(dataset)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"the data set {type(dataset).__name__} has no len()" + MANUAL) from None
    if size == 0:
        raise ValueError("the data set is empty")
    batching = (int(batch_sampler.batch_size), bool(batch_sampler.drop_last))
    if type(sampler) is DistributedSampler:
        _same_size(len(sampler.dataset), size)  # type: ignore[arg-type]
        return batching, {
            "shuffle": sampler.shuffle,
            "seed": sampler.seed,
            "num_replicas": sampler.num_replicas,
            "rank": sampler.rank,
            "drop_last": sampler.drop_last,
        }
    alone = {"seed": seed, "num_replicas": 1, "rank": 0}
    if type(sampler) is SequentialSampler:
        _same_size(len(sampler), size)
        return batching, {"shuffle": False, **alone}
    if type(sampler) is RandomSampler:
        if sampler.replacement:
            raise TypeError("the RandomSampler draws with replacement" + MANUAL)
        _same_size(sampler.num_samples, size)
        return batching, {"shuffle": True, **alone}
    raise TypeError(f"loader has a sampler of its own, {type(sampler).__name__}" + MANUAL)


def _same_size(drawn: int, size: int) -> None:
    if drawn != size:
        raise TypeError(f"the sampler draws from {drawn} samples of a data set of {size}" + MANUAL)


def rebuild(
    loader: DataLoader[Any], batches: KeyBatches, mixer: Mixer, dataset: Any = None
) -> DataLoader[Any]:
    """A DataLoader with the settings of ``loader``, by the signature of ``DataLoader.__init__``.

    ``dataset``, if given, takes the place of the loader's.
    """
    names = [
        n for n in inspect.signature(DataLoader.__init__).parameters if n not in ("self", *OWN_ARGUMENTS)
    ]
    carried = {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    return DataLoader(
        KeyedDataset(loader.dataset if dataset is None else dataset, mixer),  # type: ignore[arg-type]
        batch_sampler=batches,
        collate_fn=IndexedCollate(loader.collate_fn),  # type: ignore[arg-type]
        **carried,
    )


def resolve_mixer(mixer: str | Mixer, dataset: Any) -> Mixer:
    if callable(mixer):
        check_callable(mixer, "mixer", "a callable mixer(dataset, index, steps) -> sample", places=3)
        return mixer
    mixers = {"auto": default_mixer(dataset), "arrays": mix_arrays, "samples": mix_samples}
    return mixers[checked_choice(mixer, "mixer", tuple(mixers), "a callable")]
