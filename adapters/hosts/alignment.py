"""Which batch a prediction was made for: the passes over a host's loader, what waits in them, and its labels.

Batch and prediction meet nowhere in a host but at their labels, which come with both.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["CHECKED_AT_ONCE", "Labels", "Pass", "Student", "differ", "unfit"]

CHECKED_AT_ONCE = 3  # batches whose labels are compared at once; on a device, later ones are counted
MOST_PENDING = 64  # batches' indices; a pass that nothing is observed in would gather an epoch of them


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
    pending : deque of (indices, targets)
        Of the batches that were drawn and not observed yet, oldest first.
    exhausted : bool
        Whether the host asked for one more batch than there are.
    iterator : callable
        A weak reference to the host's iterator.
    """

    size: int
    drawn: int = 0
    observed: int = 0
    exhausted: bool = False
    iterator: Callable[[], Any] = _nothing
    pending: deque[tuple[Any, torch.Tensor]] = field(default_factory=lambda: deque(maxlen=MOST_PENDING))
    _ahead: int | None = None  # batches the host fetches before it uses one
    _possible: set[int] = field(default_factory=set)  # what that may be
    _unclear: int = 0

    @property
    def over(self) -> bool:
        """Whether nothing more will be drawn: the iterator is used up, or the host has let go of it."""
        return self.exhausted or self.iterator() is None

    @property
    def done(self) -> bool:
        """Whether it is over, and what was awaited was observed."""
        return self.exhausted and not self.pending

    def match(self, rows: int, same: Callable[[torch.Tensor], bool]) -> tuple[Any, torch.Tensor] | None:
        """Take the pending batch that an observation of ``rows`` samples belongs to, or None.

        ``same(targets)`` is asked until it is known how far the host (a prefetcher?) fetches ahead: until
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
                for place, (indices, targets) in enumerate(self.pending)
                if len(indices) == len(targets) == rows and same(targets)
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
            place = 0 if self.exhausted else last - self._ahead
        if not 0 <= place <= last or len(self.pending[place][0]) != rows:
            return None
        # What was fetched ahead waits at the end of the pass, and the place no longer tells a second call for a batch.
        if self.exhausted and not same(self.pending[place][1]):
            return None
        for _ in range(place):
            self.pending.popleft()
        return self.pending.popleft()


class Labels:
    """Compares labels batch by batch: at first at once, later where they lie, so that no step waits for a device."""

    def __init__(self) -> None:
        self._checked = 0  # batches compared
        self._wrong: Any = None  # labels that differed, counted on the device

    def compare(self, expected: torch.Tensor, targets: torch.Tensor) -> bool:
        """Whether they are the same, as far as that is known at once."""
        wrong = differ(expected, targets)
        self._checked += 1
        if wrong.device.type == "cpu" or self._checked < CHECKED_AT_ONCE:
            return not int(wrong)
        self._wrong = wrong if self._wrong is None else self._wrong + wrong
        return True

    def agree(self) -> bool:
        """Whether all that were compared are the same. Waits for a device."""
        return self._wrong is None or not int(self._wrong)


class Student:
    """Which model predictions are of: known by the parameters that their gradients reach."""

    def __init__(self) -> None:
        self._parameters: dict[int, weakref.ref[torch.Tensor]] = {}

    def is_of(self, prediction: torch.Tensor) -> bool:
        """Whether a prediction shares a parameter with the first that was asked about, which may be frozen in part.

        A gradient that reaches no parameter, or parameters that are gone, say nothing of another model.
        """
        found = parameters(prediction)
        known = self._parameters
        if not any(ref() is not None for ref in known.values()):
            self._parameters = {id(one): weakref.ref(one) for one in found}
            return True
        return not found or any(id(one) in known and known[id(one)]() is one for one in found)


def parameters(prediction: torch.Tensor) -> list[torch.Tensor]:
    """The leaves that the gradient of a prediction reaches."""
    found: list[torch.Tensor] = []
    seen: set[Any] = set()
    left: list[Any] = [prediction.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        left += [following for following, _ in node.next_functions]
    return found


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
