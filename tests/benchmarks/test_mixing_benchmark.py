"""The benchmark of mixing measures what it says."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def mixing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("mixing")
    del sys.modules["mixing"]


def test_the_arms_of_fetching_draw_the_same_samples(mixing: Any) -> None:
    data, _ = mixing.images_of(200)
    loaders = [mixing.condensed(data, 0.3, 0, **given) for given in mixing.MIXING.values()]
    assert len({tuple(loader.sampler.order().tolist()) for loader in loaders}) == 1
    mixed = [len(loader.sampler.recipes) for loader in loaders]
    assert mixed[0] == 0
    assert mixed[1] > mixed[2] > 0  # of all stages; of the last


def test_a_target_that_only_some_turns_meet_is_not_told(mixing: Any, tmp_path: Path) -> None:
    report = mixing.Report("some", "a note")
    for name, interval in (("within", (0.9, 1.02)), ("around", (0.9, 1.04)), ("beyond", (1.04, 1.05))):
        report.add(name, "1 s", ratio=1.0, interval=interval, at_most=1.03)
    report.write(tmp_path)
    rows = json.loads((tmp_path / "some.json").read_text())["rows"]
    assert [row["verdict"] for row in rows.values()] == ["met", "can't tell", "missed"]
    assert rows["around"]["interval"] == [0.9, 1.04]
