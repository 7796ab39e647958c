"""mdistiller (megvii-research/mdistiller): fourteen kinds of distillers behind one trainer.

``accuracy`` gets the prediction that DataParallel gathered, in the order of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..contrast import restrict
from .profile import Profile, option

__all__ = ["PROFILE"]


def method(arguments: Sequence[str]) -> str:
    config = Path(option(arguments, "--cfg", default="?"))
    return f"{config.parent.name}/{config.stem}" if config.parent.name in ("dkd", "dot") else config.stem


PROFILE = Profile(
    name="mdistiller",
    title="mdistiller",
    script="tools/train.py",
    marks=("mdistiller/engine/trainer.py", "mdistiller/distillers/__init__.py"),
    observe="mdistiller.engine.trainer.accuracy",
    method=method,
    shims=("wandb", "mdistiller_ragged_lists"),
    condensed=restrict,
    checkpoint=("mdistiller.engine.trainer.save_checkpoint", "mdistiller.engine.trainer.load_checkpoint"),
)
