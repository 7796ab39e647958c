"""The teacher's gate of a loader, and the run in which its sets are chosen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..base import distributed
from ..base.arguments import check_kind
from ..base.arrays import checked_int
from ..base.same_samples import SameSamples
from ..gate import TeacherGate
from ..history import CondensationHistory
from ..layout import Layout, WholeLayout, check_same_size
from ..log import LOGGER
from ..recipes import MixRecipes
from ..run import Ending, Run
from ..saved import Saved
from ..schedule import CondensationSchedule

__all__ = ["Asking", "ask_schedule", "check_asking"]


def ask_schedule(ask: Any) -> CondensationSchedule:
    """What ``ask=`` is short for."""
    if isinstance(ask, CondensationSchedule):
        if ask.free:
            raise ValueError(f"ask must say how many samples the teacher is asked for, and {ask!r} doesn't")
        return ask
    if isinstance(ask, (bool, str)) or not isinstance(ask, (int, float, np.number)):
        raise TypeError(
            "ask must be the share of the samples that the teacher is asked for, a number in (0, 1], or a "
            f"CondensationSchedule, got {type(ask).__name__}"
        )
    if not 0 < ask <= 1:
        raise ValueError(f"ask must be in (0, 1], the share that the teacher is asked for, got {ask}")
    return CondensationSchedule(ask, stages=1, period=1)  # type: ignore[arg-type]


class GateLayout(WholeLayout):
    """A gate beside what the samples are drawn by: the recordings are those of the loader's run, which saves them."""

    what, call = "gate", ""

    def __init__(self, gate: TeacherGate, beside: Layout) -> None:
        super().__init__(gate, beside.tracker, beside.group)
        self._beside = beside

    @property
    def rank(self) -> int:
        return self._beside.rank

    @property
    def ranks(self) -> int:
        return self._beside.ranks

    def check_state(
        self, state: Mapping[str, Any], history: CondensationHistory, rank: int, ranks: int
    ) -> tuple[Any, Any]:
        check_same_size(self, history)
        return None, self.sampler.check_state(state["sampler"])

    def joined(self, parts: Sequence[tuple[Any, Any]], within_epoch: bool) -> tuple[Any, Any]:
        return parts[0]

    def apply(self, recorded: Any, in_force: Any) -> None:
        self.sampler.in_force = in_force


class GateRun(Run):
    """A run of which the logger is told for how many samples the teacher is asked."""

    beside = True

    def log(self, ending: Ending, more: Callable[[], str]) -> None:
        if ending.entry is None or distributed.rank_announced(self.group) > 0:
            return
        asked = [self.history.num_samples, *(record["kept"] for record in self.history)]
        LOGGER.log(
            # Most gates ask for other samples after each epoch, and always for as many.
            logging.DEBUG if asked[-1] == asked[-2] else logging.INFO,
            "from epoch %d on the teacher is asked for %d of %d samples",
            self.epoch,
            asked[-1],
            asked[0],
        )


class Asking:
    """Of which rows the teacher is asked, and the state of that.

    Parameters
    ----------
    layout : Layout
        What the samples are drawn by.
    schedule : CondensationSchedule
        How many samples the teacher is asked for.
    alpha : float
    multiple : int, at least 1
        See `TeacherGate.asked`.
    samples : SameSamples, optional
        See `Run`.
    """

    def __init__(
        self,
        layout: Layout,
        schedule: CondensationSchedule,
        alpha: float,
        multiple: int,
        samples: SameSamples | None = None,
    ) -> None:
        check_kind(schedule, "ask", CondensationSchedule)
        self.multiple = checked_int(multiple, "ask_multiple", 1)
        self.gate = TeacherGate(layout.num_samples)
        beside = GateLayout(self.gate, layout)
        self.run = GateRun(
            beside, schedule, alpha=alpha, min_weight=1.0, select=None, what="gate", samples=samples
        )

    def asked(self, indices: npt.NDArray[np.int64], recipes: MixRecipes) -> npt.NDArray[np.bool_]:
        """Which rows of a batch are asked: mixed ones always, what only pads never."""
        return self.gate.asked(indices, mixed=recipes.contains(indices), multiple=self.multiple)

    def state_dict(self) -> dict[str, Any]:
        """All of it but the recordings."""
        return self.run.state_beside_recordings()

    def check_state(self, state: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Saved:
        """What of a loader's state, or of those of all ranks, is the gate's: for `run` to apply. Changes nothing."""
        several = isinstance(state, (list, tuple))
        everyones: Any = state if several else [state]
        states = [{**each["ask"], "tracker": None} for each in everyones]
        return self.run.check_state(states if several else states[0])


def check_asking(state: Mapping[str, Any] | Sequence[Mapping[str, Any]], asks: bool) -> None:
    """ValueError unless a loader's state, or that of all ranks, has a gate's where this loader ``asks``, and none else."""
    everyones: Any = state if isinstance(state, (list, tuple)) else [state]
    for each in everyones:
        if not asks and "ask" in each:
            raise ValueError(
                "this loader state was saved with ask=, which is not given here: give it to wrap_loader()"
            )
        if asks and not isinstance(each.get("ask"), Mapping):
            raise ValueError("this loader state was saved without ask=, which is given here: leave it out")
