"""The scripts of examples/ are short, and docs/ quotes them; those that need no trainer run, and print what was saved."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SECONDS
from test_examples import SCRIPTS

from kcd_adapters.cli import main

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SHARED = {"digits.py", "words.py"}  # by the scripts
ALONE = {
    "compare.py",
    "dict_batches.py",
    "gate.py",
    "own_values.py",
    "plain_loop.py",
    "resume.py",
    "tar_shards.py",
}
RANKS = {"ddp.py"}
LAST = re.compile(r"([\d,]+) of ([\d,]+) samples drawn, ([\d,]+) of ([\d,]+) kept")
ASKED = re.compile(r"the teacher was asked for ([\d,]+) of ([\d,]+) samples drawn")


def check_saved(printed: str) -> None:
    last = printed.strip().splitlines()[-1]
    told = LAST.fullmatch(last) or ASKED.fullmatch(last)
    assert told, f"the last line printed is {last!r}"
    numbers = [int(number.replace(",", "")) for number in told.groups()]
    for less, more in zip(numbers[::2], numbers[1::2], strict=True):
        assert 0 < less < more


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], dict[str, Any]]:
    """Runs a script in this process, which has imported torch; returns its names."""

    def run(name: str) -> dict[str, Any]:
        monkeypatch.syspath_prepend(EXAMPLES)  # as python does for a script
        monkeypatch.chdir(tmp_path)
        with torch.random.fork_rng(devices=[]):
            names = runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        check_saved(capsys.readouterr().out)
        return names

    return run


def test_every_script_is_run_by_a_test() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == SHARED | ALONE | RANKS | set(SCRIPTS)


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda script: script.stem)
def test_a_script_is_short_and_says_what_it_shows(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    said = ast.get_docstring(ast.parse(text))
    assert said
    assert "\n" not in said
    assert len(text.splitlines()) <= 75


def test_the_site_says_of_each_script_what_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(ROOT / "docs" / "site")
    listed = importlib.import_module("hooks").shown("examples")
    for script in EXAMPLES.glob("*.py"):
        said = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))
        assert f"- [{script.name}](examples/{script.name}): {said}\n" in listed


@pytest.mark.parametrize("name", sorted(ALONE - {"compare.py", "dict_batches.py", "resume.py"}))
def test_a_script_runs(name: str, run: Callable[[str], dict[str, Any]]) -> None:
    run(name)


def test_the_script_with_a_schedule_of_steps_is_right_about_them(
    run: Callable[[str], dict[str, Any]],
) -> None:
    names = run("dict_batches.py")
    batches = sum(-(-size // 64) for size in names["schedule"].sizes(1200, names["EPOCHS"]))
    assert names["scheduler"].last_epoch == names["steps"] == batches


def test_the_script_that_compares_writes_what_the_report_reads(
    run: Callable[[str], dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("compare.py")
    files = [str(tmp_path / "kcd-compare" / f"{name}.json") for name in ("kd", "random", "kc")]
    assert main(["report", *files]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["ratio", "1.0", "0.3", "0.3"] in table
    assert ["select", "by", "value", "random", "by", "value"] in table
    assert not any(line[:1] == ["mixing"] for line in table)  # only the choice differs
    (accuracies,) = (line for line in table if line[:1] == ["accuracy"])
    assert all(re.fullmatch(r"\d\d\.\d%", each) for each in accuracies[1:])
    assert len(accuracies) == 1 + 3
    (drawn,) = (line for line in table if line[:2] == ["samples", "drawn,"])
    assert drawn[-3:] == ["33,600", "21,840", "21,840"]


def test_the_script_that_is_interrupted_ends_as_if_it_had_not_been(
    run: Callable[[str], dict[str, Any]],
) -> None:
    names = run("resume.py")
    assert names["place"] == (6, 10)
    with torch.random.fork_rng(devices=[]):
        whole = names["new_run"]()
        for _ in names["distil"](**whole):
            pass
    parameters = zip(whole["student"].parameters(), names["student"].parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in parameters)


@pytest.mark.parametrize("name", sorted(RANKS))
def test_a_script_runs_on_two_ranks(name: str, tmp_path: Path) -> None:
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--local-addr=localhost",
        "--nproc-per-node",
        "2",
    ]
    command = [*torchrun, str(EXAMPLES / name)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    check_saved(done.stdout)
    assert not list(tmp_path.iterdir())  # what it saves is no clutter


def test_every_script_is_quoted_as_it_is() -> None:
    quoted = set()
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        found = re.findall(r"<!-- quoted from examples/(.*?) -->\n```python\n(.*?)^```", text, re.M | re.S)
        assert len(found) == text.count("<!-- quoted from")
        for name, lines in found:
            script = "\n" + (EXAMPLES / name).read_text(encoding="utf-8")
            indented = (textwrap.indent(lines, " " * width) for width in (0, 4, 8))
            assert any(f"\n{each}" in script for each in indented), f"{page.name}: not in {name}:\n{lines}"
            quoted.add(name)
    assert quoted == {path.name for path in EXAMPLES.glob("*.py")} - SHARED
