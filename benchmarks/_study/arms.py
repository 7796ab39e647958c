"""The arms of the study: which samples an epoch draws, what is learnt from them, and one run of it all."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import kcd_core as kcd
from kcd_adapters.demo.command import random_drop
from kcd_adapters.demo.models import accuracy, build

from .losses import Loss, Material, distilled, labels, loss_of, student_of

STAGES = 6
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Job:
    """One run. ``epochs`` are those of an arm that is not stopped early."""

    arm: str
    ratio: float
    student: str
    seed: int
    epochs: int
    batch: int

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.ratio:g}-{self.student}-{self.seed}"


class Everything:
    """All samples, every epoch: plain distillation. The other arms are what differs from this.

    Its order is `kcd.CondensedSampler`'s, so that before their first choice all arms see the same batches.
    """

    def __init__(self, job: Job, material: Material, schedule: kcd.CondensationSchedule) -> None:
        self.job, self.material, self.schedule = job, material, schedule
        self.size = len(material.targets)
        self.sampler = kcd.CondensedSampler(self.size, seed=job.seed, mixing=None)
        self.normalisation: Mapping[str, Any] = {}

    def draw(self, epoch: int) -> Indices:
        """The samples of an epoch, in order."""
        self.sampler.set_epoch(epoch)
        return np.fromiter(self.sampler, np.int64, len(self.sampler))

    def weights(self, indices: Indices) -> torch.Tensor | None:
        """What the samples' losses are multiplied by; None is 1."""
        return None

    def asked(self, indices: Indices) -> Indices | None:
        """The rows of a batch for which the teacher is asked; None is all."""
        return None

    def record(self, indices: Indices, logits: torch.Tensor, losses: torch.Tensor) -> None:
        """Take note of a batch."""

    def end_epoch(self, epoch: int) -> None:
        """Choose anew, if it is time."""


