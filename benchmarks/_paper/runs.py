"""One run of the published table: its command line, and what is read from what the repository left."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .published import (
    BATCH,
    EPOCHS,
    HEAD_EPOCHS,
    HEAD_MILESTONES,
    MILESTONES,
    PAIRS,
    RATIO,
    STAGES,
    WEIGHTS,
    rate,
)
from .smoke import checkpoint

HOST = Path(__file__).with_name("host.py")


@dataclass(frozen=True)
class Run:
    method: str
    pair: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.pair}-{self.seed}"

    @property
    def condensed(self) -> bool:
        return self.method.startswith("kc-")

    @property
    def base(self) -> str:
        """The method without KCD."""
        return self.method.removeprefix("kc-")

    @property
    def of_sskd(self) -> bool:
        return self.base == "sskd"


@dataclass(frozen=True)
class Setting:
    """What all runs of a table share. All folders are absolute: a run works in one of its own.

    Attributes
    ----------
    repdistiller, sskd : Path
        The checkouts.
    data : Path
        The folder that holds ``cifar-100-python``.
    teachers : Path
        The folder that holds ``NAME_vanilla/ckpt_epoch_240.pth``.
    folder : Path
        Gets a folder for every run.
    own_teachers : Path, optional
        SSKD's: the folder that holds ``teacher_NAME_seed0/ckpt/best.pth``. None: RepDistiller's are converted.
        The published table has one column of teachers, RepDistiller's (75.61 for WRN-40-2); those of SSKD's own
        table are others (76.46), and all its students do better than the published table has them (76.04, not 75.66).
    smoke : bool
        The data are noise: no figure means anything.
    """

    repdistiller: Path
    sskd: Path
    data: Path
    teachers: Path
    folder: Path
    own_teachers: Path | None = None
    epochs: int = EPOCHS
    workers: int = 4
    smoke: bool = False


class RunError(Exception):
    """A run did not do what it was to do; the message says what."""


# -- the command line --------------------------------------------------------------------------------------


def command(run: Run, setting: Setting, gpu: str | None) -> list[str]:
    """The whole command line of a run, in its own folder.

    Without KCD it is ``kcd run``, too, keeping everything: the same shims, the same count of samples, and the
    same weights in the end, to the bit, as the script alone has (tests/adapters/hosts/test_thirdparty.py).
    """
    if run.condensed:
        schedule = [f"{RATIO}", f"{STAGES}", f"{setting.epochs // STAGES}"]
    else:
        schedule = ["1", "1", f"{setting.epochs}"]  # a stage that is due at the very end is left out
    options = zip(("--ratio", "--stages", "--period"), schedule, strict=True)
    return [
        *(sys.executable, str(HOST), "--seed", f"{run.seed}", *["--smoke"] * setting.smoke, "run"),
        *(word for option in options for word in option),
        *("--history", "history.json"),
        *(sskd(run, setting, gpu) if run.of_sskd else repdistiller(run, setting)),
    ]


def repdistiller(run: Run, setting: Setting) -> list[str]:
    """RepDistiller's script and its arguments. It sets the learning rate by the student's name."""
    pair = PAIRS[run.pair]
    return [
        str(setting.repdistiller / "train_student.py"),
        *("--path_t", str(checkpoint(setting.teachers, pair.teacher)), "--model_s", pair.student),
        *("--distill", run.base, *WEIGHTS[run.base]),
        *("--epochs", f"{setting.epochs}", "--lr_decay_epochs", ",".join(scaled(MILESTONES, setting.epochs))),
        *("--batch_size", f"{BATCH}", "--num_workers", f"{setting.workers}"),
        *("--save_freq", f"{setting.epochs}", "--trial", f"{run.seed}"),
        *(["--nce_k", "64"] if setting.smoke and run.base == "crd" else []),
    ]


def sskd(run: Run, setting: Setting, gpu: str | None) -> list[str]:
    """SSKD's script and its arguments. It sets CUDA_VISIBLE_DEVICES to its ``--gpu-id``."""
    pair = PAIRS[run.pair]
    (head_epochs,) = scaled([HEAD_EPOCHS], setting.epochs)
    return [
        str(setting.sskd / "student.py"),
        *(
            "--t-path",
            str(sskd_teacher(setting, pair.teacher)),
            "--s-arch",
            pair.student,
            "--lr",
            rate(pair.student),
        ),
        *("--epoch", f"{setting.epochs}", "--milestones", *scaled(MILESTONES, setting.epochs)),
        *("--t-epoch", head_epochs, "--t-milestones", *scaled(HEAD_MILESTONES, setting.epochs)),
        *("--batch-size", f"{BATCH}", "--seed", f"{run.seed}", "--gpu-id", gpu or "0"),
    ]


