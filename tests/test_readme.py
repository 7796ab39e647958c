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


def test_readme_example_trains_and_condenses(tmp_path):
    names: dict = {}
    with torch.random.fork_rng(devices=[]):
        for block in python_blocks(ROOT / "README.md"):
            exec(compile(block, "README.md", "exec"), names)
    loader = names["loader"]
    assert [record["kept"] for record in loader.history] == [228, 216, 204, 192, 180, 168]
    assert loader.epoch == 241
    names["save"](tmp_path / "run.ckpt")
    for parameter in names["student"].parameters():
        before = parameter.detach().clone()
        parameter.data.zero_()
    loader.epoch = 7
    assert names["resume"](tmp_path / "run.ckpt") == range(241, 241)
    assert loader.epoch == 241
    assert torch.equal(parameter, before)
    # The table in the README is what this prints; the cut's last digits are the platform's.
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for line in str(loader.history).splitlines()[1:]:
        assert line[:46] in readme
    drawn = sum(40 * size for size in (240, 228, 216, 204, 192, 180))
    assert loader.tracker.count.sum() == drawn == 0.875 * 240 * 240


def chosen_tail(sampler):
    return sampler.recipes.target[sampler.recipes.weight.argmin()]


def test_results_are_those_of_the_study():
    """Every row of the table is one that benchmarks/study.py printed."""
    printed = (ROOT / "benchmarks/results/study-fashion-mnist-20000x24.txt").read_text(encoding="utf-8")
    printed = [" ".join(line.split()) for line in printed.splitlines()]
    rows = re.findall(
        r"^\| .*? \| ([\d.]+) % \| (\d.*?) \| (.*?) ?\|$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert len(rows) == 8
    for share, accuracy, difference in rows:
        share = f"{float(share):.1f}%"
        assert [line for line in printed if accuracy in line and share in line and difference in line]


def test_by_hand_examples_run(capsys):
    names = {
        "torch": torch,
        "stream": [
            ([1, 2, 3, 4], torch.rand(4, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4))
        ],
        "student": lambda images: (images @ torch.eye(8, 10)).requires_grad_(),
        "my_weights": torch.rand(1000, generator=torch.Generator().manual_seed(0)),
    }
    blocks = python_blocks(ROOT / "docs" / "by-hand.md")
    assert len(blocks) == 7
    for block in blocks:
        exec(compile(block, "by-hand.md", "exec"), names)
    assert names["schedule"].size(1000, 13) == len(names["sampler"].kept) == 700
    assert len(names["weights"].nonzero()) == 700
    assert len(names["mine"].kept) == 700
    assert names["criterion"].stage == 6
    assert len(names["criterion"].kept) == 700
    mixed = names["Mixed"](torch.rand(1000, 3, generator=torch.Generator().manual_seed(0)), names["sampler"])
    tail = int(chosen_tail(names["sampler"]))
    assert not torch.equal(mixed[tail][1], mixed.dataset[tail])
    tracker = kcd.KnowledgeValueTracker(10)
    tracker.record(range(10), np.arange(10.0))
    chosen = kcd.condense_step(
        tracker,
        kcd.CondensedSampler(10),
        kcd.CondensationSchedule(0.5, 1, 1),
        select=names["at_random"],
    )
    assert len(chosen.kept) == 5


@pytest.mark.parametrize("name", ["README.md", "docs/by-hand.md", "docs/streams.md", "CONTRIBUTING.md"])
def test_links_point_at_files(name):
    path = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target
