"""Which rows of a batch a host's teacher is asked for, and the state of that."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kcd_core.layout import Layout
from kcd_core.loading.asking import Asking, ask_schedule
from kcd_core.recipes import MixRecipes
from kcd_core.run import Run

from ..settings import Settings

__all__ = ["HostGate"]

FEWEST = 2  # rows: no model takes none, and some drop the dimension of a batch of one


class HostGate:
    """The gate of a loader that the student may be trained on.

    Parameters
    ----------
    layout : Layout
        What the samples are drawn by.
    settings : Settings
        With ``ask``.
    """

    def __init__(self, layout: Layout, settings: Settings) -> None:
        self._layout, self._settings = layout, settings

    @cached_property
    def _asking(self) -> Asking:
        # Not before it is needed: ranks number their gates, and may have other loaders beside the student's.
        settings = self._settings
        return Asking(self._layout, ask_schedule(settings.ask), settings.alpha, settings.ask_multiple)

    @property
    def open(self) -> bool:
        """Whether all samples are asked for still: in the first epoch."""
        return "_asking" not in self.__dict__ or self._asking.gate.stage == 0

    @property
    def run(self) -> Run:
        """Whose epochs end with the loader's."""
        return self._asking.run

    def rows(self, indices: npt.NDArray[np.int64], recipes: MixRecipes) -> torch.Tensor:
        """Which rows of a batch are asked: int64 [A], ascending, in host memory."""
        asked = self._asking.asked(indices, recipes)
        lacking = max(FEWEST, self._settings.ask_multiple) - int(asked.sum())
        if lacking > 0:
            asked[np.flatnonzero(~asked)[:lacking]] = True
        return torch.from_numpy(np.flatnonzero(asked))

    def state_dict(self) -> dict[str, Any]:
        """All of it but the recordings."""
        return self._asking.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state.

        Raises
        ------
        ValueError
            If it is of another gate, or none. Nothing is changed then.
        """
        if not isinstance(state, Mapping):
            raise ValueError("not a gate's state")
        self._asking.run.apply(self._asking.check_state({"ask": state}))
