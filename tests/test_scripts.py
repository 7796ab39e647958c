"""The scripts of examples/ that need no other library run, print what was saved, and are what docs/ quotes."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SHARED = "digits.py"
PLAIN = "plain_loop.py"
ALONE = ("dict_batches.py", "gate.py", "own_values.py", "tar_shards.py")
RANKS = ("ddp.py",)
LAST = re.compile(r"([\d,]+) of ([\d,]+) samples drawn, ([\d,]+) of ([\d,]+) kept")

ASKED = re.compile(r"the teacher was asked for ([\d,]+) of ([\d,]+) samples drawn")


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_saved(printed: str) -> None:
    last = printed.strip().splitlines()[-1]
    told = LAST.fullmatch(last) or ASKED.fullmatch(last)
    assert told, f"the last line printed is {last!r}"
    numbers = [int(number.replace(",", "")) for number in told.groups()]
    for less, more in zip(numbers[::2], numbers[1::2], strict=True):
        assert 0 < less < more


def test_every_script_is_run_by_a_test() -> None:
    with_a_library = {
        "accelerate",
        "ignite",
        "lightning",
        "tensorboard",
        "timm",
        "transformers",
        "trl",
        "wandb",
    }
    mine = {path.name for path in EXAMPLES.glob("*.py") if path.stem.partition("_")[0] not in with_a_library}
    assert mine == {SHARED, PLAIN, *ALONE, *RANKS}


@pytest.mark.parametrize("name", [SHARED, PLAIN, *ALONE, *RANKS])
def test_a_script_is_short_and_says_what_it_shows(name: str) -> None:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    said = ast.get_docstring(ast.parse(text))
    assert said
    assert "\n" not in said
    assert len(text.splitlines()) <= 75


@pytest.mark.parametrize("name", ALONE)
def test_a_script_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(
        EXAMPLES
    )  # as python does for a script; in this process, which has imported torch
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    check_saved(capsys.readouterr().out)


@pytest.mark.parametrize("name", RANKS)
def test_a_script_runs_on_two_ranks(name: str, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    check_saved(run([*torchrun, str(EXAMPLES / name)], tmp_path))


def quotes(page: Path) -> list[tuple[str, str]]:
    """(script, lines) of each block that a page says is quoted from examples/."""
    return re.findall(
        r"<!-- quoted from examples/(\w+\.py) -->\n```python\n(.*?)^```",
        page.read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )


def test_what_the_docs_quote_is_in_the_scripts() -> None:
    found = [quote for page in sorted((ROOT / "docs").glob("*.md")) for quote in quotes(page)]
    assert len(found) >= 1
    for name, lines in found:
        assert lines in (EXAMPLES / name).read_text(encoding="utf-8"), name


def test_the_guide_runs_in_the_plain_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the guide adds to the script that it quotes, in that script's names."""
    names: dict = {}
    _, scheduler, resuming = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs/guide.md").read_text(encoding="utf-8"), re.M | re.S
    )
    with torch.random.fork_rng(devices=[]):
        exec(
            compile((EXAMPLES / "plain_loop.py").read_text(encoding="utf-8"), "plain_loop.py", "exec"), names
        )
    check_saved(capsys.readouterr().out)
    loader, student = names["loader"], names["student"]
    assert [record["kept"] for record in loader.history] == [1140, 1080, 1020, 960, 900, 840, 840]
    exec(compile(scheduler, "guide.md", "exec"), names)
    batches = sum(-(-size // 64) for size in loader.schedule.sizes(1200, names["EPOCHS"]))
    assert names["scheduler"].total_steps == batches
    exec(compile(resuming, "guide.md", "exec"), names)
    names["save"](tmp_path / "run.ckpt")
    before = [parameter.detach().clone() for parameter in student.parameters()]
    for parameter in student.parameters():
        parameter.data.zero_()
    with pytest.warns(UserWarning, match=r"nothing was recorded in epoch 29"):
        loader.end_epoch()
    assert loader.epoch == 30
    assert names["resume"](tmp_path / "run.ckpt") == range(29, 29)
    assert loader.epoch == 29
    assert all(map(torch.equal, before, student.parameters()))
