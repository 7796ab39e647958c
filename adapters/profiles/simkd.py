"""SimKD (DefangChen/SimKD): a relative of RepDistiller, with ImageNet and DDP.

Its ``--distill simkd`` predicts with a projector and the teacher's classifier; what cross-entropy sees
is the student's own, unused one. ``helper.loops.accuracy`` always gets the final prediction.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..contrast import restrict
from .profile import Profile, option
from .repdistiller import FAMILY, epochs, method

__all__ = ["PROFILE"]


def refuse(arguments: Sequence[str]) -> str | None:
    if option(arguments, "--dali"):
        return "DALI reads the data without indices, so nothing can be chosen from it: leave out --dali"
    return None


PROFILE = Profile(
    name="simkd",
    title="SimKD",
    covers="its 9 methods, and what was made of it: SemCKD, MaskKD",
    marks=("helper/loops.py", "dataset/imagenet_dali.py", "distiller_zoo/SemCKD.py"),
    family=FAMILY,
    observe="helper.loops.accuracy",
    method=method,
    shims=("tensorboard_logger", "dali", "alias_cuda", "ragged_lists", "accuracy_view"),
    refuse=refuse,
    condensed=restrict,
    epochs=epochs,
)
