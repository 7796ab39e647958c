"""How many batches epochs have: those that have ended, and, before training starts, those to come."""

from __future__ import annotations

from ..base.arrays import checked_int
from ..run import Run
from .keys import KeyBatches

__all__ = ["EpochLengths"]


class EpochLengths:
    """The lengths of a run's epochs on this rank. What their methods promise is `CondensedLoader`'s.

    Parameters
    ----------
    run : Run
    batches : KeyBatches
        Of the run's sampler.
    """

    def __init__(self, run: Run, batches: KeyBatches) -> None:
        self._run, self._batches = run, batches
        self._asked = False  # whether anybody asked for the lengths of epochs to come

    def steps(self, epoch: int, accumulate: int = 1) -> int:
        """Of one epoch, ``accumulate`` batches at a time."""
        self._asked = True
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
        return -(-self._batches.steps(size) // checked_int(accumulate, "accumulate", 1))

    def total(self, epochs: int, accumulate: int = 1) -> int:
        """Of epochs 1 .. ``epochs``."""
        epochs = checked_int(epochs, "epochs", 0)
        self._run.warn_once("plain", self._run.why_plain(epochs), stacklevel=4)
        return sum(self.steps(epoch, accumulate) for epoch in range(1, epochs + 1))

    def warn_of_trainer(self, epoch: int) -> None:
        """A trainer has called ``set_epoch(epoch)``: warn once if it, too, never asked for a length to come."""
        run = self._run
        if not self._asked and run.schedule.drops(run.sampler.num_samples):
            run.warn_once(
                "planned",
                f"set_epoch({epoch}) comes from a trainer, and trainers take all epochs for as long as the first, so that "
                "the learning rate is scheduled for too many steps: use what there is for yours (docs/trainers.md in the "
                "repository), or a scheduler over loader.total_steps(epochs)",
                stacklevel=4,
            )
