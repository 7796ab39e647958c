"""Knowledge condensation for any distillation loop.

    schedule = kcd.CondensationSchedule.for_epochs(epochs, ratio=0.3)
    loader = kcd.wrap_loader(loader, schedule=schedule, mixing=None)
    for epoch in range(epochs):
        for images, targets in loader:
            ...
            loader.record(student_logits)
        loader.end_epoch()

After "Knowledge Condensation Distillation", Li et al., ECCV 2022 (arXiv 2207.05409). What is about
torch's loaders and losses is imported when it is first used; the rest works where torch is not installed.
"""

from importlib import import_module, util
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__
from .account import Account, Cost
from .base import checkpoint as checkpoint
from .base.checkpoint import load_checkpoint, save_checkpoint
from .condense import CondensedSet, condense
from .em_step import condense_step
from .free_schedule import FreeSchedule
from .gate import TeacherGate
from .history import CondensationHistory
from .infobatch import InfoBatch
from .mixing import mix_arrays, mix_samples
from .sampler import CondensedSampler
from .schedule import CondensationSchedule
from .sharded.condense import condense_sharded
from .sharded.sampler import ShardedSampler
from .stages import Condensation
from .tracker import KnowledgeValueTracker
from .values import cross_entropy, entropy, kd_divergence, margin, reducible_loss, sequence_entropy

if TYPE_CHECKING:
    from .flops import StepFlops, step_flops
    from .loading.loader import CondensedLoader
    from .loading.wrap import wrap_loader
    from .loss import CondensedLoss
    from .row_losses import gated_loss
    from .streaming.stream import CondensedStream

__all__ = [
    "Account",
    "Condensation",
    "CondensationHistory",
    "CondensationSchedule",
    "CondensedLoader",
    "CondensedLoss",
    "CondensedSampler",
    "CondensedSet",
    "CondensedStream",
    "Cost",
    "FreeSchedule",
    "InfoBatch",
    "KnowledgeValueTracker",
    "ShardedSampler",
    "StepFlops",
    "TeacherGate",
    "condense",
    "condense_sharded",
    "condense_step",
    "cross_entropy",
    "entropy",
    "gated_loss",
    "kd_divergence",
    "load_checkpoint",
    "margin",
    "mix_arrays",
    "mix_samples",
    "reducible_loss",
    "save_checkpoint",
    "sequence_entropy",
    "step_flops",
    "wrap_loader",
]

_NEED_TORCH = {
    "CondensedLoader": "loading.loader",
    "wrap_loader": "loading.wrap",
    "CondensedLoss": "loss",
    "gated_loss": "row_losses",
    "CondensedStream": "streaming.stream",
    "StepFlops": "flops",
    "step_flops": "flops",
}


def _has_torch() -> bool:
    try:
        return util.find_spec("torch") is not None
    except (ImportError, ValueError):  # as whoever hides it may raise
        return False


if not _has_torch():  # `from kcd_core import *` takes what there is
    __all__ = [name for name in __all__ if name not in _NEED_TORCH]


def __getattr__(name: str) -> Any:
    if name in _NEED_TORCH:
        try:
            return getattr(import_module(f"{__name__}.{_NEED_TORCH[name]}"), name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != "torch":
                raise
            raise ImportError(f"kcd_core.{name} needs torch, which is not installed", name="torch") from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_NEED_TORCH})
