"""`wrap_loader`: the parts of a `CondensedLoader`, picked and put together."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from torch.utils.data import DataLoader

from ..base.arguments import check_kind, checked_bool
from ..base.dataset_identity import dataset_identity
from ..base.states import value_name
from ..em_step import Select
from ..layout import Layout, WholeLayout
from ..mixing import Mixer
from ..recipes import Mixing
from ..sampler import CondensedSampler
from ..schedule import AHEAD, CondensationSchedule
from ..sharded.layout import SliceLayout
from ..sharded.sampler import ShardedSampler
from ..skipped import OnNonfinite
from ..stages import Condensation
from ..tracker import KnowledgeValueTracker
from ..values import Value, ValueName
from .keys import KeyBatches
from .loader import CondensedLoader
from .rebuild import rebuild, resolve_mixer, understand

__all__ = ["wrap_loader"]

Batch = TypeVar("Batch")


def wrap_loader(
    loader: DataLoader[Batch],
    *,
    schedule: CondensationSchedule,
    value: ValueName | Value = "entropy",
    alpha: float = 0.03,
    min_weight: float = 0.7,
    mixing: Mixing = "cumulative",
    mixer: Literal["auto", "arrays", "samples"] | Mixer = "auto",
    select: Select | None = None,
    return_index: bool = False,
    on_nonfinite: OnNonfinite = "skip",
    device: Any = None,
    seed: int = 0,
    sharded: bool = False,
) -> CondensedLoader[Batch]:
    """Wrap a DataLoader: same batches, drawn from the condensed set, with ``record`` and ``end_epoch``.

    Parameters
    ----------
    loader : torch.utils.data.DataLoader
        Map-style, batched, with torch's own random, sequential or distributed sampler. It is not
        changed. Workers, pinning, collate function and the rest are carried over. Its ``collate_fn`` must keep the
        samples in the same order: the batch's rows are told by it. Samples that are None may be left out, and none
        else. What it does is compared with the first samples of each process, and ``record`` refuses what is seen to
        be in another order; soft targets, say, show none.
    schedule : CondensationSchedule
    value, on_nonfinite
        See `KnowledgeValueTracker`.
    alpha, min_weight, select
        See `condense` and `condense_step`.
    mixing : {"cumulative", "fresh", None}
        Mix what is dropped into what is barely kept: images mixed at several stages one on top of the
        other (the authors' behaviour), always from the originals, or not at all.
    mixer : {"auto", "arrays", "samples"} or callable
        ``mix_arrays`` (raw images, before the transform, as the paper does), ``mix_samples`` (after
        it), or your own ``mixer(dataset, index, steps) -> sample``. Auto takes the first where the
        data set keeps raw images in ``.data``: floating point, or uint8 [N, H, W] or [N, H, W, C] whose
        values are not those of masks, one-hot codes or label maps (below 32, and 255); other integers
        are mixed there only if you say "arrays".

        Until something is mixed, every epoch tries it on different samples of its first batch, for which
        up to three are fetched once more. What can't be mixed is an error then: ids, shapes that differ,
        a data set with a cache of its own. So is a tensor beside the image, like stored teacher logits,
        which would stay those of the unmixed image (single numbers, integers and one-hot labels stay).
        Say what is mixed with ``functools.partial(mix_samples, fields=[...])``, which dicts always
        need, or use ``mixing=None``.
    return_index : bool
        Yield ``(indices, batch)``, int64 [B] and your batch, instead of your batch alone. The index
        of a sample that only pads a rank's length is -1: pass it to ``record`` as it is. Without it, those of the
        batch yielded last are ``loader.indices``.
    device : torch device, optional
        Where values are kept. Default: where the first recorded logits are.
    seed : int
        Of the order of the samples. A DistributedSampler's own seed is taken over instead.
    sharded : bool
        For data sets too large for 12 bytes a sample on every rank (32 at the peak of a stage, and more with
        mixing: ``benchmarks/memory.py``): each rank keeps the values of a slice of the data set, and draws from
        that slice alone. Same sets; see `ShardedSampler` for what else changes.

    Returns
    -------
    CondensedLoader

    Raises
    ------
    TypeError
        If the loader can't be wrapped honestly: another type, an iterable-style or unsized data set,
        ``batch_size=None``, a custom sampler or batch sampler. If ``mixer`` can't be called as above.
    ValueError
        If a setting is outside its range, or the data set is empty.

    Warns
    -----
    UserWarning
        If epochs will have no batch, since the set becomes so small that ``drop_last`` leaves nothing of it; or if
        the schedule will drop nothing of so few samples.
    """
    if isinstance(loader, CondensedLoader):
        raise TypeError("loader is wrapped already")
    batching, settings = understand(loader, seed)
    check_kind(schedule, "schedule", CondensationSchedule)
    return_index, sharded = checked_bool(return_index, "return_index"), checked_bool(sharded, "sharded")
    if sharded and select is not None:
        raise ValueError("select needs the values of all samples in one place: not with sharded=True")
    num_samples = len(loader.dataset)  # type: ignore[arg-type]
    recording: dict[str, Any] = {"value": value, "on_nonfinite": on_nonfinite, "device": device}
    layout: Layout
    sampler: CondensedSampler | ShardedSampler
    if sharded:
        sampler = ShardedSampler(num_samples, mixing=mixing, **settings)
        tracker = KnowledgeValueTracker(sampler.stop - sampler.start, **recording)
        layout = SliceLayout(sampler, tracker)
    else:
        sampler = CondensedSampler(num_samples, mixing=mixing, **settings)
        layout = WholeLayout(sampler, KnowledgeValueTracker(num_samples, **recording))
        layout.what, layout.call = "loader", "loader.record(student_logits)"
    batches = KeyBatches(sampler, *batching)
    mix = resolve_mixer(mixer, loader.dataset)
    run = Condensation.over(
        layout,
        schedule,
        alpha=alpha,
        min_weight=min_weight,
        select=select,
        own={
            "dataset": dataset_identity(loader.dataset),
            "mixer": value_name(mix) if mixing else None,
            "loader's drop_last": batches.drop_last,
        },
        alike={"batch_size": batches.batch_size},
        tell=batches.tell,
    )
    batches.rehearse = mixing is not None and schedule.drops(num_samples)
    run.warn_once("drops nothing", schedule.why_idle(num_samples), stacklevel=3)
    run.warn_once("no batch ahead", _without_batch(schedule, batches, num_samples), stacklevel=3)
    inner = rebuild(loader, batches, mix)
    return CondensedLoader(run, batches, inner, loader.dataset, return_index)


def _without_batch(schedule: CondensationSchedule, batches: KeyBatches, num_samples: int) -> str:
    """What to say of a schedule with which an epoch has no batch; empty if each of the first has one."""
    sizes = schedule.sizes(num_samples, AHEAD) if batches.why_none(1) else iter(())
    for epoch, size in enumerate(sizes, 1):
        if why := batches.why_none(size):
            return f"epoch {epoch} will have no batch: {why}; use a smaller batch, a higher ratio, or drop_last=False"
    return ""
