"""Which samples an epoch of the study draws, and for which rows of a batch the teacher is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import kcd_core as kcd

from .material import Material, View
from .standins import StandIn

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
        self.standin: StandIn | None = None

    def draw(self, epoch: int) -> Indices:
        """The samples of an epoch, in order."""
        self.sampler.set_epoch(epoch)
        return np.fromiter(self.sampler, np.int64, len(self.sampler))

    def weights(self, indices: Indices) -> torch.Tensor | None:
        """What the samples' losses are multiplied by; None is 1."""
        return None

    def asked(self, indices: Indices, logits: torch.Tensor) -> Indices | None:
        """The rows of a batch for which the teacher is asked; None is all. ``logits`` are the student's."""
        return None

    def record(
        self,
        indices: Indices,
        logits: torch.Tensor,
        losses: torch.Tensor,
        teacher_logits: torch.Tensor | None,
    ) -> None:
        """Take note of a batch. ``teacher_logits`` is None where the teacher was not asked for all of it."""

    def end_epoch(self, epoch: int) -> None:
        """Choose anew, if it is time."""


class Condensed(Everything):
    """KCD by hand. What is mixed is mixed once a stage, and seen by the teacher then.

    With ``ask``, the teacher is asked for that share of all samples: those of highest value, or ``by_chance`` others in
    every epoch. Mixed ones are asked for in any case. ``normalisation`` is that of `kcd.gated_loss`, which a
    ``standin`` takes the place of.
    """

    def __init__(
        self,
        *args: Any,
        alpha: float = 0.03,
        mixing: str | None = None,
        select: Any = None,
        value: str = "entropy",
        statistic: str = "mean",
        floors: bool = False,
        full_end: float = 0.0,
        ask: float = 0.0,
        by_chance: bool = False,
        normalisation: Mapping[str, Any] | None = None,
        standin: type[StandIn] | None = None,
    ) -> None:
        super().__init__(*args)
        self.sampler = kcd.CondensedSampler(self.size, seed=self.job.seed, mixing=mixing)
        self.tracker = kcd.KnowledgeValueTracker(self.size, value=value, statistic=statistic)
        self.alpha, self.select = alpha, self.with_floors if floors else select
        self.last_stage = self.job.epochs - math.ceil(full_end * self.job.epochs)
        self.original = self.material
        self.ask = kcd.CondensationSchedule(ask, stages=1, period=1) if ask else None
        self.gate, self.by_chance = kcd.TeacherGate(self.size), by_chance
        self.normalisation = normalisation or {}
        self.standin = standin(self.material.classes) if standin else None

    def asked(self, indices: Indices, logits: torch.Tensor) -> Indices | None:
        if self.ask is None:
            return None
        return np.flatnonzero(self.gate.asked(indices, mixed=self.sampler.recipes.contains(indices)))

    def record(
        self,
        indices: Indices,
        logits: torch.Tensor,
        losses: torch.Tensor,
        teacher_logits: torch.Tensor | None,
    ) -> None:
        self.tracker.update(
            indices,
            logits,
            teacher_logits=teacher_logits,
            targets=self.material.targets[indices],
        )

    def completed(self, teacher: View, rows: Indices, logits: torch.Tensor, targets: torch.Tensor) -> View:
        """The teacher's view of all rows, where it was asked for some: a stand-in's on the others."""
        if not self.gate.stage:  # the first epoch: of all
            self.standin.see(teacher.logits, targets)
            return teacher
        filled = self.standin.fill(logits, targets)
        filled[rows] = teacher.logits
        return View(teacher.features, filled)

    def end_epoch(self, epoch: int) -> None:
        self.tracker.end_epoch()
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

    def record(
        self,
        indices: Indices,
        logits: torch.Tensor,
        losses: torch.Tensor,
        teacher_logits: torch.Tensor | None,
    ) -> None:
        self.scores[indices] = losses.detach()


class Nobody(Everything):
    """The teacher is asked for nothing, so the labels alone are learned."""

    def asked(self, indices: Indices, logits: torch.Tensor) -> Indices | None:
        return np.empty(0, np.int64)


class ByBatchRank(Everything):
    """UNIX's choice (Xu, Liu & Loy, Pattern Recognition 2023) as a gate: the teacher is asked for those samples of a batch
    of which the student as it is now is least certain, a share ``ask`` of them, by entropy.

    UNIX learns from these alone, mixed with the others, and so needs a pass of the student more, to choose. Here all are
    learned, and the one pass does for both. All are asked for in the first epoch, as with the other gates.
    """

    def __init__(self, *args: Any, ask: float) -> None:
        super().__init__(*args)
        self.ask, self.epoch = ask, 1

    def asked(self, indices: Indices, logits: torch.Tensor) -> Indices | None:
        if self.epoch == 1:
            return None
        order = torch.argsort(kcd.entropy(logits), descending=True, stable=True)
        return np.sort(order[: max(1, round(self.ask * len(indices)))].numpy())

    def end_epoch(self, epoch: int) -> None:
        self.epoch = epoch + 1
