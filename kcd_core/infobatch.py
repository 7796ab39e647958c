"""InfoBatch's rule: leave out a part of what is learned well, and weigh the rest of it more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from .base.arrays import checked_float, checked_int
from .condense import CondensedSet
from .free_schedule import FreeSchedule

__all__ = ["InfoBatch"]


@dataclass(frozen=True)
class InfoBatch:
    """A ``select`` by InfoBatch's rule, which leaves out a random part of the samples of low value in each epoch.

    Each sample whose last value is below the mean of all last values is left out of the next epoch with probability
    ``prune``. The losses of those that stay are multiplied by ``1 / (1 - prune)``, so that the expected sum of an
    epoch's losses is the sum over all samples. The last epochs draw all samples, without weights.

    It has its own schedule: ``wrap_loader(loader, schedule=None, select=InfoBatch(100), ...)``.

    Parameters
    ----------
    epochs : int, at least ``2 / until``
        Epochs of the whole run. The first one draws all samples, so a shorter run would never leave any out.
    prune : float, in [0, 1)
        Probability with which a sample below the mean is left out.
    until : float, in (0, 1]
        Share of the epochs in which samples are left out. The last such epoch is ``floor(until * epochs)``.

    Attributes
    ----------
    schedule : FreeSchedule
        A stage ends after each epoch until then.
    statistic : str
        "last": a sample that was left out keeps the value that it had when it was drawn.

    Raises
    ------
    ValueError
        If a number is outside its range, or the epochs are so few that nothing would ever be left out.
    TypeError
        If ``epochs`` is not an integer, or another is not a number.

    Notes
    -----
    After "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning", Qin et al., ICLR 2024 (arXiv 2303.04947).
    Its value is the loss that is trained on: ``loader.record(values=losses)``, before they are weighted. The authors' code
    (github.com/NUS-HPC-AI-Lab/InfoBatch) leaves out an exact number of samples; here, as in the paper's formula, each is left
    out or kept independently. All samples are drawn in the first epoch, as nothing is known of them yet, and one that was never
    recorded stays.

    The loop has to multiply by the weights, ``(losses * loader.sample_weights).mean()``, and how many steps a run has is
    not known ahead: see `FreeSchedule`.

    Examples
    --------
    >>> import numpy as np
    >>> rule = InfoBatch(epochs=8)
    >>> rule.schedule
    FreeSchedule(period=1, until=7)
    >>> value = np.array([0.1, 0.2, 0.3, 3.0, 0.2, 4.0])
    >>> chosen = rule(value, np.ones(6, int), np.arange(6), None, np.random.default_rng(0))
    >>> chosen.kept, chosen.sample_weights
    (array([0, 3, 4, 5]), array([2., 1., 2., 1.], dtype=float32))
    """

    statistic: ClassVar[str] = "last"
    mixes: ClassVar[bool] = False
    weighs: ClassVar[bool] = True

    epochs: int
    prune: float = 0.5
    until: float = 0.875

    def __post_init__(self) -> None:
        object.__setattr__(self, "epochs", checked_int(self.epochs, "epochs", 1))
        prune = checked_float(self.prune, "prune", "a number in [0, 1)")
        if not 0 <= prune < 1:
            raise ValueError(f"prune must be in [0, 1), the probability of being left out, got {prune}")
        object.__setattr__(self, "prune", prune)
        until = checked_float(self.until, "until", "a number in (0, 1]")
        if not 0 < until <= 1:
            raise ValueError(
                f"until must be in (0, 1], the share of the epochs that leave out samples, got {until}"
            )
        object.__setattr__(self, "until", until)
        if self._last < 2:
            raise ValueError(
                f"epochs must be at least {math.ceil(2 / self._until)} with until={until}, got {self.epochs}: nothing would ever be "
                f"left out, since all samples are drawn in the first epoch, and in those after floor(until * epochs) = {self._last}"
            )

    @property
    def _until(self) -> Fraction:
        return Fraction(repr(self.until))  # of 0.29 and 100 epochs the last is 29, not 28

    @property
    def _last(self) -> int:
        """The last epoch in which samples are left out."""
        return math.floor(self._until * self.epochs)

    @property
    def schedule(self) -> FreeSchedule:
        """Its own schedule."""
        return FreeSchedule(period=1, until=self._last)

    def __call__(
        self,
        value: npt.NDArray[np.float64],
        count: npt.NDArray[Any],
        kept: npt.NDArray[np.int64],
        target: int | None,
        generator: np.random.Generator,
    ) -> CondensedSet:
        """The set of the next epoch: see `condense_step`. With a ``target``, which is then all samples, all."""
        size = len(value)
        if target is not None:
            return CondensedSet(np.arange(size), size)
        recorded = value[count > 0]
        # Rounded, the mean of equal values may be above them all.
        below = (count > 0) & (value < min(recorded.mean(), recorded.max()))
        stay = np.flatnonzero(~(below & (generator.random(size) < self.prune)))
        weights = np.where(below[stay], 1 / (1 - self.prune), 1)
        return CondensedSet(stay, size, sample_weights=weights)
