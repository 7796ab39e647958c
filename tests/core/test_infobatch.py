"""InfoBatch's rule, against its description read a second time, by index and in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Plain, identical_state, index_of
from torch.utils.data import DataLoader

import kcd_core as kcd

N, SEED = 60, 7


def loss_of(index: int, epoch: int) -> float:
    return float(np.random.default_rng([index, epoch]).gamma(1.0) / epoch)


def losses_of(indices: Any, epoch: int) -> torch.Tensor:
    return torch.tensor([loss_of(index, epoch) for index in indices], dtype=torch.float64)


def wrapped(rule: Any, size: int = 8, **options: Any) -> Any:
    loader = DataLoader(Plain(N), batch_size=size, shuffle=True)
    return kcd.wrap_loader(loader, seed=SEED, **{"schedule": None, "select": rule, **options})


def one_epoch(loader: Any, stop: int | None = None) -> dict[int, float]:
    """The weight of each sample drawn."""
    drawn = {}
    for place, batch in enumerate(loader, 1):
        weights = loader.sample_weights
        weights = torch.ones(len(index_of(batch))) if weights is None else weights
        drawn.update(zip(index_of(batch), weights.tolist(), strict=True))
        loader.record(values=losses_of(index_of(batch), loader.epoch).requires_grad_())
        if place == stop:
            return drawn
    loader.end_epoch()
    return drawn


def by_description(epochs: int, prune: float, until: float) -> list[dict[int, float]]:
    """The weight of each sample drawn, epoch by epoch."""
    last: dict[int, float] = {}
    drawn: list[dict[int, float]] = []
    for epoch in range(1, epochs + 1):
        weight_of = dict.fromkeys(range(N), 1.0)
        if 1 < epoch <= math.floor(round(until * epochs, 9)):
            mean = math.fsum(last.values()) / N
            chances = np.random.default_rng([SEED, epoch - 1]).random(N)
            for index in range(N):
                if last[index] < mean:
                    weight_of[index] = 1 / (1 - prune)
                    if chances[index] < prune:
                        del weight_of[index]
        last.update((index, loss_of(index, epoch)) for index in weight_of)
        drawn.append(weight_of)
    return drawn


@pytest.mark.parametrize(
    ("epochs", "prune", "until"),
    [(8, 0.5, 0.875), (10, 0.3, 0.875), (6, 0.75, 1.0), (5, 0.5, 0.5), (3, 0.5, 0.875)],
)
def test_a_run_is_that_of_the_description(epochs: int, prune: float, until: float) -> None:
    loader = wrapped(kcd.InfoBatch(epochs, prune=prune, until=until))
    expected = by_description(epochs, prune, until)
    for epoch in range(epochs):
        found = one_epoch(loader)
        assert set(found) == set(expected[epoch])
        for index, weight in found.items():
            assert weight == np.float32(expected[epoch][index])
    sizes, last = [len(drawn) for drawn in expected], math.floor(until * epochs)
    assert [record["kept"] for record in loader.history] == [*sizes[1:last], N][:last]
    assert loader.total_steps(epochs) == sum(-(-size // 8) for size in sizes)  # now that they have been


@pytest.mark.parametrize(
    ("epochs", "until", "last"),
    [
        (8, 0.875, 7),
        (10, 0.875, 8),
        (100, 0.29, 29),
        (200, 0.875, 175),
        (3, 0.875, 2),
        (2, 1.0, 2),
        (7, 1.0, 7),
        (30, 0.7, 21),
    ],
)
def test_the_last_epoch_that_leaves_out_is_rounded_down(epochs: int, until: float, last: int) -> None:
    schedule = kcd.InfoBatch(epochs, until=until).schedule
    assert schedule == kcd.FreeSchedule(period=1, until=last)
    sizes = [schedule.target_of(stage, N, N) for stage in range(1, last + 1)]
    assert sizes == [None] * (last - 1) + [N] * (last > 0)


@pytest.mark.parametrize(
    ("epochs", "until", "least", "last"),
    [(1, 0.875, 3, 0), (2, 0.875, 3, 1), (6, 0.29, 7, 1), (1, 1.0, 2, 1)],
)
def test_a_run_that_would_leave_nothing_out_is_refused(
    epochs: int, until: float, least: int, last: int
) -> None:
    why = f"epochs must be at least {least} with until={until}, got {epochs}: nothing would .* = {last}$"
    with pytest.raises(ValueError, match=why):
        kcd.InfoBatch(epochs, until=until)
    assert {len(drawn) for drawn in by_description(epochs, 0.5, until)} == {N}
    loader = wrapped(kcd.InfoBatch(least, prune=0.9, until=until))
    assert [len(one_epoch(loader)) < N for _ in range(least)][:2] == [False, True]


def chosen(value: Any, seed: int = 0, count: Any = None, **settings: Any) -> kcd.CondensedSet:
    value = np.asarray(value, float)
    count = np.ones(len(value), int) if count is None else np.asarray(count)
    rule = kcd.InfoBatch(10, **settings)
    return rule(value, count, np.arange(len(value)), None, np.random.default_rng(seed))


@pytest.mark.parametrize("prune", [0.2, 0.5, 0.9])
def test_the_weighed_sum_is_by_expectation_that_of_all(prune: float) -> None:
    losses, seeds = np.random.default_rng(0).gamma(1.0, size=(2, N)), 2000
    sums = []
    for seed in range(seeds):
        one = chosen(losses[0], seed, prune=prune)
        sums.append(
            (losses[1][one.kept] * one.sample_weights).sum()
        )  # of any losses, not only the ones chosen by
    error = np.std(sums) / math.sqrt(seeds)
    assert abs(np.mean(sums) - losses[1].sum()) < 5 * error
    assert error > 0


def test_those_below_the_mean_alone_are_left_out_and_weighed() -> None:
    value = np.random.default_rng(0).gamma(1.0, size=4000)
    one = chosen(value, prune=0.3)
    below = value < value.mean()
    assert one.sample_weights is not None
    assert set(np.flatnonzero(~below)) <= set(one.kept)
    np.testing.assert_array_equal(one.sample_weights, np.where(below[one.kept], np.float32(1 / 0.7), 1))
    left_out = 1 - below[one.kept].sum() / below.sum()
    assert abs(left_out - 0.3) < 5 * math.sqrt(0.3 * 0.7 / below.sum())
    assert len(one.dropped) == len(one.tail) == 0


@pytest.mark.parametrize("value", [[0.1] * 7, [1 / 3] * 10, [0.0] * 3, [-0.1] * 6, [5.0]])
def test_of_equal_values_none_is_below_the_mean(value: list[float]) -> None:
    one = chosen(value, prune=0.99)
    assert one.kept.tolist() == list(range(len(value)))
    assert one.sample_weights.tolist() == [1.0] * len(value)  # type: ignore[union-attr]


def test_a_sample_that_was_never_recorded_stays_and_is_not_in_the_mean() -> None:
    value, count = [1.0, np.nan, 3.0, np.nan, 2.9], [1, 0, 2, 0, 1]  # the mean of three is 2.3
    often = [set(chosen(value, seed, count, prune=0.5).kept.tolist()) for seed in range(20)]
    assert {frozenset(one) for one in often} == {frozenset({1, 2, 3, 4}), frozenset({0, 1, 2, 3, 4})}


def test_a_set_that_is_to_be_all_is_all_and_not_weighed() -> None:
    one = kcd.InfoBatch(10)(np.arange(5.0), np.ones(5, int), np.arange(2), 5, np.random.default_rng(0))
    assert one.kept.tolist() == [0, 1, 2, 3, 4]
    assert one.sample_weights is None


def test_a_run_is_resumed_within_an_epoch() -> None:
    loader, again = (wrapped(kcd.InfoBatch(8)) for _ in range(2))
    for _ in range(2):
        one_epoch(loader)
    before = one_epoch(loader, stop=2)
    again.load_state_dict(loader.state_dict())
    after = one_epoch(again)
    assert not before.keys() & after.keys()
    assert before | after == by_description(8, 0.5, 0.875)[2]
    assert one_epoch(again) == by_description(8, 0.5, 0.875)[3]


@pytest.mark.parametrize("other", [{"epochs": 9}, {"prune": 0.4}, {"until": 0.8}])
def test_another_rule_does_not_go_on(other: dict[str, Any]) -> None:
    loader, reader = wrapped(kcd.InfoBatch(8)), wrapped(kcd.InfoBatch(**{"epochs": 8, **other}))
    one_epoch(loader)
    assert loader.state_dict()["select"] == "InfoBatch(epochs=8, prune=0.5, until=0.875)"
    before = reader.state_dict()
    with pytest.raises(ValueError, match=r"saved with select = 'InfoBatch\(epochs=8, "):
        reader.load_state_dict(loader.state_dict())
    assert identical_state(reader.state_dict(), before)


def test_what_does_not_go_with_it_is_refused_at_construction() -> None:
    rule = kcd.InfoBatch(8)
    with pytest.raises(ValueError, match=r"select=InfoBatch\(.* as it will, .*: give schedule=None, since"):
        wrapped(rule, schedule=kcd.CondensationSchedule(0.5, 1, 1))
    with pytest.raises(ValueError, match="gives samples weights, but a gate"):
        kcd.Condensation(kcd.TeacherGate(N), schedule=None, select=rule)
    with pytest.raises(
        ValueError, match=r"gives samples weights, but a stream|is for values of statistic 'last'"
    ):
        kcd.CondensedStream(range(N), key=int, slots=400, schedule=None, select=rule)
    with pytest.raises(ValueError, match="select needs the values of all samples"):
        wrapped(rule, sharded=True)
    with pytest.raises(ValueError, match="nothing is mixed"):
        wrapped(rule, mixing="fresh")
    with pytest.raises(ValueError, match="nobody knows yet how many samples") as told:
        wrapped(rule).total_steps(8)
    with pytest.warns(UserWarning, match="a run of 1 epochs drops nothing") as warned:
        wrapped(rule).total_steps(1)
    for text in (told.value, warned[0].message):  # what the user did not write is not spoken of
        assert not any(word in str(text) for word in ("FreeSchedule", "period", "warmup"))


def test_beside_a_gate() -> None:
    loader = wrapped(kcd.InfoBatch(4), ask=0.25)
    for _ in range(4):
        one_epoch(loader)
    assert loader.gate.num_kept == 15
    assert [record["kept"] < N for record in loader.history] == [True, True, False]


def test_a_loss_multiplies_by_itself() -> None:
    loss = kcd.CondensedLoss(
        torch.nn.CrossEntropyLoss(reduction="none"), kcd.KnowledgeValueTracker(N, statistic="last")
    )
    run = kcd.Condensation(loss, schedule=None, select=kcd.InfoBatch(3, until=1.0))
    loss.tracker.record(np.arange(N), losses_of(range(N), 1).numpy())
    one = run.end_epoch()
    logits, targets = torch.randn(N, 5), torch.zeros(N, dtype=torch.int64)
    each = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    expected = (each[one.kept] * torch.from_numpy(one.sample_weights)).mean()
    torch.testing.assert_close(loss(logits, targets, indices=np.arange(N), record=False), expected)
