"""ReviewKD (dvlab-research/ReviewKD), its CIFAR script."""

from __future__ import annotations

from collections.abc import Sequence

from . import Profile

__all__ = ["PROFILE"]


def method(arguments: Sequence[str]) -> str:
    return "reviewkd + kl" if "--use-kl" in arguments else "reviewkd"


PROFILE = Profile(
    name="reviewkd",
    title="ReviewKD",
    script="CIFAR-100/train.py",
    marks=("CIFAR-100/model/reviewkd.py", "CIFAR-100/util/kd.py"),
    observe="torch.nn.functional.cross_entropy",
    method=method,
    shims=("output_folders",),
)
