"""How many steps are left, against a count of one batch after the other."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import kcd_core as kcd
from kcd_adapters.trainers.progress import StepsOfEpochs, last_epoch, metrics, samples_of, steps_left, updates

SCHEDULE = kcd.CondensationSchedule(ratio=0.4, stages=3, period=1)
BATCHES = [13, 11, 8, 6, 6, 6]  # of 203, 163, 123, 83, 81, 81 samples


def loader(n: int = 203, **settings: Any) -> Any:
    plain: Any = DataLoader(
        TensorDataset(torch.randn(n, 5)), **{"batch_size": 16, "shuffle": True, **settings}
    )
    return kcd.wrap_loader(plain, schedule=SCHEDULE, mixing=None)


def at(wrapped: Any, epoch: int, batches: int) -> Any:
    """A loader at a place: after so many batches of an epoch."""
    for _ in range(1, epoch):
        for (logits,) in wrapped:
            wrapped.record(logits)
        wrapped.end_epoch()
    for (logits,) in itertools.islice(wrapped, batches):
        wrapped.record(logits)
    return wrapped


@pytest.mark.parametrize(
    ("batches", "accumulate", "steps"), [(13, 1, 13), (13, 4, 4), (12, 4, 3), (1, 8, 1), (0, 2, 0)]
)
def test_updates(batches: int, accumulate: int, steps: int) -> None:
    assert updates(batches, accumulate) == steps


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize(("epoch", "batches"), [(1, 0), (1, 4), (3, 0), (2, 11)])
def test_steps_left_and_the_epoch_they_end_in(epoch: int, batches: int, accumulate: int) -> None:
    wrapped = at(loader(), epoch, batches)
    left = [-(-(BATCHES[epoch - 1] - batches) // accumulate)]
    left += [-(-number // accumulate) for number in BATCHES[epoch:]]
    for epochs in range(epoch, 7):
        due = sum(left[: epochs - epoch + 1])
        assert steps_left(wrapped, epochs, accumulate) == due
        if due:
            assert last_epoch(wrapped, due, accumulate) == epochs
            assert last_epoch(wrapped, due + 1, accumulate) == epochs + 1
    assert steps_left(wrapped, epoch - 1, accumulate) == 0 if epoch > 1 else True
    assert last_epoch(wrapped, 0, accumulate) == epoch - 1


@pytest.mark.parametrize(
    ("epochs", "steps", "samples"),
    [(0.1, 2, 20.3), (1.1, 15, 219.3), (2.5, 28, 203 + 163 + 61.5), (3.0, 32, 489), (3.01, 33, 489.83)],
)
def test_fractions_of_an_epoch(epochs: float, steps: int, samples: float) -> None:
    assert steps_left(loader(), epochs, 1) == steps
    assert samples_of(loader(), epochs) == pytest.approx(samples)


def test_fractions_are_rounded_as_whole_numbers_of_epochs_are_by_hugging_face() -> None:
    even = SimpleNamespace(epoch=1, batches_done=0, steps=lambda epoch, accumulate=1: 10, total_steps=int)
    assert steps_left(even, 2.1, 1) == 21  # though (2.1 - 2) * 10 is more than 1


@pytest.mark.parametrize("ask", [steps_left, last_epoch])
def test_an_epoch_without_a_batch_is_refused(ask: Any) -> None:
    with pytest.warns(UserWarning, match="epoch 4 will have no batch"):
        wrapped = loader(batch_size=100, drop_last=True)
    assert ask(wrapped, 3, 1) == {steps_left: 4, last_epoch: 2}[ask]
    with pytest.raises(ValueError, match="epoch 4 has no batch, and the trainer would end there"):
        ask(wrapped, 5, 1)


def test_a_run_that_drops_nothing_is_told() -> None:
    with pytest.warns(UserWarning, match="a run of 1 epochs drops nothing"):
        last_epoch(loader(), 5, 1)


def test_steps_of_epochs_divide_to_where_the_loader_is() -> None:
    steps = StepsOfEpochs(13, done=3)
    assert (50 // steps, 50 % steps) == (3, 0)
    assert (steps, steps - 1, len(range(2, steps)), f"{steps:,}") == (13, 12, 11, "13")


def test_metrics() -> None:
    assert metrics(at(loader(), 2, 0)) == {
        "kcd/kept": 163,
        "kcd/cut": pytest.approx(1.0, abs=0.7),
        "kcd/saved": 0.0,
    }
    assert metrics(at(loader(), 4, 0))["kcd/saved"] == pytest.approx(1 - (203 + 163 + 123) / 609)
