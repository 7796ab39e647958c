"""A training run killed with kill -9 at random moments, and gone on with from its last checkpoint each time.

    python benchmarks/kills.py [--quick] [--kills 100] [--seed 0] [--out DIR]

Runs `_kills/run.py` once without interruption, then again and again, killing it at random moments until
there were as many kills as wanted. Each run has to end with the very bytes of the uninterrupted one's
checkpoint, but for the account of what it cost: sets, order of the keys, pixels, weights, optimizer, scaler,
random state. Each start is a new process, forked from one that has only imported torch and kcd_core, and only the training
process gets the signal; its workers are cleared away after it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from _common.report import Report, named, parser
from _kills.run import EPOCHS, begin

import kcd_core as kcd

PER_RUN = 10  # kills to aim at in one run
LONGEST = 600.0  # seconds that a run may take
IMPORTED = ["torch._dynamo", "kcd_core.loading"]  # before a run begins: it takes longer than to train


def run(path: Path, moment: float | None = None) -> float | None:
    """Begin or go on, and kill -9 after ``moment`` seconds of training: how long it took, or None if killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    hears, says = context.Pipe(duplex=False)
    process = context.Process(target=begin, args=(path, says))
    process.start()
    says.close()
    try:
        with hears, suppress(EOFError):
            hears.recv()
        began = time.perf_counter()
        process.join(LONGEST if moment is None else moment)
        seconds = time.perf_counter() - began
        status = process.exitcode
    finally:
        process.kill()
        process.join()
        with suppress(ProcessLookupError):  # workers notice only after seconds
            os.killpg(process.pid, signal.SIGKILL)
    if status is None and moment is not None:
        return None
    if status:
        errors = path.with_suffix(".err")
        raise RuntimeError(f"the run failed:\n{errors.read_text()[-3000:] if errors.exists() else ''}")
    if status is None:
        raise RuntimeError(f"the run took longer than {LONGEST:.0f} s")
    return seconds


def reached(path: Path) -> tuple[int, int]:
    """The epoch and position that a run goes on from with this checkpoint."""
    loader = kcd.load_checkpoint(path)["loader"]
    return loader["epoch"], loader["position"]


def killed_run(path: Path, rng: Any, window: float, kills: int) -> list[dict[str, Any]]:
    """One run to its end, killed up to ``kills`` times within ``window`` seconds after it began or went on."""
    killed: list[dict[str, Any]] = []
    while True:
        moment = rng.uniform(0, window) if len(killed) < kills else None
        if run(path, moment) is not None or (path.exists() and reached(path)[0] > EPOCHS):
            return killed  # killed after all was done, it was not killed in time
        writing = list(path.parent.glob(f".{path.name}.kcd-*.tmp"))
        for temporary in writing:
            temporary.unlink()
        killed.append(
            {
                "after": round(moment, 4),
                "writing": bool(writing),
                "from": reached(path) if path.exists() else None,
            }
        )
        print("  killed", killed[-1], flush=True)


def compared(path: Path) -> bytes:
    """The bytes of a checkpoint without its account: no two runs take the same time."""
    state, rest = kcd.load_checkpoint(path), path.with_suffix(".compared")
    del state["loader"]["account"]
    kcd.save_checkpoint(rest, state)
    return rest.read_bytes()


def measure(report: Report, folder: Path, kills: int, seed: int) -> None:
    whole = folder / "whole.ckpt"
    report.progress.begin("a run without interruption")
    seconds = run(whole)
    assert seconds is not None
    window = 2 * seconds / PER_RUN
    expected = compared(whole)
    moments: list[dict[str, Any]] = []
    runs = same = 0
    while len(moments) < kills:
        print(f"run {runs}, moments drawn with numpy.random.default_rng([{seed}, {runs}])", flush=True)
        path = folder / f"run{runs}.ckpt"
        moments += killed_run(path, np.random.default_rng([seed, runs]), window, kills - len(moments))
        same += compared(path) == expected
        runs += 1
    resumed = [m["from"] for m in moments]
    report.add("kills", str(len(moments)), moments=moments, seed=seed, window=window)
    report.add("while a checkpoint was being written", str(sum(m["writing"] for m in moments)))
    report.add("before the first checkpoint", str(resumed.count(None)))
    report.add("within an epoch", str(sum(r is not None and r[1] > 0 for r in resumed)))
    report.add("different places gone on from", str(len(set(resumed))))
    report.add("runs", str(runs))
    report.add(
        "runs that end with the bytes of the uninterrupted one", str(same), str(runs), ratio=same / runs, at_least=1,
        exact=True,
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--kills", type=int, default=100, metavar="N", help="how many; 3 with --quick")
    options.add_argument("--seed", type=int, default=0, metavar="S", help="of the moments")
    given = options.parse_args(arguments)
    report = Report(
        named("kills", options, given, "quick", "kills", "seed"), __doc__.split("\n\n")[2].replace("\n", " ")
    )
    with tempfile.TemporaryDirectory() as folder:
        measure(report, Path(folder), 3 if given.quick else given.kills, given.seed)
    report.write(given.out)
    return 0 if all(row["verdict"] != "missed" for row in report.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
