"""Stages whose sizes nobody fixes ahead."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Plain, index_of, logits_of
from torch.utils.data import DataLoader

import kcd_core as kcd

N = 40
GIVEN = [(1, None), (1, 5), (2, 5), (2, 6), (3, 2), (3, 3), (5, 0), (4, 13)]


def some(value: Any, count: Any, kept: Any, target: Any, generator: Any) -> kcd.CondensedSet:
    size = generator.integers(1, len(value)) if target is None else target
    return kcd.CondensedSet(np.sort(generator.permutation(len(value))[:size]), len(value))


def half(value: Any, count: Any, kept: Any, target: Any, generator: Any) -> kcd.CondensedSet:
    return kcd.CondensedSet(np.arange(target or len(value) // 2), len(value))


def wrapped(schedule: Any, size: int = 7, **options: Any) -> Any:
    loader = DataLoader(Plain(N), batch_size=size, shuffle=True, drop_last=options.pop("drop_last", False))
    return kcd.wrap_loader(
        loader, seed=3, schedule=schedule, select=options.pop("select", some), mixing=None, **options
    )


def one_epoch(loader: Any) -> tuple[int, int]:
    """Batches and samples."""
    drawn = []
    for batch in loader:
        loader.record(logits_of(index_of(batch), loader.epoch))
        drawn.append(len(index_of(batch)))
    loader.end_epoch()
    return len(drawn), sum(drawn)


@pytest.mark.parametrize(("period", "until"), GIVEN)
def test_when_a_stage_ends(period: int, until: int | None) -> None:
    schedule = kcd.FreeSchedule(period, until)
    due = [epoch for epoch in range(1, 30) if schedule.due(epoch)]
    last = 29 if until is None else until
    expected = {epoch for epoch in range(1, last + 1) if epoch % period == 0} | ({until} - {None, 0})
    assert set(due) == expected
    for epoch in range(1, 25):
        assert schedule.next_due(epoch) == next((each for each in due if each >= epoch), None)
    targets = [schedule.target_of(stage, N, previous=7) for stage in range(1, len(due) + 1)]
    assert targets == [N if epoch == until else None for epoch in due]
    assert schedule.drops(N) == (None in targets)
    assert schedule.target(N, 7) is None


def test_words_state_and_equality() -> None:
    schedule = kcd.FreeSchedule(2, 5)
    assert schedule.next_stage(1) == "due after epoch 2"
    assert schedule.next_stage(6) == "never due"
    assert repr(schedule) == "FreeSchedule(period=2, until=5)"
    assert schedule.state_dict() == {"period": 2, "until": 5}
    assert schedule == kcd.FreeSchedule(2, 5) != kcd.FreeSchedule(2, 6)
    assert hash(schedule) == hash(kcd.FreeSchedule(2, 5))
    assert dataclasses.replace(schedule, until=6) == kcd.FreeSchedule(2, 6)
    assert dataclasses.replace(kcd.FreeSchedule(2), period=3) == kcd.FreeSchedule(3)
    assert type(dataclasses.replace(Late(), period=4)) is Late
    with pytest.raises((TypeError, ValueError), match="ratio"):
        dataclasses.replace(schedule, ratio=0.5)
    with pytest.raises(TypeError, match="a FreeSchedule has no ratio"):
        kcd.FreeSchedule.for_epochs(10, ratio=0.5)


@pytest.mark.parametrize(("period", "until"), GIVEN)
def test_lengths_that_are_known_are_exact_and_of_others_it_is_an_error(
    period: int, until: int | None
) -> None:
    epochs, loader = 8, wrapped(kcd.FreeSchedule(period, until))
    promised: list[dict[int, int]] = []
    real = []
    for epoch in range(1, epochs + 1):
        known = {}
        for each in range(1, epochs + 3):
            with contextlib.suppress(ValueError):
                known[each] = loader.steps(each)
        promised.append(known)
        due = loader.schedule.next_due(epoch) or math.inf
        expected = {
            each for each in range(1, epochs + 3) if each <= due or (until is not None and each > until)
        }
        assert set(known) == expected
        real.append(one_epoch(loader)[0])
    for known in promised:
        for each, steps in known.items():
            if each <= epochs:
                assert steps == real[each - 1]
            else:
                assert steps == 6
    assert loader.total_steps(epochs) == sum(real)  # what has been, is known


class Late(kcd.FreeSchedule):
    def due(self, epoch: int) -> bool:
        return epoch in (2, 1500)


def test_a_subclass_says_when_a_stage_ends() -> None:
    schedule = Late()
    assert [schedule.next_due(epoch) for epoch in (1, 2, 3, 501, 1501)] == [2, 2, None, 1500, None]
    assert (schedule.next_stage(1), schedule.next_stage(3)) == (
        "due after epoch 2",
        "not due within 1000 epochs",
    )
    loader = wrapped(schedule, select=half)
    assert loader.steps(2) == 6
    with pytest.raises(ValueError, match="nobody knows yet how many samples epoch 3 has"):
        loader.steps(3)
    assert [one_epoch(loader)[1] for _ in range(3)] == [N, N, N // 2]
    assert loader.steps(1500) == 3
    with pytest.raises(ValueError, match="nobody knows yet how many samples epoch 1501 has"):
        loader.steps(1501)
    with pytest.raises(ValueError, match=r"until goes with FreeSchedule's own due\(\), and Late has another"):
        Late(1, 5)


def test_total_steps_is_an_error_with_advice() -> None:
    with pytest.raises(
        ValueError, match="schedule the learning rate by epochs, or by the share of them that is done"
    ):
        wrapped(kcd.FreeSchedule(1, 5)).total_steps(8)
    assert wrapped(kcd.FreeSchedule(3, 2)).total_steps(8) == 8 * 6  # no stage is free


def test_a_set_of_any_size_is_taken_and_the_last_stage_must_keep_all() -> None:
    loader = wrapped(kcd.FreeSchedule(1, 4))
    sizes = [one_epoch(loader)[1] for _ in range(6)]
    assert sizes[0] == sizes[4] == sizes[5] == N
    assert len({*sizes[1:4]}) > 1
    assert [record["kept"] for record in loader.history] == sizes[1:5]

    def few(value: Any, count: Any, kept: Any, target: Any, generator: Any) -> kcd.CondensedSet:
        return kcd.CondensedSet([0], len(value))

    loader = wrapped(kcd.FreeSchedule(1, 2), select=few)
    assert one_epoch(loader)[1] == N
    with pytest.raises(ValueError, match="select must keep exactly 40 of 40 samples, got 1 of 40"):
        one_epoch(loader)

    def others(value: Any, count: Any, kept: Any, target: Any, generator: Any) -> kcd.CondensedSet:
        return kcd.CondensedSet([0], len(value) + 1)

    with pytest.raises(ValueError, match="select must keep some of 40 samples, got 1 of 41"):
        one_epoch(wrapped(kcd.FreeSchedule(), select=others))


def test_an_epoch_without_a_batch_is_told_when_it_is_over() -> None:
    def one(value: Any, count: Any, kept: Any, target: Any, generator: Any) -> kcd.CondensedSet:
        return kcd.CondensedSet([0], len(value))

    loader = wrapped(kcd.FreeSchedule(), drop_last=True, select=one)  # nothing is known ahead
    one_epoch(loader)
    assert len(loader) == 0
    with pytest.warns(UserWarning, match="epoch 2 had no batch"):
        loader.end_epoch()
    with pytest.warns(UserWarning, match="epoch 1 will have no batch"):
        wrapped(kcd.FreeSchedule(), size=64, drop_last=True)


def test_a_trainers_set_epoch_is_told_what_can_be_scheduled_by() -> None:
    with pytest.warns(UserWarning, match="a scheduler over epochs"):
        wrapped(kcd.FreeSchedule()).set_epoch(0)


def test_a_run_is_resumed_and_others_are_refused() -> None:
    loader, again = (wrapped(kcd.FreeSchedule(1, 4)) for _ in range(2))
    one_epoch(loader)
    again.load_state_dict(loader.state_dict())
    assert [one_epoch(loader) for _ in range(5)] == [one_epoch(again) for _ in range(5)]
    for other in (kcd.FreeSchedule(1, 5), kcd.CondensationSchedule(0.5, 1, 1)):
        with pytest.raises(ValueError, match="schedule"):
            wrapped(other).load_state_dict(loader.state_dict())


class Halving(kcd.CondensationSchedule):
    """A user's own, which knows nothing of stages by number."""

    def due(self, epoch: int) -> bool:
        return epoch in (2, 3)

    def target(self, num_samples: int, previous: int) -> int:
        return previous // 2


