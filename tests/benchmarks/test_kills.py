"""A whole training run, killed at five random moments: it ends as if it never was."""

import glob
import importlib
import os
import signal
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import SECONDS, identical_state

import kcd_core as kcd

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What benchmarks/kills.py reports of five kills, the folder with the last checkpoint of each run, and the processes
    that go on with a file of it open after one more kill."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))  # of the processes that are started, too
        kills = importlib.import_module("kills")
        for seed in range(20):  # a machine that slows down may get none of them to its first checkpoint
            folder, report = tmp_path_factory.mktemp("kills"), kills.Report("kills", "")
            kills.measure(report, folder, 5, seed)
            if len(places(report)) > 1:
                break
        patch.setattr(kills, "begin", begin_blindly)
        assert kills.run(folder / "more.ckpt", 0.0) is None
        return report, folder, left_in(folder)


def places(report):
    """Where the killed runs went on from."""
    return {tuple(moment["from"] or ()) for moment in report.data["kills"]["moments"]}


def begin_blindly(path, says):
    """A run that says that it begins when it has workers, which never see that it is gone."""
    from _kills.run import begin

    def save_and_say(*given):
        kcd.save_checkpoint = save
        save(*given)
        says.send(None)

    save, kcd.save_checkpoint = kcd.save_checkpoint, save_and_say
    torch.utils.data._utils.worker.ManagerWatchdog = partial(SimpleNamespace, is_alive=lambda: True)
    begin(path, SimpleNamespace(send=lambda _: None))


def test_five_kills_and_none_lost(measured):
    report, *_ = measured
    assert report.data["kills"]["kcd"] == "5"
    assert len(places(report)) > 1  # or it was always killed in one place
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
    with open(folder / "mine", "w"):
        assert holders(folder) == {os.getpid()}


def left_in(folder):
    """The processes that have a file of this folder open, once those that were killed have had time to end."""
    until = time.monotonic() + SECONDS / 5
    while (left := holders(folder)) and time.monotonic() < until:
        time.sleep(0.05)
    for process in left:
        os.kill(process, signal.SIGKILL)
    return left


def holders(folder):
    """The processes that have a file of this folder open."""
    found = set()
    for link in glob.glob("/proc/[0-9]*/fd/*"):
        with suppress(OSError):  # closed meanwhile
            if os.readlink(link).startswith(f"{folder}{os.sep}"):
                found.add(int(link.split("/")[2]))
    return found
