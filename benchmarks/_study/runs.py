"""What the runs of a study share, and what is known of them: a JSON file each."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .arms import ARMS, Job, ratio_of
from .data import DATA, STUDENTS


class StudyError(Exception):
    """What is there does not belong to this study; says what to do."""


@dataclass(frozen=True)
class Setting:
    """What all runs of a study share."""

    data: str
    folder: Path | None
    samples: int
    epochs: int
    batch: int
    teacher_epochs: int
    out: Path
    live: bool = False  # the teacher runs in every step, and what it said is not kept
    augmented: bool = False  # so are the samples, as the student and the live teacher see them
    label: str = ""  # of a study apart, with a teacher of its own

    @property
    def name(self) -> str:
        batch = "" if self.batch == 128 else f"-b{self.batch}"
        teacher = "" if self.teacher_epochs == DATA[self.data].teacher_epochs else f"-t{self.teacher_epochs}"
        kind = ("-augmented" if self.augmented else "-live" if self.live else "") + self.label
        return f"study-{self.data}-{self.samples}x{self.epochs}{batch}{teacher}{kind}"

    @property
    def runs(self) -> Path:
        return self.out / self.name

    @property
    def teacher(self) -> Path:
        return self.out / f"study-{self.data}-teacher{self.label}" / f"{self.teacher_epochs}-epochs.pt"


def runs_of(setting: Setting, digest: str | None = None) -> dict[str, dict[str, Any]]:
    """All runs that are finished, by the names of their jobs.

    ``digest`` is that of the images at hand. Runs made before runs had one are taken to be of the same images.

    Raises
    ------
    StudyError
        If a file is no run of this study, or the runs are not all of the same images and teacher.
    """
    runs = {path.stem: checked(path, setting) for path in sorted(setting.runs.glob("*.json"))}
    shared = {"digest": digest, "teacher_accuracy": None}
    for name, run in runs.items():
        for key, what in (("digest", "images"), ("teacher_accuracy", "teachers")):
            shared[key] = shared[key] or run.get(key)
            if run.get(key, shared[key]) != shared[key]:
                raise StudyError(
                    f"{setting.runs / name}.json is of other {what} ({key} {run[key]}, not {shared[key]}): "
                    "give a --label or an --out of its own for each, or delete the runs of one"
                )
    return runs


def checked(path: Path, setting: Setting) -> dict[str, Any]:
    """The run in a file, which must be the one that its name says, of this setting."""
    try:
        run: dict[str, Any] = json.loads(path.read_text())
        job = Job(**{field.name: run[field.name] for field in fields(Job)})
        shared = {
            "data": setting.data,
            "samples": setting.samples,
            "epochs": setting.epochs,
            "batch": setting.batch,
        }
        differs = {key: run[key] for key, value in shared.items() if run[key] != value}
        if job.arm not in ARMS or job.student not in STUDENTS or ratio_of(job.arm, job.ratio) != job.ratio:
            raise ValueError(f"there is no {job.arm} at {job.ratio} with a {job.student} student")
        if differs:
            raise ValueError(f"of another study: {differs}")
        if job.name != path.stem:
            raise ValueError(f"it is of {job.name}")
        for figure in ("teacher_accuracy", "accuracy", "drawn", "seconds", "cpu_seconds"):
            float(run[figure])
    except (ValueError, KeyError, TypeError) as error:
        raise StudyError(
            f"{path} is no run of {setting.name} ({error!r}): delete it, and it is done again"
        ) from None
    return run
