"""What the demo can learn: for each data set how it is read, who teaches and who learns, and how long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from .datasets import Split, cifar100, digits, fashion_mnist
from .keel import keel
from .models import ConvNet, Perceptron, ResNet

__all__ = ["STAGES", "TASKS", "Task"]

STAGES = 6


@dataclass(frozen=True)
class Task:
    """A data set with its defaults.

    Attributes
    ----------
    read : callable
        Takes the folder of its files, or None.
    teacher, student : callable
        Take the number of classes.
    epochs, seeds : int
    ratio : float
    batch_size : int
    samples : int, optional
        The first so many of the training set. Default: all.
    """

    read: Callable[[Path | None], Split]
    teacher: Callable[[int], nn.Module]
    student: Callable[[int], nn.Module]
    epochs: int
    seeds: int
    ratio: float
    batch_size: int = 64
    samples: int | None = None


#: Digits and letters take less than two minutes on two cores. The epochs and the ratio of cifar100 are the paper's. At
#: the recommended 0.3, 1,198 digits would leave an epoch six steps, too few for the student: see docs/settings.md.
TASKS = {
    "digits": Task(digits, partial(ConvNet, 32), partial(ConvNet, 4), 24, 4, 0.5),
    "letter": Task(
        partial(keel, "letter"), partial(Perceptron, 16, (256, 256)), partial(Perceptron, 16, (64,)),
        12, 3, 0.3, batch_size=128,
    ),
    "fashion-mnist": Task(
        fashion_mnist, partial(ConvNet, 32, stride=2), partial(ConvNet, 8, stride=2), 12, 4, 0.3,
        batch_size=128, samples=10_000,
    ),
    "cifar100": Task(cifar100, partial(ResNet, 9, 16), partial(ResNet, 3, 16), 240, 1, 0.7),
}  # fmt: skip
