"""A part's process: started with its orders, ended at its limit, with all that it started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from typing import Any

from .checkout import ROOT

CHILD = ("-m", "_gpu.child")
GRACE = 2.0  # seconds from asking a process to end until it is killed, and from then until it is given up


def run_part(orders: dict[str, Any], seconds: float) -> tuple[str, str]:
    """Why the part failed, or nothing, and the last it said on stderr.

    Leaves no process behind, whatever happens, but one that is stuck in a driver and can't be killed.
    """
    orders = {**orders, "deadline": time.monotonic() + seconds}
    own: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
    # What other versions of other packages are about to drop is no failure.
    settings = {key: value for key, value in os.environ.items() if key not in ("PYTHONWARNINGS", "PYTEST_ADDOPTS")}  # fmt: skip
    own |= {"stdin": subprocess.PIPE, "cwd": ROOT / "benchmarks", "env": settings}
    command = [sys.executable, "-u", *CHILD, json.dumps(orders)]
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(command, stderr=said, **own)
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            ended = stop(process)
        said.seek(0)
        lines = said.read().replace(f"{ROOT}/", "").splitlines()[-25:]
    last = "\n".join(lines)
    if status is None:
        stuck = "" if ended else f"; it can't be killed, and process {process.pid} is left"
        return f"over its limit of {seconds:.0f} s{stuck}", last
    if status < 0:
        return f"ended by {signal.Signals(-status).name}", last
    # A part's own failures are in what it wrote.
    return (f"exit status {status}" if status else ""), last


def stop(process: subprocess.Popen[Any]) -> bool:
    """End a part's process, if it is there still, and all that it started; whether it has ended."""
    if process.poll() is None:
        signal_group(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    signal_group(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    assert process.stdin is not None
    process.stdin.close()  # the line: its end of it ends the process, too
    return process.poll() is not None


def signal_group(number: int, what: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(number, what)
