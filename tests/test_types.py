"""What a type checker says of a user's loop: the batch keeps its type, and a slip is found before the run."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

RIGHT = """\
from functools import partial

import torch
from torch.utils.data import DataLoader

import kcd_core as kcd


def train(loader: DataLoader[tuple[torch.Tensor, torch.Tensor]], student: torch.nn.Module) -> int:
    schedule = kcd.CondensationSchedule(ratio=0.7, stages=6, period=40)
    condensed = kcd.wrap_loader(loader, schedule=schedule, mixing="fresh", value="margin", mixer="samples")
    wrapped: kcd.CondensedLoader[tuple[torch.Tensor, torch.Tensor]] = condensed
    for images, targets in wrapped:
        reveal_type(images)
        logits: torch.Tensor = student(images)
        wrapped.record(logits, targets=targets)
    wrapped.end_epoch()
    kcd.wrap_loader(loader, schedule=schedule, mixing="fresh", mixer=partial(kcd.mix_samples, fields=["image"]))
    kcd.wrap_loader(loader, schedule=schedule, value=lambda student_logits, **_: student_logits.amax(1))
    run = kcd.Condensation(kcd.CondensedSampler(10), schedule=schedule)
    run.record(logits, indices=[0, 1])
    return wrapped.total_steps(240)
"""

WRONG = {
    'loader.record("hello")': 'incompatible type "str"; expected "Tensor | None"',
    "loader.record(logits, index=[0])": 'Unexpected keyword argument "index"',
    'kcd.wrap_loader(plain, schedule=schedule, mixing="cumulativ")': "incompatible type \"Literal['cumulativ']\"",
    'kcd.wrap_loader(plain, schedule=schedule, value="entropie")': "incompatible type \"Literal['entropie']\"",
    'kcd.wrap_loader(plain, schedule=schedule, on_nonfinite="ignore")': "incompatible type \"Literal['ignore']\"",
    'kcd.wrap_loader(plain, schedule=schedule, mixer="array")': "incompatible type \"Literal['array']\"",
    "kcd.wrap_loader(plain)": 'Missing named argument "schedule"',
    "kcd.wrap_loader([1, 2], schedule=schedule)": 'expected "DataLoader[',
    "kcd.CondensedSampler(10, mixing='cumulativ')": "incompatible type \"Literal['cumulativ']\"",
    "loader.epoch = 3": 'Property "epoch" defined in "RunOwner" is read-only',
}


def mypy(folder: Path, text: str) -> str:
    """Of a user's file, who has the package as it is installed."""
    links = folder / "links"
    links.mkdir()
    (links / "kcd_core").symlink_to(ROOT / "kcd_core", target_is_directory=True)
    (folder / "mine.py").write_text(text)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--config-file=",
            "--python-version=3.10",  # as the project's own run, whose cache is at hand where `make lint` was before
            "--cache-dir",
            str(ROOT / ".mypy_cache"),
            "mine.py",
        ],
        cwd=folder,
        env={**os.environ, "MYPYPATH": str(links)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.skipif(
    importlib.util.find_spec("mypy") is None, reason="mypy is not installed: pip install mypy"
)
def test_a_type_checker_sees_what_is_right_and_what_is_wrong(tmp_path: Path) -> None:
    head = RIGHT + (
        "\n\ndef slips(loader: kcd.CondensedLoader[int], plain: DataLoader[int], logits: torch.Tensor) -> None:\n"
        "    schedule = kcd.CondensationSchedule()\n"
    )
    first = head.count("\n") + 1
    said = mypy(tmp_path, head + "".join(f"    {line}\n" for line in WRONG))
    notes = re.findall(r"^mine.py:(\d+): note: Revealed type is \"(.*)\"", said, re.MULTILINE)
    assert [kind for _, kind in notes] == ["torch._tensor.Tensor"], said
    errors: dict[int, str] = {}
    for line, text in re.findall(r"^mine.py:(\d+): error: (.*)", said, re.MULTILINE):
        errors[int(line)] = errors.get(int(line), "") + text
    assert min(errors) >= first, said  # nothing is wrong with what is right
    for line, (code, expected) in enumerate(WRONG.items(), first):
        assert expected in errors.get(line, "no error"), (code, said)
