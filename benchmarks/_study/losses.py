"""What the study distils: images and the teacher's view of them, students, losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

import kcd_core as kcd
from kcd_adapters.demo.datasets import Images
from kcd_adapters.demo.models import build, conv


def teacher_of(side: int) -> Callable[[int], nn.Module]:
    """The teacher for images of ``side`` pixels; its last layer is linear."""

    def make(classes: int) -> nn.Module:
        return nn.Sequential(
            *(nn.Conv2d(1, 32, 5, 2, padding=2, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
            *(conv(32, 64, stride=2), nn.ReLU()),
            *(conv(64, 64), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(64 * (side // 4) ** 2, 128), nn.ReLU(), nn.Linear(128, classes)),
        )

    return make


#: Widths of the students.
STUDENTS = {"small": 8, "large": 16}


def student_of(name: str) -> Callable[[int], nn.Module]:
    """A student as a function of the number of classes; its last layer is linear."""
    width = STUDENTS[name]

    def make(classes: int) -> nn.Module:
        first = nn.Sequential(nn.Conv2d(1, width, 5, 2, padding=2, bias=False), nn.BatchNorm2d(width))
        return nn.Sequential(
            *(first, nn.ReLU()),
            *(conv(width, 2 * width, stride=2), nn.ReLU()),
            *(conv(2 * width, 4 * width), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes)),
        )

    return make


@dataclass(frozen=True)
class Material:
    """Training images as the student and the teacher see them. Nothing is augmented but by KCD, so the
    teacher sees each image once, not once an epoch."""

    train: Images
    test: Images
    classes: int
    teacher: nn.Sequential
    inputs: torch.Tensor  # [N, 1, H, W], normalised
    targets: torch.Tensor  # [N]
    logits: torch.Tensor  # [N, C], the teacher's
    features: torch.Tensor  # [N, D], the teacher's, before its last layer

    def mixed(self, indices: npt.NDArray[np.int64], sampler: kcd.CondensedSampler) -> Material:
        """The same with the images of ``indices`` mixed as ``sampler`` says."""
        images = torch.stack([kcd.mix_arrays(self.train, i, sampler.steps(i))[0] for i in indices.tolist()])
        new = zip(("inputs", "features", "logits"), (images, *look(self.teacher, images)), strict=True)
        place = torch.from_numpy(indices)
        return replace(self, **{name: getattr(self, name).index_copy(0, place, x) for name, x in new})


@torch.no_grad()
def look(model: nn.Sequential, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and logits of images."""
    model.eval()
    features = torch.cat([model[:-1](part) for part in images.split(250)])
    return features, model[-1](features)


Loss = Callable[[torch.Tensor, torch.Tensor, Material, Any], torch.Tensor]


def kd(logits: torch.Tensor, features: torch.Tensor, material: Material, indices: Any) -> torch.Tensor:
    """The paper's loss, [B]: 0.1 CE + 0.9 KL at temperature 4."""
    return 0.1 * labels(logits, features, material, indices) + 0.9 * distilled(logits, material, indices)


def labels(logits: torch.Tensor, features: torch.Tensor, material: Material, indices: Any) -> torch.Tensor:
    """Cross-entropy with the labels, [B]."""
    return F.cross_entropy(logits, material.targets[indices], reduction="none")


def distilled(logits: torch.Tensor, material: Material, indices: Any) -> torch.Tensor:
    """KL divergence at temperature 4, times 16, [B]."""
    student, teacher = (F.log_softmax(x / 4, -1) for x in (logits, material.logits[indices]))
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1) * 16


def pkt(logits: torch.Tensor, features: torch.Tensor, material: Material, indices: Any) -> torch.Tensor:
    """CE and probabilistic knowledge transfer (Passalis & Tefas, ECCV 2018), a scalar.

    The batch's cosine similarities, as conditional probabilities, shall be the teacher's. Weighed by
    30,000, as is usual where it is averaged over all pairs.
    """
    student, teacher = (_similar(x) for x in (features, material.features[indices]))
    apart = (teacher * ((teacher + 1e-7).log() - (student + 1e-7).log())).mean()
    return F.cross_entropy(logits, material.targets[indices]) + 30_000 * apart


def _similar(features: torch.Tensor) -> torch.Tensor:
    unit = F.normalize(features, dim=-1, eps=1e-7)
    similarity = (unit @ unit.T + 1) / 2
    return similarity / similarity.sum(-1, keepdim=True)


class Crd(nn.Module):
    """CE, KL at temperature 4, and 0.8 times contrastive representation distillation (Tian et al., ICLR
    2020): "CRD+KD". Compact: 64 dimensions, 1,024 contrasts that a batch shares, none of the anchor's class.
    """

    def __init__(self, material: Material, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(n, 64) for n in (width, material.features.shape[1]))
        self.generator = torch.Generator().manual_seed(0)
        shape = (2, len(material.targets), 64)  # the student's and the teacher's
        self.memory = F.normalize(torch.randn(shape, generator=self.generator), dim=-1)
        self.scale: list[float | None] = [None, None]

    def forward(
        self, logits: torch.Tensor, features: torch.Tensor, material: Material, indices: Any
    ) -> torch.Tensor:
        targets, n = material.targets[indices], self.memory.shape[1]
        others = torch.randint(n, (1024,), generator=self.generator)
        foreign = targets[:, None] != material.targets[others]
        views = (features, material.features[indices])
        own = [F.normalize(head(x), dim=-1) for head, x in zip(self.heads, views, strict=True)]
        contrast = sum(
            self._noise_contrastive(own[side], self.memory[1 - side], indices, others, foreign, side)
            for side in (0, 1)
        )
        with torch.no_grad():
            for memory, x in zip(self.memory, own, strict=True):
                memory[indices] = F.normalize((memory[indices] + x) / 2, dim=-1)
        student, teacher = (F.log_softmax(x / 4, -1) for x in (logits, material.logits[indices]))
        soft = F.kl_div(student, teacher, reduction="batchmean", log_target=True) * 16
        return F.cross_entropy(logits, targets) + soft + 0.8 * contrast

    def _noise_contrastive(
        self, own: torch.Tensor, memory: torch.Tensor, indices: Any, others: Any, foreign: Any, side: int
    ) -> torch.Tensor:
        alike = ((own * memory[indices]).sum(-1, keepdim=True) / 0.07).exp()
        apart = (own @ memory[others].T / 0.07).exp()
        if self.scale[side] is None:
            self.scale[side] = float(apart.detach().mean()) * len(memory)
        alike, apart = alike / self.scale[side], apart / self.scale[side]
        noise = len(others) / len(memory)
        wrong = ((noise / (apart + noise)).log() * foreign).sum(-1)
        return -((alike / (alike + noise)).log().squeeze(-1) + wrong).mean()


def loss_of(name: str, material: Material, width: int, seed: int) -> Loss:
    """A loss by its name; one that learns, too, is an `nn.Module`. ``width`` is of the student's features."""
    if name == "crd":
        return build(lambda _: Crd(material, width), material.classes, seed)
    return {"kd": kd, "labels": labels, "pkt": pkt}[name]
