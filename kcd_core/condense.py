"""The EM step: from recorded values to the set that the next stage distils on.

`condense` is the method as a pure function of arrays; `condense_step` is its shell, which asks a
tracker for the arrays and installs the result in a sampler.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .algorithms.ranks import rank_scores, rank_window, scores_at_ranks, top
from .base import distributed
from .base.arrays import checked_float, checked_int, to_numpy
from .base.states import value_name
from .schedule import CondensationSchedule
from .tracker import KnowledgeValueTracker, Sums

__all__ = ["CondensedSet", "Select", "condense", "condense_step"]

Indices = npt.NDArray[np.int64]


def no_indices() -> Indices:
    return np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class CondensedSet:
    """What one stage decided. Arrays are NumPy's, whatever recorded the values.

    Attributes
    ----------
    kept : int64 [n], ascending
        The points of the next stage (Y = 1 in the paper).
    num_samples : int
        N, all points.
    stage : int
        From 1.
    dropped : int64 [D], in ranking order, highest first
        What this stage dropped: ranks n .. n+D-1 over *all* points, as in the authors' code. A point
        dropped earlier can be back in ``kept``, and one can be "dropped" that was not in the set.
    tail : int64 [L], in ranking order
        The lowest-ranked kept points, which take in the dropped ones: ``tail[i]`` is mixed with
        ``dropped[i]``. L is D, or n where more is dropped than kept.
    weights : float32 [L]
        Share of the tail point in its mixture, from 1 down to just over ``min_weight``.
    cut : float
        Ranking score of the lowest-ranked kept point; +inf if it was never recorded, NaN if unknown.
    """

    kept: Indices
    num_samples: int
    stage: int = 1
    dropped: Indices = field(default_factory=no_indices)
    tail: Indices = field(default_factory=no_indices)
    weights: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    cut: float = float("nan")

    @property
    def num_kept(self) -> int:
        """The size of the set."""
        return len(self.kept)

    def __repr__(self) -> str:
        return (
            f"CondensedSet(stage={self.stage}, kept={len(self.kept)} of {self.num_samples}, "
            f"dropped={len(self.dropped)}, mixed={len(self.tail)}, cut={self.cut:.4f})"
        )

    def __post_init__(self) -> None:
        checked_int(self.num_samples, "num_samples", 1)
        checked_int(self.stage, "stage", 1)
        for name in ("kept", "dropped", "tail"):
            object.__setattr__(self, name, _checked_indices(getattr(self, name), name, self.num_samples))
        weights = np.asarray(self.weights, np.float32)
        object.__setattr__(self, "weights", weights)
        if len(self.kept) == 0:
            raise ValueError("kept must hold at least one point")
        if not (self.kept[1:] > self.kept[:-1]).all():
            raise ValueError("kept must be ascending and without duplicates (use numpy.unique)")
        if not len(self.tail) == len(weights) <= len(self.dropped):
            raise ValueError(
                "tail and weights must have one length, at most that of dropped, got "
                f"{len(self.tail)}, {len(weights)} and {len(self.dropped)}"
            )
        member = np.zeros(self.num_samples, bool)
        member[self.kept] = True
        if not member[self.tail].all():
            raise ValueError("tail must hold kept points only")
        if member[self.dropped].any():
            raise ValueError("dropped must hold no kept point")
        for name in ("tail", "dropped"):
            member[:] = False
            member[getattr(self, name)] = True
            if np.count_nonzero(member) != len(getattr(self, name)):
                raise ValueError(f"{name} must be without duplicates")
        if not ((weights >= 0) & (weights <= 1)).all():
            raise ValueError("weights must lie in [0, 1]")

    @classmethod
    def _unchecked(cls, **attributes: Any) -> CondensedSet:
        """Of all attributes, known to be right: the checks take longer than the selection."""
        made = object.__new__(cls)
        made.__dict__.update(attributes)
        return made


#: A user's own selection: ``select(value, count, kept, target, generator) -> CondensedSet``.
Select = Callable[[Any, Any, Any, int, np.random.Generator], CondensedSet]


class Condensable(Protocol):
    """What `condense_step` installs its result in: a sampler, a loss, or anything like them."""

    @property
    def num_samples(self) -> int: ...

    @property
    def kept(self) -> Any: ...

    def install(self, condensed_set: CondensedSet) -> None: ...


def condense(
    value: Any,
    count: Any,
    *,
    previous: int,
    target: int,
    alpha: float = 0.03,
    min_weight: float = 0.7,
    stage: int = 1,
) -> CondensedSet:
    r"""Rank all points by :math:`V F^\alpha`, keep the highest, pair the tail with what was dropped.

    Parameters
    ----------
    value : array [N], floating
        V, the mean recorded value of each point.
    count : integer array [N]
        F, how many times it was recorded. Points with F = 0 were never recorded: they rank first,
        so that nothing is dropped unseen, and their value is not looked at (NaN is usual).
    previous : int, 1 .. N
        Size of the set in force.
    target : int, 1 .. N
        Size wanted. Where it is not below ``previous``, the points are ranked anew and nothing is
        dropped or mixed (L = 0).
    alpha : float, at least 0
        Weight of the recording count; 0 ranks by V alone.
    min_weight : float, in [0, 1]
        w_min of the mixing weights ``w_i = w_min + (1 - w_min) (L - i) / L``.
    stage : int
        Written into the result.

    Returns
    -------
    CondensedSet
        Equal scores go to the lower index first.

    Raises
    ------
    ValueError
        If lengths disagree, N is 0, a number is outside its range, a recorded point (F > 0) has a value
        that is not finite, or ``alpha`` is so large that its score is not finite.
    TypeError
        If ``value`` is not floating-point, ``count`` not of an integer dtype, or ``alpha`` or
        ``min_weight`` not a number.

    Notes
    -----
    KCD, ECCV 2022, sections 3.2 and 3.3. O(N) but for sorting the 2L points around the cut; 16 bytes
    a point beyond its arguments and result (``benchmarks/selection.py``). Runs in host memory in
    float64 whatever it is given, so that every device and every number of processes gets the same
    set; tensors on a device are copied first.

    Examples
    --------
    >>> import numpy as np
    >>> chosen = condense(np.array([0.2, 0.9, 0.5, 0.7]), np.array([1, 1, 1, 1]), previous=4, target=3)
    >>> chosen.kept, chosen.dropped, chosen.tail
    (array([1, 2, 3]), array([0]), array([2]))
    """
    value, count = _checked_values(value, count)
    n = len(value)
    for name, size in (("previous", previous), ("target", target)):
        if checked_int(size, name, 1) > n:
            raise ValueError(f"{name} must be at most the number of points, {n}, got {size}")
    checked_int(stage, "stage", 1)
    alpha, min_weight = check_settings(alpha, min_weight)

    num_dropped = max(0, previous - target)
    num_mixed = min(num_dropped, target)
    score = rank_scores(value, count, alpha)
    if num_dropped == 0:
        (cut,) = scores_at_ranks(score, [target - 1])
        kept, window = top(score, target, cut), no_indices()
    else:
        start, stop = target - num_mixed, target + num_dropped
        high, cut, low = scores_at_ranks(score, [start, target - 1, stop - 1])
        kept, window = top(score, target, cut), rank_window(score, start, stop, high, low)
    return CondensedSet._unchecked(
        kept=kept,
        num_samples=n,
        stage=stage,
        dropped=window[num_mixed:],
        tail=window[:num_mixed],
        weights=weights_of(num_mixed, min_weight),
        cut=cut,
    )


def condense_step(
    tracker: KnowledgeValueTracker,
    sampler: Condensable,
    schedule: CondensationSchedule,
    *,
    alpha: float = 0.03,
    min_weight: float = 0.7,
    select: Select | None = None,
) -> CondensedSet:
    """One EM step: rank what ``tracker`` recorded and install the condensed set in ``sampler``.

    Unconditional: whether a stage is due is the caller's question (``schedule.due(epoch)``). Where a
    process group is initialised, recordings are summed over its ranks first, so every rank must
    call this, and every rank gets the same set.

    Parameters
    ----------
    tracker : KnowledgeValueTracker
    sampler : CondensedSampler, CondensedLoss, or anything with ``num_samples``, ``kept`` and ``install``
        The stage's number is its ``stage`` (0 where it has none) plus one.
    schedule : CondensationSchedule
        Asked for the target size.
    alpha, min_weight
        See `condense`.
    select : callable, optional
        ``select(value, count, kept, target, generator) -> CondensedSet`` replaces ranking and
        partition. ``generator`` is a ``numpy.random.Generator`` that is the same on every rank, and so must
        the set be. It must keep exactly ``target`` points, since lengths are promised ahead.

    Returns
    -------
    CondensedSet

    Raises
    ------
    ValueError
        If tracker and sampler differ in ``num_samples``, or ``select`` breaks its promise.
    RuntimeError
        If nothing was ever recorded on any rank; if ranks disagree in anything that decides the set, or one
        is gone; or if the sampler draws for several ranks and no process group is initialised. Nothing is
        changed then.
    TypeError
        If the sampler draws from a slice: see `condense_sharded`.
    """
    if distributed.world_size() > 1:
        settings = {
            "num_samples": tracker.num_samples,
            "value": value_name(tracker._function),
            "schedule": schedule.state_dict(),
            "alpha": alpha,
            "min_weight": min_weight,
            "select": value_name(select) if select else None,
            "seed": getattr(sampler, "seed", None),
            "set": sampler.fingerprint() if hasattr(sampler, "fingerprint") else len(sampler.kept),
        }
        shards = getattr(sampler, "num_replicas", 1)
        distributed.check_agreement(settings, shard=getattr(sampler, "rank", 0), shards=shards)
    return condense_stage(tracker, sampler, schedule, alpha=alpha, min_weight=min_weight, select=select)[0]


def condense_stage(
    tracker: KnowledgeValueTracker,
    sampler: Condensable,
    schedule: CondensationSchedule,
    *,
    alpha: float,
    min_weight: float,
    select: Select | None,
) -> tuple[CondensedSet, npt.NDArray[np.float64], npt.NDArray[np.int32]]:
    """`condense_step`, with the values and counts (of all ranks) that it was decided from."""
    n = tracker.num_samples
    if sampler.num_samples != n:
        raise ValueError(
            f"tracker and sampler must be of one size, got num_samples = {n} and {sampler.num_samples}"
        )
    if hasattr(sampler, "sizes"):
        raise TypeError("the sampler draws from one slice of the index range: use condense_sharded()")
    replicas = getattr(sampler, "num_replicas", 1)
    if replicas > 1 and distributed.world_size() == 1:
        raise RuntimeError(
            f"the sampler draws for rank {getattr(sampler, 'rank', '?')} of {replicas}, but no process group "
            "is initialised to sum the ranks' recordings: call torch.distributed.init_process_group() "
            "first, or merge the recordings yourself and use condense() and sampler.install()"
        )
    total, count = sums_of_all(tracker)
    value, kept = tracker.mean(total, count), to_numpy(sampler.kept)
    chosen = choose(
        value,
        count,
        kept,
        schedule.target(n, len(kept)),
        alpha=alpha,
        min_weight=min_weight,
        stage=int(getattr(sampler, "stage", 0)) + 1,
        seed=int(getattr(sampler, "seed", 0)),
        select=select,
    )
    sampler.install(chosen)
    return chosen, value, count


def sums_of_all(tracker: KnowledgeValueTracker) -> Sums:
    """The tracker's sums over all ranks, or an error on every one of them."""
    problem: Exception | None = None
    try:
        total, count = tracker.sums()
        if max(int(total.max()), -int(total.min())) > 2**63 // distributed.world_size() - 1:
            problem = ValueError(
                "the recorded values are too large to be summed over the ranks: scale them down"
            )
    except Exception as error:  # on_nonfinite="raise" on a device, or a warning that is an error
        problem = error
    distributed.raise_together(problem)
    total, count = distributed.sum_over_ranks(total, count)
    if not count.any():
        raise RuntimeError(
            "a stage ends, but no value was ever recorded: call record(student_logits) after the "
            "student's forward pass"
        )
    return total, count


