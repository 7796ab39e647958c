"""The arms of `distil` and one run of an arm: a student, a teacher run live, and three lines of KCD."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import kcd_core as kcd
from kcd_adapters.demo.command import random_drop

from ._pictures import Pictures, Size, accuracy_of, model_of
from .part import Part

STAGES = 6


@dataclass(frozen=True)
class Arm:
    """``chooses``: by KCD, by chance, or not at all. ``equal``: KD, stopped at the samples that KC-KD draws."""

    title: str
    ratio: float = 1.0
    chooses: str | None = None
    equal: bool = False


ARMS = {
    "kd": Arm("KD"),
    "kd-equal": Arm("KD at equal samples", 0.7, equal=True),
    # Chooses through condense_step, too, and so records: it costs what KCD costs, but for the mixing.
    "random": Arm("random dropping to 0.7", 0.7, "random"),
    "kc-kd-0.7": Arm("KC-KD at 0.7", 0.7, "kcd"),
    "kc-kd-0.3": Arm("KC-KD at 0.3", 0.3, "kcd"),
}


def lengths_of(arm: Arm, samples: int, period: int, batch: int) -> list[int]:
    """The samples that each epoch draws."""
    schedule = kcd.CondensationSchedule(arm.ratio, STAGES, period)
    sizes = [schedule.size(samples, epoch) for epoch in range(1, STAGES * period + 1)]
    if not arm.equal:
        return sizes
    whole, rest = divmod(sum(sizes), samples)
    # BatchNorm would go by a last batch of a few images in the test: fewer than a batch join the last epoch.
    return [samples] * whole + [rest] if rest >= batch else [samples] * (whole - 1) + [samples + rest]


def learner_of(pictures: Pictures, size: Size, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    student = model_of(size.student, pictures, seed).train()
    rate = 0.1 * math.sqrt(size.batch / 128)
    return student, torch.optim.SGD(student.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)


def loss_of(logits: torch.Tensor, teacher_logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The paper's: 0.1 CE + 0.9 KL at temperature 4."""
    student, teacher = (F.log_softmax(x.float() / 4, -1) for x in (logits, teacher_logits))
    soft = F.kl_div(student, teacher, reduction="batchmean", log_target=True) * 16
    return 0.1 * F.cross_entropy(logits, targets) + 0.9 * soft


def step(
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    teacher: nn.Module,
    inputs: torch.Tensor,
    targets: torch.Tensor,
) -> torch.Tensor:
    """One batch of plain distillation; the student's logits."""
    with torch.no_grad():
        teacher_logits = teacher(inputs.to(next(teacher.parameters()).dtype))
    logits: torch.Tensor = student(inputs)
    optimizer.zero_grad()
    loss_of(logits, teacher_logits, targets).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return logits


def mixed(images: torch.Tensor, chosen: kcd.CondensedSet) -> torch.Tensor:
    """The images with a stage's mixtures, on their device: new ones, or those of the stage before, written to.

    No image is both mixed and mixed in within a stage, so all of a stage are mixed at once; truncated, and
    on top of the stage before, as the authors do.
    """
    tail, dropped, weights = (
        torch.from_numpy(x).to(images.device)
        for x in (chosen.tail, chosen.dropped[: len(chosen.tail)], chosen.weights)
    )
    share = weights.view(-1, 1, 1)
    images[tail] = (images[tail] * share + images[dropped] * (1 - share)).to(images.dtype)
    return images


def run_of(
    arm: Arm, seed: int, period: int, pictures: Pictures, teacher: nn.Module, size: Size, part: Part
) -> dict[str, Any] | None:
    """Distil one student; None if time ran out."""
    samples, device, images = len(pictures.targets), pictures.images.device, pictures.images
    schedule = kcd.CondensationSchedule(arm.ratio, STAGES, period)
    sampler = kcd.CondensedSampler(samples, seed=seed, mixing=None)  # `mixed` carries the mixtures out
    tracker = kcd.KnowledgeValueTracker(samples, device=None if device.type == "cpu" else device)
    student, optimizer = learner_of(pictures, size, seed)
    lengths = lengths_of(arm, samples, period, size.batch)
    # The paper's milestones, its 240 epochs scaled to those of the arm.
    rate, whole = optimizer.param_groups[0]["lr"], sum(lengths) / samples if arm.equal else len(lengths)
    drawn = []
    part.sync()
    start = time.perf_counter()
    for epoch, length in enumerate(lengths, 1):
        passed = (epoch - 1) / whole * 240
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.1 ** sum(passed >= milestone for milestone in (150, 180, 210))
        order = sampler.order(epoch)  # KCD, line 1
        if arm.equal:
            order = np.concatenate([order, sampler.order(epoch + 1)])[:length]
        steps = math.ceil(len(order) / size.batch)
        places = torch.from_numpy(order).to(device)
        # The tracker is given the order as it lies on the host, which costs no synchronisation.
        for indices, at in zip(np.array_split(order, steps), places.tensor_split(steps), strict=True):
            logits = step(student, optimizer, teacher, pictures.inputs(images[at]), pictures.targets[at])
            if arm.chooses:
                tracker.update(indices, logits)  # KCD, line 2
        if arm.chooses and schedule.due(epoch) and epoch < len(lengths):
            select = random_drop if arm.chooses == "random" else None
            chosen = kcd.condense_step(tracker, sampler, schedule, select=select)  # KCD, line 3
            images = mixed(images.clone() if images is pictures.images else images, chosen)
        drawn.append(len(order))
        if part.left() < 1:
            return None
    part.sync()
    return {
        "seed": seed,
        "seconds": time.perf_counter() - start,
        "drawn": sum(drawn),
        "drawn_by_epoch": drawn,
        "accuracy": accuracy_of(student, pictures),
    }


def warm_up(pictures: Pictures, teacher: nn.Module, size: Size, part: Part) -> None:
    """Run every arm once on two batches of images, so that no run that counts is the first to do something."""
    few = slice(2 * size.batch)
    some = replace(pictures, images=pictures.images[few], targets=pictures.targets[few])
    for arm in ARMS.values():
        run_of(arm, 0, 1, some, teacher, size, part)
