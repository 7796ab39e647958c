"""RepDistiller (HobbitLong/RepDistiller): 14 methods on CIFAR-100."""

from __future__ import annotations

from collections.abc import Sequence

from ..contrast import restrict
from .profile import Profile, option

__all__ = ["PROFILE"]


def method(arguments: Sequence[str]) -> str:
    name = option(arguments, "--distill", default="kd")
    return f"crd ({option(arguments, '--mode', default='exact')})" if name == "crd" else name


PROFILE = Profile(
    name="repdistiller",
    title="RepDistiller",
    script="train_student.py",
    marks=("helper/loops.py", "helper/pretrain.py", "crd/criterion.py", "dataset/cifar100.py"),
    observe="helper.loops.accuracy",
    method=method,
    shims=("tensorboard_logger", "train_data", "alias_cuda", "ragged_lists"),
    condensed=restrict,
)
