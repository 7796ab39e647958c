"""A training run killed with kill -9 at random moments, and gone on with from its last checkpoint each time.

    python benchmarks/kills.py [--quick] [--kills 100] [--seed 0] [--out DIR]

Runs `_kills/run.py` once without interruption, then again and again, killing it at random moments until
there were as many kills as wanted. Each run has to end with the very bytes of the uninterrupted one's
checkpoint, but for the account of what it cost: sets, order of the keys, pixels, weights, optimizer, scaler,
random state. Each start is a new process, and only the training process gets the signal; its workers are
cleared away after it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from _common.report import Report, named, parser
from _kills.run import EPOCHS

import kcd_core as kcd

RUN = Path(__file__).parent / "_kills" / "run.py"
PER_RUN = 10  # kills to aim at in one run


def run(path: Path, moment: float | None = None) -> float | None:
    """Begin or go on, and kill -9 after ``moment`` seconds of training: how long it took, or None if killed."""
    with open(path.with_suffix(".err"), "ab") as errors:  # workers complain of their parent's death there
        process = subprocess.Popen(
            [sys.executable, str(RUN), str(path)],
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        training = process.stdout.readline() == b"training\n"
        began = time.perf_counter()
        status = process.wait(600 if moment is None else moment)
    except subprocess.TimeoutExpired:
        if moment is None:
            raise
        return None
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        with suppress(ProcessLookupError):  # workers notice only after seconds
            os.killpg(process.pid, signal.SIGKILL)
    if status or not training:
        raise RuntimeError(f"the run failed:\n{path.with_suffix('.err').read_text()[-3000:]}")
    return time.perf_counter() - began


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
        "runs that end with the bytes of the uninterrupted one", str(same), str(runs), ratio=same / runs, at_least=1
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
