"""A user's DataLoader, understood and rebuilt: its settings are carried over by the signature of its constructor."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    default_collate,
)

from ..base import distributed
from ..base.arguments import check_callable, checked_choice
from ..mixing import Mixer, default_mixer, mix_arrays, mix_samples
from .keys import IndexedCollate, KeyBatches, KeyedDataset

__all__ = ["Order", "order_of", "rebuild", "resolve_mixer", "told", "understand"]

MANUAL = "; use Condensation with a CondensedSampler by hand (docs/by-hand.md in the repository)"
# What the rebuilt loader sets itself; every other argument of DataLoader is carried over by name.
OWN_ARGUMENTS = ("dataset", "batch_size", "shuffle", "sampler", "batch_sampler", "collate_fn", "drop_last")


class Order(NamedTuple):
    """Which samples a loader draws, in which order.

    Attributes
    ----------
    shuffle : bool
    seed : int
    num_replicas, rank : int
    given : bool
        Whether the user said which share of the samples this rank draws.
    drop_last : bool
        Of the sampler, for ranks of equal length.
    """

    shuffle: bool
    seed: int
    num_replicas: int
    rank: int
    given: bool
    drop_last: bool = False


def order_of(
    loader: DataLoader[Any], *, seed: int | None, num_replicas: int | None, rank: int | None, group: Any
) -> Order:
    """The order of a loader that can be wrapped, or why these are not the arguments for it: see `wrap_loader`."""
    sampler: Any = loader.batch_sampler.sampler  # type: ignore[union-attr]
    if isinstance(sampler, DistributedSampler):
        for name, given in (("num_replicas", num_replicas), ("rank", rank)):
            own = getattr(sampler, name)
            if given is not None and given != own:
                raise ValueError(
                    f"{name} = {given!r} contradicts the loader's DistributedSampler, of which it is {own}"
                )
        order = Order(
            sampler.shuffle, sampler.seed, sampler.num_replicas, sampler.rank, True, sampler.drop_last
        )
    else:
        given = num_replicas is not None or rank is not None
        shares, mine = distributed.share_of(num_replicas, rank, group) if given else (1, 0)
        generator = getattr(sampler, "generator", None) or loader.generator
        alone = not given or max(shares, distributed.ranks_announced(group)) == 1
        found = (generator.initial_seed() if generator else torch.initial_seed()) if alone else 0
        order = Order(isinstance(sampler, RandomSampler), found % 2**64, shares, mine, given)
    distributed.check_share(order.num_replicas, given=order.given, group=group)
    return order if seed is None else order._replace(seed=seed)


def understand(loader: Any) -> tuple[int, bool]:
    """(batch size, drop_last) of a loader that can be wrapped, or why it can't."""
    if not isinstance(loader, DataLoader):
        if isinstance(getattr(loader, "loader", None), DataLoader):
            raise TypeError(
                f"loader must be a torch.utils.data.DataLoader, got a {type(loader).__name__} around one: wrap that one, "
                "loader.loader, and give what the other does with its batches as prefetch= (timm's: docs/trainers.md)"
            )
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
            "an IterableDataset has no indices to choose from: use kcd.CondensedStream(dataset, key=..., slots=..., "
            "schedule=...)"
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
    elif type(sampler) is SequentialSampler:
        _same_size(len(sampler), size)
    elif type(sampler) is RandomSampler:
        if sampler.replacement:
            raise TypeError("the RandomSampler draws with replacement" + MANUAL)
        _same_size(sampler.num_samples, size)
    else:
        raise TypeError(f"loader has a sampler of its own, {type(sampler).__name__}" + _instead_of(sampler))
    return batching


def _instead_of(sampler: Any) -> str:
    """What works in place of such a sampler."""
    if type(sampler) is SubsetRandomSampler:
        return ": give the loader torch.utils.data.Subset(dataset, indices) and shuffle=True instead"
    return ", and not shuffle=True, shuffle=False or a DistributedSampler" + MANUAL


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


def told(rebuilt: DataLoader[Any]) -> str:
    """What of a rebuilt loader's settings is not `DataLoader`'s default: ``", name=value"`` for each."""
    parameters = inspect.signature(DataLoader.__init__).parameters
    usual = {name: parameter.default for name, parameter in parameters.items()}
    usual |= {"collate_fn": default_collate, "prefetch_factor": 2}  # what DataLoader makes of None
    own = {name: getattr(rebuilt, name, None) for name in usual if name not in OWN_ARGUMENTS}
    collate = rebuilt.collate_fn
    own["collate_fn"] = collate.collate if isinstance(collate, IndexedCollate) else collate
    changed = {name: x for name, x in own.items() if x is not None and x != usual[name]}
    return "".join(f", {name}={_shown(x)}" for name, x in changed.items())


def _shown(x: Any) -> str:
    if isinstance(x, torch.Generator):
        return f"Generator(seed {x.initial_seed()})"
    return getattr(x, "__qualname__", None) or repr(x)


def resolve_mixer(mixer: str | Mixer, dataset: Any) -> Mixer:
    if callable(mixer):
        check_callable(mixer, "mixer", "a callable mixer(dataset, index, steps) -> sample", places=3)
        return mixer
    mixers = {"auto": default_mixer(dataset), "arrays": mix_arrays, "samples": mix_samples}
    return mixers[checked_choice(mixer, "mixer", tuple(mixers), "a callable")]
