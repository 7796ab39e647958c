"""A whole training run in small, made to be killed and started again: what `kills.py` kills.

Distils a student (dropout, BatchNorm) from a fixed teacher on synthetic images: two workers,
images mixed at every stage, augmentation seeded by (epoch, index), bfloat16 autocast, gradient scaling, a
schedule per step. Saves everything at each step and between epochs, and goes on from its checkpoint if there is one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

import kcd_core as kcd

SAMPLES, CLASSES, EPOCHS, BATCH = 240, 4, 8, 16
SCHEDULE = kcd.CondensationSchedule(ratio=0.5, stages=4, period=2)


class Images:
    """Noisy patterns, one for each class; shifted anew in each epoch."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        patterns = rng.integers(0, 128, (CLASSES, 8, 8, 3))
        self.targets = rng.integers(0, CLASSES, SAMPLES)
        self.data = (patterns[self.targets] + rng.integers(0, 128, (SAMPLES, 8, 8, 3))).astype(np.uint8)
        self.epoch = 1

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        shift = np.random.default_rng([self.epoch, index]).integers(-1, 2, 2)
        image = np.roll(self.data[index], shift, (0, 1)).astype(np.float32) / 255
        return torch.from_numpy(image.transpose(2, 0, 1).copy()), int(self.targets[index])


def student() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(288, CLASSES)
    )  # fmt: skip


def begin(path: Path, says: Any) -> None:
    """In a process, and a session, of its own: train, and say when that begins."""
    os.setsid()
    with open(path.with_suffix(".err"), "ab") as errors:  # workers complain of their parent's death there
        os.dup2(errors.fileno(), 2)
    train(path, lambda: says.send(None))


def train(path: Path, begins: Callable[[], object]) -> None:
    """Save to ``path``, or go on from there; ``begins`` is called once all is loaded."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    teacher, model, dataset = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES)), student(), Images()
    # With a generator of its own, the loader leaves the global one to the training: a resume starts one
    # more pass than the run it goes on with, and would draw once more.
    loader = kcd.wrap_loader(
        DataLoader(dataset, BATCH, shuffle=True, num_workers=2, multiprocessing_context="fork", generator=torch.Generator()), schedule=SCHEDULE, return_index=True
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=loader.total_steps(EPOCHS) + 1)
    scaler: Any = (
        torch.amp.GradScaler("cpu", growth_interval=9)
        if hasattr(torch.amp, "GradScaler")
        else torch.cuda.amp.GradScaler(enabled=False)
    )
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "scaler": scaler, "loader": loader}
    drawn = ""  # of all keys and pixels so far, in their order

    def save() -> None:
        states = {name: part.state_dict() for name, part in parts.items()}
        kcd.save_checkpoint(path, {**states, "random": torch.get_rng_state(), "drawn": drawn})

    if path.exists():
        state = kcd.load_checkpoint(path)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["random"])
        drawn = state["drawn"]
    begins()
    while loader.epoch <= EPOCHS:
        dataset.epoch = loader.epoch
        for indices, (images, targets) in loader:
            digest = hashlib.sha256(f"{drawn} {loader.epoch} {indices.tolist()}".encode())
            digest.update(images.numpy().tobytes())
            drawn = digest.hexdigest()
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(images)
                with torch.no_grad():
                    wanted = teacher(images) * 4 + nn.functional.one_hot(targets, CLASSES) * 4
            loss = nn.functional.cross_entropy(logits.float(), wanted.float().softmax(1))
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            loader.record(logits)
            save()
        loader.end_epoch()
        save()
