"""What a part of `benchmarks/gpu.py` is given, and where its rows go: to the screen and to disk as they come."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass
class Part:
    """One part's run, in a process of its own.

    Attributes
    ----------
    name : str
    where : str
        The device's name: cuda:0, or cpu to see that the part runs.
    quick : bool
        Smallest sizes and fewest rounds: does it run?
    data_dir : Path or None
        Where files of real data lie that are not installed (``--data-dir``).
    out : Path
        The file that this part's rows are written to.
    deadline : float
        The moment of ``time.monotonic()`` at which the part is ended, whatever it is doing.
    about : dict
        Command, date and machine, which stand beside the rows.
    """

    name: str
    where: str
    quick: bool
    data_dir: Path | None
    out: Path
    deadline: float
    about: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @cached_property
    def device(self) -> torch.device:
        import torch  # takes seconds, and not every part of the tests needs it

        return torch.device(self.where)

    def left(self) -> float:
        """Seconds until the part is ended."""
        return self.deadline - time.monotonic()

    def sync(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)

    def add(self, what: str, figure: str, **data: Any) -> None:
        """A row: what was looked at, what came out in words, and the figures behind it. It is written at once."""
        self.rows.append({"what": what, "figure": figure, **data})
        print(f"{self.name}: {what}: {figure}", flush=True)
        self.write()

    def leave_out(self, what: str, why: str) -> None:
        """A row that says why there is nothing: beside other results, it counts as not there."""
        self.add(what, f"left out: {why}", left_out=True)

    def fail(self, what: str, why: str) -> None:
        """A row that fails the part; what comes after it still runs."""
        self.failures.append(f"{what}: {why}")
        self.add(what, f"FAILED: {why}", failed=True)

    def write(self, **ended: Any) -> None:
        """What there is so far, whole or not at all."""
        told = {"part": self.name, **self.about, "rows": self.rows, "failures": self.failures, **ended}
        partial = self.out.with_name(f".{self.out.name}.part")
        partial.write_text(json.dumps(told, indent=1, default=lambda x: x.item()) + "\n")
        partial.replace(self.out)
