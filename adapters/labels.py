"""Whether predictions were made for the batches drawn for them: told by the labels, which come with both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .passes import CHECKED_AT_ONCE

if TYPE_CHECKING:
    import torch

__all__ = ["Labels", "differ"]


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


def differ(expected: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """How many labels of a batch differ from those a prediction was made for, counted where those lie."""
    import torch  # which the host has imported by now

    if targets.is_cuda and torch.cuda.is_available() and not expected.is_cuda:
        expected = expected.pin_memory()  # only from pinned memory does a copy not wait
    number: torch.Tensor = (expected.to(targets.device, non_blocking=True) != targets).sum()
    return number
