"""What the benchmarks share: options, and writing down what was measured, where and how."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import kcd_core as kcd
from kcd_adapters.extras import need

from .progress import Progress

RESULTS = Path(__file__).parents[1] / "results"

#: What --help of every benchmark ends with.
RULE = """\
Results are never replaced by less. What was measured with --quick or at other sizes or rounds than the default ones,
and a table that lacks runs of the one in its place, is written as NAME-trial.* beside it."""


class Help(argparse.RawDescriptionHelpFormatter):
    """The description as it is, and every option's default, unless its text says it or there is none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        if action.help is None or "(default" in action.help or default is None or action.nargs == 0:
            return action.help
        some = default if isinstance(default, (list, tuple)) else [default]
        return (
            f"{action.help} (default: {' '.join(f'{x:g}' if isinstance(x, float) else f'{x}' for x in some)})"
        )


def parser(description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=Help, epilog=RULE)
    made.add_argument("--quick", action="store_true", help="small sizes and few rounds: does it run?")
    add_out(made, "for the results")
    return made


def add_out(made: argparse.ArgumentParser, what: str) -> None:
    made.add_argument(
        "--out",
        type=folder,
        default=RESULTS,
        metavar="DIR",
        help=f"folder {what} (default: benchmarks/results)",
    )


def folder(text: str) -> Path:
    """The path of a folder, which may be made later; said at once if it can't be."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is no folder")
    return path


def bounded(made: argparse.ArgumentParser, given: argparse.Namespace, **least: int) -> None:
    """End with a usage error if one of these options is smaller than it may be."""
    for name, smallest in least.items():
        value = getattr(given, name)
        if value is not None and value < smallest:
            made.error(f"--{name.replace('_', '-')} must be at least {smallest}, got {value}")


def named(name: str, made: argparse.ArgumentParser, given: argparse.Namespace, *settings: str) -> str:
    """What the results are called: ``name``, or that of a trial if ``settings`` are not all at their defaults."""
    whole = all(getattr(given, setting) == made.get_default(setting) for setting in settings)
    return name if whole else f"{name}-trial"


def table_at(path: Path) -> dict[str, Any]:
    """What an earlier call wrote: the runs, and how they were made."""
    if not path.exists():
        return {"made_by": [], "runs": []}
    try:
        table = json.loads(path.read_text())
        return {"made_by": list(table["made_by"]), "runs": list(table["runs"])}
    except (ValueError, KeyError, TypeError):
        sys.exit(f"{path} is no table of runs, or is broken: move it away, and it is written again")


def without_loss(path: Path, runs: Sequence[Mapping[str, Any]], *keys: str) -> Path:
    """``path``, or a trial's beside it if the table there has runs that are not among ``runs``."""

    def told_apart(some: Sequence[Mapping[str, Any]]) -> set[tuple[Any, ...]]:
        return {tuple(run[key] for key in keys) for run in some}

    return (
        path
        if told_apart(table_at(path)["runs"]) <= told_apart(runs)
        else path.with_stem(f"{path.stem}-trial")
    )


def needed(extra: str, *modules: str) -> None:
    """End with a line that says which extra to install if a module is missing."""
    try:
        for module in modules:
            need(module, extra)
    except ImportError as error:
        sys.exit(str(error))


def machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        cpu = models[0] if models else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "kcd_core": kcd.__version__,
        **({"commit": known} if (known := commit(RESULTS.parents[1])) else {}),
        "threads": torch.get_num_threads(),
    }


def commit(checkout: Path) -> str | None:
    """A Git checkout's commit, with a + if tracked files were changed."""
    if not (checkout / ".git").exists() or shutil.which("git") is None:
        return None
    git = ["git", "-C", str(checkout), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or None


def about() -> dict[str, Any]:
    """Command, date and machine: what stands beside every figure."""
    return {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
    }


def heading(facts: dict[str, Any]) -> str:
    """`about` in one line."""
    settings = ", ".join(f"{key} {value}" for key, value in facts["machine"].items())
    return f"`{facts['command']}`, {facts['date']}; {settings}"


def verdict(
    interval: Sequence[float] | None, *, at_most: float | None = None, at_least: float | None = None
) -> str:
    """``"met"`` or ``"missed"`` if all of the interval is on one side of the target, else ``"can't tell"``.

    ``interval``: lowest and highest, both ends included; twice the same for what is exact; None if it is not known.
    """
    if (at_most is None) == (at_least is None):
        raise TypeError("verdict() takes one target: at_most or at_least")
    if interval is None:
        return "can't tell"
    low, high = interval
    meets = [end <= at_most if at_most is not None else end >= (at_least or 0) for end in (low, high)]
    if low != low or high != high or meets[0] != meets[1]:
        return "can't tell"
    return "met" if meets[0] else "missed"


class Report:
    """Rows of (what, figure, reference, ratio, target, verdict), printed as they come and written at the end.

    ``progress`` says meanwhile, on stderr, what is being done.
    """

    HEAD = ("what", "kcd", "reference", "ratio", "target", "verdict")

    def __init__(self, name: str, note: str) -> None:
        self.name, self.note, self.progress = name, note, Progress()
        self.rows: list[dict[str, str]] = []
        self.data: dict[str, Any] = {}

    def add(
        self,
        what: str,
        kcd: str,
        reference: str = "",
        *,
        ratio: float | None = None,
        at_most: float | None = None,
        at_least: float | None = None,
        interval: tuple[float, float] | None = None,
        exact: bool = False,
        **data: Any,
    ) -> None:
        """One line. ``ratio`` is compared with ``at_most`` or ``at_least`` by all of its ``interval``.

        ``exact``: it was counted, so that it is its own interval. Of what was timed and has none, nothing can be told.
        """
        target = found = ""
        if ratio is not None and (at_most is not None or at_least is not None):
            target = f"<= {at_most:g}" if at_most is not None else f">= {at_least:g}"
            found = verdict((ratio, ratio) if exact else interval, at_most=at_most, at_least=at_least)
        shown = "" if ratio is None else f"{ratio:.3g}"
        if interval is not None:
            shown, data = (
                f"{shown} [{interval[0]:.3g}, {interval[1]:.3g}]",
                {**data, "interval": list(interval)},
            )
        row = dict(zip(self.HEAD, (what, kcd, reference, shown, target, found), strict=True))
        self.rows.append(row)
        self.data[what] = {**row, **data}
        self.progress.end()
        print(f"{what:<64} {kcd:>12} {reference:>30} {shown:>8} {target:>7} {found}", flush=True)

    def write(self, folder: Path) -> None:
        """``NAME.json`` and ``NAME.md``."""
        facts = about()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.json").write_text(json.dumps({**facts, "rows": self.data}, indent=1) + "\n")
        lines = ["| " + " | ".join(self.HEAD) + " |", "|" + "---|" * len(self.HEAD)]
        lines += ["| " + " | ".join(row[key] for key in self.HEAD) + " |" for row in self.rows]
        (folder / f"{self.name}.md").write_text(
            f"# {self.name}\n\n{heading(facts)}\n\n{self.note}\n\n" + "\n".join(lines) + "\n"
        )
        print(f"written: {folder / self.name}.json and .md", flush=True)


def many(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    for limit, factor, unit in ((1e-6, 1e9, "ns"), (1e-3, 1e6, "us"), (1, 1e3, "ms")):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"
