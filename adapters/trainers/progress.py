"""What trainers want to know of a run whose epochs differ in length: its steps, before the first; and how it goes."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["StepsOfEpochs", "last_epoch", "metrics", "samples_of", "steps_left", "updates"]


def metrics(loader: Any) -> dict[str, float]:
    """What to log of an epoch that has just been ended.

    ``kcd/kept``: samples of the next epoch. ``kcd/cut``: the score of the lowest-ranked one that the last stage kept, if
    it is known. ``kcd/saved``: the share of the samples that plain training would have drawn until now, and KCD did not.
    """
    done, n = loader.epoch - 1, loader.sampler.num_samples
    cut = loader.history[-1]["cut"] if len(loader.history) else None
    return {
        "kcd/kept": loader.sampler.num_kept,
        **({} if cut is None else {"kcd/cut": cut}),
        "kcd/saved": 1 - _samples_until_now(loader) / (n * done),
    }


def _samples_until_now(loader: Any) -> int:
    """Samples of the epochs that have ended: of the sets that their stages left."""
    stages = [(0, loader.sampler.num_samples), *((stage["epoch"], stage["kept"]) for stage in loader.history)]
    ends = [*(epoch for epoch, _ in stages[1:]), loader.epoch - 1]
    return sum(kept * (end - begin) for (begin, kept), end in zip(stages, ends, strict=True))


def updates(batches: int, accumulate: int) -> int:
    """Steps of the optimizer for so many batches of an epoch; what is left over at its end is one.

    >>> updates(13, 4)
    4
    """
    return -(-batches // accumulate)


def steps_left(loader: Any, epochs: float, accumulate: int) -> int:
    """Steps from where a loader is to the end of an epoch, or of a fraction of one; ValueError as for `last_epoch`."""
    last = math.ceil(epochs)
    whole: int = loader.steps(last, accumulate=accumulate)
    left_out = last * whole - math.ceil(epochs * whole)  # as Hugging Face rounds it
    return max(0, sum(_left(loader, epoch, accumulate) for epoch in range(loader.epoch, last + 1)) - left_out)


def samples_of(loader: Any, epochs: float) -> float:
    """Samples that are drawn in so many epochs from the first."""
    *whole, last = loader.schedule.sizes(loader.sampler.num_samples, math.ceil(epochs))
    return float(sum(whole) + last * (epochs - len(whole)))


def last_epoch(loader: Any, steps: int, accumulate: int) -> int:
    """The epoch in which so many steps from where a loader is are done.

    Raises
    ------
    ValueError
        If one until then has no batch.

    Warns
    -----
    UserWarning
        As `CondensedLoader.total_steps` does, of a run that drops nothing.
    """
    epoch = loader.epoch - 1
    while steps > 0:
        epoch += 1
        steps -= _left(loader, epoch, accumulate)
    if loader.epoch == 1:
        loader.total_steps(epoch)
    return int(epoch)


def _left(loader: Any, epoch: int, accumulate: int) -> int:
    """Steps that are left of an epoch: the present one, or a later."""
    batches = loader.steps(epoch)
    if not batches:
        raise ValueError(
            f"epoch {epoch} has no batch, and the trainer would end there: use a smaller batch, a higher ratio, or keep the "
            "last batch (drop_last=False)"
        )
    return updates(batches - (loader.batches_done if epoch == loader.epoch else 0), accumulate)


class StepsOfEpochs(int):
    """Steps of one epoch, for a trainer that divides by them to see where to resume.

    It takes the quotient for the epoch, and the rest for what to skip of it. Where epochs differ in length, both are wrong:
    the quotient is ``done`` here, the epochs that are, and the rest 0, since the loader is at its place already.

    >>> 34 // StepsOfEpochs(13, done=3), 34 % StepsOfEpochs(13, done=3)
    (3, 0)
    """

    done: int

    def __new__(cls, steps: int, done: int) -> StepsOfEpochs:
        made = super().__new__(cls, steps)
        made.done = done
        return made

    def __rfloordiv__(self, steps: int) -> int:
        return self.done

    def __rmod__(self, steps: int) -> int:
        return 0
