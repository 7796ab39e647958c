"""A learning rate that a script schedules by the step, which is late once epochs get shorter: said once.

A scheduler counts its steps itself. So nothing is watched but how far that goes in an epoch, and how often the optimizer
steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from ..profiles import Profile
from ..settings import Settings
from .alignment import Pass
from .journal import Journal

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from .loader import HostedLoader

__all__ = ["BySteps"]

PLANS = ("total_steps", "T_max", "total_iters")  # what schedulers call the number of steps that they are for


class BySteps:
    """Finds schedulers that count steps, among those that the script makes.

    Nothing is done where no epoch gets shorter, or where the profile sees to such schedulers.
    """

    def __init__(
        self, settings: Settings, profile: Profile, arguments: Sequence[str], journal: Journal
    ) -> None:
        self._schedule, self._epochs, self._journal = settings.schedule(), profile.epochs(arguments), journal
        self._idle = settings.ratio == 1 or profile.paces
        self._schedulers: WeakSet[LRScheduler] = WeakSet()
        self._counts: WeakKeyDictionary[LRScheduler, int] = WeakKeyDictionary()  # when the epoch began
        self._steps: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()  # since then
        self._hook: Any = None

    def made(self, _: None, scheduler: LRScheduler, *__: Any, **___: Any) -> None:
        """The script has made a scheduler."""
        if self._idle:
            return
        self._schedulers.add(scheduler)
        if self._hook is None:
            from torch.optim.optimizer import register_optimizer_step_pre_hook

            self._hook = register_optimizer_step_pre_hook(self._stepped)

    def _stepped(self, optimizer: Optimizer, *_: Any) -> None:
        self._steps[optimizer] = self._steps.get(optimizer, 0) + 1

    def begin(self) -> None:
        """An epoch of the student's begins, or may."""
        self._steps.clear()
        self._counts = WeakKeyDictionary({one: one.last_epoch for one in self._schedulers})

    def end(self, train: HostedLoader, one: Pass) -> None:
        """An epoch ended, and with it the stage that was due."""
        for scheduler, before in list(self._counts.items()):
            steps, counted = self._steps.get(scheduler.optimizer, 0), int(scheduler.last_epoch - before)
            # Not one that is stepped once an epoch, for an epoch of one step.
            told = self._late(scheduler, counted, train, one) if counted >= steps > 1 else ""
            if told:
                self._journal.warn(told)
                self._stop()
                return
        self.begin()

    def _stop(self) -> None:
        self._idle = True
        self._schedulers.clear()
        self._counts.clear()
        self._hook.remove()

    def _late(self, scheduler: LRScheduler, counted: int, train: HostedLoader, one: Pass) -> str:
        """What to say of a scheduler that counts steps; empty while it may be done before an epoch gets shorter."""
        epoch = self._journal.epochs + 1
        shorter = self._first_shorter(train, epoch)
        if shorter is None or (self._epochs is not None and shorter > self._epochs):
            return ""
        plan = next((n for name in PLANS if isinstance(n := getattr(scheduler, name, None), int)), None)
        left = shorter == epoch if plan is None else plan - scheduler.last_epoch - (shorter - epoch) * counted
        if left <= 0:
            return ""
        steps, n = train.batches.steps, train.sampler.num_samples
        epochs = self._epochs
        if epochs is None and plan is not None and one.size == n and plan % counted == 0:
            epochs = plan // counted
        total, those = "", "fewer steps"
        if epochs is not None:
            made = sum(map(steps, self._schedule.sizes(n, epochs)))
            total = f": {epochs} epochs have {made} batches in place of {epochs * steps(n)}"
            those = "those"
        when = "now" if shorter == epoch else f"from epoch {shorter} on"
        return (
            f"{type(scheduler).__name__} is stepped once for each step of the optimizer, so it counts steps, and epochs have "
            f"{steps(n)} batches at first and {steps(self._schedule.size(n, shorter))} {when}. If the script trains for a "
            f"number of epochs, the learning rate does not get to the end of its schedule{total}. Make the scheduler for "
            f"{those}, or step it once an epoch. A script that trains for a number of steps needs no change "
            "(docs/adapters.md#limits)"
        )

    def _first_shorter(self, train: HostedLoader, epoch: int) -> int | None:
        """The first epoch, from this one on, with fewer batches than one of all samples."""
        n, schedule, steps = train.sampler.num_samples, self._schedule, train.batches.steps
        for _ in range(schedule.stages + 1):
            if steps(schedule.size(n, epoch)) < steps(n):
                return epoch
            epoch = (schedule.next_due(epoch) or 0) + 1
        return None
