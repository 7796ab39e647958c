"""What a loader and a stream show of the run that they draw for."""

from __future__ import annotations

from .account import Account
from .history import CondensationHistory
from .run import Run
from .schedule import CondensationSchedule
from .tracker import KnowledgeValueTracker

__all__ = ["RunOwner"]


class RunOwner:
    """What whoever draws for a run says of it."""

    _run: Run

    @property
    def tracker(self) -> KnowledgeValueTracker:
        """V and F of all samples, by index; with ``sharded``, of this rank's slice; for a stream, by slot."""
        return self._run.tracker

    @property
    def schedule(self) -> CondensationSchedule:
        """When a stage ends, and how many samples it leaves."""
        return self._run.schedule

    @property
    def history(self) -> CondensationHistory:
        """What each stage did."""
        return self._run.history

    @property
    def account(self) -> Account:
        """What the epochs cost: samples drawn, teacher queries, seconds."""
        return self._run.account

    @property
    def epoch(self) -> int:
        """The current epoch, from 1. Only `end_epoch` advances it."""
        return self._run.epoch
