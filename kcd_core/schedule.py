"""When a stage ends, and how many points the set then keeps."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from .base.arrays import checked_float, checked_int

__all__ = ["CondensationSchedule"]


@dataclass(frozen=True)
class CondensationSchedule:
    r"""The paper's schedule: shrink by the same number of points each stage, down to ``ratio``.

    With S stages and the final ratio :math:`\tau`, stage t keeps
    :math:`n_t = \max(\lfloor \tau N \rfloor,\; n_{t-1} - \lfloor N (1-\tau) / S \rfloor)` points
    (KCD, ECCV 2022, section 3.3). A stage lasts ``period`` epochs; epochs count from 1.

    Parameters
    ----------
    ratio : float, in (0, 1]
        Share of the points that is kept in the end. 1 never drops anything.
    stages : int, at least 1
        Number of stages S in which the set shrinks.
    period : int, at least 1
        Epochs a stage lasts (T in the paper).
    warmup : int, at least 0
        No stage ends before this epoch. It does not shift the grid: stages still end at multiples
        of ``period``.

    Raises
    ------
    ValueError
        If a number is outside its range.
    TypeError
        If ``stages``, ``period`` or ``warmup`` is not an integer, or ``ratio`` is not a number.

    Notes
    -----
    The floors are taken in exact decimal arithmetic: a ratio of 0.29 keeps 29 of 100 points, and
    0.9 of 60,000 in six stages drops 1,000 a stage. Binary floating point, which the authors' code
    uses, gives 28 and 999. In the published setting both agree.

    A floor can leave the last shrinking stage one or two later than S: N = 203, ratio 0.5, S = 2
    gives 153, 103, 101.

    Examples
    --------
    >>> schedule = CondensationSchedule(ratio=0.7, stages=6, period=40)
    >>> [schedule.size(50000, epoch) for epoch in (1, 40, 41, 81, 121, 161, 201, 240)]
    [50000, 50000, 47500, 45000, 42500, 40000, 37500, 37500]
    >>> schedule.due(40), schedule.due(41)
    (True, False)
    """

    ratio: float = 0.7
    stages: int = 6
    period: int = 40
    warmup: int = 0

    def __post_init__(self) -> None:
        for name, minimum in (("stages", 1), ("period", 1), ("warmup", 0)):
            object.__setattr__(self, name, checked_int(getattr(self, name), name, minimum))
        # A narrow NumPy float means the decimal it prints as: float32's 0.7, not 0.699999988.
        narrow = isinstance(self.ratio, np.floating)
        ratio = checked_float(float(str(self.ratio)) if narrow else self.ratio, "ratio", "a number in (0, 1]")
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio must be in (0, 1], the share that is kept in the end, got {ratio}")
        object.__setattr__(self, "ratio", ratio)

    def due(self, epoch: int) -> bool:
        """Whether a stage ends with ``epoch`` (from 1). Also after the last shrinking stage: the set
        is then ranked anew at constant size."""
        return checked_int(epoch, "epoch", 1) % self.period == 0 and epoch >= self.warmup

    def target(self, num_samples: int, previous: int) -> int:
        """The number of points the next stage keeps.

        Parameters
        ----------
        num_samples : int
            N, all points.
        previous : int
            Size of the set in force, 1 .. N.
        """
        num_samples = checked_int(num_samples, "num_samples", 1)
        previous = checked_int(previous, "previous", 1)
        if previous > num_samples:
            raise ValueError(f"previous must be at most num_samples = {num_samples}, got {previous}")
        return max(self._final(num_samples), previous - self._step(num_samples))

    def size(self, num_samples: int, epoch: int) -> int:
        """The size of the set during ``epoch`` (from 1) if every due stage is carried out."""
        num_samples = checked_int(num_samples, "num_samples", 1)
        return self._after(num_samples, num_samples, self._ended_before(epoch))

    def size_from(self, num_samples: int, epoch: int, *, current: int, current_epoch: int) -> int:
        """The size during ``epoch``, given that it is ``current`` during ``current_epoch <= epoch``."""
        ended = self._ended_before(epoch) - self._ended_before(current_epoch)
        return self._after(num_samples, current, ended)

    def state_dict(self) -> dict[str, Any]:
        """The four settings, as plain numbers."""
        return {name: getattr(self, name) for name in ("ratio", "stages", "period", "warmup")}

    def _ended_before(self, epoch: int) -> int:
        """Stages that end before ``epoch`` begins."""
        past = checked_int(epoch, "epoch", 1) - 1
        return max(0, past // self.period - max(0, self.warmup - 1) // self.period)

    def _after(self, num_samples: int, size: int, ended: int) -> int:
        # target() is linear in the number of stages, so its iteration has this closed form.
        if ended == 0:
            return size
        return max(self._final(num_samples), size - ended * self._step(num_samples))

    def _exact_ratio(self) -> Fraction:
        return Fraction(repr(self.ratio))  # repr is the shortest decimal: what the user wrote

    def _final(self, num_samples: int) -> int:
        return max(1, int(self._exact_ratio() * num_samples))

    def _step(self, num_samples: int) -> int:
        return int(num_samples * (1 - self._exact_ratio()) / self.stages)
