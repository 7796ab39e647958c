"""A whole training run, killed at five random moments: it ends as if it never was."""

import importlib
import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from helpers import identical_state

import kcd_core as kcd

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What benchmarks/kills.py reports of five kills, the folder with the last checkpoint of each run, and the processes
    that have a file of it open right after one more kill."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))  # of the processes that are started, too
        kills = importlib.import_module("kills")
        folder, report = tmp_path_factory.mktemp("kills"), kills.Report("kills", "")
        kills.measure(report, folder, 5, seed=0)
        assert kills.run(folder / "more.ckpt", 0.5) is None
        return report, folder, left_in(folder)


def test_five_kills_and_none_lost(measured):
    report, *_ = measured
    assert report.data["kills"]["kcd"] == "5"
    moments = report.data["kills"]["moments"]
    assert len({tuple(m["from"] or ()) for m in moments}) > 1  # or it was always killed in one place
    assert all(row["verdict"] != "missed" for row in report.rows)


def test_killed_runs_end_as_the_uninterrupted_one(measured):
    _, folder, _ = measured
    whole = kcd.load_checkpoint(folder / "whole.ckpt")
    sampler = whole["loader"]["sampler"]
    assert sampler["stage"] == 4
    assert len(sampler["mix_target"]) > 0
    runs = sorted(folder.glob("run*.ckpt"))
    assert runs
    for path in runs:
        run = kcd.load_checkpoint(path)
        assert run["drawn"] == whole["drawn"]  # all keys and pixels, in their order
        for name in ("kept", "mix_target", "mix_source", "mix_weight"):
            assert torch.equal(run["loader"]["sampler"][name], sampler[name])
        assert run["loader"]["history"] == whole["loader"]["history"]
        for name, weights in whole["model"].items():
            assert torch.equal(run["model"][name], weights)
        assert identical_state(run, whole)  # and everything else


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to look for processes")
def test_no_process_is_left(measured):
    """Neither a run nor a worker of one: each has the run's file of errors open."""
    _, folder, left = measured
    assert left == set()
    with open(folder / "mine", "w"):  # what was killed may still be on its way out
        assert os.getpid() in holders(folder)


def left_in(folder):
    """Those of the `holders` that are not about to end: what was killed may still have to be given a core, and then a moment."""
    until = time.monotonic() + 1  # a worker without its run would notice after five
    while (
        left := {process for process in holders(folder) if not is_killed(process)}
    ) and time.monotonic() < until:
        time.sleep(0.02)
    return left


def is_killed(process):
    """Whether SIGKILL waits for a process to run."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return True
    pending = [int(mask, 16) for mask in re.findall(r"^(?:SigPnd|ShdPnd):\s*(\w+)", status, re.MULTILINE)]
    return any(mask >> (signal.SIGKILL - 1) & 1 for mask in pending)


def holders(folder):
    """The processes that have a file of this folder open."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        for opened in os.scandir(process / "fd") if os.access(process / "fd", os.R_OK) else ():
            with suppress(OSError):  # closed meanwhile
                if os.readlink(opened).startswith(f"{folder}{os.sep}"):
                    found.add(int(process.name))
    return found
