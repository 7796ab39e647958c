"""The scripts of examples/ that are named after a library run, each where it is installed, and print what was saved."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LIBRARIES = ("accelerate", "ignite", "lightning", "tensorboard", "timm", "transformers", "trl", "wandb")
SCRIPTS = sorted(
    path for path in (ROOT / "examples").glob("*.py") if path.stem.partition("_")[0] in LIBRARIES
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_says_in_one_line_what_it_shows(script: Path) -> None:
    said = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))
    assert said
    assert "\n" not in said


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_prints_what_was_saved(script: Path, tmp_path: Path) -> None:
    library = script.stem.partition("_")[0]
    pytest.importorskip(library, reason=f"{library} is not installed: make test-trainers")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    last = done.stdout.strip().splitlines()[-1]
    saved = re.fullmatch(r"([\d,]+) of ([\d,]+) samples drawn, [\d,]+ of [\d,]+ kept", last)
    assert saved, f"the last line printed is {last!r}"
    drawn, all_of_them = (int(number.replace(",", "")) for number in saved.groups())
    assert 0 < drawn < all_of_them
