"""That wrap_loader within the loop over epochs is told, and that new runs over the same data are not."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from helpers import Plain, run_epoch
from torch.utils.data import DataLoader, Subset

import kcd_core as kcd

N = 40
LATE = kcd.CondensationSchedule(0.5, 1, 3)
TOLD = "called anew after each of the last two epochs.*Call it once, before the loop over epochs"


def wrapped(dataset: Any, schedule: kcd.CondensationSchedule = LATE) -> Any:
    return kcd.wrap_loader(DataLoader(dataset, 8, shuffle=True), schedule=schedule, mixing=None)


def in_every_epoch(dataset: Any, epochs: int, **settings: Any) -> list[int]:
    """The epochs in which wrap_loader warns."""
    told = []
    for epoch in range(1, epochs + 1):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loader = wrapped(dataset, **settings)
        assert all(one.filename == __file__ for one in caught)
        told += [epoch] * len(caught)
        run_epoch(loader)
    return told


def test_a_loader_that_is_wrapped_in_every_epoch_is_told_when_two_have_ended() -> None:
    dataset = Plain(N)
    for _ in range(2):
        run_epoch(wrapped(dataset))
    with pytest.warns(UserWarning, match=TOLD):
        wrapped(dataset)
    assert in_every_epoch(Plain(N), 4) == [3, 4]
    same = [kcd.CondensationSchedule.for_epochs(14) for _ in range(4)]  # made anew in every epoch
    dataset, told = Plain(N), 0
    for schedule in same:
        told += len(in_every_epoch(dataset, 1, schedule=schedule))
    assert told == 2


def seeds(dataset: Any) -> None:
    for _ in range(4):
        loader = wrapped(dataset)
        for _ in range(3):
            run_epoch(loader)


def short_runs(dataset: Any) -> None:
    for _ in range(4):
        loader = wrapped(dataset)
        for _ in range(2):
            run_epoch(loader)


def stages_of_one_epoch(dataset: Any) -> None:
    assert in_every_epoch(dataset, 4, schedule=kcd.CondensationSchedule(0.5, 1, 1)) == []


def plain_kd(dataset: Any) -> None:
    assert in_every_epoch(dataset, 4, schedule=kcd.CondensationSchedule(1.0, 1, 3)) == []


def folds(dataset: Any) -> None:
    for fold in range(4):
        assert in_every_epoch(Subset(dataset, [i for i in range(N) if i % 4 != fold]), 1) == []


def other_schedules(dataset: Any) -> None:
    for period in range(2, 6):
        assert in_every_epoch(dataset, 1, schedule=kcd.CondensationSchedule(0.5, 1, period)) == []


def resumed(dataset: Any) -> None:
    state: Any = None
    for _ in range(4):
        loader = wrapped(dataset)
        if state is not None:
            loader.load_state_dict(state)
        run_epoch(loader)
        state = copy.deepcopy(loader.state_dict())
    assert len(loader.history) == 1


def side_by_side(dataset: Any) -> None:
    students = [wrapped(dataset) for _ in range(4)]
    for _ in range(3):
        for loader in students:
            run_epoch(loader)
    wrapped(dataset)


def lists(dataset: Any) -> None:
    samples = [dataset[i] for i in range(N)]
    assert in_every_epoch(samples, 4) == []


@pytest.mark.parametrize(
    "loop",
    [seeds, short_runs, stages_of_one_epoch, plain_kd, folds, other_schedules, resumed, side_by_side, lists],
    ids=lambda loop: loop.__name__,
)
def test_new_runs_over_the_same_data_are_not_told(loop: Callable[[Any], None]) -> None:
    loop(Plain(N))  # where a warning is an error
