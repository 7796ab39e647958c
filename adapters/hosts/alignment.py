"""Which batch a prediction was made for: the passes over a host's loader, what waits in them, and its labels.

Batch and prediction meet nowhere in a host but at their labels, which come with both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..watching.gradients import Model, parameters

if TYPE_CHECKING:
    import torch

__all__ = ["CHECKED_AT_ONCE", "Labels", "Pass", "Student", "differ", "unfit"]

CHECKED_AT_ONCE = 3  # batches whose labels are compared at once; on a device, later ones are counted
MOST_PENDING = 64  # batches' indices; a pass that nothing is observed in would gather an epoch of them

Tensors = Mapping[str, "torch.Tensor"]  # by name


def _nothing() -> None:
    return None


@dataclass(eq=False)
class Pass:
    """A pass, and what was observed in it. There may be several at a time: a host may look into its loader.

    Attributes
    ----------
    size : int
        Points of the set it draws.
    drawn, observed : int
        Samples.
    asked : int
        Rows that the teacher was called with, where it is asked for a part of them.
    seconds : float
        From its first batch being asked for to its end, or to the last batch that was asked for.
    pending : deque of (indices, fields)
        Of the batches that were drawn and not observed yet, oldest first. The fields are what may be their labels [B].
    exhausted : bool
        Whether the host asked for one more batch than there are.
    iterator : callable
        A weak reference to the host's iterator.
    """

    size: int
    drawn: int = 0
    observed: int = 0
    asked: int = 0
    seconds: float = 0.0
    exhausted: bool = False
    iterator: Callable[[], Any] = _nothing
    pending: deque[tuple[Any, Tensors]] = field(default_factory=lambda: deque(maxlen=MOST_PENDING))
    _ahead: int | None = None  # batches the host fetches before it uses one
    _possible: set[int] = field(default_factory=set)  # what that may be
    _unclear: int = 0

    @property
    def over(self) -> bool:
        """Whether nothing more will be drawn: the iterator is used up, or the host has let go of it."""
        return self.exhausted or self.iterator() is None

    @property
    def ahead(self) -> int | None:
        """How many batches the host fetches before it uses one; None until that is known."""
        return self._ahead

    def due(self, ahead: int | None) -> tuple[Any, Tensors] | None:
        """The pending batch that is used next by a host that fetches so many ``ahead``, as far as it is known."""
        ahead = ahead if self._ahead is None else self._ahead
        if ahead is None:
            return None
        place = self._place(ahead)
        return self.pending[place] if 0 <= place < len(self.pending) else None

    def _place(self, ahead: int) -> int:
        return 0 if self.exhausted else len(self.pending) - 1 - ahead

    def match(self, rows: int, same: Callable[[Tensors], bool]) -> tuple[Any, Tensors] | None:
        """Take the pending batch that an observation of ``rows`` samples belongs to, or None.

        ``same(fields)`` is asked until it is known how far the host (a prefetcher?) fetches ahead: until
        one distance alone explains all observations so far. From then on the place in the queue decides.
        What was passed over (a batch that the host skipped) is never observed.

        Raises
        ------
        RuntimeError
            If after some observations it is still not known, since the labels of the batches are the same.
        """
        last = len(self.pending) - 1
        if self._ahead is None:
            here = {
                last - place
                for place, (indices, fields) in enumerate(self.pending)
                if len(indices) == rows and same(fields)
            }
            if not here:
                return None
            # At the end of a pass the distance gets shorter, and tells nothing of those before.
            self._possible = (not self.exhausted and here & self._possible) or here
            if len(self._possible) > 1:
                self._unclear += 1
                if self._unclear >= CHECKED_AT_ONCE:
                    raise RuntimeError(
                        f"{len(self._possible)} batches that wait for their prediction have the same labels (batches are "
                        "not observed, or fetched ahead, and small or of one class), so it is not known which was "
                        "predicted: let the script call the observed function for every batch, or run without KCD"
                    )
                return None
            (self._ahead,) = self._possible
            place = last - self._ahead
        else:
            place = self._place(self._ahead)
        if not 0 <= place <= last or len(self.pending[place][0]) != rows:
            return None
        # What was fetched ahead waits at the end of the pass, and the place no longer tells a second call for a batch.
        if self.exhausted and not same(self.pending[place][1]):
            return None
        for _ in range(place):
            self.pending.popleft()
        return self.pending.popleft()


class Labels:
    """Compares labels batch by batch: at first at once, later where they lie, so that no step waits for a device.

    A batch may hold several fields that can be its labels, and predictions may come with several that were seen. At
    first all pairs are compared; then the first of those that were always the same.
    """

    def __init__(self) -> None:
        self._checked = 0  # batches compared
        self._wrong: Any = None  # labels that differed, counted on the device
        self._pairs: list[
            tuple[str, str]
        ] = []  # (field, source) that were always the same; empty before the first

    def known(self, seen: Tensors) -> Tensors:
        """Those that were seen in a place that is known to be that of the labels; all, before any is known."""
        sources = {source for _, source in self._pairs}
        return {source: labels for source, labels in seen.items() if not sources or source in sources}

    def fit(self, held: Tensors, seen: Tensors) -> bool:
        """Whether one of those that a batch holds is one of those that were seen."""
        return any(not int(differ(held[field], seen[source])) for field, source in self._both(held, seen))

    def compare(self, held: Tensors, seen: Tensors) -> tuple[str, str] | None:
        """Which field of a batch is what was seen where, as far as that is known at once; None if none is."""
        pairs = self._both(held, seen)
        if self._checked < CHECKED_AT_ONCE:
            self._checked += 1
            pairs = [(one, other) for one, other in pairs if not int(differ(held[one], seen[other]))]
            self._pairs = pairs[:1] if self._checked == CHECKED_AT_ONCE else pairs or self._pairs
            return pairs[0] if pairs else None
        if not pairs:
            return None
        own, source = pairs[0]
        wrong = differ(held[own], seen[source])
        if wrong.device.type == "cpu":
            return None if int(wrong) else pairs[0]
        self._wrong = wrong if self._wrong is None else self._wrong + wrong
        return pairs[0]

    def _both(self, held: Tensors, seen: Tensors) -> list[tuple[str, str]]:
        pairs = self._pairs or [(one, other) for other in seen for one in held]
        return [
            (one, other)
            for one, other in pairs
            if one in held and other in seen and len(held[one]) == len(seen[other])
        ]

    def agree(self) -> bool:
        """Whether all that were compared are the same. Waits for a device."""
        return self._wrong is None or not int(self._wrong)


class Student:
    """Which model predictions are of: that of the first that was asked about, as long as it lives."""

    def __init__(self) -> None:
        self._model = Model()

    def is_of(self, prediction: torch.Tensor) -> bool:
        """Whether a prediction shares a parameter with the first, which may be frozen in part.

        A gradient that reaches no parameter, or parameters that are gone, say nothing of another model.
        """
        found = parameters([prediction])
        if self._model.gone:
            self._model = Model(found)
        return not found or self._model.shares(found)


def differ(expected: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """How many labels of a batch differ from those a prediction was made for, counted where those lie."""
    import torch  # which the host has imported by now

    if targets.is_cuda and torch.cuda.is_available() and not expected.is_cuda:
        expected = expected.pin_memory()  # only from pinned memory does a copy not wait
    number: torch.Tensor = (expected.to(targets.device, non_blocking=True) != targets).sum()
    return number


def unfit(prediction: Any, targets: Any) -> tuple[str, str] | None:
    """Why these can't be a student's prediction and its labels, as (kind, text); None if they can."""
    import torch  # which the host has imported by now

    for kind, given, expected in (("prediction", prediction, "[B, C]"), ("labels", targets, "[B]")):
        if not isinstance(given, torch.Tensor):
            return kind, f"for the {kind} it was given {type(given).__name__}, a tensor {expected} expected"
    if prediction.ndim != 2:
        return "prediction", f"the prediction has shape {list(prediction.shape)}, [B, C] expected"
    if targets.shape != prediction.shape[:1]:
        return "labels", (
            f"the labels have shape {list(targets.shape)}, [B] expected, for predictions of {list(prediction.shape)}"
        )
    if not prediction.requires_grad:
        return "gradient", "without a gradient, as in validation"
    return None
