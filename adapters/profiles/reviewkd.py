"""ReviewKD (dvlab-research/ReviewKD), its CIFAR script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .profile import Profile

__all__ = ["PROFILE"]


def method(arguments: Sequence[str]) -> str:
    return "reviewkd + kl" if "--use-kl" in arguments else "reviewkd"


def refuse(arguments: Sequence[str]) -> str | None:
    """Its logs/ and checkpoints/ are made in its own folder only, and not wherever it is started by mistake."""
    if Path("util/kd.py").is_file() or all(Path(name).is_dir() for name in ("logs", "checkpoints")):
        return None
    return "it writes to logs/ and checkpoints/ in the working directory, and they are not here: run it in CIFAR-100/"


PROFILE = Profile(
    name="reviewkd",
    title="ReviewKD",
    covers="its CIFAR script, with and without --use-kl",
    script="CIFAR-100/train.py",
    marks=("CIFAR-100/model/reviewkd.py", "CIFAR-100/util/kd.py"),
    observe="torch.nn.functional.cross_entropy",
    method=method,
    shims=("output_folders",),
    refuse=refuse,
)
