"""JSON lines and TensorBoard's files of what each stage did."""

from __future__ import annotations

import importlib.util
import json
import sys
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import kcd_core as kcd
from kcd_adapters.cli import main
from kcd_adapters.settings import Settings
from kcd_adapters.stage_log import StageLog

HOSTS = Path(__file__).parent / "miniatures"


def stages(log: StageLog, cut: float | None = None) -> kcd.CondensationHistory:
    """Two stages of 10 samples, written as they end."""
    history, value, count = kcd.CondensationHistory(10), np.arange(10.0), np.ones(10, np.int64)
    for stage, before, size in ((1, 10, 8), (2, 8, 5)):
        chosen = kcd.condense(value, count, previous=before, target=size, stage=stage)
        history.append(chosen, value, count, epoch=3 * stage)
        if cut is None:
            history[-1]["cut"] = None
        log.write(history, saved=2 * stage, full=30 * stage)
    return history


def test_a_line_a_stage_is_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = StageLog(Settings(log="run.jsonl"), {"method": "kd"})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    history = stages(log, cut=1.0)
    stages(log)
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [(line["method"], line["stage"], line["kept"]) for line in lines] == [
        ("kd", 1, 8),
        ("kd", 2, 5),
    ] * 2
    assert [(line["epoch"], line["saved"], line["full"]) for line in lines[:2]] == [(3, 2, 30), (6, 4, 60)]
    assert [line.get("cut", "none") for line in lines] == [
        history[0]["cut"],
        history[1]["cut"],
        "none",
        "none",
    ]
    assert datetime.fromisoformat(lines[0]["time"]).tzinfo is not None
    assert not any("edges" in line for line in lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "run.jsonl"]


def test_nothing_is_written_that_was_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = StageLog(Settings(), {})
    log.check(str)
    stages(log)
    log = StageLog(Settings(log="run.jsonl", tensorboard="board"), {})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    log.check(str)  # nor before there is a stage
    assert not list(tmp_path.iterdir())


def test_tensorboard_gets_the_numbers_of_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scalars: list[Any] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            scalars.append(folder)

        def add_scalar(self, *scalar: Any) -> None:
            scalars.append(scalar)

        def flush(self) -> None:
            scalars.append("flushed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    stages(StageLog(Settings(tensorboard=str(tmp_path / "board")), {}))
    assert scalars[0] == str(tmp_path / "board")
    assert scalars.count("flushed") == 2
    written = {name: (value, epoch) for name, value, epoch in (s for s in scalars[1:] if s != "flushed")}
    assert written["kcd/kept"] == (5, 6)
    assert written["kcd/share"] == (0.5, 6)
    assert written["kcd/saved"] == (4 / 60, 6)
    assert "kcd/cut" not in written


def test_torchs_own_writer(tmp_path: Path) -> None:
    pytest.importorskip("torch.utils.tensorboard")
    reader: Any = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    stages(StageLog(Settings(tensorboard=str(tmp_path)), {}), cut=1.0)
    read = reader.EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in read.Scalars("kcd/kept")] == [(3, 8.0), (6, 5.0)]


def test_what_can_not_be_written_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    script = str(HOSTS / "repdistiller" / "train_student.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else name)
    for options, reason in (
        (["--tensorboard", "board"], "--tensorboard needs the package tensorboard, with which torch writes"),
        (["--tensorboard", "file"], f"--tensorboard {tmp_path / 'file'}: it is a file, a folder is expected"),
        (["--log", "no/l.jsonl"], f"--log {tmp_path / 'no' / 'l.jsonl'}: No such file"),
        (["--log", "."], "not a regular file"),
    ):
        assert main(["run", *options, script]) == 2
        assert reason in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_stage_that_can_not_be_written_later_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages(StageLog(Settings(log=str(tmp_path / "gone" / "l.jsonl")), {}))
    assert capsys.readouterr().out.splitlines() == [
        f"kcd: WARNING: stage {stage} can't be written (log): No such file or directory" for stage in (1, 2)
    ]
