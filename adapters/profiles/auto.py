"""Any training script: the student is found while it trains. See `kcd_adapters.watching`."""

from __future__ import annotations

from ..running import Running
from ..settings import SHIMS
from ..watching.tensors import labels_of
from ..watching.watcher import Watcher
from .profile import Profile

__all__ = ["PROFILE"]

#: A script that is not known may do without wandb by itself, and has its own folders.
NOT_HERE = ("wandb", "output_folders")


def prepare(running: Running) -> None:
    Watcher(running)


PROFILE = Profile(
    name="auto",
    title="any training script",
    observe=(),
    shims=tuple(name for name in SHIMS if name not in NOT_HERE),
    targets=labels_of,
    prepare=prepare,
)
