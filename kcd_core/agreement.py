"""What the ranks of one run compare: before a stage, how they would end it; after a state was loaded, where they resume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from .base import distributed
from .base.resumption import check_one_moment, leave_word
from .em_step import check_share
from .layout import Layout

__all__ = ["Agreement", "numbered"]

_made: Counter[tuple[str, int]] = Counter()


def numbered(what: str, size: int) -> str:
    """What tells a new run from those of as many samples that this process made before: its number.

    Ranks compare it, since of two students' runs all else can be the same.
    """
    _made[what, size] += 1
    return f"number {_made[what, size]} of the {what}s of {size} samples"


class Agreement:
    """One rank's part in what the ranks of a run compare. Where there is one rank, nothing is sent.

    Parameters
    ----------
    layout : Layout
    run : str
        What tells this run from others: see `numbered`.
    alike : mapping
        What all ranks must have alike besides what the run knows.

    Attributes
    ----------
    missing : bool
        Whether settings were not compared yet, in this process or since a state was loaded.
    """

    def __init__(self, layout: Layout, run: str, alike: Mapping[str, Any]) -> None:
        self._layout, self._run, self._alike = layout, run, dict(alike)
        self._loads = 0
        self.loaded(None)

    def loaded(self, moment: Mapping[str, str] | None) -> None:
        """A state was loaded, with which this rank resumes at ``moment``; None is one that no rank has to wait for."""
        self.missing = True
        self._drawn: set[int] = set()  # epochs
        self._moment = moment
        if moment is not None:
            self._loads += 1
            leave_word(self._run, self._loads, moment, self._layout.group)

    def drawn(self, epoch: int) -> None:
        """Something of an epoch was drawn."""
        self._drawn.add(epoch)

    def check_moment(self) -> None:
        """See, once after a state was loaded, that all ranks resume from one moment."""
        if self._moment is not None:
            check_one_moment(self._run, self._loads, self._moment, self._layout.group)
            self._moment = None

    def check(self, settings: Mapping[str, Any], epoch: int, recorded: bool) -> None:
        """See that all ranks would condense alike, and that none forgot to record its share of the ``epoch`` that ends.

        Only a rank that drew a share can forget it: of ranks that draw alike, one may record for all, and of data that
        this run does not draw, a rank may have none.
        """
        layout = self._layout
        if distributed.world_size(layout.group) > 1:
            forgotten = layout.ranks > 1 and epoch in self._drawn and not recorded
            settings = {
                **settings,
                **layout.in_force(),
                **self._alike,
                "run": self._run,
                **layout.tracker.alike,
                "epoch": epoch,
                "number of epochs drawn": len(self._drawn),
                "calls of record() in this epoch": "none" if forgotten else "some",
            }
            distributed.check_agreement(settings, shard=layout.rank, shards=layout.ranks, group=layout.group)
            check_share(layout.sampler, layout.group)
        self.missing = False
