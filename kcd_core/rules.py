"""Rules by which a stage's set is chosen instead of the ranking: those that have a name, and a user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .base.arguments import check_callable, check_kind, checked_bool, checked_choice, takes_named
from .base.states import value_name
from .condense import CondensedSet
from .schedule import CondensationSchedule

__all__ = ["Criteria", "Rule", "Select", "SelectName", "check_rule", "resolve_select", "schedule_of"]

#: A selection: ``select(value, count, kept, target, generator) -> CondensedSet``. One that has a parameter named
#: ``stage`` is given the new stage's number, too, by name. Attributes may say what it needs: see `Rule`.
Select = Callable[..., CondensedSet]
SelectName = Literal["random", "rs2"]
Indices = npt.NDArray[np.int64]

WANTED = "a callable select(value, count, kept, target, generator) -> CondensedSet, with stage besides if it uses it"


def random(
    value: Any, count: Any, kept: Indices, target: int, generator: np.random.Generator
) -> CondensedSet:
    """Samples of the set in force, by chance: what ranking has to be better than.

    Where the set is to grow, all of them, and others by chance.
    """
    if target > len(kept):
        others = np.setdiff1d(np.arange(len(value)), kept, assume_unique=True)
        chosen = np.concatenate([kept, generator.choice(others, target - len(kept), replace=False)])
    else:
        chosen = generator.choice(kept, target, replace=False)
    return CondensedSet(np.sort(chosen), len(value))


def rs2(value: Any, count: Any, kept: Indices, target: int, generator: np.random.Generator) -> CondensedSet:
    """Any samples, by chance, others at each stage's end (RS2; Okanovic et al., ICLR 2024, arXiv 2305.18424)."""
    return CondensedSet(np.sort(generator.choice(len(value), target, replace=False)), len(value))


_NAMED: dict[str, Select] = {function.__name__: function for function in (random, rs2)}


@dataclass(frozen=True)
class Rule:
    """A selection, and what a run has to know of it.

    Attributes
    ----------
    function : callable
        See `Select`.
    name : str
        By which states and ranks tell it from others.
    takes_stage : bool
        Whether it is given the stage's number.
    mixes : bool
        Whether its sets may say what is mixed.
    weighs : bool
        Whether its sets have sample weights.
    free : bool or None
        Whether it keeps any number of samples, or needs to be told one; None is not known.
    schedule : CondensationSchedule or None
        The one to use where none is given.

    Notes
    -----
    The last four are read from attributes of a user's callable, where it has them. One with a schedule of its own that is
    free keeps any number.
    """

    function: Select
    name: str
    takes_stage: bool = False
    mixes: bool = True
    weighs: bool = False
    free: bool | None = None
    schedule: CondensationSchedule | None = None

    def __call__(
        self,
        value: npt.NDArray[np.float64],
        count: npt.NDArray[Any],
        kept: Indices,
        target: int | None,
        generator: np.random.Generator,
        stage: int,
    ) -> CondensedSet:
        """The set that is chosen, or a TypeError."""
        also = {"stage": stage} if self.takes_stage else {}
        chosen = self.function(value, count, kept, target, generator, **also)
        if not isinstance(chosen, CondensedSet):
            raise TypeError(f"select must return a CondensedSet, got {type(chosen).__name__}")
        return chosen


class Criteria(NamedTuple):
    """By what a stage's set is chosen from what was recorded."""

    schedule: CondensationSchedule
    alpha: float
    min_weight: float
    rule: Rule | None = None

    @property
    def alike(self) -> dict[str, Any]:
        """What must be the same on all ranks, as plain values."""
        return {
            "select": self.rule.name if self.rule else None,  # before the schedule, which may be its own
            "schedule": self.schedule.state_dict() or None,  # None is what the user gave
            "schedule_type": type(self.schedule).__qualname__,
            "alpha": self.alpha,
            "min_weight": self.min_weight,
        }


def resolve_select(select: Any) -> Rule | None:
    """What ``select`` names, or is; None if it is None.

    Raises
    ------
    ValueError
        If it is neither a rule's name nor callable.
    TypeError
        If it can't be called as `Rule` calls it.
    """
    if select is None or isinstance(select, Rule):
        return select
    if not callable(select):
        named = _NAMED[
            checked_choice(select, "select", tuple(_NAMED), "a callable such as kcd.InfoBatch(epochs)")
        ]
        return Rule(named, value_name(named), mixes=False, free=False)
    takes_stage = takes_named(select, "select", WANTED, 5, "stage")
    check_callable(select, "select", WANTED, places=5, also=("stage",) if takes_stage else ())
    schedule = getattr(select, "schedule", None)
    check_kind(schedule, "select.schedule", CondensationSchedule, type(None))
    return Rule(
        select,
        value_name(select),
        takes_stage,
        mixes=checked_bool(getattr(select, "mixes", True), "select.mixes"),
        weighs=checked_bool(getattr(select, "weighs", False), "select.weighs"),
        free=True if schedule is not None and schedule.free else None,
        schedule=schedule,
    )


def schedule_of(rule: Rule | None, schedule: CondensationSchedule | None) -> CondensationSchedule | None:
    """The schedule that was given, or else the rule's own."""
    return rule.schedule if schedule is None and rule is not None else schedule


def check_rule(rule: Rule | None, schedule: CondensationSchedule, target: Any) -> None:
    """ValueError unless a rule goes with the schedule, and with what its sets are installed in."""
    if schedule.free and rule is None:
        raise ValueError(
            f"schedule={schedule!r} leaves the sizes to select: give select, or another schedule"
        )
    if rule is None:
        return
    if schedule.free and rule.free is False:
        raise ValueError(
            f"select={rule.name!r} has to be told how many samples to keep, and schedule={schedule!r} doesn't: use a "
            "CondensationSchedule"
        )
    if rule.free and not schedule.free:
        use = (
            "use a FreeSchedule" if rule.schedule is None else "give schedule=None, since select has its own"
        )
        raise ValueError(
            f"select={rule.name} keeps as many samples as it will, and schedule={schedule!r} says how many: {use}"
        )
    if rule.weighs and (why := getattr(target, "why_unweighable", "")):
        raise ValueError(f"select={rule.name} gives samples weights, but {why}")
