"""What ``kcd demo`` measures: its runs, what they are measured with, and results.json."""

from __future__ import annotations

import json
import platform
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

import torch

import kcd_core as kcd
from kcd_core.base.files import write_whole

__all__ = ["Clock", "Results", "Run", "checked_folder", "save_results"]


@dataclass
class Run:
    """One arm with one seed."""

    loader: kcd.CondensedLoader[Any]
    sets: list[kcd.CondensedSet]
    seconds: float
    kcd_seconds: float
    accuracy: float = float("nan")

    @property
    def cost(self) -> kcd.Cost:
        """Samples drawn, each of them a pass of the student and a query of the teacher."""
        return self.loader.account.total


@dataclass
class Results:
    """A comparison, as far as it has come.

    Attributes
    ----------
    settings : dict
    seeds : int
        Runs that each arm is to have.
    arms : dict
        Arm to its runs. The first is plain distillation, the second what it is compared with; then come the controls.
    teacher_accuracy : float
    step : StepFlops
    """

    settings: dict[str, Any]
    seeds: int
    arms: dict[str, list[Run]]
    teacher_accuracy: float = float("nan")
    step: kcd.StepFlops = field(default_factory=lambda: kcd.StepFlops(0, 0))

    @property
    def done(self) -> int:
        """Runs that are complete."""
        return sum(map(len, self.arms.values()))

    @property
    def wanted(self) -> int:
        """Runs that there are to be."""
        return self.seeds * len(self.arms)

    @property
    def complete(self) -> bool:
        """Whether nothing interrupted it."""
        return self.done == self.wanted

    @property
    def title(self) -> str:
        """What was compared."""
        told = self.settings
        return f"{told['data']}, {told['epochs']} epochs, {self.seeds} seed(s), ratio {told['ratio']}; teacher {self.teacher_accuracy:.2%}"


class Clock:
    """``with clock:`` adds up the time spent inside."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start = 0.0

    def __enter__(self) -> None:
        self._start = perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds += perf_counter() - self._start


def checked_folder(folder: Path) -> Path:
    """``folder``, made if need be, once it is sure that files can be written to it.

    Raises
    ------
    ValueError
        If they can't.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"--out must be a folder that can be written to, got {folder}: {error.strerror}"
        ) from None
    return folder


def save_results(path: Path, results: Results) -> None:
    """Write all figures to ``path``, whole or not at all."""
    step = results.step
    content = {
        "versions": {
            "kcd_core": kcd.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "settings": dict(results.settings),
        "complete": results.complete,
        "teacher_accuracy": results.teacher_accuracy,
        "flops_of_a_sample": step._asdict(),
        "arms": {
            name: {
                "accuracy": [run.accuracy for run in runs],
                "samples_drawn": [run.cost.drawn for run in runs],
                "teacher_queries": [run.cost.asked for run in runs],
                "flops": [step.of(run.cost) for run in runs],
                "seconds": [run.seconds for run in runs],
                "kcd_seconds": [run.kcd_seconds for run in runs],
                "history_of_first_run": json.loads(runs[0].loader.history.to_json()),
            }
            for name, runs in results.arms.items()
            if runs
        },
    }
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())
