"""What ``kcd demo`` says: progress, the table, results.json. And what it measures with."""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter
from types import TracebackType
from typing import Any

import scipy.stats
import torch
from torch.utils.data import DataLoader

import kcd_core as kcd
from kcd_core.base.files import write_whole

from ..extras import need

__all__ = ["Clock", "Progress", "Run", "checked_folder", "fetch_overhead", "print_table", "save_results"]


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


def fetch_seconds(loader: Any, batches: int = 40) -> float:
    """Seconds that ``loader`` takes for a batch: the best of three, since other programs only ever add."""
    best = float("inf")
    for _ in range(3):
        start = perf_counter()
        fetched = sum(1 for _ in islice(loader, batches))
        best = min(best, (perf_counter() - start) / fetched)
    return best


def fetch_overhead(run: Run, plain: DataLoader[Any], epochs: int) -> float:
    """Seconds that fetching all batches of a run takes longer than it would with the plain loader."""
    own = run.loader
    condensed = kcd.wrap_loader(
        plain, schedule=own.schedule, mixing=own.sampler.mixing, seed=own.sampler.seed
    )
    condensed.sampler.load_state_dict(own.sampler.state_dict())  # the same set, whatever chose it
    return max(0.0, fetch_seconds(condensed) - fetch_seconds(plain)) * own.total_steps(epochs)


class Progress:
    """A bar on a terminal; elsewhere one line for each run that is done."""

    def __init__(self, console: Any, steps: int) -> None:
        self._console, self._bar = console, None
        if console.is_terminal:
            progress = need("rich.progress")
            self._bar = progress.Progress(
                progress.TextColumn("{task.description}", table_column=need("rich.table").Column(width=30)),
                progress.BarColumn(),
                progress.TaskProgressColumn(),
                progress.TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task("", total=steps)

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def begin(self, what: str) -> None:
        """Say what is running now."""
        if self._bar:
            self._bar.update(self._task, description=what)

    def advance(self) -> None:
        """One epoch is done."""
        if self._bar:
            self._bar.advance(self._task)

    def done(self, text: str) -> None:
        """A run is done."""
        if not self._bar:
            self._console.print(text)


def print_table(console: Any, title: str, results: Mapping[str, Sequence[Run]], step: kcd.StepFlops) -> None:
    """The arms, one a row; the first is what the shares refer to."""
    taken = ", ".join(f"{name} {step.of(runs[0].cost) / 1e9:,.1f}" for name, runs in results.items())
    table = need("rich.table").Table(
        title=title,
        caption="KC-KD is wrap_loader's default. ± is the s.d. over seeds. Time is that of one run, without testing. In kcd: record() and end_epoch(), and what fetching "
        "takes longer than with the plain DataLoader (measured afterwards on the last, most mixed set, "
        "in one process). Plain KD is recorded, too, at a ratio of 1. "
        "Minus KD's: the mean difference, paired by seed, and its 95 % interval. "
        f"The teacher is asked for every sample drawn; its passes and the student's take {taken} GFLOP, by torch's counter.",
        title_justify="left",
        caption_justify="left",
        padding=(0, 1, 0, 0),
    )
    table.add_column("arm")
    for name in ("accuracy\n%", "minus\nKD's, %", "samples\ndrawn", "share\nof KD's", "time\ns", "in kcd\ns"):
        table.add_column(name, justify="right")
    plain = next(iter(results.values()))
    full = plain[0].cost.drawn
    for name, runs in results.items():
        table.add_row(
            name,
            mean_and_sd([100 * run.accuracy for run in runs]),
            ""
            if runs is plain
            else paired_interval([100 * (a.accuracy - b.accuracy) for a, b in zip(runs, plain, strict=True)]),
            f"{runs[0].cost.drawn:,}",
            f"{runs[0].cost.drawn / full:.1%}",
            f"{mean(run.seconds for run in runs):.2f}",
            f"{mean(run.kcd_seconds for run in runs):.2f}",
        )
    console.print(table, soft_wrap=False)


def mean_and_sd(numbers: Sequence[float]) -> str:
    """``97.31 ± 0.25``; of one number there is no deviation."""
    return f"{mean(numbers):.2f}" + (f" ± {stdev(numbers):.2f}" if len(numbers) > 1 else "")


def paired_interval(differences: Sequence[float]) -> str:
    """The 95 % interval of the mean difference of runs with the same seed (Student's t)."""
    if len(differences) < 2 or stdev(differences) == 0:
        return f"{mean(differences):+.2f}"
    half = scipy.stats.t.ppf(0.975, len(differences) - 1) * scipy.stats.sem(differences)
    return f"{mean(differences):+.2f} ± {half:.2f}"


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


def save_results(
    path: Path,
    settings: Mapping[str, Any],
    teacher_accuracy: float,
    results: Mapping[str, Sequence[Run]],
    step: kcd.StepFlops,
) -> None:
    """Write all figures to ``path``, whole or not at all."""
    content = {
        "versions": {
            "kcd_core": kcd.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "settings": dict(settings),
        "teacher_accuracy": teacher_accuracy,
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
            for name, runs in results.items()
        },
    }
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())