def choose(
    value: npt.NDArray[np.float64],
    count: npt.NDArray[np.int32],
    kept: Indices,
    target: int,
    *,
    alpha: float,
    min_weight: float,
    stage: int,
    seed: int,
    select: Select | None,
) -> CondensedSet:
    """`condense`, or what the user's ``select`` chooses in its place: checked, and the same on every rank."""
    if select is None:
        return condense(
            value, count, previous=len(kept), target=target, alpha=alpha, min_weight=min_weight, stage=stage
        )
    problem: Exception | None = None
    try:
        chosen = select(value, count, kept, target, np.random.default_rng([seed, stage]))
        if not isinstance(chosen, CondensedSet):
            raise TypeError(f"select must return a CondensedSet, got {type(chosen).__name__}")
        if chosen.num_samples != len(value) or len(chosen.kept) != target:
            raise ValueError(
                f"select must keep exactly {target} of {len(value)} points, got {len(chosen.kept)} of "
                f"{chosen.num_samples}"
            )
    except Exception as error:
        problem = error
    distributed.raise_together(problem)
    if distributed.world_size() > 1:
        arrays = (chosen.kept, chosen.dropped, chosen.tail, chosen.weights)
        digests = [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]
        distributed.check_agreement(
            {"what select chose": digests}, shard=distributed.rank(), shards=distributed.world_size()
        )
    return replace(chosen, stage=stage)


