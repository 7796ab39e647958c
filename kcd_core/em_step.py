"""The EM step on a run's objects: sum over ranks, choose, install.

`decide` changes nothing, so whoever owns the state of a run can do all that may fail first.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .all_ranks import scores_of_all, values_of_all
from .base import distributed
from .base.arguments import check_kind
from .base.arrays import checked_int, to_numpy
from .condense import CondensedSet, Indices, check_settings, condense, partition, set_of
from .rules import Criteria, Select, SelectName, check_rule, resolve_select
from .schedule import CondensationSchedule
from .statistics import check_wanted
from .tracker import KnowledgeValueTracker
from .unused import check_used

__all__ = ["Condensable", "Decision", "check_sampler", "condense_step", "decide"]


class Condensable(Protocol):
    """What a set is installed in: a sampler, a loss, or anything like them.

    Attributes
    ----------
    num_samples : int
        N.
    kept : int64 array
        The samples of the set in force.

    Notes
    -----
    A stage and a run also ask for these, and do without where there is none:

    - ``num_kept``, the length of ``kept``; ``fingerprint()``, a text that is equal on two ranks if their sets are;
    - ``stage``, how many sets were installed, and ``seed``, both of them numbers: 0 where there is none;
    - ``rank`` and ``num_replicas``, for which share of the ranks it draws, and ``share_given``, whether that was set by the
      user: that of the process group;
    - ``mixing``, ``shuffle``, ``drop_last`` and ``length``, which are compared between ranks;
    - ``in_force``, which can be read, and set to what it was: without it, a failed end of an epoch leaves a set installed;
    - ``check_state(state)`` and ``state_dict()``, for what a run saves, ``adopts_seed`` and ``adopts_mixing``, whether a state
      brings its own;
    - ``why_unweighed``, what to say if nobody read the set's weights.
    """

    @property
    def num_samples(self) -> int: ...

    @property
    def kept(self) -> Any: ...

    def install(self, condensed_set: CondensedSet) -> None: ...


@dataclass(frozen=True, eq=False)
class Decision:
    """What a stage decided, and values of all ranks that it was decided from.

    Attributes
    ----------
    chosen : CondensedSet or ShardedSet
    value : float64 array
    count : integer array
        Of all samples, or of every k-th.
    unseen : int, optional
        Samples that were never recorded, where ``value`` and ``count`` are those of some samples alone.
    in_force : optional
        What is installed, where that is not ``chosen`` itself.
    num_samples, previous : int, optional
        All samples, and those of the set before, where both are known only now.
    warning : str
        What the user should know of it.
    """

    chosen: Any
    value: npt.NDArray[np.float64]
    count: npt.NDArray[Any]
    unseen: int | None = None
    in_force: Any = None
    num_samples: int | None = None
    previous: int | None = None
    warning: str = ""


def condense_step(
    tracker: KnowledgeValueTracker,
    sampler: Condensable,
    schedule: CondensationSchedule,
    *,
    alpha: float = 0.03,
    min_weight: float = 0.7,
    select: SelectName | Select | None = None,
    group: Any = None,
) -> CondensedSet:
    """One EM step: rank what ``tracker`` recorded and install the condensed set in ``sampler``.

    It does so unconditionally; ask ``schedule.due(epoch)`` whether a stage is due. If a process group is initialised,
    recordings are first summed over its ranks. Every rank must then call this, and every rank gets the same set.

    Parameters
    ----------
    tracker : KnowledgeValueTracker
    sampler : CondensedSampler, CondensedLoss, TeacherGate, or anything with ``num_samples``, ``kept`` and ``install``
        The stage's number is its ``stage`` (0 if it has none) plus one.
    schedule : CondensationSchedule
        Asked for the target size.
    alpha, min_weight
        See `condense`. With ``select``, neither is used, and another value than the default is an error.
    select : {"random", "rs2"} or callable, optional
        Replaces ranking and partition. "random" keeps random samples of the set in force; "rs2" keeps random samples
        of all, anew at each stage's end (RS2). Or your own ``select(value, count, kept, target, generator) ->
        CondensedSet``, where ``generator`` is a ``numpy.random.Generator`` that is the same on every rank. The set
        must be the same on every rank, too, and keep exactly ``target`` samples, since lengths are given in advance;
        with a `FreeSchedule`, ``target`` is None, and it may keep any number. If it has a parameter named ``stage``,
        it also gets the new stage's number by name. See docs/rules.md in the repository.
    group : torch.distributed.ProcessGroup, optional
        The ranks that train this student. Default: all.

    Returns
    -------
    CondensedSet

    Raises
    ------
    ValueError
        If tracker and sampler differ in ``num_samples``; if ``alpha`` or ``min_weight`` is given and ``select`` does not
        use it; or if ``select`` breaks its promise, or does not go with the schedule, the sampler or the tracker's
        statistic.
    RuntimeError
        If nothing was ever recorded on any rank; with statistic "last", if something was recorded since
        ``tracker.end_epoch()``; if ranks disagree in anything that decides the set, or one
        is gone; if the sampler draws for several ranks and no process group is initialised, or one of another
        number of ranks; or if it was made before the process group, and each rank draws everything. Nothing is
        changed then.
    TypeError
        If one of the arguments is of another type, or the sampler draws from a slice: see `condense_sharded`.
    """
    distributed.check_group(group)

    def checked() -> Criteria:
        rule = resolve_select(select)
        check_parts(tracker, sampler, schedule)
        check_rule(rule, schedule, sampler)
        numbers = check_settings(alpha, min_weight)
        check_used({"select": rule, "alpha": numbers[0], "min_weight": numbers[1]})
        check_wanted(tracker.statistic, select)
        if tracker.window == "epoch" and tracker.open:
            raise RuntimeError(
                'statistic "last" needs tracker.end_epoch() at the end of every epoch, before a stage ends, and something '
                "was recorded since"
            )
        return Criteria(schedule, *numbers, rule)

    criteria = distributed.together(checked, group)
    if distributed.world_size(group) > 1:
        settings = {
            "num_samples": tracker.num_samples,
            **tracker.alike,
            **criteria.alike,
            "seed": getattr(sampler, "seed", None),
            "num_replicas": getattr(sampler, "num_replicas", None),
            "set": fingerprint_of(sampler),
        }
        distributed.check_agreement(
            settings,
            shard=getattr(sampler, "rank", 0),
            shards=getattr(sampler, "num_replicas", 1),
            group=group,
        )
    check_share(sampler, group, begun=True)
    chosen: CondensedSet = decide(tracker, sampler, criteria, group=group).chosen
    settled = tracker.settled(group) if tracker.window == "stage" else None
    sampler.install(chosen)
    if settled is not None:
        tracker.settle(settled)
    return chosen


def decide(
    tracker: KnowledgeValueTracker,
    sampler: Condensable,
    criteria: Criteria,
    *,
    ended: int | None = None,
    group: Any = None,
) -> Decision:
    """What `condense_step` would install, with what it is decided from. Changes nothing; all ranks meet in it.

    ``ended``: stages of the run that have ended, if there is one: sets may have been installed by hand besides.
    """

    def sizes() -> tuple[int, int | None]:
        if sampler.num_samples != tracker.num_samples:
            raise ValueError(
                f"tracker and sampler must be of one size, got num_samples = {tracker.num_samples} and "
                f"{sampler.num_samples}"
            )
        if unsummed := distributed.unsummed(getattr(sampler, "num_replicas", 1), group):
            raise RuntimeError(unsummed)
        previous = size_of(sampler)
        return previous, criteria.schedule.target_of(number, tracker.num_samples, previous)

    sets = getattr(sampler, "stage", None)
    stage = int((ended or 0) if sets is None else sets) + 1
    number = stage if ended is None else ended + 1
    previous, target = distributed.together(sizes, group)
    if criteria.rule is None:
        assert target is not None  # as `check_rule` saw
        distributed.check_agreement({"target": target}, shard=0, shards=1, group=group)
        score, value, count, unseen = scores_of_all(tracker, criteria.alpha, group)
        parts = partition(score, previous, target)
        del score
        chosen = set_of(*parts, min_weight=criteria.min_weight, stage=stage)
        return Decision(chosen, value, count, unseen)
    value, count = values_of_all(tracker, group)
    kept, seed = to_numpy(sampler.kept), int(getattr(sampler, "seed", None) or 0)
    chosen = choose(value, count, kept, target, criteria, stage=stage, seed=seed, group=group)
    return Decision(chosen, value, count)


def check_parts(tracker: Any, sampler: Any, schedule: Any) -> None:
    """TypeError unless these are what a stage is decided with."""
    check_kind(tracker, "tracker", KnowledgeValueTracker)
    check_sampler(sampler)
    check_kind(schedule, "schedule", CondensationSchedule)


def check_sampler(sampler: Any) -> None:
    """TypeError unless a set can be installed in ``sampler``."""
    lacking = [name for name in ("num_samples", "kept", "install") if not hasattr(sampler, name)]
    if lacking or getattr(sampler, "of_a_slice", False):
        why = (
            f"it has no {', '.join(lacking)}"
            if lacking
            else "it draws from a slice: use condense_sharded(), or wrap_loader(sharded=True)"
        )
        raise TypeError(
            f"sampler must be a CondensedSampler, a CondensedLoss, or have num_samples, kept and install, got "
            f"{type(sampler).__name__}: {why}"
        )
    for name in ("stage", "seed"):
        if (number := getattr(sampler, name, None)) is not None:
            checked_int(number, f"sampler.{name}", 0)


def size_of(sampler: Condensable) -> int:
    """How many samples are in the set in force; without a list of them, where the sampler knows."""
    size = getattr(sampler, "num_kept", None)
    return len(sampler.kept) if size is None else int(size)


def check_share(sampler: Any, group: Any, *, begun: bool = False) -> None:
    """See that a sampler's share of the samples goes with the ranks of the group, if it is one of ours.

    See `kcd_core.base.distributed.check_share`.
    """
    if hasattr(sampler, "num_replicas"):
        given = getattr(sampler, "share_given", True)
        distributed.check_share(sampler.num_replicas, given=given, group=group, begun=begun)


def fingerprint_of(sampler: Condensable) -> str:
    """A short name of the set in force: equal on two ranks if that is."""
    if hasattr(sampler, "fingerprint"):
        return str(sampler.fingerprint())
    return hashlib.sha256(to_numpy(sampler.kept).astype(np.int64).tobytes()).hexdigest()


def choose(
    value: npt.NDArray[np.float64],
    count: npt.NDArray[np.int32],
    kept: Indices,
    target: int | None,
    criteria: Criteria,
    *,
    stage: int,
    seed: int,
    group: Any,
) -> CondensedSet:
    """`condense`, or what a rule chooses in its place: checked, and the same on every rank."""
    _, alpha, min_weight, rule = criteria

    def chosen_here() -> CondensedSet:
        if rule is None:
            assert target is not None  # as `check_rule` saw
            settings: dict[str, Any] = {"alpha": alpha, "min_weight": min_weight, "stage": stage}
            return condense(value, count, previous=len(kept), target=target, **settings)
        chosen = rule(value, count, kept, target, np.random.default_rng([seed, stage]), stage)
        if chosen.num_samples != len(value) or target not in (None, len(chosen.kept)):
            size = "some" if target is None else f"exactly {target}"
            raise ValueError(
                f"select must keep {size} of {len(value)} samples, got {len(chosen.kept)} of {chosen.num_samples}"
            )
        return chosen

    chosen = distributed.together(chosen_here, group)
    if distributed.world_size(group) > 1:
        # All else is the same on every rank, but what the user wrote can be a function of this one.
        own: dict[str, Any] = {"target": target}
        if rule is not None:
            weights = () if chosen.sample_weights is None else (chosen.sample_weights,)
            arrays = (chosen.kept, chosen.dropped, chosen.tail, chosen.weights, *weights)
            own["what select chose"] = [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]
        distributed.check_agreement(own, shard=0, shards=1, group=group)
    return replace(chosen, stage=stage)
