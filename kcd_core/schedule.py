"""When a stage ends, and how many samples the set then keeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from .base.arrays import checked_float, checked_int

__all__ = ["AHEAD", "CondensationSchedule", "NoStages", "checked_sizes"]

AHEAD = 1000  # epochs that are looked through where no formula says when a stage ends


@dataclass(frozen=True)
class CondensationSchedule:
    """The paper's schedule: shrink by the same number of samples each stage, down to ``ratio``.

    Of N samples, a stage that begins with n keeps ``max(floor(ratio * N), n - floor(N * (1 - ratio) / stages))``
    (KCD, ECCV 2022, section 3.3). A stage lasts ``period`` epochs; epochs count from 1.

    Parameters
    ----------
    ratio : float, in (0, 1]
        Share of the samples that is kept in the end. With 1, nothing is ever dropped or mixed, whatever ``stages``
        and the settings of mixing are: the end of a stage only ranks the samples again. This is plain distillation.
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
    The floors are taken in exact decimal arithmetic: a ratio of 0.29 keeps 29 of 100 samples, and
    0.9 of 60,000 in six stages drops 1,000 a stage. Binary floating point, which the authors' code
    uses, gives 28 and 999. In the published setting both agree.

    Because of the floor, the last shrinking stage can be one or two later than S: N = 203, ratio 0.5, S = 2 gives
    153, 103, 101. With few samples there is nothing to drop: the default's step is 0 for N < 20.

    A subclass may override `due` and `target`. Everything else follows from the two: `size` and `size_from`,
    and with them a loader's ``total_steps``, are exact for whatever they return. The answers must depend on
    the arguments alone.

    Examples
    --------
    >>> schedule = CondensationSchedule(ratio=0.7, stages=6, period=40)
    >>> [schedule.size(50000, epoch) for epoch in (1, 40, 41, 81, 121, 161, 201, 240)]
    [50000, 50000, 47500, 45000, 42500, 40000, 37500, 37500]
    >>> schedule.due(40), schedule.due(41)
    (True, False)

    A schedule that alternates between half of the samples and all of them:

    >>> class InTurn(CondensationSchedule):
    ...     def target(self, num_samples, previous):
    ...         return num_samples // 2 if previous == num_samples else num_samples
    >>> [InTurn(period=1).size(100, epoch) for epoch in (1, 2, 3, 4)]
    [100, 50, 100, 50]
    """

    #: Whether whoever selects may keep any number of samples: see `FreeSchedule`.
    free: ClassVar[bool] = False

    #: What to do about a run that ends before anything was dropped.
    remedy: ClassVar[str] = "Lower period (or warmup)"

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

    @classmethod
    def for_epochs(cls, epochs: int, ratio: float = 0.3, stages: int = 6) -> CondensationSchedule:
        """The schedule for a run of a given number of epochs.

        The period is chosen such that about as many epochs as a stage has, at least one, are left after the last
        stage that shrinks the set. They train on the final set. (The published setting, ``period=40`` in 240 epochs,
        leaves none.)

        Parameters
        ----------
        epochs : int, more than ``stages``
            Epochs of the whole run.
        ratio : float, in (0, 1]
            Share of the samples that is kept in the end. The default is what docs/settings.md in the repository
            recommends, with the evidence; the paper's is 0.7.
        stages : int, at least 1
            Number of stages in which the set shrinks.

        Returns
        -------
        CondensationSchedule
            Of two periods that are equally near, the shorter one.

        Raises
        ------
        ValueError
            If ``epochs`` is not more than ``stages``, so that no epoch would be trained on the final ratio, or a number is
            outside its range.
        TypeError
            If ``epochs`` or ``stages`` is not an integer, or ``ratio`` is not a number.

        Examples
        --------
        >>> schedule = CondensationSchedule.for_epochs(100, ratio=0.7)
        >>> schedule.period
        14
        >>> [schedule.size(50000, epoch) for epoch in (14, 15, 84, 85, 100)]
        [50000, 47500, 37500, 35000, 35000]
        """
        epochs, stages = checked_int(epochs, "epochs", 1), checked_int(stages, "stages", 1)
        if epochs <= stages:
            raise ValueError(
                f"epochs must be more than stages = {stages}, or no epoch is trained on the final ratio, got {epochs}. "
                "Use fewer stages, or train for longer"
            )
        shorter = max(
            1, epochs // (stages + 1)
        )  # stages + 1 equal parts, as nearly as whole epochs make them
        periods = (period for period in (shorter, shorter + 1) if stages * period < epochs)
        nearest = min(periods, key=lambda period: abs(epochs - (stages + 1) * period))
        return cls(ratio=ratio, stages=stages, period=nearest)

    def due(self, epoch: int) -> bool:
        """Whether a stage ends with ``epoch`` (from 1).

        Stages also end after the last one that shrinks the set. The samples are then ranked again, and the set keeps
        its size.
        """
        return checked_int(epoch, "epoch", 1) % self.period == 0 and epoch >= self.warmup

    def next_due(self, epoch: int, ahead: int = AHEAD) -> int | None:
        """The first epoch, from ``epoch`` on, with which a stage ends.

        None if the `due` of a subclass is true for none of the next ``ahead`` epochs.
        """
        first = checked_int(epoch, "epoch", 1)
        if type(self).due is CondensationSchedule.due:
            return -(-max(first, self.warmup) // self.period) * self.period
        return next((each for each in range(first, first + ahead) if self.due(each)), None)

    def next_stage(self, epoch: int) -> str:
        """`next_due` in words: "due after epoch 40"."""
        due = self.next_due(epoch)
        return f"not due within {AHEAD} epochs" if due is None else f"due after epoch {due}"

    def drops(self, num_samples: int) -> bool:
        """Whether samples are ever dropped. True is assumed if a subclass overrides `target`."""
        own_target = type(self).target is not CondensationSchedule.target
        return own_target or self.target(num_samples, num_samples) < num_samples

    def why_idle(self, num_samples: int) -> str:
        """Why nothing is dropped although the ratio is below 1; empty if something is."""
        if self.ratio == 1 or self.drops(num_samples):
            return ""
        return (
            f"the schedule will drop nothing of {num_samples} samples: a stage would drop {1 - self.ratio:g} / "
            f"{self.stages} of them, which is less than one. Use fewer stages, or a lower ratio"
        )

    def why_plain(self, num_samples: int, epochs: int, *, epoch: int = 1) -> str:
        """Why a run drops nothing that is in ``epoch``, has ended no stage and ends with ``epochs``; else empty."""
        if epochs < epoch or not self.drops(num_samples):
            return ""
        due = self.next_due(epoch, max(epochs, AHEAD))
        if due is not None and due < epochs:
            return ""
        return (
            f"a run of {epochs} epochs drops nothing and is plain training: the first stage is {self.next_stage(epoch)}. "
            f"{self.remedy}, or ignore this if the run is longer"
        )

    def target(self, num_samples: int, previous: int) -> int:
        """The number of samples the next stage keeps.

        Parameters
        ----------
        num_samples : int
            N, all samples.
        previous : int
            Size of the set in force, 1 .. N.

        Returns
        -------
        int, 1 .. N
            A subclass may let a set grow. If the target is not below ``previous``, the samples are ranked again, and
            nothing is dropped or mixed.
        """
        num_samples, previous = checked_sizes(num_samples, previous, "previous")
        return max(self._final(num_samples), previous - self._step(num_samples))

    def target_of(self, stage: int, num_samples: int, previous: int) -> int | None:
        """`target` of the stage with this number, from 1; None if it may keep any number of samples."""
        return self.target(num_samples, previous)

    def size(self, num_samples: int, epoch: int) -> int:
        """The size of the set during ``epoch`` (from 1) if every due stage is carried out.

        Raises
        ------
        TypeError, ValueError
            As for `size_from`.
        """
        return self.size_from(num_samples, epoch, current=num_samples, current_epoch=1)

    def sizes(self, num_samples: int, epochs: int) -> Iterator[int]:
        """`size` of each epoch from 1 to ``epochs``."""
        size = num_samples
        for epoch in range(1, epochs + 1):
            yield size
            if self.due(epoch):
                size = self._own_target(num_samples, size)

    def size_from(self, num_samples: int, epoch: int, *, current: int, current_epoch: int) -> int:
        """The size during ``epoch``, given that it is ``current`` during ``current_epoch``.

        Raises
        ------
        TypeError
            If a number, or what the ``target`` of a subclass returns, is not an integer.
        ValueError
            If ``epoch`` is before ``current_epoch``, or a size is not in 1 .. ``num_samples``, that which the
            ``target`` of a subclass returns included.
        """
        num_samples, size = checked_sizes(num_samples, current, "current")
        ended = self._stages_between(checked_int(current_epoch, "current_epoch", 1), epoch)
        if type(self).target is CondensationSchedule.target:
            # target() is linear in the number of stages, so its iteration has this closed form.
            return max(self._final(num_samples), size - ended * self._step(num_samples)) if ended else size
        for _ in range(ended):
            before, size = size, self._own_target(num_samples, size)
            if size == before:  # and ever after
                break
        return size

    def state_dict(self) -> dict[str, Any]:
        """The four settings, as plain numbers."""
        return {name: getattr(self, name) for name in ("ratio", "stages", "period", "warmup")}

    def _stages_between(self, first: int, last: int) -> int:
        """How many stages end from the start of epoch ``first`` to the start of epoch ``last``."""
        if checked_int(last, "epoch", 1) < first:
            raise ValueError(f"epoch must be at least current_epoch = {first}, got {last}")
        if type(self).due is not CondensationSchedule.due:
            return sum(1 for epoch in range(first, last) if self.due(epoch))
        never = max(0, self.warmup - 1) // self.period  # multiples of the period before the warm-up ends
        before_last, before_first = (max(never, (epoch - 1) // self.period) for epoch in (last, first))
        return before_last - before_first

    def _own_target(self, num_samples: int, previous: int) -> int:
        """What a subclass wants, or an error that names the subclass."""
        name = f"{type(self).__name__}.target({num_samples}, {previous})"
        size = checked_int(self.target(num_samples, previous), name, 1)
        if size > num_samples:
            raise ValueError(f"{name} must be at most num_samples = {num_samples}, got {size}")
        return size

    def _exact_ratio(self) -> Fraction:
        return Fraction(repr(self.ratio))  # repr is the shortest decimal: what the user wrote

    def _final(self, num_samples: int) -> int:
        return max(1, int(self._exact_ratio() * num_samples))

    def _step(self, num_samples: int) -> int:
        return int(num_samples * (1 - self._exact_ratio()) / self.stages)


class NoStages(CondensationSchedule):
    """That of a run that condenses nothing: no stage ever ends."""

    def __init__(self) -> None:
        super().__init__(ratio=1.0, stages=1, period=1)

    def due(self, epoch: int) -> bool:
        """Never."""
        checked_int(epoch, "epoch", 1)
        return False

    def next_due(self, epoch: int, ahead: int = AHEAD) -> int | None:
        """None."""
        return None

    def next_stage(self, epoch: int) -> str:
        """None, in words."""
        return "never due"

    def size_from(self, num_samples: int, epoch: int, *, current: int, current_epoch: int) -> int:
        """``current``, whatever the epoch."""
        return current

    def state_dict(self) -> dict[str, Any]:
        """None of the settings: nobody gave them."""
        return {}


def checked_sizes(num_samples: int, size: int, name: str) -> tuple[int, int]:
    num_samples = checked_int(num_samples, "num_samples", 1)
    if checked_int(size, name, 1) > num_samples:
        raise ValueError(f"{name} must be at most num_samples = {num_samples}, got {size}")
    return num_samples, int(size)
