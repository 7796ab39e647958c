"""A run that is about to start, as a profile sees it: what it can watch, and how it hands over predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from .settings import Settings

if TYPE_CHECKING:
    import torch

__all__ = ["Batch", "Running"]


class Batch(Protocol):
    """A batch that was drawn, and whose prediction is due.

    Attributes
    ----------
    rows : int
        Its samples.
    labels : tensor [rows]
        Those that it was found by.
    source : str
        Their name in what `Running.find` was given.
    dataset : Dataset
        The host's.
    """

    @property
    def rows(self) -> int: ...
    @property
    def labels(self) -> torch.Tensor: ...
    @property
    def source(self) -> str: ...
    @property
    def dataset(self) -> Any: ...


class Running(Protocol):
    """A run that is about to start, as a profile's ``prepare`` sees it.

    Attributes
    ----------
    arguments : sequence of str
        The script's.
    settings : Settings
    """

    arguments: Sequence[str]
    settings: Settings

    def say(self, text: str) -> None:
        """Print a line, on the first rank alone."""

    def batches(self) -> int | None:
        """Batches of the epoch under way; None until the student's loader is known."""

    def dataset(self) -> Any:
        """The data set of the loader that was asked last for a batch; None before."""

    # -- watching ----------------------------------------------------------------------------------

    def when_imported(self, module: str, action: Callable[[ModuleType], None]) -> None:
        """Run ``action(module)`` once the host has imported a module."""

    def after_call(self, function: str, action: Callable[..., None]) -> None:
        """Run ``action(result, *args, **kwargs)`` after every call of one of the host's functions."""

    def before_batch(self, action: Callable[[bool], None]) -> None:
        """Run ``action(first)`` whenever the host is done with a batch, as far as its loader can tell.

        That is when it asks a loader that may be the student's for another one, the ``first`` of a pass or not, and when
        a pass or the process ends.
        """

    # -- recording ---------------------------------------------------------------------------------

    def observe(self, prediction: torch.Tensor, labels: torch.Tensor) -> None:
        """Record the student's prediction [B, C], with the labels [B] it was made for. The batch is found by them."""

    def find(self, labels: Mapping[str, torch.Tensor]) -> Batch | None:
        """The batch with labels that are one of these [B], taken out of those that wait for their prediction."""

    def waits(self, rows: int) -> bool:
        """Whether a batch of this many samples waits for its prediction."""

    def record(self, batch: Batch, prediction: torch.Tensor) -> None:
        """Record the student's prediction [B, C] for a batch that `find` has returned."""

    def pass_over(self, kind: str, why: str) -> None:
        """Count a prediction that is not recorded, and why: told where none is, by kind."""

    def excuse(self) -> None:
        """Take note that what is trained in this pass is not the student: that nothing is recorded in it is right."""

    def restart(self) -> bool:
        """Begin anew with another student: no values, no epochs. False, and nothing done, if a set is in force."""
