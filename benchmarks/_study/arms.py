"""The arms of the study: how they choose, what they learn, and one run of it all."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

import kcd_core as kcd
from kcd_adapters.demo.models import accuracy, build

from .choosers import (
    STAGES,
    ByBatchRank,
    ByChance,
    Condensed,
    Everything,
    FreshRandom,
    Indices,
    InfoBatch,
    Job,
    Nobody,
)
from .data import student_of
from .losses import Loss, distilled, labels, loss_of
from .material import Material, View
from .standins import STAND_INS


def papers(ratio: float, epochs: int) -> kcd.CondensationSchedule:
    """The paper's schedule: its last stage ends with the run."""
    return kcd.CondensationSchedule(ratio, STAGES, period=epochs // STAGES)


def in_stages(stages: int, ratio: float, epochs: int) -> kcd.CondensationSchedule:
    """`papers` with another number of stages, as evenly as whole epochs allow."""
    return kcd.CondensationSchedule(ratio, stages, period=max(1, epochs // stages))


def one_stage(ratio: float, epochs: int) -> kcd.CondensationSchedule:
    """From all samples to the final ratio at once, when the first of the paper's stages ends."""
    return kcd.CondensationSchedule(ratio, 1, period=epochs // STAGES)


def for_epochs(ratio: float, epochs: int) -> kcd.CondensationSchedule:
    """The recommended one, which leaves about as many epochs as a stage has for the final ratio."""
    return kcd.CondensationSchedule.for_epochs(epochs, ratio)


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
    schedule: Callable[[float, int], kcd.CondensationSchedule] = papers  # of the ratio and the run's epochs


SHARES = {"half": 1 / 2, "quarter": 1 / 4}


def in_repositories(standin: str, title: str, loss: str = "kd") -> dict[str, Arm]:
    """Gates where the loss is a repository's own, on all rows: by value and by chance, with a stand-in for the teacher."""
    return {
        standin + ("-chance" if by_chance else "") + f"-{share}" + loss.removeprefix("kd"): Arm(
            f"{title}, {'chance ' if by_chance else ''}{share}",
            Condensed,
            {"ask": size, "by_chance": by_chance, "standin": STAND_INS[standin]},
            loss=loss,
            base=loss,
            free=True,
        )
        for share, size in SHARES.items()
        for by_chance in (False, True)
    }


ARMS = {
    "kd": Arm("KD", free=True),
    "kd-equal": Arm("KD, equal samples", equal=True),
    "kc-kd-v1": Arm("KC-KD v1: by V", Condensed, {"alpha": 0.0}),
    "kc-kd-v2": Arm("KC-KD v2: by V·F^0.03", Condensed),
    "kc-kd-v3": Arm("KC-KD v3: and mixing", Condensed, {"mixing": "cumulative"}),
    "kc-kd-v3-fresh": Arm("KC-KD v3, mixing fresh", Condensed, {"mixing": "fresh"}),
    "random": Arm("random dropping", Condensed, {"select": "random"}),
    "rs2": Arm("RS2: random every epoch", FreshRandom),
    "infobatch": Arm("InfoBatch's rule on KD", InfoBatch, free=True),
    # Explorations beyond the paper.
    "kc-kd-kl": Arm("KC-KD by KD divergence", Condensed, {"value": "kd_divergence"}),
    "rho": Arm("by reducible loss (RHO)", Condensed, {"value": "reducible_loss"}),
    "kc-kd-floors": Arm("KC-KD with class floors", Condensed, {"floors": True}),
    "kc-kd-full-end": Arm("KC-KD, all data at the end", Condensed, {"full_end": 1 / 12}),
    "kc-kd-bn": Arm("KC-KD v2, BatchNorm anew", Condensed, refresh=True),
    "random-full-end": Arm(
        "random, all data at the end", Condensed, {"select": "random", "full_end": 1 / 12}
    ),
    "kc-kd-stage": Arm("KC-KD v2, V of the stage", Condensed, {"statistic": "stage_mean"}),
    "kc-kd-last": Arm("KC-KD v2, V of the epoch", Condensed, {"statistic": "last"}),
    "kc-kd-variance": Arm("KC-KD v2, V's variance", Condensed, {"statistic": "variance"}),
    "by-chance": Arm("chances in proportion to V", ByChance),
    # Other schedules.
    "kc-kd-for-epochs": Arm("KC-KD v2, for_epochs", Condensed, schedule=for_epochs),
    "kc-kd-v3-for-epochs": Arm(
        "KC-KD v3, for_epochs", Condensed, {"mixing": "cumulative"}, schedule=for_epochs
    ),
    "random-for-epochs": Arm("random, for_epochs", Condensed, {"select": "random"}, schedule=for_epochs),
    "kc-kd-1-stage": Arm("KC-KD v2, 1 stage, early", Condensed, schedule=one_stage),
    "kc-kd-3-stages": Arm("KC-KD v2, 3 stages", Condensed, schedule=partial(in_stages, 3)),
    "kc-kd-12-stages": Arm("KC-KD v2, 12 stages", Condensed, schedule=partial(in_stages, 12)),
    # The teacher is asked for some samples.
    "labels": Arm("labels alone", Nobody, free=True),
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
    "gate-batch-quarter": Arm("by batch rank, quarter", ByBatchRank, {"ask": 1 / 4}, free=True),
    "kc-gate-quarter": Arm("KC-KD v2, gate quarter", Condensed, {"ask": 1 / 4}),
    "kc-gate-eighth": Arm("KC-KD v2, gate eighth", Condensed, {"ask": 1 / 8}),
    "kc-gate-mixed": Arm("KC-KD v3, gate quarter", Condensed, {"ask": 1 / 4, "mixing": "cumulative"}),
    **in_repositories("own", "own logits"),
    **in_repositories("soft", "soft label"),
    **in_repositories("mean", "class mean"),
    **in_repositories("ce", "as CE at 1"),
    # The teacher is asked in the first epoch, and then stood in for on all samples but one.
    "mean-none": Arm("class mean alone", Condensed, {"ask": 1e-9, "standin": STAND_INS["mean"]}, free=True),
    "kd-ce1": Arm("KD, CE 1", loss="kd-ce1", base="kd-ce1", free=True),
    **in_repositories("own", "own, CE 1", "kd-ce1"),
    **in_repositories("mean", "mean, CE 1", "kd-ce1"),
    # Other losses.
    "pkt": Arm("PKT", loss="pkt", base="pkt", free=True),
    "kc-pkt": Arm("KC-PKT", Condensed, {"mixing": "cumulative"}, loss="pkt", base="pkt"),
    "crd": Arm("CRD+KD", loss="crd", base="crd", free=True),
    "kc-crd": Arm("KC-CRD", Condensed, {"mixing": "cumulative"}, loss="crd", base="crd"),
}


def ratio_of(arm: str, ratio: float) -> float:
    """``ratio``, or 1 for arms that have none."""
    return 1.0 if ARMS[arm].free else ratio


def counterpart(arm: str) -> str:
    """The arm that differs in mixing, schedule or value alone, or whose gate asks by chance; "" where there is none."""
    kind, _, rest = arm.partition("-")
    if kind in STAND_INS:
        return f"{kind}-chance-{rest}"
    if kind == "gate":
        return f"chance-{rest}"
    if arm == "kc-kd-v3-for-epochs":
        return "kc-kd-for-epochs"
    if arm == "random-for-epochs":
        return "random"
    alone = {"kc-kd-v3", "kc-kd-kl", "rho", "kc-kd-stage", "kc-kd-last", "kc-kd-variance"}
    return "kc-kd-v2" if arm in alone or ARMS[arm].schedule is not papers else ""


def run(job: Job, material: Material) -> dict[str, Any]:
    """Distil one student; returns what the tables are made of."""
    arm = ARMS[job.arm]
    schedule = arm.schedule(job.ratio, job.epochs)
    last, epochs, size = job.epochs, float(job.epochs), len(material.targets)
    if arm.equal:
        total = sum(schedule.size(size, epoch) for epoch in range(1, job.epochs + 1))
        epochs, (whole, rest) = total / size, divmod(total, size)
        last = whole + (rest >= job.batch)  # a smaller rest joins the last whole epoch, see below
    chooser = arm.chooser(job, material, schedule, **arm.options)
    model = student_of(material.data, job.student, material.train.data.shape[1:])
    student: Any = build(model, material.classes, job.seed)
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
        order, views = chooser.draw(epoch), material.views(job.seed, epoch)
        if arm.equal and epoch == last:
            # A batch of a few images would be the last that BatchNorm goes by in the test.
            order = np.concatenate([order, chooser.draw(epoch + 1)])[: total - sum(drawn)]
        # Batches of nearly one size: BatchNorm can't train on a last batch of one.
        for indices in np.array_split(order, math.ceil(len(order) / job.batch)):
            asked += step(student, optimizer, chooser, indices, loss, views)
        drawn.append(len(order))
        chooser.end_epoch(epoch)
    if arm.refresh:
        estimate_anew(student, material.inputs)
    return {
        **job.__dict__,
        "drawn": sum(drawn),
        "drawn_by_epoch": drawn,
        "asked": asked,
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
    views: Callable[[torch.Tensor], torch.Tensor],
) -> int:
    """One batch: forward, loss, backward, update, record. For how many samples the teacher was asked."""
    material, targets = chooser.material, chooser.material.targets[indices]
    seen = views(material.inputs[indices])
    features = student[:-1](seen)
    view = View(features, student[-1](features))
    rows, weights = chooser.asked(indices, view.logits.detach()), chooser.weights(indices)
    asked = np.arange(len(indices)) if rows is None else rows
    teacher = material.taught(indices[asked], seen[asked])
    if rows is None or chooser.standin:
        if rows is not None:
            teacher = chooser.completed(teacher, rows, view.logits.detach(), targets)
        losses = loss(view, teacher, targets, indices)
        together = (losses if weights is None else losses * weights).mean()
    else:
        losses = labels(view.logits, targets)
        of_teacher = distilled(view.logits[rows], teacher.logits)
        together = kcd.gated_loss(losses, of_teacher, torch.from_numpy(rows), **chooser.normalisation)
    optimizer.zero_grad()
    together.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    chooser.record(indices, view.logits, losses, teacher.logits if rows is None else None)
    return len(asked)
