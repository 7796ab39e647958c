"""Learning rates that a script schedules by the step: said where they come late, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from test_auto import Loops, loops  # noqa: F401
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from kcd_adapters.hosts.engine import Engine
from kcd_adapters.profiles import Profile
from kcd_adapters.settings import Settings

PROFILE = Profile("mini", "Mini", "train.py", (), "torch.nn.functional.cross_entropy", lambda arguments: "kd")
HALF = Settings(ratio=0.5, stages=1, period=2, mixing="none")  # of 5 batches, 3 from epoch 3 on
TOLD = "is stepped once for each step of the optimizer"


def said_in(
    make: Any,
    capsys: pytest.CaptureFixture[str],
    *,
    settings: Settings = HALF,
    profile: Profile = PROFILE,
    epochs: int = 4,
    batch: int = 8,
    accumulate: int = 1,
    step: Any = None,
) -> list[int]:
    """After how many epochs a warning was printed, in a script that trains with a scheduler."""
    engine = Engine(settings, profile, [])
    model = torch.nn.Linear(1, 3)
    loader = DataLoader(TensorDataset(torch.arange(40.0)[:, None], torch.arange(40) % 3), batch, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = make(optimizer)
    engine.by_steps.made(None, scheduler, optimizer)
    step = step or (lambda scheduler, epoch, place: scheduler.step())
    said = []
    for epoch in range(epochs):
        hosted = engine.hosted(loader)
        assert hosted is not None
        batches = engine.start(hosted)
        out = capsys.readouterr().out
        said += [epoch] * out.count(f"WARNING: {type(scheduler).__name__} {TOLD}")
        for place, (x, y) in enumerate(batches):
            engine.observe(model(x), y)
            if (place + 1) % accumulate == 0:
                optimizer.step()
                step(scheduler, epoch, place)
    return said


def one_cycle(optimizer: Any, steps: int = 20) -> Any:
    return lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)


def constant(optimizer: Any, steps: int) -> Any:
    return lr_scheduler.ConstantLR(optimizer, total_iters=steps)


def unplanned(optimizer: Any) -> Any:
    return lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))


def restarts(optimizer: Any) -> Any:
    return lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=2)


@pytest.mark.parametrize(
    ("make", "after", "options"),
    [
        (
            one_cycle,
            [1],
            {},
        ),  # as soon as it is known: what it is for is longer than the epochs of all samples
        (partial(lr_scheduler.CosineAnnealingLR, T_max=20), [1], {}),
        (unplanned, [2], {}),  # it may have been for a warm-up
        (restarts, [2], {}),
        (partial(constant, steps=12), [1], {}),  # a warm-up that gets late itself
        (one_cycle, [1], {"accumulate": 2}),
    ],
    ids=["one_cycle", "cosine", "unplanned", "restarts", "long_warmup", "accumulated"],
)
def test_a_schedule_that_counts_steps_is_told_once(
    make: Any, after: list[int], options: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said_in(make, capsys, **options) == after


def by_epoch(scheduler: Any, epoch: int, place: int) -> None:
    if place == 0:
        scheduler.step()


def by_share(scheduler: Any, epoch: int, place: int) -> None:
    scheduler.step(epoch + place / 5)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (unplanned, {"step": by_epoch}),
        (restarts, {"step": by_share}),
        (one_cycle, {"batch": 40}),  # one batch an epoch
        (unplanned, {"accumulate": 5}),  # one step an epoch
        (partial(constant, steps=5), {}),  # a warm-up in the first epoch
        (partial(constant, steps=10), {}),
        (one_cycle, {"settings": replace(HALF, ratio=1.0)}),
        (one_cycle, {"settings": replace(HALF, ratio=0.99)}),  # which drops nothing of 40
        (one_cycle, {"settings": replace(HALF, ratio=0.9), "batch": 16}),  # as many batches
        (one_cycle, {"profile": replace(PROFILE, paces=True)}),
        (one_cycle, {"profile": replace(PROFILE, epochs=lambda arguments: 2)}),
    ],
    ids=[
        *(
            "by_epoch",
            "by_share",
            "one_batch",
            "one_step",
            "warmup",
            "warmup_until_the_stage",
            "plain",
            "drops_nothing",
        ),
        *("as_many_batches", "paced", "too_few_epochs"),
    ],
)
def test_where_nothing_gets_late_nothing_is_said(
    make: Any, options: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said_in(make, capsys, **options) == []


def test_when_it_is_said_nothing_is_watched_any_more(capsys: pytest.CaptureFixture[str]) -> None:
    from torch.optim.optimizer import _global_optimizer_pre_hooks as hooks

    before = len(hooks)
    said_in(one_cycle, capsys, epochs=1)
    assert len(hooks) == before + 1
    said_in(one_cycle, capsys, epochs=2)
    assert len(hooks) == before + 1


@pytest.mark.parametrize(("loop", "times"), [("by_the_step", 1), ("by_the_epoch", 0)])
def test_under_kcd_run_the_line_has_the_numbers(
    loops: Loops,  # noqa: F811
    tmp_path: Path,
    loop: str,
    times: int,
) -> None:
    output, notes = loops.run(tmp_path, loop)
    assert output.count(f"WARNING: OneCycleLR {TOLD}") == output.count("WARNING") == times
    assert len(notes) == 17
    if times:
        assert "epochs have 6 batches at first and 5 now." in output
        assert "the end of its schedule: 4 epochs have 17 batches in place of 24. Make the" in output
