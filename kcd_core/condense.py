"""The EM step as a pure function of arrays: from recorded values to the set that the next stage distils on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .algorithms.ranks import Mask, Scores, around, rank_scores, rank_window, scores_at_ranks, top
from .base.arrays import checked_float, checked_int, to_numpy
from .sample_weights import Weights, checked_weights

__all__ = ["CondensedSet", "condense"]

Indices = npt.NDArray[np.int64]


def no_indices() -> Indices:
    return np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class CondensedSet:
    """What one stage decided, as NumPy arrays.

    Attributes
    ----------
    kept : int64 [n], ascending
        The samples of the next stage (Y = 1; the paper calls them knowledge points).
    num_samples : int
        N, all samples.
    stage : int
        From 1.
    dropped : int64 [D], in ranking order, highest first
        What this stage dropped: ranks n .. n+D-1 over *all* samples, as in the authors' code. A sample that was
        dropped earlier can be in ``kept`` again, and a sample can be "dropped" that was not in the set.
    tail : int64 [L], in ranking order
        The lowest-ranked kept samples, into which the dropped ones are mixed: ``tail[i]`` with ``dropped[i]``. L is
        D, or n if more is dropped than kept.
    weights : float32 [L]
        Share of the tail sample in its mixture, from 1 down to just over ``min_weight``.
    cut : float
        Ranking score of the lowest-ranked kept sample; +inf if it was never recorded, NaN if unknown.
    sample_weights : float32 [n], or None
        Factor for each kept sample's loss; None means 1.
    """

    kept: Indices
    num_samples: int
    stage: int = 1
    dropped: Indices = field(default_factory=no_indices)
    tail: Indices = field(default_factory=no_indices)
    weights: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    cut: float = float("nan")
    sample_weights: Weights | None = None

    @property
    def num_kept(self) -> int:
        """The size of the set."""
        return len(self.kept)

    def __repr__(self) -> str:
        weighed = "" if self.sample_weights is None else ", weighed"
        return (
            f"CondensedSet(stage={self.stage}, kept={len(self.kept)} of {self.num_samples}, "
            f"dropped={len(self.dropped)}, tail={len(self.tail)}, cut={self.cut:.4f}{weighed})"
        )

    def __post_init__(self) -> None:
        checked_int(self.num_samples, "num_samples", 1)
        checked_int(self.stage, "stage", 1)
        for name in ("kept", "dropped", "tail"):
            object.__setattr__(self, name, _checked_indices(getattr(self, name), name, self.num_samples))
        object.__setattr__(self, "cut", checked_float(self.cut, "cut", "a number"))
        given = to_numpy(self.weights)
        if given.ndim != 1 or (len(given) and given.dtype.kind not in "fiu"):
            raise TypeError(f"weights must be a one-dimensional array of numbers, got {self.weights!r}")
        weights = given.astype(np.float32, copy=False)
        object.__setattr__(self, "weights", weights)
        if len(self.kept) == 0:
            raise ValueError("kept must hold at least one sample")
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
            raise ValueError("tail must hold kept samples only")
        if member[self.dropped].any():
            raise ValueError("dropped must hold no kept sample")
        for name in ("tail", "dropped"):
            member[:] = False
            member[getattr(self, name)] = True
            if np.count_nonzero(member) != len(getattr(self, name)):
                raise ValueError(f"{name} must be without duplicates")
        if not ((weights >= 0) & (weights <= 1)).all():
            raise ValueError("weights must lie in [0, 1]")
        if self.sample_weights is not None:
            object.__setattr__(self, "sample_weights", checked_weights(self.sample_weights, len(self.kept)))

    @classmethod
    def _unchecked(cls, **attributes: Any) -> CondensedSet:
        """Of all attributes, known to be right: the checks take longer than the selection."""
        made = object.__new__(cls)
        made.__dict__.update(attributes)
        return made


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
    """Rank all samples by ``V * F ** alpha``, keep the highest, and pair the tail with what was dropped.

    Parameters
    ----------
    value : array [N], floating
        V, the mean recorded value of each sample.
    count : integer array [N]
        F, how many times it was recorded. Samples with F = 0 were never recorded: they rank first, so that nothing is
        dropped unseen, and their value is ignored (NaN is usual).
    previous : int, 1 .. N
        Size of the set in force.
    target : int, 1 .. N
        Size wanted. If it is not below ``previous``, the samples are ranked again and nothing is dropped or mixed (L
        = 0).
    alpha : float, at least 0
        Weight of the recording count; 0 ranks by V alone.
    min_weight : float, in [0, 1]
        w_min of the mixing weights ``w_i = w_min + (1 - w_min) (L - i) / L``.
    stage : int
        The stage's number, for the result.

    Returns
    -------
    CondensedSet
        Of equal scores, the lower index ranks first.

    Raises
    ------
    ValueError
        If lengths disagree, N is 0, a number is outside its range, a recorded sample (F > 0) has a value
        that is not finite, or ``alpha`` is so large that its score is not finite.
    TypeError
        If ``value`` is not floating-point, ``count`` not of an integer dtype, or ``alpha`` or
        ``min_weight`` not a number.

    Notes
    -----
    KCD, ECCV 2022, sections 3.2 and 3.3. The time is O(N), except for sorting the 2L samples around the cut. Beyond
    its arguments and result, it takes 6 bytes a sample if a tenth is dropped (``benchmarks/selection.py``), 12 if half
    is, and more if the cut falls among many samples that were never recorded. It runs in host memory in float64, so
    that every device and every number of processes gets the same set; tensors on a device are copied first.

    Examples
    --------
    >>> import numpy as np
    >>> chosen = condense(np.array([0.2, 0.9, 0.5, 0.7]), np.array([1, 1, 1, 1]), previous=4, target=3)
    >>> chosen.kept, chosen.dropped, chosen.tail
    (array([1, 2, 3]), array([0]), array([2]))
    """
    value, count = checked_values(value, count)
    alpha, min_weight = check_settings(alpha, min_weight)
    score = rank_scores(value, count, alpha)
    parts = partition(score, previous, target)
    del score, value, count
    return set_of(*parts, min_weight=min_weight, stage=stage)


def partition(score: Scores, previous: int, target: int) -> tuple[Mask, Indices, float]:
    """Cut the ranking by scores: float64 [N], +inf where never recorded, nowhere NaN.

    Which samples are kept; those around the cut, tail and then dropped ones, in ranking order; and the score at the cut.
    """
    for name, size in (("previous", previous), ("target", target)):
        if checked_int(size, name, 1) > len(score):
            raise ValueError(f"{name} must be at most the number of samples, {len(score)}, got {size}")
    num_dropped = max(0, previous - target)
    start, stop = target - min(max(1, num_dropped), target), target + num_dropped
    some, before = around(score, start, stop - 1)
    few = score[some]
    high, cut, low = scores_at_ranks(few, [start - before, target - 1 - before, stop - 1 - before])
    window = no_indices()
    if num_dropped:
        window = rank_window(few, start - before, stop - before, high, low)
        window = window if isinstance(some, slice) else some[window]
    return top(score, target, cut), window, cut


def set_of(keep: Mask, window: Indices, cut: float, *, min_weight: float, stage: int) -> CondensedSet:
    """The set that `partition` found."""
    kept = np.flatnonzero(keep).astype(np.int64, copy=False)
    num_mixed = min(len(window) // 2, len(kept))  # as many as are dropped, or all that are kept
    return CondensedSet._unchecked(
        kept=kept,
        num_samples=len(keep),
        stage=checked_int(stage, "stage", 1),
        dropped=window[num_mixed:],
        tail=window[:num_mixed],
        weights=weights_of(num_mixed, min_weight),
        cut=cut,
    )


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


def checked_values(value: Any, count: Any) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """V and F in host memory, or an error that says what is wrong with them."""
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
