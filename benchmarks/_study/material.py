"""What the study distils: its samples, as the student and the teacher see them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
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
    """Training samples as the student and the teacher see them.

    What the teacher says is kept: it sees each sample once, not once an epoch, unless it is ``live``. It is where samples
    are ``augmented``, since it sees them as the student does.
    """

    data: str
    train: Images
    test: Images
    classes: int
    teacher: nn.Sequential
    live: bool
    augmented: bool
    inputs: torch.Tensor  # [N, ...], normalised
    targets: torch.Tensor  # [N]
    features: torch.Tensor  # [N, D], the teacher's
    logits: torch.Tensor  # [N, C], the teacher's

    def views(self, seed: int, epoch: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """What makes of the inputs of a batch, one after the other, what is seen of them in an epoch."""
        if not self.augmented:
            return lambda inputs: inputs
        generator = torch.Generator().manual_seed(
            int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
        )
        return partial(flipped_and_shifted, generator=generator)

    def taught(self, indices: npt.NDArray[np.int64], seen: torch.Tensor) -> View:
        """What the teacher says of these samples, which the student has ``seen`` so."""
        if self.live:
            return look(self.teacher, seen)
        return View(self.features[indices], self.logits[indices])

    def mixed(self, indices: npt.NDArray[np.int64], sampler: kcd.CondensedSampler) -> Material:
        """The same with the samples of ``indices`` mixed as ``sampler`` says: as they are stored, before any view."""
        inputs = torch.stack([kcd.mix_arrays(self.train, i, sampler.steps(i))[0] for i in indices.tolist()])
        new = {"inputs": inputs}
        if not self.live:
            new |= look(self.teacher, inputs)._asdict()
        place = torch.from_numpy(indices)
        return replace(self, **{name: getattr(self, name).index_copy(0, place, x) for name, x in new.items()})


def flipped_and_shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image mirrored or not, the batch shifted by up to two pixels."""
    mirror = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
    return torch.where(mirror, images.flip(-1), images).roll(shift, dims=(-2, -1))


@torch.no_grad()
def look(model: nn.Sequential, inputs: torch.Tensor) -> View:
    """Features and logits of samples."""
    model.eval()
    features = torch.cat([model[:-1](part) for part in inputs.split(250)])
    return View(features, model[-1](features))
