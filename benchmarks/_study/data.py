"""The study's data sets: how each is read, and who teaches and who learns on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn, optim

from kcd_adapters.demo.datasets import Split, digits, fashion_mnist
from kcd_adapters.demo.keel import keel
from kcd_adapters.demo.models import conv

Model = Callable[[int], nn.Module]  # of the number of classes; the last layer is linear
Shape = tuple[int, ...]  # of one sample


def image_teacher(shape: Shape) -> Model:
    """For grey images."""

    def make(classes: int) -> nn.Module:
        return nn.Sequential(
            *(nn.Conv2d(1, 32, 5, 2, padding=2, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
            *(conv(32, 64, stride=2), nn.ReLU()),
            *(conv(64, 64), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(64 * (shape[0] // 4) ** 2, 128), nn.ReLU(), nn.Linear(128, classes)),
        )

    return make


def image_student(shape: Shape, width: int) -> Model:
    """For grey images of any size; ``width`` is that of the first layer."""

    def make(classes: int) -> nn.Module:
        first = nn.Sequential(nn.Conv2d(1, width, 5, 2, padding=2, bias=False), nn.BatchNorm2d(width))
        return nn.Sequential(
            *(first, nn.ReLU()),
            *(conv(width, 2 * width, stride=2), nn.ReLU()),
            *(conv(2 * width, 4 * width), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes)),
        )

    return make


def vector_teacher(shape: Shape) -> Model:
    """Two hidden layers."""

    def make(classes: int) -> nn.Module:
        layers = (
            nn.Linear(shape[0], 256),
            nn.ReLU(),
            nn.Linear(256, 256),
            nn.ReLU(),
            nn.Linear(256, classes),
        )
        return nn.Sequential(*layers)

    return make


def vector_student(shape: Shape, width: int) -> Model:
    """One hidden layer of ``width``."""
    return lambda classes: nn.Sequential(nn.Linear(shape[0], width), nn.ReLU(), nn.Linear(width, classes))


def sgd(parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
    return optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)


def adam(parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
    return optim.Adam(parameters, lr=0.005)


#: The students' names.
STUDENTS = ("small", "large")


@dataclass(frozen=True)
class DataSet:
    """How a data set is read, and who teaches and who learns on it. The defaults are those of images."""

    read: Callable[[Path | None], Split]
    samples: int  # to learn from, by default
    teacher_epochs: int
    mirrored: bool = False  # and shifted, while the teacher learns
    teacher: Callable[[Shape], Model] = image_teacher
    student: Callable[[Shape, int], Model] = image_student
    widths: tuple[int, int] = (8, 16)  # of the students
    optimizer: Callable[[Iterable[nn.Parameter]], optim.Optimizer] = (
        sgd  # the teacher's; its rate is the cycle's highest
    )


#: A teacher whose weights decay is so unsure at temperature 4 that these students learn less of it than of the labels.
vectors = partial(
    DataSet,
    teacher_epochs=40,
    teacher=vector_teacher,
    student=vector_student,
    widths=(64, 128),
    optimizer=adam,
)

DATA = {
    "digits": DataSet(digits, 1_198, 60),  # 2 and 5, mirrored, are other digits
    "fashion-mnist": DataSet(fashion_mnist, 20_000, 10, mirrored=True),
    "letter": vectors(partial(keel, "letter"), 16_041),
    "satimage": vectors(partial(keel, "satimage"), 5_167),
    "penbased": vectors(partial(keel, "penbased"), 8_758),
}


def teacher_of(data: str, shape: Shape) -> Model:
    """The teacher for samples of this shape."""
    return DATA[data].teacher(shape)


def student_of(data: str, name: str, shape: Shape) -> Model:
    """The student of that name for samples of this shape."""
    return DATA[data].student(shape, DATA[data].widths[STUDENTS.index(name)])
