"""A real distillation with images, labels, teacher and student on the device: accuracy, seconds, samples.

The teacher is run live in every step. Arms are paired by seed: same weights, same batches until an arm first
chooses. Who begins changes from seed to seed. The number of epochs and of seeds is what fits into the part's time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from _study.report import apart_of, difference
from torch import nn

import kcd_core as kcd

from ._distil_arms import ARMS, STAGES, learner_of, lengths_of, run_of, step, warm_up
from ._pictures import SIZES, Pictures, Size, accuracy_of, pictures_of, seconds_of, teacher_of
from .part import Part

RESERVE = 2.0  # seconds for what comes after the last run
WANTED = 3  # seeds to have, rather than longer runs
Runs = dict[str, dict[int, dict[str, Any]]]  # by arm and seed


def run(part: Part) -> None:
    """The teacher, then all arms seed by seed, then a row for each arm."""
    pictures, size = pictures_of(part, SIZES[part.device.type, part.quick])
    teacher, teacher_steps = teacher_of(pictures, size, part)
    correct = accuracy_of(teacher, pictures)
    part.add(
        "teacher",
        f"{correct:.2%} after {teacher_steps:,} steps of {size.batch} on {pictures.name}",
        accuracy=correct,
        data=pictures.name,
        steps=teacher_steps,
    )
    warm_up(pictures, teacher, size, part)
    pace = pace_of(pictures, teacher, size, part)
    period = period_of(pictures, size, pace, part.left() - RESERVE)
    precision = (
        "; the student in float32 (TF32), the teacher in bfloat16" if part.device.type == "cuda" else ""
    )
    part.add(
        "setting",
        f"{told(size.teacher)} to {told(size.student)}, {STAGES * period} epochs in {STAGES} stages, batches of "
        f"{size.batch}{precision}",
        samples=len(pictures.targets),
        epochs=STAGES * period,
        batch=size.batch,
    )
    runs = carried_out(pictures, teacher, size, period, pace, part)
    for name in ARMS:
        if runs[name]:
            sum_up(name, runs, part)
    if not all(runs.values()):
        missing = ", ".join(ARMS[name].title for name in ARMS if not runs[name])
        part.fail("arms", f"there was no time for a single run of {missing}; {part.left():.0f} s were left")


@dataclass(frozen=True)
class Pace:
    """Seconds that a sample takes, recorded, and those that a test takes."""

    sample: float
    test: float


def told(shape: tuple[int, int]) -> str:
    return f"ResNet-{6 * shape[0] + 2} (width {shape[1]})"


def pace_of(pictures: Pictures, teacher: nn.Module, size: Size, part: Part) -> Pace:
    """Timed on a student that is thrown away. (So all kernels are chosen before the first run, too.)"""
    student, optimizer = learner_of(pictures, size, seed=0)
    cuda, batch = part.device.type == "cuda", min(size.batch, len(pictures.targets))
    tracker = kcd.KnowledgeValueTracker(len(pictures.targets), device=part.device if cuda else None)
    inputs, targets = pictures.inputs(pictures.images[:batch]), pictures.targets[:batch]
    indices = np.arange(batch)

    def recorded() -> None:
        tracker.update(indices, step(student, optimizer, teacher, inputs, targets))

    # As many on CUDA as wait to be added, and some.
    each = seconds_of(recorded, part, first=40 if cuda else 2, times=40 if cuda else 5)
    test = seconds_of(lambda: accuracy_of(student, pictures), part, first=int(cuda), times=1)
    return Pace(each / batch, test)


def seconds_for(name: str, pictures: Pictures, size: Size, period: int, pace: Pace) -> float:
    """What a run of an arm will take, test and all, generously."""
    samples = sum(lengths_of(ARMS[name], len(pictures.targets), period, size.batch))
    return 1.1 * (pace.sample * samples + pace.test) + 0.1


def period_of(pictures: Pictures, size: Size, pace: Pace, left: float) -> int:
    """The longest stage with which as many seeds as are `WANTED` fit, or else the shortest there is."""
    for period in size.periods:
        seed = sum(seconds_for(name, pictures, size, period, pace) for name in ARMS)
        if min(WANTED, size.seeds) * seed <= left:
            return period
    return size.periods[-1]


def carried_out(
    pictures: Pictures, teacher: nn.Module, size: Size, period: int, pace: Pace, part: Part
) -> Runs:
    """All runs that there is time for: of the first seed whichever arms fit, then whole seeds alone."""
    runs: Runs = {name: {} for name in ARMS}

    def ahead(*names: str) -> bool:
        """Whether these can be done in the time that is left."""
        seconds = sum(seconds_for(name, pictures, size, period, pace) for name in names)
        return seconds <= part.left() - RESERVE

    for seed in range(size.seeds):
        if seed and not ahead(*ARMS):
            break
        for name in in_turns(seed):
            arm = ARMS[name]
            result = run_of(arm, seed, period, pictures, teacher, size, part) if ahead(name) else None
            if result is None:
                for own in runs.values() if seed else ():
                    own.pop(seed, None)
                return runs
            runs[name][seed] = result
            pace = replace(pace, sample=max(0.9 * pace.sample, result["seconds"] / result["drawn"]))
            part.add(
                f"{arm.title}, seed {seed}",
                f"{result['accuracy']:.2%} in {result['seconds']:.2f} s, {result['drawn']:,} samples, "
                f"{result['queries']:,} teacher queries",
                arm=name,
                **result,
            )
            planned = lengths_of(arm, len(pictures.targets), period, size.batch)
            if result["drawn_by_epoch"] != planned:
                part.fail(arm.title, f"drew {result['drawn_by_epoch']} in its epochs, {planned} were planned")
    return runs


def in_turns(seed: int) -> list[str]:
    """The arms in a seed's order, each seed beginning with the next one; the first with KD, to which all are compared."""
    names = list(ARMS)
    first = seed % len(names)
    return names[first:] + names[:first]


def sum_up(name: str, runs: Runs, part: Part) -> None:
    """An arm's row: means over its seeds, and differences to KD's runs of the same seeds."""
    own, base = runs[name], runs["kd"]
    accuracy = 100 * np.array([run["accuracy"] for run in own.values()])
    seconds = float(np.mean([run["seconds"] for run in own.values()]))
    ratio = float(np.mean([run["seconds"] / base[seed]["seconds"] for seed, run in own.items()]))
    drawn = own[0]["drawn"]
    queries = float(np.mean([run["queries"] for run in own.values()]))
    spread = f" ± {accuracy.std(ddof=1):.2f}" if len(own) > 1 else ""
    figure = f"{accuracy.mean():.2f}{spread} % of {len(own)} seeds in {seconds:.2f} s"
    apart = None
    if name != "kd":
        apart = difference(own, base)
        share, asked = drawn / base[0]["drawn"], queries / base[0]["queries"]
        figure += f", {apart_of(apart)} to KD in {ratio:.2f} of its time, {share:.1%} of its samples"
        figure += f", {asked:.1%} of its teacher queries"
    part.add(
        ARMS[name].title,
        figure,
        arm=name,
        seeds=len(own),
        accuracy=float(accuracy.mean()),
        seconds=seconds,
        time_ratio=ratio,
        drawn=drawn,
        queries=queries,
        to_kd=None if apart is None else apart.mean,
        interval=None if apart is None else apart.interval,
    )
