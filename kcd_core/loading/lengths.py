"""How many batches epochs have: those that have ended, and, before training starts, those to come."""

from __future__ import annotations

from ..base.arrays import checked_int
from ..run import Run
from .keys import KeyBatches

__all__ = ["Planned"]


class Planned:
    """What a loader says of the lengths of its epochs."""

    _run: Run
    _planned: bool  # whether anybody asked for the lengths of epochs to come

    @property
    def batch_sampler(self) -> KeyBatches:
        """What draws the batches."""
        raise NotImplementedError

    def steps(self, epoch: int, *, accumulate: int = 1) -> int:
        """Number of batches of any epoch (from 1), past or future, before training starts.

        It is exact, since the schedule alone fixes every size, unless it is a `FreeSchedule`. From the current epoch
        on, it starts from the set in force, whoever installed it. With ``accumulate`` batches in a step of the
        optimizer, it is the number of such steps; the batches left over at an epoch's end are a step, too.

        Raises
        ------
        RuntimeError
            For an epoch that has ended, if a set was installed by hand: its length is not known any more.
        ValueError
            With a `FreeSchedule`, for epochs whose length nobody knows yet.
        """
        self._planned = True
        run, sampler = self._run, self._run.sampler
        n = sampler.num_samples
        if checked_int(epoch, "epoch", 1) >= run.epoch:
            size = run.schedule.size_from(n, epoch, current=sampler.num_kept, current_epoch=run.epoch)
        elif sampler.stage != len(run.history):
            raise RuntimeError(
                f"epoch {epoch} has ended, and a set was installed by hand since the run began, so its length is not "
                f"known: ask for epochs from the present one, {run.epoch}, on"
            )
        else:
            size = next((stage["kept"] for stage in reversed(run.history) if stage["epoch"] < epoch), n)
        return -(-self.batch_sampler.steps(size) // checked_int(accumulate, "accumulate", 1))

    def total_steps(self, epochs: int, *, accumulate: int = 1) -> int:
        """Number of steps in epochs 1 .. ``epochs``: what a per-step LR schedule needs to know.

        Raises
        ------
        RuntimeError, ValueError
            As `steps` does.

        Warns
        -----
        UserWarning
            Once, if that is a run in which no epoch follows the end of a stage, so that it drops nothing: asked of
            the epochs to come, by a schedule that would drop something. `steps` never warns.
        """
        epochs = checked_int(epochs, "epochs", 0)
        self._run.warn_once("plain", self._run.why_plain(epochs))
        return sum(self.steps(epoch, accumulate=accumulate) for epoch in range(1, epochs + 1))

    def set_epoch(self, epoch: int) -> None:
        """Changes nothing, whatever a trainer counts: the epoch is the run's, and `end_epoch` advances it.

        Warns
        -----
        UserWarning
            Once, if neither `steps` nor `total_steps` was ever called. Since a DataLoader has no ``set_epoch``, a
            trainer is calling it, and trainers assume that all epochs are as long as the first.
        """
        run = self._run
        if not self._planned and run.schedule.drops(run.sampler.num_samples):
            run.warn_once(
                "planned",
                f"set_epoch({epoch}) comes from a trainer, and trainers take all epochs for as long as the first, so that "
                "the learning rate is scheduled for too many steps: use what there is for yours (docs/trainers.md in the "
                f"repository), or a scheduler over {'epochs' if run.schedule.free else 'loader.total_steps(epochs)'}",
            )
