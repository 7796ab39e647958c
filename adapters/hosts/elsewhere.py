"""Training that continues over another loader than the one that was recognised as the student's: said once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .alignment import CHECKED_AT_ONCE
from .journal import Journal

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from .loader import HostedLoader

__all__ = ["Elsewhere"]


class Elsewhere:
    """Counts the steps that optimizers make over another loader, until the student's is iterated again."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._over = ""  # the other loader that is being iterated, for people to read
        self._steps = 0
        self._hook: Any = None

    def begin(self, loader: DataLoader[Any], train: HostedLoader | None) -> None:
        """A pass begins over a loader that is not followed, where ``train`` is the student's."""
        from .loader import shuffles  # torch, which the host has imported by now

        if train is None or not all(one.over for one in train.passes) or not shuffles(loader):
            return
        self._over = f"{type(loader.dataset).__name__} in batches of {loader.batch_size}"
        if self._hook is None:
            from torch.optim.optimizer import register_optimizer_step_pre_hook

            self._hook = register_optimizer_step_pre_hook(self._stepped)

    def end(self) -> None:
        """The student's loader is iterated."""
        self._over, self._steps = "", 0

    def _stepped(self, *_: Any) -> None:
        self._steps += bool(self._over)
        if self._steps < CHECKED_AT_ONCE:
            return
        self._hook.remove()
        self._journal.warn(
            "training continues over another loader than the one that was recognised as the student's, "
            f"{self._over}; what it draws is neither condensed nor recorded. That is right for another model (a probe). "
            "If it is the student that is trained there, after its teacher, KCD has to see the student alone: --student "
            "with --auto, or a profile that observes what is called for the student alone"
        )
        self.end()
