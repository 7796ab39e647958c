"""The arms of `distil` and one run of an arm: a student, a teacher run live, three lines of KCD, and a gate."""

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

from ._pictures import Pictures, Size, accuracy_of, model_of
from .part import Part

STAGES = 6


@dataclass(frozen=True)
class Arm:
    """``chooses``: by KCD, by chance, or not at all. ``equal``: KD, stopped at the samples that KC-KD draws.

    ``ask``: the share of the samples that the teacher is asked for.
    """

    title: str
    ratio: float = 1.0
    chooses: str | None = None
    equal: bool = False
    ask: float = 1.0

    @property
    def records(self) -> bool:
        return self.chooses is not None or self.ask < 1


ARMS = {
    "kd": Arm("KD"),
    "kd-equal": Arm("KD at equal samples", 0.7, equal=True),
    # Chooses through condense_step, too, and so records: it costs what KCD costs, but for the mixing.
    "random": Arm("random dropping to 0.7", 0.7, "random"),
    "kc-kd-0.7": Arm("KC-KD at 0.7", 0.7, "kcd"),
    "kc-kd-0.3": Arm("KC-KD at 0.3", 0.3, "kcd"),
    "gate": Arm("KD, a quarter asked", ask=0.25),
    "gate-0.3": Arm("KC-KD at 0.3, a quarter asked", 0.3, "kcd", ask=0.25),
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


def loss_of(
    logits: torch.Tensor, teacher_logits: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor | None
) -> torch.Tensor:
    """The paper's, 0.1 CE + 0.9 KL at temperature 4; with ``rows``, `gated_loss` of them and the others."""
    asked = logits if rows is None else logits[rows]
    student, teacher = (F.log_softmax(x.float() / 4, -1) for x in (asked, teacher_logits))
    if rows is None:
        soft = F.kl_div(student, teacher, reduction="batchmean", log_target=True) * 16
        return 0.1 * F.cross_entropy(logits, targets) + 0.9 * soft
    distilled = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1) * 16
    return kcd.gated_loss(F.cross_entropy(logits, targets, reduction="none"), distilled, rows)


def step(
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    teacher: nn.Module,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """One batch of plain distillation, or with a teacher that is asked for ``rows`` alone; the student's logits."""
    with torch.no_grad():
        asked = inputs if rows is None else inputs[rows]
        teacher_logits = teacher(asked.to(next(teacher.parameters()).dtype))
    logits: torch.Tensor = student(inputs)
    optimizer.zero_grad()
    loss_of(logits, teacher_logits, targets, rows).backward()  # type: ignore[no-untyped-call]
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


class Gate:
    """Which rows of a batch the teacher is asked for. As a loader's, but that `mixed` says what is mixed.

    Their number is rounded up to a multiple of a twentieth of a batch, so that cuDNN meets few shapes.
    """

    def __init__(self, arm: Arm, samples: int, size: Size, device: torch.device) -> None:
        self.gate, self.multiple, self.device = kcd.TeacherGate(samples), multiple_of(size), device
        self.schedule = kcd.CondensationSchedule(arm.ask, stages=1, period=1)
        self.mixed = np.zeros(samples, bool)

    def rows(self, indices: np.ndarray) -> torch.Tensor:
        """On the device, which nothing waits for."""
        asked = self.gate.asked(indices, mixed=self.mixed[indices], multiple=self.multiple)
        rows = torch.from_numpy(np.flatnonzero(asked))
        return rows.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else rows

    def end_epoch(self, tracker: kcd.KnowledgeValueTracker) -> None:
        kcd.condense_step(tracker, self.gate, self.schedule)


def multiple_of(size: Size) -> int:
    return max(1, size.batch // 20)


def run_of(
    arm: Arm, seed: int, period: int, pictures: Pictures, teacher: nn.Module, size: Size, part: Part
) -> dict[str, Any] | None:
    """Distil one student; None if time ran out."""
    samples, device, images = len(pictures.targets), pictures.images.device, pictures.images
    schedule = kcd.CondensationSchedule(arm.ratio, STAGES, period)
    sampler = kcd.CondensedSampler(samples, seed=seed, mixing=None)  # `mixed` carries the mixtures out
    tracker = kcd.KnowledgeValueTracker(samples, device=None if device.type == "cpu" else device)
    gate = Gate(arm, samples, size, device) if arm.ask < 1 else None
    student, optimizer = learner_of(pictures, size, seed)
    lengths = lengths_of(arm, samples, period, size.batch)
    # The paper's milestones, its 240 epochs scaled to those of the arm.
    rate, whole = optimizer.param_groups[0]["lr"], sum(lengths) / samples if arm.equal else len(lengths)
    drawn, queries = [], 0
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
            rows = None if gate is None else gate.rows(indices)
            queries += len(indices) if rows is None else len(rows)
            logits = step(
                student, optimizer, teacher, pictures.inputs(images[at]), pictures.targets[at], rows
            )
            if arm.records:
                tracker.update(indices, logits)  # KCD, line 2
        last = epoch == len(lengths)
        if gate is not None and not last:
            gate.end_epoch(tracker)
        if arm.chooses and schedule.due(epoch) and not last:
            select = "random" if arm.chooses == "random" else None
            chosen = kcd.condense_step(tracker, sampler, schedule, select=select)  # KCD, line 3
            images = mixed(images.clone() if images is pictures.images else images, chosen)
            if gate is not None:
                gate.mixed[chosen.tail] = True
        drawn.append(len(order))
        if part.left() < 1:
            return None
    part.sync()
    return {
        "seed": seed,
        "seconds": time.perf_counter() - start,
        "drawn": sum(drawn),
        "drawn_by_epoch": drawn,
        "queries": queries,
        "accuracy": accuracy_of(student, pictures),
    }


def warm_up(pictures: Pictures, teacher: nn.Module, size: Size, part: Part) -> None:
    """Run every arm once on two batches of images, so that no run that counts is the first to do something.

    The teacher meets every number of rows that a gate asks it for.
    """
    few = slice(2 * size.batch)
    some = replace(pictures, images=pictures.images[few], targets=pictures.targets[few])
    inputs = pictures.inputs(pictures.images[: size.batch]).to(next(teacher.parameters()).dtype)
    with torch.no_grad():
        for rows in range(multiple_of(size), len(inputs) + 1, multiple_of(size)):
            teacher(inputs[:rows])
    for arm in ARMS.values():
        run_of(arm, 0, 1, some, teacher, size, part)
