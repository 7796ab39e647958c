"""The recipes of docs/trainers.md, their own code, with a student that is read a second time.

examples/ has the code, and tests/test_scripts.py sees to it that the page quotes it as it is.
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from common import Samples, Student, expected_sets, on_ranks, summed
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import kcd_core as kcd

EXAMPLES = Path(__file__).parents[3] / "examples"
N, EPOCHS = 203, 5
SCHEDULE = kcd.CondensationSchedule(ratio=0.4, stages=3, period=1)
SIZES = [203, 163, 123, 83, 81]


def recipe(script: str, first: str) -> str:
    """The part of a script that is the recipe: from a line on, up to the next that is not indented."""
    text = (EXAMPLES / script).read_text(encoding="utf-8")
    [found] = re.findall(rf"^{re.escape(first)}.*?(?=^\S)", text, re.MULTILINE | re.DOTALL)
    return str(found)


def wrapped() -> Any:
    return kcd.wrap_loader(
        DataLoader(Samples(), batch_size=16, shuffle=True), schedule=SCHEDULE, mixing=None, seed=3
    )


def check(loader: Any, read: list[list[tuple[int, float]]]) -> None:
    """V, F and the set against an independent reading."""
    assert [len({index for index, _ in epoch}) for epoch in read] == list(map(len, read)) == SIZES
    value, count = summed([pair for epoch in read for pair in epoch], N)
    np.testing.assert_allclose(loader.tracker.value, value, atol=3e-7)
    assert np.array_equal(loader.tracker.count, count)
    assert np.array_equal(loader.sampler.kept, expected_sets(read, N, SCHEDULE)[-1])


# -- Composer ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def composer() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("composer", reason="composer is not installed")


class Composed:
    """A run, from a checkpoint if there is one."""

    def __init__(self, composer: Any, folder: Path | None = None, checkpoint: Path | None = None) -> None:
        self.loader = loader = wrapped()
        names: dict[str, Any] = {}
        exec("from composer import *\n" + recipe("composer_digits.py", "class Condense(Algorithm)"), names)
        evaluated: list[int] = []
        self.evaluated = evaluated

        class Model(composer.ComposerModel):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.student = Student()

            def forward(self, batch: Any) -> Any:
                return self.student(batch[0])

            def eval_forward(self, batch: Any, outputs: Any = None) -> Any:
                evaluated.append(len(batch[0]))
                return self(batch)

            def loss(self, outputs: Any, batch: Any) -> Any:
                return cross_entropy(outputs, batch[1])

            def get_metrics(self, is_train: bool) -> dict[str, Any]:
                return {}

        class NewEpoch(composer.Callback):  # type: ignore[misc,name-defined]
            def epoch_start(self, state: Any, logger: Any) -> None:
                model.student.new_epoch()

        model = Model()
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        save = {"save_folder": str(folder), "save_interval": "4ba"} if folder else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = composer.Trainer(
                model=model,
                train_dataloader=composer.core.DataSpec(
                    loader, get_num_samples_in_batch=lambda batch: len(batch[0])
                ),
                eval_dataloader=DataLoader(Samples(32), batch_size=16),
                max_duration=f"{EPOCHS}ep",
                optimizers=self.optimizer,
                schedulers=composer.optim.LinearScheduler(
                    t_max=f"{loader.total_steps(EPOCHS)}ba", alpha_f=0.0
                ),
                algorithms=[names["Condense"](loader)],
                callbacks=[NewEpoch()],
                spin_dataloaders=False,
                load_path=str(checkpoint) if checkpoint else None,
                device="cpu",
                progress_bar=False,
                **save,
            )
            trainer.fit()
            trainer.close()
        self.read = [epoch for epoch in model.student.read if epoch]
        self.weights = [parameter.detach().clone() for parameter in model.parameters()]


def test_composer_records_evaluates_and_ends_its_schedule(composer: Any, tmp_path: Path) -> None:
    run = Composed(composer, tmp_path)
    check(run.loader, run.read)
    assert sum(run.evaluated) == EPOCHS * 32
    total = run.loader.total_steps(EPOCHS)
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / total)  # in the last step
    checkpoints = sorted(tmp_path.glob("ep*-rank0.pt"))
    assert len(checkpoints) == total // 4
    for checkpoint in checkpoints:
        again = Composed(composer, checkpoint=checkpoint)
        assert all(map(torch.equal, again.weights, run.weights)), checkpoint
        assert np.array_equal(again.loader.tracker.value, run.loader.tracker.value)
        assert again.loader.epoch == EPOCHS + 1


# -- ignite ------------------------------------------------------------------------------------------------


class Ignited:
    """A run up to and with ``until`` batches, or on from a loader's state."""

    def __init__(self, until: int | None = None, before: Ignited | None = None) -> None:
        engine = pytest.importorskip("ignite.engine", reason="ignite is not installed: make test-trainers")
        self.loader, self.student = loader, student = wrapped(), Student()
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.LinearLR(
            optimizer, 1.0, 0.0, total_iters=loader.total_steps(EPOCHS)
        )
        self.parts = loader, student, optimizer, scheduler
        self.evaluated = 0

        def step(engine: Any, batch: Any) -> None:
            logits = student(batch[0])
            optimizer.zero_grad()
            cross_entropy(logits, batch[1]).backward()
            optimizer.step()
            scheduler.step()
            loader.record(logits)

        names: dict[str, Any] = {"loader": loader, "step": step, "EPOCHS": EPOCHS}
        names |= {"Engine": engine.Engine, "Events": engine.Events}
        for first in ("def end_epoch(engine)", "def resume(state)"):
            exec(recipe("ignite_digits.py", first), names)
        self.evaluator = engine.Engine(lambda engine, batch: student(batch[0]))
        end_epoch = names["end_epoch"]

        def end_and_evaluate(trainer: Any) -> None:
            end_epoch(trainer)
            student.eval()
            self.evaluator.run(DataLoader(Samples(32), batch_size=16))
            student.train()
            student.new_epoch()
            self.evaluated += 1

        names["end_epoch"] = end_and_evaluate
        if before is None:
            trainer = engine.Engine(step)
            trainer.add_event_handler(engine.Events.EPOCH_COMPLETED, end_and_evaluate)
            trainer.run(loader, max_iters=until or loader.total_steps(EPOCHS))
        else:
            for mine, saved in zip(self.parts[1:], before.parts[1:], strict=True):
                mine.load_state_dict(saved.state_dict())
            names["resume"](before.loader.state_dict())
        self.rate = optimizer.param_groups[0]["lr"]