def test_a_schedule_of_ones_own_is_asked_as_before() -> None:
    loader = wrapped(Halving())
    assert [loader.steps(epoch) for epoch in (1, 2, 3, 4)] == [6, 6, 3, 2]
    assert [one_epoch(loader)[1] for _ in range(4)] == [40, 40, 20, 10]
    assert not Halving().free
    assert Halving().target_of(5, 40, 20) == 10


def test_a_stream_keeps_any_number() -> None:
    stream = kcd.CondensedStream(range(N), key=int, slots=400, schedule=kcd.FreeSchedule(1, 2), select=half)
    stream.record(logits_of(range(N), 1), ids=np.arange(N))
    few, slots = stream.end_epoch(), stream.history.num_samples
    stream.record(logits_of(range(N), 2), ids=np.arange(N))
    assert len(few.kept) < slots == len(stream.end_epoch().kept)


def test_a_loss_keeps_any_number() -> None:
    loss = kcd.CondensedLoss(torch.nn.CrossEntropyLoss(reduction="none"), kcd.KnowledgeValueTracker(N))
    run = kcd.Condensation(loss, schedule=kcd.FreeSchedule(1, 2), select=some)
    for epoch in (1, 2):
        loss(logits_of(range(N), epoch), torch.zeros(N, dtype=torch.int64), indices=np.arange(N))
        chosen = run.end_epoch()
        assert (len(chosen.kept) == N) == (epoch == 2)


def test_sets_installed_before_the_run_do_not_bring_the_last_stage_forward() -> None:
    sampler = kcd.CondensedSampler(60, mixing=None)
    for _ in range(2):
        sampler.install(kcd.CondensedSet(np.arange(60), 60))
    run = kcd.Condensation(sampler, schedule=kcd.FreeSchedule(period=1, until=4), select=half)
    sizes = []
    for _ in range(5):
        run.record(values=np.arange(60.0), indices=np.arange(60))
        run.end_epoch()
        sizes.append(sampler.num_kept)
    assert sizes[3:] == [60, 60]
    assert max(sizes[:3]) < 60
