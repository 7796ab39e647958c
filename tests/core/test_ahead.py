"""What is known of a run before it trains, and told then: no stage, no sample to drop, no batch."""

from __future__ import annotations

import copy
import itertools
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Plain
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler

import kcd_core as kcd

Schedule = kcd.CondensationSchedule


class Twice(Schedule):
    """Stages of one's own: with epochs 3 and 5 alone."""

    def due(self, epoch: int) -> bool:
        return epoch in (3, 5)


class Never(Schedule):
    def due(self, epoch: int) -> bool:
        return False


def wrap(schedule: Schedule, n: int = 100, **options: Any) -> Any:
    return kcd.wrap_loader(DataLoader(Plain(n), batch_size=10, **options), schedule=schedule, mixing=None)


def told(call: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(one.filename == __file__ for one in caught)  # the user's line
    return [str(one.message) for one in caught]


# -- no stage ---------------------------------------------------------------------------------------------


@given(epoch=st.integers(1, 60), period=st.integers(1, 20), warmup=st.integers(0, 50))
def test_the_next_stage_is_the_first_that_is_due(epoch: int, period: int, warmup: int) -> None:
    schedule = Schedule(0.7, 2, period, warmup)
    due = next(each for each in itertools.count(epoch) if schedule.due(each))
    assert schedule.next_due(epoch) == due
    assert schedule.next_stage(epoch) == f"due after epoch {due}"


def test_the_next_stage_of_a_schedule_of_ones_own() -> None:
    assert [Twice().next_due(epoch) for epoch in range(1, 8)] == [3, 3, 3, 5, 5, None, None]
    assert Twice().next_stage(6) == Never().next_stage(1) == "not due within 1000 epochs"


@pytest.mark.parametrize(
    ("schedule", "epochs", "first"),
    [
        (Schedule(period=40), 30, "due after epoch 40"),
        (Schedule(period=40), 40, "due after epoch 40"),  # and nothing trains on its set
        (Schedule(period=40), 1, "due after epoch 40"),
        (Schedule(period=2, warmup=31), 32, "due after epoch 32"),
        (Twice(), 3, "due after epoch 3"),
        (Never(), 2000, "not due within 1000 epochs"),
    ],
)
def test_a_run_that_is_plain_training_is_told_once(schedule: Schedule, epochs: int, first: str) -> None:
    loader = wrap(schedule)
    (text,) = told(lambda: loader.total_steps(epochs))
    assert f"a run of {epochs} epochs" in text
    assert f"the first stage is {first}" in text
    assert told(lambda: loader.total_steps(epochs)) == []
    assert loader.total_steps(epochs) == 10 * epochs


def test_no_alarm_where_something_is_dropped_or_nothing_is_planned() -> None:
    for schedule, epochs in ((Schedule(period=40), 41), (Twice(), 4), (Schedule(period=2, warmup=31), 33)):
        wrap(schedule).total_steps(epochs)
    wrap(Schedule(ratio=1.0, period=40)).total_steps(30)  # plain training, as asked for
    wrap(Schedule(period=40)).total_steps(0)
    loader = wrap(Schedule(period=40))
    assert [loader.steps(epoch) for epoch in (1, 30, 40, 41)] == [10, 10, 10, 10]
    for _ in range(2):
        loader.tracker.record(range(100), np.arange(100.0))
        loader.end_epoch()
    assert loader.total_steps(2) == 20  # how many there were
    later = wrap(Schedule(period=2))
    for _ in range(3):
        later.tracker.record(range(100), np.arange(100.0))
        later.end_epoch()
    later.total_steps(5)  # a stage has ended


def runs() -> list[Any]:
    schedule = Schedule(0.5, 1, 3)
    loss = kcd.CondensedLoss(torch.nn.CrossEntropyLoss(reduction="none"), kcd.KnowledgeValueTracker(100))
    return [
        wrap(schedule),
        kcd.wrap_loader(DataLoader(Plain(100), 10), schedule=schedule, sharded=True),
        kcd.Condensation(kcd.CondensedSampler(100), schedule=schedule),
        kcd.Condensation(loss, schedule=schedule),
        kcd.CondensedStream(key=int, slots=200, schedule=schedule),
    ]


@pytest.mark.parametrize("which", range(5))
def test_a_run_says_when_its_next_stage_is_due(which: int) -> None:
    run, again = runs()[which], runs()[which]
    tracker = run.tracker
    for epoch in range(1, 8):
        due = 3 * -(-epoch // 3)
        assert f"next stage due after epoch {due}" in repr(run)
        if epoch <= 3:
            expected = "no stage ended yet; the first is due after epoch 3"
            assert str(run.history) == str(copy.deepcopy(run.history)) == expected
            again.load_state_dict(run.state_dict())
            assert str(again.history) == expected
            assert f"next stage due after epoch {due}" in repr(again)
        else:
            assert str(run.history).startswith("stage  epoch")
        tracker.record(range(100), np.arange(100.0))
        run.end_epoch()


def test_a_history_without_a_schedule() -> None:
    history = kcd.CondensationHistory(4)
    assert (
        str(history) == str(kcd.CondensationHistory.from_state(history.state_dict())) == "no stage ended yet"
    )


# -- nothing to drop --------------------------------------------------------------------------------------


@given(
    n=st.integers(1, 60),
    ratio=st.sampled_from([0.05, 0.5, 0.7, 0.99, 1.0]),
    stages=st.integers(1, 12),
)
def test_whether_anything_is_dropped(n: int, ratio: float, stages: int) -> None:
    schedule = Schedule(ratio, stages, 1)
    assert schedule.drops(n) == (schedule.size(n, 100) < n)


def test_a_schedule_that_drops_nothing_of_so_few_samples_is_told() -> None:
    for make in (
        lambda: wrap(Schedule(), n=19),
        lambda: kcd.Condensation(kcd.CondensedSampler(19), schedule=Schedule()),
    ):
        (text,) = told(make)
        assert (
            "will drop nothing of 19 samples: a stage would drop 0.3 / 6 of them, which is less than one"
            in text
        )
    kcd.CondensedStream(key=int, slots=19, schedule=Schedule())  # of which nobody knows the samples
    wrap(Schedule(), n=20)
    wrap(Schedule(ratio=1.0), n=19)


# -- no batch ---------------------------------------------------------------------------------------------


@given(
    n=st.integers(1, 60),
    batch_size=st.integers(1, 20),
    ranks=st.integers(1, 5),
    drop_last=st.booleans(),
    cut=st.booleans(),
    ratio=st.sampled_from([0.01, 0.3, 0.7]),
    stages=st.integers(1, 4),
)
def test_the_first_epoch_without_a_batch_is_told_at_wrapping(
    n: int, batch_size: int, ranks: int, drop_last: bool, cut: bool, ratio: float, stages: int
) -> None:
    sampler: Any = DistributedSampler(Plain(n), ranks, 0, drop_last=cut)
    plain: Any = DataLoader(Plain(n), batch_size, sampler=sampler, drop_last=drop_last)
    made = []
    texts = told(
        lambda: made.append(kcd.wrap_loader(plain, schedule=Schedule(ratio, stages, 2), mixing=None))
    )
    empty = [epoch for epoch in range(1, 21) if made[0].steps(epoch) == 0]
    assert [text.split(":")[0] for text in texts if "batch" in text] == [
        f"epoch {epoch} will have no batch" for epoch in empty[:1]
    ]


def test_an_epoch_without_a_batch_says_why() -> None:
    class Less(Schedule):
        def target(self, num_samples: int, previous: int) -> int:
            return 9 if previous > 9 else num_samples

    made: list[Any] = []
    for schedule in (Schedule(0.09, 1, 1), Less(period=1)):
        (text,) = told(lambda schedule=schedule: made.append(wrap(schedule, drop_last=True)))
        assert text == (
            "epoch 2 will have no batch: drop_last leaves nothing of 9 samples in batches of 10; use a smaller batch, a "
            "higher ratio, or drop_last=False"
        )
        loader = made.pop()
        loader = pickle.loads(pickle.dumps(loader)) if type(schedule) is Schedule else loader
        for x, _ in loader:
            loader.record(torch.stack([x.flatten(1).sum(1), x.flatten(1).sum(1) * 0], 1).float())
        loader.end_epoch()
        assert list(loader) == []
        (text,) = told(loader.end_epoch)  # and not that record() was never called
        assert text.startswith(
            "epoch 2 had no batch, so nothing was learned in it: drop_last leaves nothing of 9"
        )


def test_a_rank_without_samples_is_told() -> None:
    sampler: Any = DistributedSampler(Plain(20), 8, 0, drop_last=True)
    plain: Any = DataLoader(Plain(20), 4, sampler=sampler)
    (text,) = told(lambda: kcd.wrap_loader(plain, schedule=Schedule(0.3, 1, 1)))
    assert "epoch 2 will have no batch: drop_last leaves nothing of 6 samples on 8 ranks" in text
