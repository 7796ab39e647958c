"""What the benchmarks share: timing in turns, and writing down what was measured, where and how."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import kcd_core as kcd

RESULTS = Path(__file__).parent / "results"


def parser(description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help="small sizes and few rounds: does it run?")
    made.add_argument("--out", type=Path, default=RESULTS, help="folder for the .json and .md files")
    return made


def in_turns(arms: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """Seconds per call, [rounds] for each arm. Arms take turns, so that other load hits all of them."""
    for call in arms.values():
        call()
    times = {name: np.zeros(rounds) for name in arms}
    for number in range(rounds):
        for name, call in arms.items():
            start = time.perf_counter()
            call()
            times[name][number] = time.perf_counter() - start
    return times


def best(times: Any) -> float:
    """Seconds of the best turn. What else runs on the machine only ever adds."""
    return float(np.min(times))


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
        "threads": torch.get_num_threads(),
    }


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


class Report:
    """Rows of (what, figure, reference, ratio, target, met), printed as they come and written at the end."""

    HEAD = ("what", "kcd", "reference", "ratio", "target", "met")

    def __init__(self, name: str, note: str) -> None:
        self.name, self.note = name, note
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
        **data: Any,
    ) -> None:
        """One line. ``ratio`` is compared with ``at_most`` or ``at_least``."""
        target = met = ""
        if ratio is not None and (at_most is not None or at_least is not None):
            target = f"<= {at_most:g}" if at_most is not None else f">= {at_least:g}"
            good = ratio <= at_most if at_most is not None else ratio >= (at_least or 0)
            met = "yes" if good else "NO"
        shown = "" if ratio is None else f"{ratio:.3g}"
        row = dict(zip(self.HEAD, (what, kcd, reference, shown, target, met), strict=True))
        self.rows.append(row)
        self.data[what] = {**row, **data}
        print(f"{what:<64} {kcd:>12} {reference:>30} {shown:>8} {target:>7} {met}", flush=True)

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


def duration(seconds: float) -> str:
    for limit, factor, unit in ((1e-6, 1e9, "ns"), (1e-3, 1e6, "us"), (1, 1e3, "ms")):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"
