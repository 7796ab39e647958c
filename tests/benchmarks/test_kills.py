"""A whole training run, killed at five random moments: it ends as if it never was."""

import importlib
import os
import sys
from pathlib import Path

import pytest
import torch
from helpers import identical_state

import kcd_core as kcd

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What benchmarks/kills.py reports of five kills, and the folder with the last checkpoint of each run."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        kills = importlib.import_module("kills")
    finally:
        sys.path.remove(str(BENCHMARKS))
    folder, report = tmp_path_factory.mktemp("kills"), kills.Report("kills", "")
    kills.measure(report, folder, 5, seed=0)
    return report, folder


def test_five_kills_and_none_lost(measured):
    report, _ = measured
    assert report.data["kills"]["kcd"] == "5"
    moments = report.data["kills"]["moments"]
    assert len({tuple(m["from"] or ()) for m in moments}) > 1  # or it was always killed in one place
    assert all(row["verdict"] != "missed" for row in report.rows)


def test_killed_runs_end_as_the_uninterrupted_one(measured):
    _, folder = measured
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
    _, folder = measured
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:  # gone meanwhile
            continue
        if os.fsencode(folder) in command:
            left.append(process.name)
    assert left == []
