"""Patched repositories train on condensed sets by their own command line.

The hosts are miniatures with the file names and the traps of real ones. Each writes down what it drew and
what its student predicted, so that the sets can be worked out again without kcd's engine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kcd_core as kcd
from kcd_adapters.cli import main

pytest.importorskip("torch")

N, CLASSES, EPOCHS = 96, 5, 6
SETTINGS = ["--ratio", "0.5", "--stages", "2", "--period", "2", "--mixing", "none"]

DATA = f"""
import numpy as np, torch

class Points(torch.utils.data.Dataset):
    def __init__(self):
        rng = np.random.default_rng(0)
        self.data = rng.integers(0, 256, ({N}, 4, 4, 3), np.uint8)
        self.targets = [i % {CLASSES} for i in range({N})]
        self.drawn = []

    def __getitem__(self, index):
        self.drawn.append(index)
        return torch.from_numpy(self.data[index]).float().flatten() / 255, self.targets[index]

    def __len__(self):
        return len(self.targets)

def log(path, epoch, indices, logits):
    p = torch.log_softmax(logits.detach().double(), 1)
    entropy = -(p.exp() * p).sum(1)
    with open(path, "a") as file:
        file.write(repr((epoch, indices, entropy.tolist())).replace("(", "[").replace(")", "]") + "\\n")
"""

ACCURACY = """
def accuracy(output, target, topk=(1,)):
    return [(output.argmax(1) == target).float().mean() * 100]
"""

# No main guard; a phase before the student's, on the same loader; names bound by from-imports.
SSKD = {
    "wrapper.py": "",
    "teacher.py": "",
    "cifar.py": DATA,
    "utils.py": ACCURACY,
    "student.py": f"""
import hashlib, sys
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from utils import accuracy
from cifar import Points, log

torch.manual_seed(int(sys.argv[1]))
train, test = Points(), Points()
loader = DataLoader(train, batch_size=16, shuffle=True)
val_loader = DataLoader(test, batch_size=16, shuffle=False)
student = torch.nn.Linear(48, {CLASSES})
optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
for x, y in loader:  # the teacher's head
    pass
assert len(train.drawn) == {N}
for epoch in range(1, {EPOCHS} + 1):
    for x, y in loader:
        indices, train.drawn = train.drawn[-len(y):], []
        output = student(x)
        log("log.jsonl", epoch, indices, output)
        accuracy(output, y)
        loss = F.cross_entropy(output, y)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    with torch.no_grad():
        for x, y in val_loader:
            accuracy(student(x), y)
weights = b"".join(p.detach().numpy().tobytes() for p in student.parameters())
print("weights", hashlib.sha256(weights).hexdigest())
""",
}

# Spawned children, which know nothing of what their parent patched at run time.
SIMKD = {
    "dataset/__init__.py": "",
    "dataset/imagenet_dali.py": "",
    "dataset/points.py": DATA,
    "distiller_zoo/SemCKD.py": "",
    "helper/__init__.py": "",
    "helper/loops.py": ACCURACY
    + """
from dataset.points import log

def train_distill(epoch, train_loader, student, optimizer, path):
    import torch
    for x, y in train_loader:
        indices, train_loader.dataset.drawn = train_loader.dataset.drawn[-len(y):], []
        output = student(x)
        log(path, epoch, indices, output)
        accuracy(output, y)
        loss = torch.nn.functional.cross_entropy(output, y)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
""",
    "train_student.py": f'''"""A docstring."""
from __future__ import print_function
import os, sys
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from dataset.points import Points
from helper.loops import train_distill as train

def main_worker(rank, seed, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(seed)
    points = Points()
    sampler = torch.utils.data.distributed.DistributedSampler(points)
    loader = torch.utils.data.DataLoader(points, batch_size=8, sampler=sampler)
    student = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(48, {CLASSES}))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for epoch in range(1, {EPOCHS} + 1):
        sampler.set_epoch(epoch)
        train(epoch, loader, student, optimizer, "log%d.jsonl" % rank)
    dist.barrier()
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(main_worker, nprocs=2, args=(int(sys.argv[1]), sys.argv[2]))
''',
}


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.lstrip("\n").encode())
    return root


def train(root: Path, *command: str) -> str:
    """Run a host; its standard output."""
    for old in root.glob("log*.jsonl"):
        old.unlink()
    done = subprocess.run(
        [sys.executable, *command],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def logged(root: Path) -> dict[int, list[tuple[int, float]]]:
    """For each epoch, every index drawn and the entropy of its prediction, over all ranks."""
    epochs: dict[int, list[tuple[int, float]]] = {}
    for path in sorted(root.glob("log*.jsonl")):
        for line in path.read_text().splitlines():
            epoch, indices, entropies = json.loads(line)
            epochs.setdefault(epoch, []).extend(zip(indices, entropies, strict=True))
    return epochs


def check_sets(epochs: dict[int, list[tuple[int, float]]]) -> None:
    """Every epoch drew, each once, exactly the points that what was predicted before makes the set."""
    total, count = np.zeros(N), np.zeros(N, int)
    schedule, kept = kcd.CondensationSchedule(0.5, 2, 2), np.arange(N)
    assert sorted(epochs) == list(range(1, EPOCHS + 1))
    for epoch, drawn in sorted(epochs.items()):
        assert sorted(index for index, _ in drawn) == kept.tolist()
        for index, entropy in drawn:
            total[index] += entropy
            count[index] += 1
        if schedule.due(epoch):
            value = total / count
            kept = kcd.condense(value, count, previous=len(kept), target=schedule.target(N, len(kept))).kept


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(root.rglob("*.py"))}


def weights(output: str) -> str:
    return next(line for line in output.splitlines() if line.startswith("weights"))


def test_script_without_a_main_guard(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "repo", SSKD)
    original = snapshot(root)
    plain = train(root, "student.py", "1")
    assert main(["patch", str(root), *SETTINGS, "--history", "history.json"]) == 0
    output = train(root, "student.py", "1")
    check_sets(logged(root))
    assert "kcd: SSKD" in output
    assert weights(output) != weights(plain)
    assert main(["report", str(root / "history.json"), "-o", str(tmp_path / "report")]) == 0
    assert main(["unpatch", str(root)]) == 0
    assert snapshot(root) == original
    ran = train(root, "-m", "kcd_adapters", "run", *SETTINGS, "student.py", "1")
    assert weights(ran) == weights(output)  # either way, the same training


def test_nothing_changes_at_ratio_one(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "repo", SSKD)
    plain, before = train(root, "student.py", "2"), logged(root)
    assert main(["patch", str(root), "--ratio", "1.0", "--period", "2"]) == 0
    assert weights(train(root, "student.py", "2")) == weights(plain)
    assert logged(root) == before


def test_settings_edited_by_hand_count(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "repo", SSKD)
    assert main(["patch", str(root), "--ratio", "0.9", *SETTINGS[2:]]) == 0
    script = root / "student.py"
    script.write_bytes(script.read_bytes().replace(b"ratio=0.9", b"ratio=0.5"))
    assert main(["patch", "--check", str(root)]) == 0
    train(root, "student.py", "3")
    check_sets(logged(root))


def test_spawned_children(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "repo", SIMKD)
    original = snapshot(root)
    assert main(["patch", str(root), *SETTINGS]) == 0
    train(root, "train_student.py", "1", str(free_port()))
    check_sets(logged(root))
    assert main(["unpatch", str(root)]) == 0
    assert snapshot(root) == original


def free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: Any = s.getsockname()[1]
        return int(port)
