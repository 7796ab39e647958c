"""What was published: the pairs, their accuracies on CIFAR-100, and the settings they were made with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

METHODS = ("kd", "pkt", "crd", "sskd", "kc-kd", "kc-pkt", "kc-crd", "kc-sskd")
EPOCHS, BATCH, STAGES, RATIO = 240, 64, 6, 0.7


@dataclass(frozen=True)
class Pair:
    """A teacher and a student, by the names that RepDistiller and SSKD both give them.

    The accuracies are top-1 in percent, from the table in arXiv 2207.05409, by method.
    """

    title: str
    teacher: str
    student: str
    teacher_accuracy: float
    student_accuracy: float
    published: Mapping[str, float]

    @property
    def name(self) -> str:
        return f"{self.teacher}-{self.student}"


def _pair(title: str, teacher: str, student: str, *accuracies: float) -> Pair:
    of_teacher, of_student, *others = accuracies
    return Pair(title, teacher, student, of_teacher, of_student, dict(zip(METHODS, others, strict=True)))


# fmt: off
PAIRS = {
    pair.name: pair
    for pair in (
        _pair("W40-2 → W16-2", "wrn_40_2", "wrn_16_2", 75.61, 73.26, 74.92, 74.54, 75.64, 75.66, 75.70, 75.01, 75.93, 76.24),
        _pair("W40-2 → W40-1", "wrn_40_2", "wrn_40_1", 75.61, 73.26, 73.54, 73.45, 74.38, 75.27, 73.84, 74.12, 74.60, 75.35),
        _pair("R56 → R20", "resnet56", "resnet20", 72.34, 69.06, 70.66, 70.34, 71.63, 70.96, 70.75, 72.08, 72.11, 71.31),
        _pair("R32x4 → R8x4", "resnet32x4", "resnet8x4", 79.42, 72.50, 73.33, 73.64, 75.46, 75.80, 74.05, 74.45, 75.78, 76.48),
        _pair("V13 → V8", "vgg13", "vgg8", 74.64, 70.36, 72.98, 72.88, 74.29, 75.12, 73.44, 72.82, 74.38, 74.93),
        _pair("V13 → MN2", "vgg13", "MobileNetV2", 74.64, 64.60, 67.37, 67.13, 69.94, 70.92, 68.61, 67.99, 69.90, 71.32),
        _pair("R50 → MN2", "ResNet50", "MobileNetV2", 79.34, 64.60, 67.35, 66.52, 69.54, 71.14, 67.94, 67.92, 69.82, 71.29),
        _pair("R50 → V8", "ResNet50", "vgg8", 79.34, 70.36, 73.81, 73.01, 74.58, 75.72, 74.41, 73.32, 74.49, 75.65),
        _pair("R32x4 → SN1", "resnet32x4", "ShuffleV1", 79.42, 70.50, 74.07, 74.10, 75.12, 77.91, 74.33, 74.60, 75.74, 78.28),
        _pair("R32x4 → SN2", "resnet32x4", "ShuffleV2", 79.42, 71.82, 74.45, 74.69, 76.05, 78.37, 75.19, 75.79, 76.44, 78.59),
        _pair("W40-2 → SN1", "wrn_40_2", "ShuffleV1", 75.61, 70.50, 74.83, 73.89, 76.27, 76.92, 75.60, 75.78, 76.40, 77.61),
    )
}
# fmt: on

#: From RepDistiller's scripts/run_cifar_distill.sh (commit b84f547). The published CRD column is that of its
#: "CRD+KD" line, `-a 1 -b 0.8`: CRD alone (`-a 0`) has 75.48 where the table says 75.64.
WEIGHTS = {
    "kd": ("-r", "0.1", "-a", "0.9", "-b", "0"),
    "pkt": ("-a", "0", "-b", "30000"),
    "crd": ("-a", "1", "-b", "0.8"),
}

#: Where the rate falls to a tenth: train_student.py's --lr_decay_epochs and student.py's --milestones.
MILESTONES = (150, 180, 210)

#: SSKD's student.py (commit 661b972) first trains a head on the teacher: --t-epoch, --t-milestones.
HEAD_EPOCHS, HEAD_MILESTONES = 60, (30, 45)

#: SSKD's command.sh gives these three 0.01 and all others 0.05; RepDistiller's train_student.py does so by itself.
SLOW = ("MobileNetV2", "ShuffleV1", "ShuffleV2")


def rate(student: str) -> str:
    """The initial learning rate."""
    return "0.01" if student in SLOW else "0.05"
