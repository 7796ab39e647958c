"""The examples of the README and of docs/ run as they stand there."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import kcd_core as kcd

ROOT = Path(__file__).parent.parent


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_readme_example_trains_and_condenses():
    names: dict = {}
    with torch.random.fork_rng(devices=[]):
        for block in python_blocks(ROOT / "README.md"):
            exec(compile(block, "README.md", "exec"), names)
    loader = names["loader"]
    assert [record["kept"] for record in loader.history] == [228, 216, 204, 192, 180, 168]
    assert loader.epoch == 241
    # The table in the README is what this prints; the cut's last digits are the platform's.
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for line in str(loader.history).splitlines()[1:]:
        assert line[:46] in readme
    drawn = sum(40 * size for size in (240, 228, 216, 204, 192, 180))
    assert loader.tracker.count.sum() == drawn == 0.875 * 240 * 240


def test_by_hand_examples_run(capsys):
    names = {
        "torch": torch,
        "targets": torch.zeros(4, dtype=torch.int64),
        "my_weights": torch.rand(1000, generator=torch.Generator().manual_seed(0)),
    }
    blocks = python_blocks(ROOT / "docs" / "by-hand.md")
    assert len(blocks) == 6
    for block in blocks:
        if "indices=indices" in block:
            names.update(student_logits=torch.zeros(4, 10, requires_grad=True), indices=[1, 2, 3, 4])
        exec(compile(block, "by-hand.md", "exec"), names)
    # Six stages down to 700, and a seventh for the loss of the last example.
    assert names["schedule"].size(1000, 13) == len(names["sampler"].kept) == 700
    assert len(names["weights"].nonzero()) == 700
    assert names["criterion"].stage == 1
    tracker = kcd.KnowledgeValueTracker(10)
    tracker.record(range(10), np.arange(10.0))
    chosen = kcd.condense_step(
        tracker,
        kcd.CondensedSampler(10),
        kcd.CondensationSchedule(0.5, 1, 1),
        select=names["at_random"],
    )
    assert len(chosen.kept) == 5


@pytest.mark.parametrize("name", ["README.md", "docs/by-hand.md", "CONTRIBUTING.md"])
def test_links_point_at_files(name):
    path = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target