class Condensed(Everything):
    """KCD by hand. What is mixed is mixed once a stage, and seen by the teacher then.

    With ``ask``, the teacher is asked for that share of all samples: those of highest value, or ``by_chance`` others in
    every epoch. Mixed ones are asked for in any case. ``normalisation`` is that of `kcd.gated_loss`.
    """

    def __init__(
        self,
        *args: Any,
        alpha: float = 0.03,
        mixing: str | None = None,
        select: Any = None,
        value: str = "entropy",
        floors: bool = False,
        full_end: float = 0.0,
        ask: float = 0.0,
        by_chance: bool = False,
        normalisation: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(*args)
        self.sampler = kcd.CondensedSampler(self.size, seed=self.job.seed, mixing=mixing)
        self.tracker = kcd.KnowledgeValueTracker(self.size, value=value)
        self.alpha, self.select = alpha, self.with_floors if floors else select
        self.last_stage = self.job.epochs - math.ceil(full_end * self.job.epochs)
        self.original = self.material
        self.ask = kcd.CondensationSchedule(ask, stages=1, period=1) if ask else None
        self.gate, self.by_chance = kcd.TeacherGate(self.size), by_chance
        self.normalisation = normalisation or {}

    def asked(self, indices: Indices) -> Indices | None:
        if self.ask is None:
            return None
        return np.flatnonzero(self.gate.asked(indices, mixed=self.sampler.recipes.contains(indices)))

    def record(self, indices: Indices, logits: torch.Tensor, losses: torch.Tensor) -> None:
        self.tracker.update(
            indices,
            logits,
            teacher_logits=self.material.logits[indices],
            targets=self.material.targets[indices],
        )

    def end_epoch(self, epoch: int) -> None:
        if epoch == self.last_stage < self.job.epochs:
            self.sampler.install(kcd.CondensedSet(np.arange(self.size), self.size, self.sampler.stage + 1))
            self.material = self.original
        elif epoch < self.last_stage and self.schedule.due(epoch):
            kcd.condense_step(self.tracker, self.sampler, self.schedule, alpha=self.alpha, select=self.select)
            mixed = np.unique(self.sampler.recipes.target)
            if len(mixed):
                self.material = self.original.mixed(mixed, self.sampler)
        if self.ask is not None:
            select = self.others if self.by_chance else None
            kcd.condense_step(self.tracker, self.gate, self.ask, alpha=self.alpha, select=select)

    def others(self, value: Any, count: Any, kept: Any, target: int, generator: Any) -> kcd.CondensedSet:
        """As many samples by chance, whichever they were before."""
        order = np.random.default_rng([self.job.seed, self.gate.stage]).permutation(self.size)
        return kcd.CondensedSet(np.sort(order[:target]), self.size)

    def with_floors(self, value: Any, count: Any, kept: Any, target: int, generator: Any) -> kcd.CondensedSet:
        """The ranking, but of each class at least half of what its share of the data would be."""
        ranking, targets = np.argsort(-value, kind="stable"), self.material.targets.numpy()
        first = []
        for label in range(self.material.classes):
            own = ranking[targets[ranking] == label]
            first.append(own[: int(0.5 * target * len(own) / len(ranking))])
        floor = np.concatenate(first)
        rest = ranking[~np.isin(ranking, floor)]
        return kcd.CondensedSet(np.sort(np.concatenate([floor, rest[: target - len(floor)]])), self.size)


class ByChance(Condensed):
    """As many samples as KCD draws, chosen anew every epoch, with chances in proportion to V."""

    def draw(self, epoch: int) -> Indices:
        self.sampler.set_epoch(epoch)
        order = np.fromiter(self.sampler, np.int64, self.size)
        size = self.schedule.size(self.size, epoch)
        if size == self.size:
            return order
        # The highest of log chance + Gumbel noise: drawing without replacement.
        noise = np.random.default_rng([self.job.seed, epoch]).gumbel(size=self.size)
        score = np.log(np.maximum(self.tracker.value, 1e-12)) + noise
        return order[np.isin(order, np.argpartition(-score, size)[:size])]

    def end_epoch(self, epoch: int) -> None:
        pass


class FreshRandom(Everything):
    """As many samples as KCD draws, a new random subset every epoch (RS2; Okanovic et al., ICLR 2024)."""

    def draw(self, epoch: int) -> Indices:
        return super().draw(epoch)[: self.schedule.size(self.size, epoch)]


class InfoBatch(Everything):
    """InfoBatch's rule (Qin et al., ICLR 2024) on this loss, from its published description.

    Every epoch, half of the samples whose last loss is below the mean are left out at random, and those
    of them that stay count twice; the last 12.5 % of the epochs use all samples.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.scores = torch.ones(self.size)
        self.factor = torch.ones(self.size)

    def draw(self, epoch: int) -> Indices:
        order = super().draw(epoch)
        self.factor.fill_(1)
        if epoch > math.floor(0.875 * self.job.epochs):
            return order
        low = (self.scores < self.scores.mean()).numpy()
        left_out = low & (np.random.default_rng([self.job.seed, epoch]).random(self.size) < 0.5)
        self.factor[torch.from_numpy(low)] = 2
        return order[~left_out[order]]

    def weights(self, indices: Indices) -> torch.Tensor | None:
        return self.factor[indices]

    def record(self, indices: Indices, logits: torch.Tensor, losses: torch.Tensor) -> None:
        self.scores[indices] = losses.detach()


@dataclass(frozen=True)
class Arm:
    """What an arm is called, how it chooses, which loss it has, and which arm it is to be compared with."""

    title: str
    chooser: Callable[..., Everything] = Everything
    options: dict[str, Any] = field(default_factory=dict)
    loss: str = "kd"
    base: str = "kd"
    equal: bool = False  # stopped at the number of samples that KCD draws
    refresh: bool = False  # BatchNorm's statistics are those of all images in the end
    free: bool = False  # of the ratio: all samples are drawn, or as many as the arm's own rule says


ARMS = {
    "kd": Arm("KD", free=True),
    "kd-equal": Arm("KD, equal samples", equal=True),
    "kc-kd-v1": Arm("KC-KD v1: by V", Condensed, {"alpha": 0.0}),
    "kc-kd-v2": Arm("KC-KD v2: by V·F^0.03", Condensed),
    "kc-kd-v3": Arm("KC-KD v3: and mixing", Condensed, {"mixing": "cumulative"}),
    "kc-kd-v3-fresh": Arm("KC-KD v3, mixing fresh", Condensed, {"mixing": "fresh"}),
    "random": Arm("random dropping", Condensed, {"select": random_drop}),
    "rs2": Arm("RS2: random every epoch", FreshRandom),
    "infobatch": Arm("InfoBatch's rule on KD", InfoBatch, free=True),
    # Explorations beyond the paper.
    "kc-kd-kl": Arm("KC-KD by KD divergence", Condensed, {"value": "kd_divergence"}),
    "kc-kd-floors": Arm("KC-KD with class floors", Condensed, {"floors": True}),
    "kc-kd-full-end": Arm("KC-KD, all data at the end", Condensed, {"full_end": 1 / 12}),
    "kc-kd-bn": Arm("KC-KD v2, BatchNorm anew", Condensed, refresh=True),
    "random-full-end": Arm(
        "random, all data at the end", Condensed, {"select": random_drop, "full_end": 1 / 12}
    ),
    "by-chance": Arm("chances in proportion to V", ByChance),
    # The teacher is asked for some samples.
    "labels": Arm("labels alone", loss="labels", free=True),
    "gate-half": Arm("gate by V, half", Condensed, {"ask": 1 / 2}, free=True),
    "gate-quarter": Arm("gate by V, quarter", Condensed, {"ask": 1 / 4}, free=True),
    "gate-eighth": Arm("gate by V, eighth", Condensed, {"ask": 1 / 8}, free=True),
    "chance-half": Arm("gate by chance, half", Condensed, {"ask": 1 / 2, "by_chance": True}, free=True),
    "chance-quarter": Arm("gate by chance, quarter", Condensed, {"ask": 1 / 4, "by_chance": True}, free=True),
    "chance-eighth": Arm("gate by chance, eighth", Condensed, {"ask": 1 / 8, "by_chance": True}, free=True),
    "gate-quarter-light": Arm(
        "quarter, labels at 0.1",
        Condensed,
        {"ask": 1 / 4, "normalisation": {"unasked_weight": 0.1}},
        free=True,
    ),
    "gate-quarter-by-asked": Arm(
        "quarter, KD over asked",
        Condensed,
        {"ask": 1 / 4, "normalisation": {"divide_by": "asked"}},
        free=True,
    ),
    "kc-gate-quarter": Arm("KC-KD v2, gate quarter", Condensed, {"ask": 1 / 4}),
    "kc-gate-eighth": Arm("KC-KD v2, gate eighth", Condensed, {"ask": 1 / 8}),
    "kc-gate-mixed": Arm("KC-KD v3, gate quarter", Condensed, {"ask": 1 / 4, "mixing": "cumulative"}),
    # Other losses.
    "pkt": Arm("PKT", loss="pkt", base="pkt", free=True),
    "kc-pkt": Arm("KC-PKT", Condensed, {"mixing": "cumulative"}, loss="pkt", base="pkt"),
    "crd": Arm("CRD+KD", loss="crd", base="crd", free=True),
    "kc-crd": Arm("KC-CRD", Condensed, {"mixing": "cumulative"}, loss="crd", base="crd"),
}


def ratio_of(arm: str, ratio: float) -> float:
    """``ratio``, or 1 for arms that have none."""
    return 1.0 if ARMS[arm].free else ratio


def run(job: Job, material: Material) -> dict[str, Any]:
    """Distil one student; returns what the tables are made of."""
    arm = ARMS[job.arm]
    schedule = kcd.CondensationSchedule(job.ratio, STAGES, period=job.epochs // STAGES)
    last, epochs, size = job.epochs, float(job.epochs), len(material.targets)
    if arm.equal:
        total = sum(schedule.size(size, epoch) for epoch in range(1, job.epochs + 1))
        epochs, (whole, rest) = total / size, divmod(total, size)
        last = whole + (rest >= job.batch)  # a smaller rest joins the last whole epoch, see below
    chooser = arm.chooser(job, material, schedule, **arm.options)
    student: Any = build(student_of(job.student), material.classes, job.seed)
    loss = loss_of(arm.loss, material, student[-1].in_features, job.seed)
    learning = [*student.parameters(), *(loss.parameters() if isinstance(loss, nn.Module) else ())]
    # The paper's, its batch of 64 and its 240 epochs scaled.
    rate, milestones = 0.05 * job.batch / 64, [epochs * of_240 / 240 for of_240 in (150, 180, 210)]
    optimizer = torch.optim.SGD(learning, lr=rate, momentum=0.9, weight_decay=5e-4)
    student.train()
    drawn, asked = [], 0
    wall, cpu = time.perf_counter(), time.process_time()
    for epoch in range(1, last + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.1 ** sum(epoch - 1 >= milestone for milestone in milestones)
        order = chooser.draw(epoch)
        if arm.equal and epoch == last:
            # A batch of a few images would be the last that BatchNorm goes by in the test.
            order = np.concatenate([order, chooser.draw(epoch + 1)])[: total - sum(drawn)]
        # Batches of nearly one size: BatchNorm can't train on a last batch of one.
        for indices in np.array_split(order, math.ceil(len(order) / job.batch)):
            asked += step(student, optimizer, chooser, indices, loss)
        drawn.append(len(order))
        chooser.end_epoch(epoch)
    if arm.refresh:
        estimate_anew(student, material.inputs)
    return {
        **job.__dict__,
        "drawn": sum(drawn),
        "drawn_by_epoch": drawn,
        "asked": 0 if arm.loss == "labels" else asked,
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "accuracy": accuracy(student, material.test, torch.device("cpu")),
    }


@torch.no_grad()
def estimate_anew(student: nn.Module, inputs: torch.Tensor) -> None:
    """BatchNorm's running statistics, as the mean over one pass without learning."""
    for layer in student.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    for part in inputs.split(250):
        student(part)


def step(
    student: nn.Sequential,
    optimizer: torch.optim.Optimizer,
    chooser: Everything,
    indices: Indices,
    loss: Loss,
) -> int:
    """One batch: forward, loss, backward, update, record. For how many samples the teacher was asked."""
    features = student[:-1](chooser.material.inputs[indices])
    logits = student[-1](features)
    rows, weights = chooser.asked(indices), chooser.weights(indices)
    if rows is None:
        losses = loss(logits, features, chooser.material, indices)
        together = (losses if weights is None else losses * weights).mean()
    else:
        losses = labels(logits, features, chooser.material, indices)
        of_teacher = distilled(logits[rows], chooser.material, indices[rows])
        together = kcd.gated_loss(losses, of_teacher, torch.from_numpy(rows), **chooser.normalisation)
    optimizer.zero_grad()
    together.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    chooser.record(indices, logits, losses)
    return len(indices if rows is None else rows)
