"""mdistiller (megvii-research/mdistiller): fourteen kinds of distillers behind one trainer.

``accuracy`` gets the prediction that DataParallel gathered, in the order of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..contrast import restrict
from .profile import Profile, option, whole
from .yaml_file import read_yaml

__all__ = ["PROFILE"]


def method(arguments: Sequence[str]) -> str:
    config = Path(option(arguments, "--cfg", default="?"))
    return f"{config.parent.name}/{config.stem}" if config.parent.name in ("dkd", "dot") else config.stem


def epochs(arguments: Sequence[str]) -> int | None:
    """Of the YAML file, or of what the command line has in its place."""
    solver = read_yaml(option(arguments, "--cfg")).get("SOLVER")
    given = solver.get("EPOCHS") if isinstance(solver, dict) else None
    return whole(arguments, "SOLVER.EPOCHS", default=given if type(given) is int else None)


PROFILE = Profile(
    name="mdistiller",
    title="mdistiller",
    script="tools/train.py",
    marks=("mdistiller/engine/trainer.py", "mdistiller/distillers/__init__.py"),
    observe="mdistiller.engine.trainer.accuracy",
    method=method,
    shims=("wandb", "mdistiller_ragged_lists"),
    condensed=restrict,
    epochs=epochs,
    checkpoint=("mdistiller.engine.trainer.save_checkpoint", "mdistiller.engine.trainer.load_checkpoint"),
)
