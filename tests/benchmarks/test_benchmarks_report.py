"""What the benchmarks write down of where their figures come from."""

import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from _common import report, timing

sys.path.pop(0)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_commit_is_said_with_a_plus_if_files_were_changed(tmp_path):
    def git(*words):
        return subprocess.run(
            ["git", "-C", tmp_path, *words], check=True, capture_output=True, text=True
        ).stdout

    assert report.commit(tmp_path) is None, "no checkout"
    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "x")
    known = report.commit(tmp_path)
    assert len(known) >= 7
    assert git("rev-parse", "HEAD").startswith(known)
    (tmp_path / "another").write_text("2")
    assert report.commit(tmp_path) == known, "files that Git does not know do not count"
    (tmp_path / "file").write_text("2")
    assert report.commit(tmp_path) == f"{known}+"


def test_about_says_command_date_and_commit(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/x.py", "--quick"])
    monkeypatch.setattr(report, "commit", lambda checkout: "abc1234+")
    facts = report.about()
    assert facts["command"] == "python benchmarks/x.py --quick"
    assert facts["date"].endswith(" UTC")
    assert "commit abc1234+" in report.heading(facts)
    monkeypatch.setattr(report, "commit", lambda checkout: None)
    assert "commit" not in report.heading(report.about()), "an unpacked archive has none"


@pytest.mark.parametrize(
    "content", ["", '{"made_by": [], "ru', "[]", '{"made_by": []}', '{"made_by": 0, "runs": []}']
)
def test_a_table_that_is_none_is_named(tmp_path, content):
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(SystemExit, match=r"table\.json is no table of runs, or is broken: move it away"):
        report.without_loss(path, [], "seed")
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("interval", "target", "verdict"),
    [
        ((0.9, 1.0), {"at_most": 1.0}, "met"),
        ((0.9, 1.1), {"at_most": 1.0}, "can't tell"),
        ((1.1, 1.2), {"at_most": 1.0}, "missed"),
        ((1.0, 1.2), {"at_least": 1.0}, "met"),
        ((0.9, 1.2), {"at_least": 1.0}, "can't tell"),
        ((0.8, 0.9), {"at_least": 1.0}, "missed"),
        ((0.0, 0.0), {"at_most": 0}, "met"),
        ((float("nan"), float("nan")), {"at_most": 1.0}, "can't tell"),
        (None, {"at_most": 1.0}, "can't tell"),
    ],
)
def test_a_verdict_is_that_of_the_whole_interval(interval, target, verdict):
    assert report.verdict(interval, **target) == verdict


def test_a_verdict_needs_one_target():
    for targets in ({}, {"at_most": 1, "at_least": 0}):
        with pytest.raises(TypeError, match="one target"):
            report.verdict((0, 1), **targets)


def test_a_row_says_whether_its_target_is_met(capsys):
    made = report.Report("name", "")
    made.add("a", "1", ratio=0.5, at_most=0.7, exact=True)
    made.add("b", "1", ratio=0.5, at_least=0.7, exact=True)
    made.add("c", "1", ratio=0.5)
    made.add("d", "1", ratio=0.5, at_most=0.7, interval=(0.4, 0.6))
    made.add("e", "1", ratio=0.5, at_most=0.7, interval=(0.4, 0.8))
    made.add("f", "1", ratio=0.5, at_most=0.7)  # timed once: that it is below may be chance
    assert [row["verdict"] for row in made.rows] == ["met", "missed", "", "met", "can't tell", "can't tell"]
    assert [row["target"] for row in made.rows] == ["<= 0.7", ">= 0.7", "", *["<= 0.7"] * 3]


@pytest.mark.parametrize("turns", [5, 6, 8, 9, 25, 100])
def test_an_interval_of_turns_holds_the_median_nineteen_times_in_twenty(turns):
    """Counted over all ways in which turns can lie about the median, not by the quantile it is made with."""
    found = timing.interval(np.arange(turns)[::-1])
    if turns < 6:
        assert found is None  # even the lowest and the highest hold it in 94 %
        return
    low, high = map(int, found)

    def held(place):
        """The chance that the median is between that place from below and from above."""
        return 1 - 2 * sum(math.comb(turns, below) for below in range(place + 1)) / 2**turns

    assert high == turns - 1 - low
    assert held(low) >= 0.95 > held(low + 1)  # and it is the shortest


def test_a_ratio_of_turns_is_paired():
    own, base = np.array([1.0, 4.0, 9.0, 16.0, 25.0, 36.0]), np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert timing.of_turns(own, base) == {"ratio": 3.5, "interval": (1.0, 6.0), "rounds": 6}
    assert timing.of_turns(own[:5], base[:5]) == {"ratio": 3.0, "interval": None, "rounds": 5}