def test_ignite_records_evaluates_ends_its_schedule_and_goes_on() -> None:
    run = Ignited()
    check(run.loader, [epoch for epoch in run.student.read if epoch])
    assert (run.evaluated, run.rate) == (EPOCHS, 0)
    for until in (4, 13, 20, 23, 24):
        again = Ignited(before=Ignited(until=until))
        assert torch.equal(again.student.layer.weight, run.student.layer.weight)
        assert np.array_equal(again.loader.tracker.value, run.loader.tracker.value)
        assert (again.loader.epoch, again.rate) == (EPOCHS + 1, 0)


# -- Fabric ------------------------------------------------------------------------------------------------


def train_with_fabric(folder: Path) -> Any:
    """The example's loop on one of two ranks: values, counts, the set, and what the student said there."""
    from lightning.fabric import Fabric

    text = recipe("fabric_digits.py", "def distil(path, last_epoch)")
    assert text.count("devices=1") == text.count("mixing=None") == 1
    text = text.replace("devices=1", 'devices=2, strategy="ddp"')
    names: dict[str, Any] = {"Fabric": Fabric, "DataLoader": DataLoader, "kcd": kcd, "os": os, "torch": torch}
    names |= {"EPOCHS": 7, "train": Samples(240), "network": lambda width: Student()}
    names |= {"teacher": lambda x: None, "kd_loss": lambda logits, nothing: logits.square().mean()}
    exec(text, names)
    student, loader = names["distil"](str(folder / "last.ckpt"), 7)
    return loader.tracker.value, loader.tracker.count, loader.sampler.kept, student.module.read[0]


def test_fabric_on_two_ranks(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="lightning is not installed: make test-trainers")
    ranks = on_ranks(train_with_fabric, tmp_path)
    read = [pair for *_, mine in ranks for pair in mine]
    assert len(read) == sum(kcd.CondensationSchedule.for_epochs(7, ratio=0.3).sizes(240, 7))
    value, count = summed(read, 240)
    assert np.array_equal(sum(counts for _, counts, _, _ in ranks), count)
    recorded = sum(np.nan_to_num(values) * counts for values, counts, _, _ in ranks)
    np.testing.assert_allclose(recorded / count, value, atol=3e-7)
    assert len(ranks[0][2]) == 72
    assert np.array_equal(ranks[0][2], ranks[1][2])
