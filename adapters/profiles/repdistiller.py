"""RepDistiller (HobbitLong/RepDistiller): 14 methods on CIFAR-100."""

from __future__ import annotations

from collections.abc import Sequence

from ..contrast import restrict
from .profile import Profile, option, whole

__all__ = ["PROFILE"]


def method(arguments: Sequence[str]) -> str:
    name = option(arguments, "--distill", default="kd")
    return f"crd ({option(arguments, '--mode', default='exact')})" if name == "crd" else name


def before(arguments: Sequence[str]) -> int:
    """A connector, a paraphraser or the student's features are trained first."""
    first = option(arguments, "--distill") in ("abound", "factor", "fsp")
    return whole(arguments, "--init_epochs", default=30) if first else 0


PROFILE = Profile(
    name="repdistiller",
    title="RepDistiller",
    script="train_student.py",
    marks=("helper/loops.py", "helper/pretrain.py", "crd/criterion.py", "dataset/cifar100.py"),
    observe="helper.loops.accuracy",
    method=method,
    shims=("tensorboard_logger", "train_data", "alias_cuda", "ragged_lists"),
    condensed=restrict,
    before=before,
    epochs=lambda arguments: whole(arguments, "--epochs", default=240),
)