def sskd_teacher(setting: Setting, teacher: str) -> Path:
    """The folder in whose ``ckpt/best.pth`` SSKD looks for a teacher, and whose name tells it the model."""
    return (setting.own_teachers or setting.folder / "sskd-teachers") / f"teacher_{teacher}_seed0"


def scaled(milestones: Any, epochs: int) -> list[str]:
    """Epochs of the published 240, in a run of ``epochs``."""
    return [f"{max(1, epoch * epochs // EPOCHS)}" for epoch in milestones]


# -- what came out -----------------------------------------------------------------------------------------


def read(run: Run, folder: Path, epochs: int) -> dict[str, Any]:
    """The result of a run that ended, from its log and its history.

    Raises
    ------
    RunError
        If the log lacks an epoch, or other samples were drawn than the schedule says.
    """
    log = (folder / "log.txt").read_text(errors="replace")
    teacher, tests = accuracies(run, log)
    if teacher is None or len(tests) != epochs:
        raise RunError(
            f"its log holds {len(tests)} test accuracies of the student, there were {epochs} epochs"
        )
    history = json.loads((folder / "history.json").read_text())
    counted, samples = history["summary"], history["history"]["num_samples"]
    scheduled = to_draw(run, samples, epochs)
    if not counted["drawn"] == counted["observed"] == scheduled or counted["epochs"] != epochs:
        raise RunError(
            f"it drew {counted['drawn']} samples in {counted['epochs']} epochs and {counted['observed']} of them were "
            f"observed; the schedule says {scheduled} in {epochs}"
        )
    return {
        **asdict(run),
        "epochs": epochs,
        "samples": samples,
        "drawn": counted["drawn"],
        "scheduled": scheduled,
        "teacher_accuracy": teacher,
        "accuracy": tests[-1],
        "best": max(tests),
        "accuracy_by_epoch": tests,
    }


def accuracies(run: Run, log: str) -> tuple[float | None, list[float]]:
    """The teacher's test accuracy, and the student's after every epoch, as the repository printed them.

    RepDistiller prints the same line for the teacher's test, and then for training and test in turns.
    """
    if run.of_sskd:
        teacher = re.findall(r"^teacher cls_acc:([\d.]+)", log, re.MULTILINE)
        tests = re.findall(r"^student_test_Epoch:.*\bcls_acc:([\d.]+)", log, re.MULTILINE)
    else:
        lines = re.findall(r"^ \* Acc@1 ([\d.]+)", log, re.MULTILINE)
        teacher, tests = lines[:1], lines[2::2]
    return (float(teacher[0]) if teacher else None), [float(x) for x in tests]


def to_draw(run: Run, samples: int, epochs: int) -> int:
    """What the published schedule draws: 20ths of the data, five of which are dropped in the end."""
    if not run.condensed:
        return samples * epochs
    step = samples * 3 // (10 * STAGES)
    return sum(samples - stage * step for stage in range(STAGES)) * epochs // STAGES


def epochs_done(run: Run, log: str) -> int:
    """Of the student's training, while it goes on."""
    return (
        log.count("student_test_Epoch:")
        if run.of_sskd
        else len(re.findall(r"^epoch \d+, total time", log, re.M))
    )


def load(path: Path) -> Mapping[str, Any] | None:
    """A JSON object, if there is one."""
    return json.loads(path.read_text()) if path.exists() else None
