"""A schedule that leaves the sizes to whoever selects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

from .base.arrays import checked_int
from .schedule import AHEAD, CondensationSchedule, checked_sizes

__all__ = ["FreeSchedule"]


@dataclass(frozen=True, init=False, repr=False)
class FreeSchedule(CondensationSchedule):
    """A schedule that says when a stage ends, and leaves the number of samples, 1 or more, to ``select``.

    Parameters
    ----------
    period : int, at least 1
        Epochs a stage lasts.
    until : int, at least 0, optional
        The epoch with which the last stage ends; all samples are drawn after it. Default: stages continue to the end
        of the run.

    Raises
    ------
    ValueError
        If a number is outside its range.
    TypeError
        If one is not an integer.

    Notes
    -----
    The number of steps of such a run is not known ahead. A loader's ``steps(epoch)`` is exact for epochs that have ended,
    for the present one, for those up to the stage's end, and for those after ``until``. For all others it raises a
    ValueError, and so does ``total_steps`` if it would count one of them. Schedule the learning rate by epochs, or by
    the share of them that is done.

    A subclass may override `due`, and has no ``until`` then. Its answers must depend only on the epoch.

    Examples
    --------
    >>> schedule = FreeSchedule(period=2, until=5)
    >>> [schedule.due(epoch) for epoch in (1, 2, 3, 4, 5, 6)]
    [False, True, False, True, True, False]
    >>> [schedule.size(100, epoch) for epoch in (1, 2, 6)]
    [100, 100, 100]
    >>> schedule.target_of(1, 100, previous=100), schedule.target_of(3, 100, previous=60)
    (None, 100)
    """

    free: ClassVar[bool] = True
    remedy: ClassVar[str] = "Train for longer, or end stages earlier"

    # Settings of a CondensationSchedule that this one does not have: `dataclasses.replace` leaves them out.
    ratio: float = field(default=1.0, init=False)
    stages: int = field(default=1, init=False)
    warmup: int = field(default=0, init=False)
    until: int | None = None

    def __init__(self, period: int = 1, until: int | None = None) -> None:
        super().__init__(ratio=1.0, stages=1, period=period)
        until = None if until is None else checked_int(until, "until", 0)
        if until is not None and self._own_due:
            raise ValueError(
                f"until goes with FreeSchedule's own due(), and {type(self).__name__} has another"
            )
        object.__setattr__(self, "until", until)

    @property
    def _own_due(self) -> bool:
        return type(self).due is not FreeSchedule.due

    @classmethod
    def for_epochs(cls, epochs: int, ratio: float = 0.3, stages: int = 6) -> NoReturn:
        """Raises a TypeError, since there is no ratio to choose a period for."""
        raise TypeError(f"a {cls.__name__} has no ratio: use {cls.__name__}(period, until)")

    def due(self, epoch: int) -> bool:
        """Whether a stage ends with ``epoch`` (from 1)."""
        return self.next_due(epoch) == epoch

    def next_due(self, epoch: int, ahead: int = AHEAD) -> int | None:
        """The first epoch, from ``epoch`` on, with which a stage ends; None after ``until``."""
        if self._own_due:
            return super().next_due(epoch, ahead)
        due = -(-checked_int(epoch, "epoch", 1) // self.period) * self.period
        if self.until is None:
            return due
        return min(due, self.until) if epoch <= self.until else None

    def next_stage(self, epoch: int) -> str:
        """`next_due` in words."""
        due = self.next_due(epoch)
        return "never due" if due is None and not self._own_due else super().next_stage(epoch)

    def drops(self, num_samples: int) -> bool:
        """Whether ``select`` is ever asked."""
        return self.until is None or self.until > self.period

    def target(self, num_samples: int, previous: int) -> None:  # type: ignore[override]
        """None."""
        checked_sizes(num_samples, previous, "previous")

    def target_of(self, stage: int, num_samples: int, previous: int) -> int | None:
        """None, except for the last stage, which keeps all samples."""
        last = self.until is not None and stage * self.period >= self.until
        self.target(num_samples, previous)  # checks both
        return num_samples if last else None

    def sizes(self, num_samples: int, epochs: int) -> Iterator[int]:
        """`size` of each epoch from 1 to ``epochs``."""
        return (self.size(num_samples, epoch) for epoch in range(1, epochs + 1))

    def size_from(self, num_samples: int, epoch: int, *, current: int, current_epoch: int) -> int:
        """The size during ``epoch``, given that it is ``current`` during ``current_epoch``, if it is known yet.

        Raises
        ------
        TypeError
            If a number is not an integer.
        ValueError
            If a stage that ends between the two epochs is free to keep any number of samples; or as
            `CondensationSchedule.size_from`.
        """
        num_samples, size = checked_sizes(num_samples, current, "current")
        if checked_int(epoch, "epoch", 1) < checked_int(current_epoch, "current_epoch", 1):
            raise ValueError(f"epoch must be at least current_epoch = {current_epoch}, got {epoch}")
        due = self.next_due(current_epoch, max(AHEAD, epoch - current_epoch))
        if due is None or due >= epoch:
            return size
        if self.until is not None and epoch > self.until:
            return num_samples
        last = f", or after {self.until}," if self.until else ""
        raise ValueError(
            f"nobody knows yet how many samples epoch {epoch} has: select decides it when a stage ends, next with epoch "
            f"{due}. Ask for epochs up to {due}{last} and schedule the learning rate by epochs, or by the share "
            "of them that is done: (loader.epoch - 1 + loader.batches_done / len(loader)) / epochs"
        )

    def state_dict(self) -> dict[str, Any]:
        """The two settings, as plain numbers."""
        return {"period": self.period, "until": self.until}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(period={self.period}, until={self.until})"
