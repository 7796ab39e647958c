"""Where `wrap_loader` is called within the loop over epochs: each call begins a run, and none comes to a stage."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from ..history import CondensationHistory

__all__ = ["why_wrapped_again"]

#: Of the last two runs over a data set, what they did. Of a run that loads a state, this stays empty.
_BEFORE: WeakKeyDictionary[Any, tuple[CondensationHistory, ...]] = WeakKeyDictionary()


def why_wrapped_again(dataset: Any, history: CondensationHistory) -> str:
    """What to say of a new run over a data set, after two with the same schedule that each ended with one epoch.

    Empty if one of the two ended a stage, or another number of epochs, or if stages drop nothing. A data set that can't
    be a key, such as a list, is not followed.
    """
    with suppress(TypeError):
        before = _BEFORE.get(dataset, ())
        _BEFORE[dataset] = (*before[-1:], history)
        if len(before) == 2 and all(_one_epoch(run) and run.schedule == history.schedule for run in before):
            return (
                "wrap_loader was called anew after each of the last two epochs, over the same data set and with the same "
                "schedule: each call begins a new run at epoch 1, which knows no values, so no stage would end. "
                "Call it once, before the loop over epochs, or give the new loader what state_dict() of the last one "
                "returned"
            )
    return ""


def _one_epoch(run: CondensationHistory) -> bool:
    """Whether one epoch has ended, and no stage, although one would drop samples."""
    ended = 0 if run.account is None else len(run.account.epochs)
    return ended == 1 and not len(run) and run.schedule is not None and run.schedule.drops(run.num_samples)
