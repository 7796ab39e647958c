"""The profiles of docs/profiles.md, each run on a repository as the page describes it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

PAGE = Path(__file__).parents[2] / "docs" / "profiles.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
OBSERVING, _, PREPARING = BLOCKS  # between them, a part of one
SETTINGS = ("--ratio", "0.5", "--stages", "2", "--period", "1", "--mixing", "none")
LOSSES = """
import torch
from torch.nn.functional import cross_entropy

def kd_loss(epoch, logits, labels, weight=1.0):
    return weight * cross_entropy(logits, labels)

class Distiller(torch.nn.Module):
    def __init__(self, student):
        super().__init__()
        self.student = student

    def forward(self, images, labels):
        self.logits = self.student(images)
        return kd_loss(0, self.logits, labels)
"""
TRAIN = """
import torch
from torch.utils.data import DataLoader, TensorDataset

import losses

torch.manual_seed(0)
data = TensorDataset(torch.randn(80, 6), torch.arange(80) % 4)
distiller = losses.Distiller(torch.nn.Linear(6, 4))
optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
for epoch in range(3):
    for images, labels in DataLoader(data, batch_size=16, shuffle=True):
        optimizer.zero_grad()
        distiller(images, labels).backward()
        optimizer.step()
"""


@pytest.mark.parametrize("profile", [OBSERVING, PREPARING], ids=["observe", "prepare"])
def test_a_profile_of_the_page_is_complete(profile: str, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "losses.py").write_text(LOSSES, encoding="utf-8")
    (repository / "train.py").write_text(TRAIN, encoding="utf-8")
    (tmp_path / "mine.py").write_text(profile, encoding="utf-8")
    command = [sys.executable, "-m", "kcd_adapters", "run", *SETTINGS, "--profile", "../mine.py", "train.py"]
    command += ["--loss", "dkd"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    method = "dkd" if profile is OBSERVING else "a method of its own"
    assert f"kcd: My repository, {method} (profile mine)" in done.stdout
    assert "180 samples drawn, 180 of them observed" in done.stdout  # 80 + 60 + 40
