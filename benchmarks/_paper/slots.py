"""Many runs, a few at a time: started, watched, and their results or failures written down.

Every run has a folder of its own, in which the repository works as if it were its checkout: ``data`` is a link
to the images, and all that it saves goes there. ``result.json`` is written last; a folder without one is a run
that was interrupted or failed, and is started over, since neither repository can resume.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _common.report import many
from _common.signals import terminated

from kcd_core.base.files import write_whole

from .published import PAIRS
from .runs import Run, RunError, Setting, command, epochs_done, load, read

Slots = Sequence[str | None]  # of each place for a run: its GPU, None for the CPU
TAIL = 25  # lines of a log that are kept with a failure


def carry_out(setting: Setting, runs: Sequence[Run], slots: Slots) -> int:
    """Do all runs that have no result yet; returns how many failed."""
    missing = [run for run in runs if load(setting.folder / run.name / "result.json") is None]
    print(f"{many(len(runs), 'run')}, {len(runs) - len(missing)} of them done before", flush=True)
    if not missing:
        return 0
    setting.folder.mkdir(parents=True, exist_ok=True)
    screen = Screen(len(missing), setting.epochs)
    waiting, free = list(reversed(missing)), list(slots)
    running: list[Running] = []
    with alone(setting.folder) as lock, terminated():
        try:
            while waiting or running:
                while waiting and free:
                    running.append(Running(waiting.pop(), setting, free.pop(0), lock))
                time.sleep(0.2)
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    free.append(one.gpu)
                    screen.finished(one, one.finish(), running)
                screen.look(running)
        finally:
            for one in running:
                one.kill()
    return screen.failed


class Running:
    """A run that was started."""

    def __init__(self, run: Run, setting: Setting, gpu: str | None, lock: int) -> None:
        self.run, self.setting, self.gpu = run, setting, gpu
        self.folder = setting.folder / run.name
        self.started = time.monotonic()
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        (self.folder / "data").symlink_to(setting.data, target_is_directory=True)
        words = command(run, setting, gpu)
        with (self.folder / "log.txt").open("w") as log:
            log.write(" ".join(words) + "\n")
            log.flush()
            self.process = subprocess.Popen(
                words,
                cwd=self.folder,
                env=environment(gpu),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(lock,),
                start_new_session=True,  # a group of its own, so that its workers can be ended with it
            )

    def epochs(self) -> int:
        return epochs_done(self.run, self.log())

    def log(self) -> str:
        return (self.folder / "log.txt").read_text(errors="replace")

    def finish(self) -> dict[str, Any] | None:
        """Write down the result, or the failure and return None."""
        status = self.process.returncode
        self.kill()  # workers that a crash left behind
        try:
            if status:
                raise RunError(f"it ended with status {status}")
            result: dict[str, Any] | None = read(self.run, self.folder, self.setting.epochs)
        except (RunError, OSError, ValueError, KeyError) as error:
            failure = {**asdict(self.run), "why": str(error), "tail": self.log().splitlines()[-TAIL:]}
            self._write("failure.json", failure)
            return None
        seconds = round(time.monotonic() - self.started, 1)
        self._write("result.json", {**(result or {}), "seconds": seconds})
        return result

    def kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _write(self, name: str, content: dict[str, Any]) -> None:
        write_whole(self.folder / name, (json.dumps(content, indent=1) + "\n").encode())


def environment(gpu: str | None) -> dict[str, str]:
    place = {"OMP_NUM_THREADS": "1"} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    return {**os.environ, **place, "PYTHONUNBUFFERED": "1"}


@contextmanager
def alone(folder: Path) -> Iterator[int]:
    """A lock on the folder, which runs inherit: were this process killed, they would hold it on.

    Raises
    ------
    BlockingIOError
        If it is held.
    """
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield lock.fileno()


# -- progress ----------------------------------------------------------------------------------------------


class Screen:
    """A line for every run that ended; on a terminal, one more on those that go on."""

    def __init__(self, runs: int, epochs: int) -> None:
        self.runs, self.epochs = runs, epochs
        self.done = self.failed = 0
        self.started = self.looked = time.monotonic()
        self.live = sys.stdout.isatty()

    def finished(self, one: Running, result: dict[str, Any] | None, running: Sequence[Running]) -> None:
        self.done += 1
        run, took = one.run, hours(time.monotonic() - one.started)
        text = f"[{self.done}/{self.runs}] {run.method}, {PAIRS[run.pair].title}, seed {run.seed}: "
        if result is None:
            self.failed += 1
            text += f"FAILED after {took}; see {one.folder / 'log.txt'}"
        else:
            text += (
                f"{result['accuracy']:.2f} % (best {result['best']:.2f}), {result['drawn']:,} samples, {took}"
            )
        self.say(text + (f"; about {self.left(running)} to go" if self.done < self.runs else ""))

    def left(self, running: Sequence[Running]) -> str:
        """The time to go, if what is to come takes as long as what is done."""
        done = self.done + sum(one.epochs() for one in running) / self.epochs
        return hours((time.monotonic() - self.started) * (self.runs - done) / done) if done else "?"

    def look(self, running: Sequence[Running]) -> None:
        if not self.live or time.monotonic() - self.looked < 5:
            return
        self.looked = time.monotonic()
        state = ", ".join(f"{one.run.name} {one.epochs()}/{self.epochs}" for one in running)
        line = f"{self.done}/{self.runs} done, {self.failed} failed; about {self.left(running)} to go; now {state}"
        print("\r\033[K" + line[: shutil.get_terminal_size().columns - 1], end="", flush=True)

    def say(self, text: str) -> None:
        print(("\r\033[K" if self.live else "") + text, flush=True)


def hours(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def outcomes(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All results and all failures in the folder of a table."""
    found = [
        [json.loads(path.read_text()) for path in sorted(folder.glob(f"*/{name}.json"))]
        for name in ("result", "failure")
    ]
    return found[0], found[1]
