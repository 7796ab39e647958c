"""What a pass of the study's models takes, by torch's own counter."""

from __future__ import annotations

from functools import cache

import torch

import kcd_core as kcd

from .data import Shape, student_of, teacher_of

#: Of a sample, and the number of classes: known without the files, so that old runs can be reported anywhere.
SAMPLES: dict[str, tuple[Shape, int]] = {
    "digits": ((8, 8), 10),
    "fashion-mnist": ((28, 28), 10),
    "letter": ((16,), 26),
    "satimage": ((36,), 6),
    "penbased": ((16,), 10),
}


@cache
def step_of(data: str, student: str) -> kcd.StepFlops | None:
    """Floating-point operations of a sample's forward pass; None of data that are not known."""
    if data not in SAMPLES:
        return None
    shape, classes = SAMPLES[data]
    example = torch.zeros(1, *(1,) * (len(shape) == 2), *shape)
    with torch.random.fork_rng(devices=[]):  # which their weights would be drawn from
        models = student_of(data, student, shape)(classes), teacher_of(data, shape)(classes)
    return kcd.step_flops(*models, example)
