"""KCD in loops around ``timm.data.create_loader``, its prefetcher included.

    loader = kcd_adapters.trainers.timm.wrap_loader(create_loader(dataset, ...), schedule=schedule)
    for epoch in range(epochs):
        for images, targets in loader:
            ...
            loader.record(student_logits)
        loader.end_epoch()

timm's own ``train.py`` runs as it is, by ``kcd run``: docs/trainers.md.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from timm.data import AugMixDataset, FastCollateMixup
from timm.data.distributed_sampler import RepeatAugSampler
from timm.data.loader import MultiEpochsDataLoader, PrefetchLoader

import kcd_core
from kcd_core import CondensationSchedule, CondensedLoader

__all__ = ["wrap_loader"]


def wrap_loader(
    loader: Any, *, schedule: CondensationSchedule | None, **settings: Any
) -> CondensedLoader[Any]:
    """Wrap the loader that ``timm.data.create_loader`` returns, with or without the prefetcher.

    timm's prefetcher still copies to the device ahead of the loop, normalizes there and erases at random. A batch
    that it has fetched but not yielded does not count as drawn: ``record`` and ``state_dict`` refer to the batch that
    the loop has reached.

    Parameters
    ----------
    loader : timm.data.loader.PrefetchLoader or torch.utils.data.DataLoader
        Not changed.
    schedule : CondensationSchedule or None
        None is for ``ask`` alone, or for a ``select`` that has its own schedule.
    **settings
        Those of `kcd_core.wrap_loader`, except ``prefetch``: ``value``, ``alpha``, ``mixing``, ``seed`` and the
        others. Images are mixed after their transform, as uint8, before timm normalizes them.

    Returns
    -------
    CondensedLoader
        It has ``mixup_enabled``, which timm's loops ask for. ``set_epoch`` of its sampler changes nothing.

    Raises
    ------
    TypeError
        If the loader does not draw sample by sample: mixup or CutMix in its collate function, augmentation splits,
        repeated augmentation, ``use_multi_epochs_loader``, batches of scheduled sizes, or what `kcd_core.wrap_loader`
        refuses; or if ``prefetch`` is given, since timm's prefetcher takes its place.
    RuntimeError
        At the next batch, if the loop wrote to its images, as `timm.data.Mixup` does. It can't be detected on a copy,
        of another dtype, device or memory format.
    ValueError, RuntimeError
        As `kcd_core.wrap_loader` does.
    """
    prefetches = isinstance(loader, PrefetchLoader)
    inner = loader.loader if prefetches else loader
    refusal = _refusal(inner)
    if refusal:
        raise TypeError(refusal)
    if "prefetch" in settings:
        raise TypeError("prefetch is timm's own prefetcher here: leave it out, or use kcd_core.wrap_loader")
    ahead: Any = _unmixed
    if prefetches:
        ahead = partial(_through, _without_loader(loader))
    wrapped = kcd_core.wrap_loader(inner, schedule=schedule, prefetch=ahead, **settings)
    wrapped.mixup_enabled = False
    return wrapped


def _refusal(loader: Any) -> str | None:
    """What of timm's a loader has that makes its batches no rows of single samples."""
    if isinstance(loader, MultiEpochsDataLoader):
        return (
            "use_multi_epochs_loader=True begins the next epoch before this one's set is chosen: leave it out "
            "(persistent_workers=True, the default, keeps the workers, too)"
        )
    if isinstance(getattr(loader, "collate_fn", None), FastCollateMixup):
        return (
            "collate_fn is a FastCollateMixup: its images are mixtures of two samples, and what the student says of "
            "them is the value of neither. Leave out mixup and cutmix"
        )
    if isinstance(getattr(loader, "sampler", None), RepeatAugSampler):
        return "num_aug_repeats draws a sample several times in an epoch, in place of others: leave it out"
    if isinstance(getattr(loader, "dataset", None), AugMixDataset):
        return (
            "the data set is an AugMixDataset, of which a batch has several rows for each sample: leave out "
            "num_aug_splits"
        )
    return None


def _without_loader(prefetcher: PrefetchLoader) -> PrefetchLoader:
    one = copy.copy(prefetcher)
    one.loader = None
    return one


def _through(prefetcher: PrefetchLoader, batches: Iterator[Any]) -> Iterator[Any]:
    """Batches by timm's prefetcher. One object for all passes: it keeps its CUDA stream."""
    prefetcher.loader = batches  # read when the pass begins, with the next line
    try:
        yield from _unmixed(iter(prefetcher))
    finally:
        prefetcher.loader = None


def _unmixed(batches: Iterator[Any]) -> Iterator[Any]:
    """The batches; a RuntimeError once the loop has written to the images of one, as `timm.data.Mixup` does."""
    for batch in batches:
        images = batch[0] if isinstance(batch, (tuple, list)) and batch else None
        before = _version(images)
        yield batch
        if _version(images) != before:
            raise RuntimeError(
                "the loop wrote to the images of the last batch. If that was mixup or CutMix (timm.data.Mixup works in place), leave it "
                "out: a mixture of two samples has the value of neither. If it was something else, as images.sub_(mean), let "
                "it make a tensor of its own, images = images - mean"
            )


def _version(images: Any) -> int | None:
    """How often a tensor was written to in place."""
    if not isinstance(images, torch.Tensor) or images.is_inference():
        return None
    return images._version
