"""What the study's students learn: the losses of a batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kcd_adapters.demo.models import build

from .material import Material, View

#: Of the student's view, the teacher's, the targets and the indices of a batch. [B], or a scalar.
Loss = Callable[[View, View, torch.Tensor, Any], torch.Tensor]


def kd(
    student: View, teacher: View, targets: torch.Tensor, indices: Any, label_weight: float = 0.1
) -> torch.Tensor:
    """The paper's loss, [B]: 0.1 CE + 0.9 KL at temperature 4."""
    return label_weight * labels(student.logits, targets) + 0.9 * distilled(student.logits, teacher.logits)


def labels(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the labels, [B]."""
    return F.cross_entropy(logits, targets, reduction="none")


def distilled(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """KL divergence at temperature 4, times 16, [B]."""
    student, teacher = (F.log_softmax(x / 4, -1) for x in (student_logits, teacher_logits))
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1) * 16


def pkt(student: View, teacher: View, targets: torch.Tensor, indices: Any) -> torch.Tensor:
    """CE and probabilistic knowledge transfer (Passalis & Tefas, ECCV 2018), a scalar.

    The batch's cosine similarities, as conditional probabilities, shall be the teacher's. Weighed by
    30,000, as is usual where it is averaged over all pairs.
    """
    own, given = (_similar(view.features) for view in (student, teacher))
    apart = (given * ((given + 1e-7).log() - (own + 1e-7).log())).mean()
    return F.cross_entropy(student.logits, targets) + 30_000 * apart


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
        self.targets = material.targets

    def forward(self, student: View, teacher: View, targets: torch.Tensor, indices: Any) -> torch.Tensor:
        n = self.memory.shape[1]
        others = torch.randint(n, (1024,), generator=self.generator)
        foreign = targets[:, None] != self.targets[others]
        views = (student.features, teacher.features)
        own = [F.normalize(head(x), dim=-1) for head, x in zip(self.heads, views, strict=True)]
        contrast = sum(
            self._noise_contrastive(own[side], self.memory[1 - side], indices, others, foreign, side)
            for side in (0, 1)
        )
        with torch.no_grad():
            for memory, x in zip(self.memory, own, strict=True):
                memory[indices] = F.normalize((memory[indices] + x) / 2, dim=-1)
        own_soft, given_soft = (F.log_softmax(view.logits / 4, -1) for view in (student, teacher))
        soft = F.kl_div(own_soft, given_soft, reduction="batchmean", log_target=True) * 16
        return F.cross_entropy(student.logits, targets) + soft + 0.8 * contrast

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
    return {"kd": kd, "kd-ce1": partial(kd, label_weight=1.0), "pkt": pkt}[name]
