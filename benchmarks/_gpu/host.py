"""``kcd run`` on miniatures of two repositories, under AMP: observed, condensed, and no synchronisation added.

The miniatures (``tests/adapters/miniatures``) have the names, the signatures and the traps of RepDistiller and of
mdistiller, and none of their code. Each trains plain and under ``kcd run``, in a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kcd_core as kcd

from .part import Part

HOSTS = Path(__file__).parents[2] / "tests" / "adapters" / "miniatures"
EPOCHS = 4
#: On CUDA, an epoch has to be longer than values wait to be added.
SAMPLES = {"cuda": 1_000, "cpu": 200}
SCHEDULE = kcd.CondensationSchedule(ratio=0.5, stages=2, period=1)


@dataclass(frozen=True)
class Host:
    """A miniature: its name, its script with arguments, and the dtype of AMP on CUDA (on the CPU: bfloat16)."""

    title: str
    folder: str
    script: tuple[str, ...]
    dtype: str

    def dtype_on(self, part: Part) -> str:
        return self.dtype if part.device.type == "cuda" else "bfloat16"


MINIATURES = (
    Host("RepDistiller", "repdistiller", ("train_student.py", "--epochs", f"{EPOCHS}"), "float16"),
    Host("mdistiller", "mdistiller", ("tools/train.py", "--epochs", f"{EPOCHS}"), "bfloat16"),
)


class RunError(Exception):
    """A run ended badly, or did not do what it should; says how."""


@dataclass(frozen=True)
class Trained:
    """What a run leaves: the miniature's note of every step, and ``kcd run``'s history (None: it ran plain)."""

    steps: list[dict[str, Any]]
    history: dict[str, Any] | None

    def drawn(self) -> list[int]:
        """Samples, by epoch."""
        return [sum(step["rows"] for step in self.steps if step["epoch"] == e) for e in range(1, EPOCHS + 1)]

    def waited(self, *, first: bool) -> list[list[str]]:
        """The lines that waited for the device in each epoch's first step, or in each other step.

        Without the first epoch, in which KCD compares the labels of a few batches at once.
        """
        marks = [step["epoch"] for step in self.steps]
        return [
            step["waited"]
            for before, step in zip(marks, self.steps[1:], strict=False)
            if step["epoch"] > 1 and first == (before != step["epoch"])
        ]


def run(part: Part) -> None:
    """All at once where there are cores for it; a row for each miniature."""
    hosts = MINIATURES[:1] if part.quick and part.device.type != "cuda" else MINIATURES
    if part.device.type != "cuda":
        part.leave_out("synchronisations", "there are none on the CPU")
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(min(2 * len(hosts), os.cpu_count() or 1)) as pool,
    ):
        jobs = [
            [pool.submit(trained, host, Path(folder), part, condensed) for condensed in (False, True)]
            for host in hosts
        ]
        for host, (plain, condensed) in zip(hosts, jobs, strict=True):
            try:
                look(host, plain.result(), condensed.result(), part)
            except RunError as error:
                part.fail(host.title, str(error))


def trained(host: Host, below: Path, part: Part, condensed: bool) -> Trained:
    """Run a copy of the miniature, for it writes beside its script."""
    folder = below / f"{host.folder}-{'kcd' if condensed else 'plain'}"
    shutil.copytree(HOSTS / host.folder, folder)
    # mdistiller is installed, not beside its script. Run plain, it needs what `kcd run` has shims for.
    paths = [str(folder), str(HOSTS / "shared"), *([] if condensed else [str(HOSTS / "old")])]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "MINI_DEVICE": str(part.device),
        "MINI_AMP": host.dtype_on(part),
        "MINI_N": str(SAMPLES[part.device.type]),
        "MINI_STEPS": str(folder / "steps.json"),
        "WANDB_MODE": "disabled",
    }
    settings = (f"--{name}={getattr(SCHEDULE, name)}" for name in ("ratio", "stages", "period"))
    kcd_run = ("-m", "kcd_adapters", "run", *settings, "--history=history.json")
    how = "kcd run" if condensed else "the plain run"
    if part.left() < 3:
        raise RunError(f"there was no time for {how}")
    try:
        done = subprocess.run(
            [sys.executable, *(kcd_run if condensed else ()), *host.script],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=part.left() - 1,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RunError(f"{how} was not done after {error.timeout:.0f} s") from None
    if done.returncode:
        raise RunError(
            f"{how} ended with {done.returncode}: {' | '.join(done.stdout.strip().splitlines()[-3:])}"
        )
    history = json.loads((folder / "history.json").read_text()) if condensed else None
    return Trained(json.loads((folder / "steps.json").read_text()), history)


def look(host: Host, plain: Trained, condensed: Trained, part: Part) -> None:
    """A row of what the miniature did under ``kcd run``, or `RunError`."""
    assert condensed.history is not None
    samples, dtype = SAMPLES[part.device.type], host.dtype_on(part)
    sizes = [SCHEDULE.size(samples, epoch) for epoch in range(1, EPOCHS + 1)]
    summary = condensed.history["summary"]
    for what, found, expected in (
        ("the plain run drew", plain.drawn(), [samples] * EPOCHS),
        ("kcd run drew", condensed.drawn(), sizes),
        ("its history has kept", [r["kept"] for r in condensed.history["history"]["records"]], sizes[1:]),
        ("its history has observed", summary["observed"], sum(sizes)),
        ("it trained on", {step["device"] for step in condensed.steps}, {part.device.type}),
        ("it predicted in", {step["dtype"] for step in condensed.steps}, {dtype}),
    ):
        if found != expected:
            raise RunError(f"{what} {found}, expected {expected}")
    figure = (
        f"{dtype} on {part.device.type}, all {sum(sizes):,} samples drawn were observed, {samples:,} condensed to "
        + ", ".join(f"{size:,}" for size in dict.fromkeys(sizes[1:]))
    )
    data: dict[str, Any] = {"drawn": condensed.drawn(), "observed": summary["observed"], "dtype": dtype}
    if part.device.type != "cuda":
        part.add(host.title, figure, **data)
        return
    inside, start = (
        [max(map(len, one.waited(first=first))) for one in (plain, condensed)] for first in (False, True)
    )
    part.add(
        host.title,
        f"{figure}; synchronisations in a step: {inside[0]} plain, {inside[1]} with kcd (in an epoch's first, where a "
        f"stage ends: {start[0]} and {start[1]})",
        **data,
        synchronisations=dict(zip(("plain", "kcd"), inside, strict=True)),
        synchronisations_at_start=dict(zip(("plain", "kcd"), start, strict=True)),
    )
    if not inside[0]:
        raise RunError(
            "none was counted in the plain run, which waits for every batch's copy: nothing is known"
        )
    if inside[1] > inside[0]:
        own, other = (
            {line for lines in one.waited(first=False) for line in lines} for one in (condensed, plain)
        )
        raise RunError(
            f"kcd run waits at {', '.join(sorted(own - other)) or 'lines where the host waits, too'}"
        )
