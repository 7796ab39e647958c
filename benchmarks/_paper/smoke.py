"""What a trial of the installation needs instead of CIFAR-100 and trained teachers: noise, and untrained ones.

    python benchmarks/_paper/smoke.py REPDISTILLER MODELS TEACHER...

Run by paper_table.py --smoke, to make the teachers; it imports the rest.
"""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

TEST_IMAGES = 32


def make(data: Path, models: Path, repdistiller: Path, teachers: Iterable[str], samples: int) -> None:
    """Make what is not there yet of the data and the teachers."""
    if not (data / "cifar-100-python" / "meta").exists():
        write_cifar100(data / "cifar-100-python", samples)
    missing = [name for name in teachers if not checkpoint(models, name).exists()]
    if missing:
        subprocess.run([sys.executable, __file__, str(repdistiller), str(models), *missing], check=True)


def checkpoint(models: Path, teacher: str) -> Path:
    """Where RepDistiller's scripts/fetch_pretrained_teachers.sh puts a teacher, below save/models."""
    return models / f"{teacher}_vanilla" / "ckpt_epoch_240.pth"


def write_cifar100(folder: Path, samples: int) -> None:
    """Noise in CIFAR-100's own format. ``meta`` is written last."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, size in (("train", samples), ("test", TEST_IMAGES)):
        labels = rng.permutation(np.arange(size) % 100).tolist()
        images = rng.integers(0, 256, (size, 3 * 32 * 32), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": images, "fine_labels": labels}))
    names = [f"class {label}" for label in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))


def save_teachers(models: Path, teachers: Iterable[str]) -> None:
    """Untrained, but with running statistics of noise: without any, their logits would overflow."""
    from models import model_dict  # RepDistiller's

    for name in teachers:
        torch.manual_seed(0)
        model = model_dict[name](num_classes=100)
        for part in model.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.momentum = None  # the plain mean
        with torch.no_grad():
            model(torch.randn(64, 3, 32, 32))
        path = checkpoint(models, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        torch.save({"epoch": 240, "model": model.state_dict()}, unfinished)
        os.replace(unfinished, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repdistiller", help="its checkout")
    parser.add_argument("models", type=Path, help="folder for the teachers")
    parser.add_argument("teachers", nargs="+", metavar="teacher", help="RepDistiller's name of one")
    args = parser.parse_args()
    sys.path[0] = args.repdistiller
    save_teachers(args.models, args.teachers)
