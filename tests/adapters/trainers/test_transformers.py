"""Hugging Face's Trainer: steps, orders, values and checkpoints are those of the condensed set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="transformers is not installed: run make test-trainers")

import torch
from common import Samples, Student, summed
from transformers import Trainer, TrainingArguments

from kcd_adapters.trainers.transformers import KCDTrainerMixin
from kcd_core import CondensationSchedule

N, EPOCHS = 203, 6
SCHEDULE = CondensationSchedule(ratio=0.4, stages=3, period=1)
DATA = Samples(N, dicts=True)


class DistilTrainer(KCDTrainerMixin, Trainer):  # type: ignore[misc]
    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs.pop("labels")
        logits = model(**inputs)
        self.kcd_record(logits)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return (loss, {"logits": logits}) if return_outputs else loss


def trainer(folder: Path, **settings: Any) -> Any:
    ours = {
        "per_device_train_batch_size": 16,
        "num_train_epochs": EPOCHS,
        "learning_rate": 0.01,
        "logging_steps": 5,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "label_names": ["labels"],
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    args = TrainingArguments(output_dir=str(folder), **{**ours, **settings})
    return DistilTrainer(
        model=Student(), args=args, train_dataset=DATA, eval_dataset=DATA, kcd_schedule=SCHEDULE
    )


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 50), (2, 26)])
def test_steps_and_values(tmp_path: Path, accumulate: int, steps: int) -> None:
    run = trainer(tmp_path, gradient_accumulation_steps=accumulate)
    run.train()
    assert (run.state.global_step, run.state.max_steps, run.state.epoch) == (steps, steps, EPOCHS)
    assert run.lr_scheduler.get_last_lr() == [0.0, 0.0]
    value, count = summed(run.model.read[0], N)
    assert np.abs(np.asarray(run.kcd_loader.tracker.value) - value).max() < 3e-7
    assert (np.asarray(run.kcd_loader.tracker.count) == count).all()
