"""What the study distils: its samples, and the teacher's view of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import kcd_core as kcd
from kcd_adapters.demo.datasets import Images


class View(NamedTuple):
    """What a network makes of some samples."""

    features: torch.Tensor  # [B, D], before its last layer
    logits: torch.Tensor  # [B, C]


@dataclass(frozen=True)
class Material:
    """Training samples as the student and the teacher see them. Nothing is augmented but by KCD, so what the teacher
    says is kept: it sees each sample once, not once an epoch, unless it is ``live``."""

    data: str
    train: Images
    test: Images
    classes: int
    teacher: nn.Sequential
    live: bool
    inputs: torch.Tensor  # [N, ...], normalised
    targets: torch.Tensor  # [N]
    features: torch.Tensor  # [N, D], the teacher's
    logits: torch.Tensor  # [N, C], the teacher's

    def taught(self, indices: npt.NDArray[np.int64]) -> View:
        """What the teacher says of these samples."""
        if self.live:
            return look(self.teacher, self.inputs[indices])
        return View(self.features[indices], self.logits[indices])

    def mixed(self, indices: npt.NDArray[np.int64], sampler: kcd.CondensedSampler) -> Material:
        """The same with the samples of ``indices`` mixed as ``sampler`` says."""
        inputs = torch.stack([kcd.mix_arrays(self.train, i, sampler.steps(i))[0] for i in indices.tolist()])
        new = {"inputs": inputs}
        if not self.live:
            new |= look(self.teacher, inputs)._asdict()
        place = torch.from_numpy(indices)
        return replace(self, **{name: getattr(self, name).index_copy(0, place, x) for name, x in new.items()})


@torch.no_grad()
def look(model: nn.Sequential, inputs: torch.Tensor) -> View:
    """Features and logits of samples."""
    model.eval()
    features = torch.cat([model[:-1](part) for part in inputs.split(250)])
    return View(features, model[-1](features))