def check_settings(alpha: float, min_weight: float) -> tuple[float, float]:
    """The two settings of the EM step as floats, or an error that names the wrong one."""
    alpha = checked_float(alpha, "alpha", "a finite number, at least 0")
    min_weight = checked_float(min_weight, "min_weight", "a number in [0, 1]")
    if not 0 <= alpha < float("inf"):
        raise ValueError(f"alpha must be a finite number, at least 0, got {alpha}")
    if not 0 <= min_weight <= 1:
        raise ValueError(f"min_weight must be in [0, 1], got {min_weight}")
    return alpha, min_weight


def weights_of(length: int, min_weight: float) -> npt.NDArray[np.float32]:
    """``w_min + (1 - w_min) (L - i) / L``, in float32 and in this order of operations.

    Pixels are truncated after mixing, so the last bit of a weight can show; this is the arithmetic
    that reproduces the authors' images to the bit.
    """
    span, base = np.float32(1 - min_weight), np.float32(min_weight)
    left = np.float32(length) - np.arange(length, dtype=np.float32)
    weights: npt.NDArray[np.float32] = span * (left / np.float32(length)) + base
    return weights


def _checked_values(value: Any, count: Any) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    value, count = to_numpy(value), to_numpy(count)
    if value.ndim != 1 or value.shape != count.shape or len(value) == 0:
        raise ValueError(
            f"value and count must both be [N] with N >= 1, got shapes {value.shape} and {count.shape}"
        )
    if value.dtype.kind != "f":
        raise TypeError(f"value must be floating-point, got dtype {value.dtype}")
    if count.dtype.kind not in "iu":
        raise TypeError(f"count must be of an integer dtype, got {count.dtype}")
    return value, count


def _checked_indices(indices: Any, name: str, num_samples: int) -> Indices:
    indices = np.asarray(indices)
    if indices.ndim != 1 or (indices.dtype.kind not in "iu" and len(indices)):
        raise TypeError(f"{name} must be a one-dimensional array of integers")
    if len(indices) and not 0 <= indices.min() <= indices.max() < num_samples:
        raise IndexError(f"{name} must lie in 0 .. {num_samples - 1}")
    checked: Indices = indices.astype(np.int64, copy=False)
    return checked
