"""What a run cost: samples drawn, teacher queries and seconds, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from time import monotonic
from typing import Any, NamedTuple

from .base.arrays import checked_int

__all__ = ["Account", "Cost", "joined"]

MOST_EPOCHS = 1_000_000
LARGEST = 1 << 62  # of any number in a state


class Cost(NamedTuple):
    """What an epoch cost one rank, or several epochs together.

    Attributes
    ----------
    drawn : int
        Samples that were drawn. Each is one pass of the student, forward and backward.
    asked : int
        How many of them were teacher queries.
    plain : int
        How many samples plain distillation would have drawn, and queried, in as many epochs; 0 if that is not known.
    seconds : float
        Wall-clock time of training.
    """

    drawn: int = 0
    asked: int = 0
    plain: int = 0
    seconds: float = 0.0

    def plus(self, other: Cost) -> Cost:
        """The sum of both."""
        drawn, asked, plain, seconds = (a + b for a, b in zip(self, other, strict=True))
        return Cost(int(drawn), int(asked), int(plain), seconds)

    def __str__(self) -> str:
        drawn, asked = (
            (f" ({self.drawn / self.plain:.1%} of plain distillation's)", f" ({self.asked / self.plain:.1%})")
            if self.plain
            else ("", "")
        )
        return f"{self.drawn:,} samples drawn{drawn}, {self.asked:,} teacher queries{asked}, {self.seconds:,.1f} s"


class Account:
    """What the epochs of a run cost this rank. The total cost is the sum over the ranks.

    A loader counts what it yielded, including batches of an interrupted or repeated pass and those that a resumed run
    draws again. A `Condensation` and a stream count what their ``record`` was given; a `CondensedLoss`, which records by
    itself, is not counted. Padding is not counted.

    The core does not see the teacher. With ``ask``, ``asked`` counts the rows of `CondensedLoader.asked_rows`;
    without it, all samples drawn. ``plain`` is this rank's share of the N samples, without those that ``drop_last``
    leaves out. For a `Condensation`, it is what was drawn in the last epoch before any sample was dropped.

    A loader's ``seconds`` run from the request for a pass's first batch to the pass's end (or to the last batch or
    record of an interrupted pass), so they exclude an evaluation after it. Those of other runs go from an epoch's
    first record to its last. The time of `end_epoch` is added.

    Attributes
    ----------
    first : int
        The first epoch of the account: 1, or the epoch of a loaded state that has no account.
    epochs : tuple of Cost
        Of each epoch that has ended, from ``first`` on.
    under_way : Cost
        Of the epoch under way, without ``plain``.
    total : Cost
        Of all epochs that have ended. Its ``plain`` is 0 if that of any of them is not known.

    Notes
    -----
    An account is not a function of the data and the seed: no two runs take the same time, and a killed and resumed
    run draws a batch twice. It is therefore a separate key in a run's state, and not part of
    `CondensationHistory.state_dict`.
    """

    def __init__(self, first: int = 1) -> None:
        self.first = checked_int(first, "first", 1)
        self.epochs: tuple[Cost, ...] = ()
        self._now = Cost()
        self._span: tuple[float, float] | None = None  # begin and, so far, end of what is being timed

    @property
    def under_way(self) -> Cost:
        """Of the epoch under way, without ``plain``."""
        begin, end = self._span or (0.0, 0.0)
        return self._now._replace(seconds=self._now.seconds + end - begin)

    @property
    def total(self) -> Cost:
        """Of all epochs that have ended."""
        drawn, asked, plain, seconds = (sum(column) for column in zip(Cost(), *self.epochs, strict=True))
        return Cost(drawn, asked, plain if all(cost.plain for cost in self.epochs) else 0, float(seconds))

    # -- counting ----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start a pass. The time since the previous one is not counted."""
        self._now, self._span = self.under_way, None
        self.touch()

    def touch(self) -> None:
        """Count the time until now."""
        now = monotonic()
        self._span = (now if self._span is None else self._span[0]), now

    def add(self, cost: Cost) -> None:
        """Add to the epoch under way."""
        self._now = self._now.plus(cost)

    def end_epoch(self, plain: int) -> None:
        """End the epoch under way, in which plain distillation would have drawn ``plain`` samples."""
        self.touch()
        ended = self.under_way._replace(plain=plain)
        self.epochs, self._now, self._span = (*self.epochs, ended), Cost(), None

    def __bool__(self) -> bool:
        """Whether there is anything to be told."""
        return any(cost.drawn for cost in self.epochs)

    def __str__(self) -> str:
        last = self.first + len(self.epochs) - 1
        return (
            f"epochs {self.first} to {last}: {self.total}"
            if self
            else "nothing was drawn in an epoch that ended"
        )

    def __repr__(self) -> str:
        return f"Account({self})"

    # -- state -------------------------------------------------------------------------------------

    def copy(self) -> Account:
        """An independent copy."""
        copied = Account(self.first)
        copied.epochs, copied._now = self.epochs, self.under_way
        return copied

    def __getstate__(self) -> dict[str, Any]:
        # Another process has another clock.
        return {"first": self.first, "epochs": self.epochs, "_now": self.under_way, "_span": None}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and lists. Each column is a list, whose last entry is that of the epoch under way."""
        columns = zip(*self.epochs, self.under_way, strict=True)
        return {"first": self.first, **dict(zip(Cost._fields, map(list, columns), strict=True))}

    @classmethod
    def from_state(cls, state: Any) -> Account:
        """The account that a state was saved from.

        Raises
        ------
        ValueError
            If it is not the state of an account.
        """
        try:
            if not isinstance(state, Mapping):
                raise ValueError(f"expected what state_dict() returned, got {type(state).__name__}")
            columns = [_checked(state.get(name), name) for name in Cost._fields]
            if len({len(column) for column in columns}) > 1:
                raise ValueError("its columns differ in length")
            account = cls(state.get("first"))  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise ValueError(f"not an account's state: {error}") from None
        *epochs, account._now = (Cost(*row) for row in zip(*columns, strict=True))
        account.epochs = tuple(epochs)
        return account


def joined(accounts: Sequence[Account | None], rank: int, ranks: int, epoch: int) -> Account:
    """This rank's share of those of all ranks of a run that was saved in ``epoch``, in their order.

    Its own, if there are as many ranks. Else the first rank takes over the sum (the seconds are those of the slowest),
    and the others begin anew. All begin anew where one is missing, as those of older states are.
    """
    there = [account for account in accounts if account is not None]
    shapes = {(account.first, len(account.epochs)) for account in there}
    if len(there) < len(accounts) or len(shapes) > 1:
        return Account(epoch)
    if len(there) == ranks:
        return there[rank].copy()
    together = Account(there[0].first)
    *epochs, together._now = (
        _sum_of(costs) if rank == 0 else Cost()
        for costs in zip(*((*account.epochs, account.under_way) for account in there), strict=True)
    )
    together.epochs = tuple(epochs)
    return together


def _sum_of(costs: Sequence[Cost]) -> Cost:
    drawn, asked, plain, seconds = zip(*costs, strict=True)
    return Cost(sum(drawn), sum(asked), sum(plain), max(seconds))


def _checked(column: Any, name: str) -> list[Any]:
    kinds = (int, float) if name == "seconds" else (int,)
    if not isinstance(column, list) or not 1 <= len(column) <= MOST_EPOCHS + 1:
        raise ValueError(f"{name} must be a list of numbers, one for each epoch")
    if not all(type(x) in kinds and 0 <= x <= LARGEST and isfinite(x) for x in column):
        raise ValueError(f"{name} must be numbers from 0 to {LARGEST}")
    return column
