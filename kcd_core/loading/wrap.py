"""`wrap_loader`: the parts of a `CondensedLoader`, picked and put together."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from torch.utils.data import DataLoader

from ..base import distributed
from ..base.arguments import check_callable, checked_bool, checked_bytes
from ..base.dataset_identity import dataset_identity
from ..base.same_samples import SameSamples
from ..base.states import value_name
from ..condense import check_settings
from ..layout import Layout, WholeLayout
from ..mixing import Mixer, resolve_mixing
from ..recipes import Mixing
from ..rules import Select, SelectName, resolve_select, schedule_of
from ..run import Run
from ..sampler import CondensedSampler
from ..schedule import AHEAD, CondensationSchedule, NoStages
from ..sharded.layout import SliceLayout
from ..sharded.sampler import ShardedSampler
from ..skipped import OnNonfinite
from ..statistics import StatisticName, wanted
from ..tracker import KnowledgeValueTracker
from ..unused import check_used
from ..values import Value, ValueName
from .asking import Asking, ask_schedule
from .keys import KeyBatches
from .loader import CondensedLoader
from .mixed_images import mixing_cache_of
from .prefetch import Prefetch
from .reader import Reader
from .rebuild import order_of, rebuild, resolve_mixer, understand
from .wrapped_again import why_wrapped_again

__all__ = ["wrap_loader"]

Batch = TypeVar("Batch")


def wrap_loader(
    loader: DataLoader[Batch],
    *,
    schedule: CondensationSchedule | None,
    ask: float | CondensationSchedule | None = None,
    ask_multiple: int = 1,
    value: ValueName | Value = "entropy",
    statistic: StatisticName | None = None,
    alpha: float = 0.03,
    min_weight: float = 0.7,
    mixing: Mixing | Literal["auto"] = "auto",
    mixer: Literal["auto", "arrays", "samples"] | Mixer = "auto",
    mixing_cache: int | str | None = 0,
    select: SelectName | Select | None = None,
    return_index: bool = False,
    prefetch: Prefetch | None = None,
    on_nonfinite: OnNonfinite = "skip",
    device: Any = None,
    seed: int | None = None,
    num_replicas: int | None = None,
    rank: int | None = None,
    group: Any = None,
    sharded: bool = False,
) -> CondensedLoader[Batch]:
    """Wrap a DataLoader: same batches, drawn from the condensed set, with ``record`` and ``end_epoch``.

    Parameters
    ----------
    loader : torch.utils.data.DataLoader
        Map-style, batched, with torch's own random, sequential or distributed sampler. It is not changed. Workers,
        pinning, the collate function and other settings are carried over. Its ``collate_fn`` must keep the samples in
        order, since rows are identified by their place; it may only leave out samples that are None. The first
        batches of each process are compared with their samples, and ``record`` refuses a visibly different order.
        Some batches, such as those with soft targets, do not show it.
    schedule : CondensationSchedule or None
        When the set of samples shrinks, and to what size: the ratio is one of its settings, as in
        ``CondensationSchedule.for_epochs(30, ratio=0.3)``. None takes the schedule of a ``select`` that has its own;
        with ``ask`` alone, all samples are drawn in every epoch.
    ask : float or CondensationSchedule, optional
        How many samples the teacher is asked for: see `TeacherGate` and docs/gate.md in the repository. A share r of
        all samples, in (0, 1], is short for ``CondensationSchedule(r, stages=1, period=1)``: all in the first epoch,
        then those of highest value, ranked again at the end of each epoch. The loader's ``asked`` and ``asked_rows``
        say which rows of a batch these are. The teacher is also asked for mixed samples. None asks for all.
    ask_multiple : int, at least 1
        The number of rows asked in a batch is rounded up to a multiple of this: see `TeacherGate.asked`.
    value, on_nonfinite
        See `KnowledgeValueTracker`.
    statistic : {"mean", "stage_mean", "last", "variance"}, optional
        See `KnowledgeValueTracker`. Default: ``select.statistic``, if it has one; else "mean". With ``sharded``, only
        "mean" is allowed; with both ``schedule`` and ``ask``, not "stage_mean".
    alpha, min_weight, select
        See `condense` and `condense_step`. A setting that nothing would use is an error, unless it is the default:
        ``alpha`` if a ``select`` chooses, or ``min_weight``, ``mixer`` and ``mixing_cache`` if mixing is off. With a ratio
        of 1, mixing is not off, so that plain distillation takes the settings of other ratios.
    mixing : {"auto", "cumulative", "fresh", None}
        How dropped samples are mixed into barely kept ones: on top of the mixtures of earlier stages (the authors'
        behaviour), always from the originals, or not at all. "auto" is cumulative for raw images, with
        ``mix_arrays``. Otherwise it is fresh, since every image in a mixture is then one more sample to fetch. With
        "auto", a loaded state's mixing is taken over if it is cumulative or fresh; one saved without mixing is refused,
        as is any other with the mixing named here. See docs/mixing.md in the repository.
    mixer : {"auto", "arrays", "samples"} or callable
        ``mix_arrays`` (raw images, before the transform, as the paper does), ``mix_samples`` (after it), or your own
        ``mixer(dataset, index, steps) -> sample``. "auto" takes the first if the data set keeps raw images in
        ``.data``: floating point, or uint8 [N, H, W] or [N, H, W, C] whose values are not those of masks, one-hot
        codes or label maps (below 32, and 255). Other integers are mixed there only with "arrays".

        Until something is mixed, every epoch tries it on different samples of its first batch, for which up to three
        samples are fetched once more. Samples that can't be mixed are an error then: ids, shapes that differ, a data
        set with a cache of its own, or labels that are read from ``.data``. So is a tensor beside the image, such as
        stored teacher logits, which would remain those of the unmixed image (single numbers, integers and one-hot
        labels are allowed). Name what is mixed with ``functools.partial(mix_samples, fields=[...])``, which dicts
        always need, or use ``mixing=None``.
    mixing_cache : int or str, optional
        How many bytes mixed raw images may take, such as "1 GB". They are made when a stage's first pass begins, and
        then read like any other image; the result is the same to the bit. Images for which there is no room are mixed
        whenever they are drawn, as all are with 0. Each rank has its own cache, which its workers share. While
        persistent workers still read the last stage's images, both caches exist. The cache is not saved but made
        again. Only for ``mix_arrays``.
    return_index : bool
        Yield ``(indices, batch)``, int64 [B] and your batch, instead of your batch alone. Padding has the index -1:
        pass it to ``record`` as it is. Without this option, the indices of the batch yielded last are
        ``loader.indices``.
    prefetch : callable, optional
        ``prefetch(batches) -> iterator``, for code that looks ahead between the DataLoader and your loop, such as a
        copy to a device. It gets an iterator over the batches of a pass, and yields one batch for each, in the same
        order. The loader yields what the iterator yields. Batches that it holds back do not count as drawn, so
        ``record`` and ``state_dict`` refer to the batch that your loop has reached. If a batch can't be fetched,
        ``batches`` ends, and ``prefetch`` is called again for the remaining ones if the loop continues after the
        error.
    device : torch device, optional
        Where values are kept. Default: on the CUDA device of the first recorded logits, else in host memory.
    seed : int, 0 .. 2**64 - 1, optional
        The seed of the samples' order. Default: on one rank, that of the loader's ``generator``, or else that of
        ``torch.manual_seed`` when the loader is wrapped (nothing is drawn from either); on several ranks, that of the
        DistributedSampler, or else 0. A loaded state brings its own, unless ``seed`` is given, which must then be the
        same.
    num_replicas, rank : int, optional
        How many ranks share the samples, and which of them this one is, if the loader has no DistributedSampler. With
        ``num_replicas=1, rank=0``, every rank draws everything, in the same order, as tensor-parallel ranks must. If
        only one is given, the other is the process group's.
    group : torch.distributed.ProcessGroup, optional
        The ranks that train this student, whose recordings are summed. With data- and tensor-parallel ranks, these
        are the data-parallel ones. Default: all. A loader with a group can't be pickled.
    sharded : bool
        For data sets too large for 12 bytes a sample on every rank (32 at the peak of a stage, and more with mixing:
        ``benchmarks/memory.py``): each rank keeps the values of a slice of the data set, and draws only from that
        slice. The sets are the same; see `ShardedSampler` for what else changes.

    Returns
    -------
    CondensedLoader

    Raises
    ------
    TypeError
        If the loader can't be wrapped correctly: another type, an iterable-style or unsized data set,
        ``batch_size=None``, a custom sampler or batch sampler. If ``mixer`` can't be called as above, or ``group`` is
        not a process group.
    ValueError
        If a setting is outside its range, or would not be used, or the data set is empty; if ``num_replicas`` or
        ``rank`` contradicts the loader's DistributedSampler, or ``rank`` is missing; or if this process is not in
        ``group``.
    RuntimeError
        If the loader has no DistributedSampler, there are several ranks, and neither ``num_replicas`` nor ``rank``
        says what each of them draws; or if the number of ranks is not ``num_replicas``. If the process group is
        initialised later, or only ``WORLD_SIZE`` is set, this is raised when the first batch is drawn.

    Warns
    -----
    UserWarning
        If epochs will have no batch, because ``drop_last`` leaves nothing of so small a set; if there are too few
        samples for the schedule to drop any; or if the last two runs over this data set, with the same schedule, ended
        with one epoch and no stage, as they do if this is called within the loop over epochs.

    Examples
    --------
    >>> import torch
    >>> dataset = torch.utils.data.TensorDataset(torch.randn(200, 8), torch.arange(200) % 4)
    >>> student = torch.nn.Linear(8, 4)
    >>> loader = torch.utils.data.DataLoader(dataset, batch_size=50, shuffle=True)
    >>> loader = wrap_loader(loader, schedule=CondensationSchedule(ratio=0.5, stages=2, period=1))
    >>> for epoch in range(3):
    ...     for x, targets in loader:
    ...         loader.record(student(x))  # beside your loss and step
    ...     condensed_set = loader.end_epoch()
    >>> [stage["kept"] for stage in loader.history]
    [150, 100, 100]
    """
    if isinstance(loader, CondensedLoader):
        raise TypeError(
            "loader is wrapped already: use it as it is, or wrap the DataLoader that it was made from"
        )
    batching = understand(loader)
    order = order_of(
        loader, seed=seed, num_replicas=num_replicas, rank=rank, group=distributed.check_group(group)
    )
    asking_schedule = None if ask is None else ask_schedule(ask)
    rule = resolve_select(select)
    schedule = schedule_of(rule, schedule)
    if schedule is None and asking_schedule is not None:
        schedule = NoStages()
    if not isinstance(schedule, CondensationSchedule):
        raise TypeError(
            f"schedule must be a CondensationSchedule, got {type(schedule).__name__}; None goes with ask=, or with a select "
            "that has a schedule of its own"
        )
    if prefetch is not None:
        check_callable(prefetch, "prefetch", "a callable prefetch(batches) -> iterator", places=1)
    return_index, sharded = checked_bool(return_index, "return_index"), checked_bool(sharded, "sharded")
    if sharded and select is not None:
        raise ValueError("select needs the values of all samples in one place: not with sharded=True")
    if sharded and ask is not None:
        raise ValueError("ask needs the values of all samples in one place: not with sharded=True")
    num_samples = len(loader.dataset)  # type: ignore[arg-type]
    statistic = wanted(statistic, select)
    if sharded and statistic != "mean":
        raise ValueError(
            f"statistic={statistic!r} needs the values of all samples in one place: not with sharded=True"
        )
    if statistic == "stage_mean" and ask is not None and schedule.next_due(1) is not None:
        raise ValueError(
            'statistic="stage_mean" can\'t be of the stages of schedule= and of ask= at once: leave out ask=, or give '
            "schedule=None"
        )
    recording: dict[str, Any] = {
        "value": value,
        "statistic": statistic,
        "on_nonfinite": on_nonfinite,
        "device": device,
    }
    mix = resolve_mixer(mixer, loader.dataset)
    mode = resolve_mixing(mixing, mix)
    alpha, min_weight = check_settings(alpha, min_weight)
    check_used(
        {
            "select": select,
            "ask": ask,
            "ask_multiple": ask_multiple,
            "alpha": alpha,
            "min_weight": min_weight,
            "mixing": mixing,
            "mixer": mixer,
            "mixing_cache": mixing_cache,
        },
        stages=not isinstance(schedule, NoStages),
    )
    if rule is not None and not rule.mixes:
        mode = None
    drawn: dict[str, Any] = {"mixing": mode, **order._asdict()}
    del drawn["given"]
    layout: Layout
    sampler: CondensedSampler | ShardedSampler
    if sharded:
        sampler = ShardedSampler(num_samples, **drawn)
        tracker = KnowledgeValueTracker(sampler.stop - sampler.start, first=sampler.start, **recording)
        layout = SliceLayout(sampler, tracker, group)
    else:
        sampler = CondensedSampler(num_samples, **drawn)
        layout = WholeLayout(sampler, KnowledgeValueTracker(num_samples, **recording), group)
        layout.what, layout.call = "loader", "loader.record(student_logits)"
    sampler.share_given, sampler.adopts_seed, sampler.adopts_mixing = (
        order.given,
        seed is None,
        mixing == "auto",
    )
    batches = KeyBatches(sampler, *batching)
    batches.cache = mixing_cache_of(checked_bytes(mixing_cache, "mixing_cache"), mix, loader.dataset)
    run = Run(
        layout,
        schedule,
        alpha=alpha,
        min_weight=min_weight,
        select=rule,
        own={
            "dataset": dataset_identity(loader.dataset),
            "mixer": value_name(mix) if mode else None,
            "loader's drop_last": batches.drop_last,
        },
        what="loader",
        alike={"batch_size": batches.batch_size, "ask": asking_schedule and asking_schedule.state_dict()},
        also={} if asking_schedule is None else {"ask": _plain(asking_schedule, ask)},
        tell=batches.tell,
        plain=batches.plain,
        samples=SameSamples(loader.dataset),
    )
    asking = None
    if asking_schedule is not None:
        asking = Asking(layout, asking_schedule, run.alpha, ask_multiple, run.samples)
        asking.run.warn_once("drops nothing", asking_schedule.why_idle(num_samples))
    batches.rehearse = run.mixing is not None
    run.warn_once("drops nothing", schedule.why_idle(num_samples))
    run.warn_once("wrapped again", why_wrapped_again(loader.dataset, run.history))
    run.warn_once("no batch ahead", _without_batch(schedule, batches, num_samples))
    inner = rebuild(loader, batches, mix)
    return CondensedLoader(Reader(run, batches, inner, loader.dataset, return_index, prefetch, asking))


def _plain(schedule: CondensationSchedule, ask: Any) -> Any:
    """``ask``, which the schedule was made from, as plain numbers."""
    return schedule.state_dict() if schedule is ask else schedule.ratio


def _without_batch(schedule: CondensationSchedule, batches: KeyBatches, num_samples: int) -> str:
    """What to say of a schedule with which an epoch has no batch; empty if each of the first has one."""
    ahead = 1 if schedule.free else AHEAD
    sizes = schedule.sizes(num_samples, ahead) if batches.why_none(1) else iter(())
    for epoch, size in enumerate(sizes, 1):
        if why := batches.why_none(size):
            return f"epoch {epoch} will have no batch: {why}; use a smaller batch, a higher ratio, or drop_last=False"
    return ""
