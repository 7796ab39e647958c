"""What ``kcd demo`` says: its progress, the table, and what the comparison has shown and what not."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from types import TracebackType
from typing import Any

import scipy.stats

from ..extras import need
from .datasets import DEBIAN
from .results import Results, Run

__all__ = ["Difference", "Progress", "difference", "more", "print_table", "sentences"]


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


@dataclass(frozen=True)
class Difference:
    """The mean difference of paired numbers, and half of its 95 % interval (Student's t); None where nothing tells it."""

    mean: float
    half: float | None

    def __str__(self) -> str:
        return f"{round(self.mean, 2) + 0.0:+.2f}" + ("" if self.half is None else f" ± {self.half:.2f}")

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies above or below zero; 0 where it does not, or nothing tells it."""
        if self.half is None or abs(self.mean) <= self.half:
            return 0
        return 1 if self.mean > 0 else -1


def difference(own: Sequence[Run], other: Sequence[Run]) -> Difference:
    """Of the accuracies of runs with the same seeds, in percentage points.

    An interruption can leave one of them with a run more, which is left out.
    """
    # Rounded, so that as many test samples apart is the same number.
    apart = [round(100 * (a.accuracy - b.accuracy), 9) for a, b in zip(own, other, strict=False)]
    if len(apart) < 2 or stdev(apart) == 0:
        return Difference(mean(apart), None)
    half = scipy.stats.t.ppf(0.975, len(apart) - 1) * scipy.stats.sem(apart)
    return Difference(mean(apart), float(half))


def print_table(console: Any, results: Results) -> None:
    """The arms, one a row; the first is what the shares refer to."""
    arms = {name: runs for name, runs in results.arms.items() if runs}
    taken = ", ".join(f"{name} {results.step.of(runs[0].cost) / 1e9:,.1f}" for name, runs in arms.items())
    table = need("rich.table").Table(
        title=results.title,
        caption="KC-KD takes for_epochs and mixes nothing, as is recommended. KC-KD, mixed also mixes what it drops into what "
        "it keeps, as the paper does. ± is the s.d. over seeds; minus KD's: the mean difference, paired by seed, and "
        "its 95 % interval. Seconds are the median over seeds, without testing; in kcd: record() and "
        "end_epoch() alone. Plain KD is recorded, too, at a ratio of 1. The teacher is asked for every sample drawn; "
        f"its passes and the student's take {taken} GFLOP, by torch's counter.",
        title_justify="left",
        caption_justify="left",
        padding=(0, 1, 0, 0),
    )
    table.add_column("arm")
    heads = (
        "accuracy\n%",
        "minus\nKD's, %",
        "samples\ndrawn",
        "of\nKD's",
        "seconds\na run",
        "in kcd\ns",
    )
    for name in heads:
        table.add_column(name, justify="right")
    plain = next(iter(arms.values()))
    full = plain[0].cost.drawn
    for name, runs in arms.items():
        table.add_row(
            name,
            mean_and_sd([100 * run.accuracy for run in runs]),
            "" if runs is plain else str(difference(runs, plain)),
            f"{runs[0].cost.drawn:,}",
            f"{runs[0].cost.drawn / full:.1%}",
            f"{median(run.seconds for run in runs):.2f}",
            f"{median(run.kcd_seconds for run in runs):.2f}",
        )
    console.print(table, soft_wrap=False)


def mean_and_sd(numbers: Sequence[float]) -> str:
    """``97.31 ± 0.25``; of one number there is no deviation."""
    return f"{mean(numbers):.2f}" + (f" ± {stdev(numbers):.2f}" if len(numbers) > 1 else "")


def sentences(arms: Mapping[str, Sequence[Run]]) -> list[str]:
    """What was seen, and what was not, of `Results.arms`."""
    (plain, plain_runs), (own, own_runs), *_ = arms.items()
    if not own_runs:
        return [f"Nothing can be compared: no run of {own} is complete."]
    drawn = own_runs[0].cost.drawn / plain_runs[0].cost.drawn
    own_seconds, seconds = (median(run.seconds for run in runs) for runs in (own_runs, plain_runs))
    told = [
        f"{own} drew {drawn:.1%} of {plain}'s samples, and its median run took {own_seconds:.1f} s, where {plain}'s took "
        f"{seconds:.1f} s."
    ]
    found: dict[int, list[str]] = {1: [], -1: [], 0: []}
    pairs = set()  # of runs, behind each interval
    for name, runs in arms.items():
        if name == own or not runs:
            continue
        apart = difference(own_runs, runs)
        found[apart.sign].append(f"{name} ({apart} points)")
        if apart.half is not None:
            pairs.add(min(len(own_runs), len(runs)))
    if len(own_runs) < 2:
        return [
            *told,
            f"Not seen: whether {own} differs from {_listed(found[0])}: one run can't tell chance.",
        ]
    seen = [
        f"{word} than {_listed(found[sign])}" for word, sign in (("better", 1), ("worse", -1)) if found[sign]
    ]
    if seen:
        told.append(f"Seen: {own} is {', and '.join(seen)}.")
    if found[0]:
        told.append(f"Not seen: a difference, beyond chance, between {own} and {_listed(found[0])}.")
    if pairs:
        number = " or ".join(map(str, sorted(pairs)))
        told.append(f"± are 95 % intervals over {number} runs, each of one comparison taken by itself.")
    return told


def more(data: str, results: Path) -> list[str]:
    """What to run to see more."""
    fashion = (
        "found on this machine" if DEBIAN.is_dir() else "where Debian's dataset-fashion-mnist is installed"
    )
    commands = {
        "letter": ("make demo DATA=letter", "20,000 letters of 26 classes; fetches a file of 14 MB, once"),
        "fashion-mnist": ("make demo DATA=fashion-mnist", f"clothes; {fashion}"),
        "": (
            f"{_program()} report {shlex.quote(str(results))} -o DIR",
            "every stage of KC-KD's first run, as a page",
        ),
    }
    wide = max(len(command) for command, _ in commands.values())
    lines = [f"  {command:{wide}}  {what}" for name, (command, what) in commands.items() if name != data]
    return ["To see more:", *lines, "docs/results.md has ten runs of each, and more arms."]


def _program() -> str:
    """What ``kcd`` was started as, which may not be on the PATH."""
    start = Path(sys.argv[0])
    if start.name == "__main__.py":  # of python -m
        return f"{shlex.quote(sys.executable)} -m {start.parent.name}"
    return shlex.quote(str(start))


def _listed(parts: Iterable[str]) -> str:
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last
