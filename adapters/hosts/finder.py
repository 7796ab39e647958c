"""Finds the batch that a prediction was made for, among those that wait in the passes over the student's loaders."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .alignment import CHECKED_AT_ONCE, Labels, Pass
from .journal import Journal, Reasons

if TYPE_CHECKING:
    import torch

    from .loader import HostedLoader

__all__ = ["Drawn", "Finder"]


@dataclass(frozen=True, eq=False)
class Drawn:
    """A batch that was drawn, in which pass over which loader. See `Batch`."""

    hosted: HostedLoader
    one: Pass
    indices: Any
    labels: torch.Tensor
    source: str
    own: torch.Tensor  # the same labels, as the loader yielded them

    @property
    def rows(self) -> int:
        return len(self.indices)

    @property
    def dataset(self) -> Any:
        return self.hosted.dataset


class Finder:
    """Finds batches by their labels.

    Parameters
    ----------
    observes : sequence of str
        What hands over the predictions; empty where they are found.
    journal : Journal
    reasons : Reasons
        For which predictions were passed over.
    """

    def __init__(self, observes: Sequence[str], journal: Journal, reasons: Reasons) -> None:
        self._observes, self._journal, self._reasons = observes, journal, reasons
        self.labels = Labels()
        self._strangers = 0  # predictions of this pass with labels that no batch has
        self._lost = False  # whether it was said that labels are not found

    def start(self) -> None:
        """A pass begins."""
        self._strangers = 0

    def find(
        self,
        seen: Mapping[str, torch.Tensor],
        followed: Sequence[HostedLoader],
    ) -> Drawn | None:
        """The pending batch of one of the loaders ``followed`` that has one of these labels; see `Running.find`.

        Raises
        ------
        RuntimeError
            If the labels are not those of the batch, when that is known.
        """
        known = self.labels.known(seen)
        sizes = sorted({len(labels) for labels in known.values()})
        for hosted in followed:
            for one, rows in itertools.product(hosted.passes, sizes):
                found = one.match(rows, lambda held: self.labels.fit(held, known))
                if found is None:
                    continue
                indices, held = found
                pair = self.labels.compare(held, known)
                if pair is None:
                    raise RuntimeError(self._misaligned())
                field, source = pair
                return Drawn(hosted, one, indices, known[source], source, held[field])
            if not hosted.observed and any(map(hosted.waits, sizes)):
                self._strangers += 1
                if self._strangers >= CHECKED_AT_ONCE:
                    raise RuntimeError(self._misaligned())
        self._pass_over(sizes, followed)
        return None

    def check(self) -> None:
        """Whether all labels that were compared are the same. Waits for a device.

        Raises
        ------
        RuntimeError
            If they are not.
        """
        if not self.labels.agree():
            raise RuntimeError(self._misaligned())

    def _pass_over(self, sizes: Sequence[int], followed: Sequence[HostedLoader]) -> None:
        for hosted in () if self._lost else followed:
            if hosted.unlabelled:
                self._lost = True
                self._journal.warn(
                    f"a prediction was observed, and the labels in the batches of {type(hosted.dataset).__name__} "
                    f"were not found by the profile's `targets`, which takes them from a batch: {hosted.unlabelled}. Name "
                    "them there: targets=lambda batch: batch[...] gives a tensor [B] (docs/profiles.md)"
                )
        if not sizes:
            self._reasons.note("elsewhere", "its labels were not seen where those of the first batches were")
        for rows in sizes:
            if any(one.waits(rows) for one in followed if not one.observed):
                self._reasons.note("strange", "the labels are not those of the batch")
            else:
                self._reasons.note("rows", f"no batch of {rows} samples was waiting for its prediction")

    def _misaligned(self) -> str:
        where = f" at {' or '.join(self._observes)}" if self._observes else ""
        return (
            f"predictions were seen{where} with other labels than the batch has that was drawn for them (does the loop mix or "
            "change labels, or reorder batches?), so nothing could be recorded rightly. Write a profile for "
            "this repository (docs/profiles.md), or run without KCD"
        )
