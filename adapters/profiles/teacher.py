"""Where a host's student and teacher meet, and how its loss weighs the two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

__all__ = ["Loss", "Pair", "Teacher"]


def _nothing(_: Sequence[str]) -> None:
    return None


class Loss(NamedTuple):
    """A loss ``labels * CE + teacher * D``, averaged over a batch.

    D is a divergence of the teacher's logits from the student's that vanishes, and its gradient with it, where the two are
    equal. With a ``temperature``, it is Hinton's: the squared temperature times KL, at that temperature.

    Attributes
    ----------
    labels, teacher : float
        The weights.
    temperature : float, optional
    """

    labels: float
    teacher: float
    temperature: float | None = None

    @property
    def share(self) -> float:
        """What of CE's gradient, at weight 1, the teacher's row has to make up: a part of its probabilities.

        Raises
        ------
        RuntimeError
            If a row of the teacher's can't.
        """
        lacking = 1 - self.labels
        if not lacking:
            return 0.0
        reach = self.teacher * (self.temperature or 0)
        if not 0 < lacking <= reach:
            raise RuntimeError(
                f"samples of which the teacher is not asked learn their labels at weight 1, and this loss has {self.labels:g} for "
                f"the labels, {self.teacher:g} for the teacher"
                + (f" at temperature {self.temperature:g}" if self.temperature else "")
                + ", which can't be made that: give the labels weight 1, or leave out --ask"
            )
        return lacking / reach


class Pair(NamedTuple):
    """A student and its teacher."""

    student: torch.nn.Module
    teacher: torch.nn.Module
    loss: Loss


class Teacher(NamedTuple):
    """Where a host's teacher is, for ``--ask``: from the second epoch on it is called with a part of each batch.

    Attributes
    ----------
    given : str
        A function that gets student and teacher before they are called for a batch, named as in ``observe``.
    pair : callable
        ``pair(*args, **kwargs) -> Pair``: which of that function's arguments they are.
    refuse : callable
        ``refuse(arguments) -> str | None``: why the loss of this command line is not a `Loss`.
    logits : tuple
        Where the logits [B, C] are in what student and teacher return: places in tuples, keys of dicts. Empty if they
        return only the logits.
    same_images : bool
        Whether the teacher gets the images as the loader yields them, which is checked in the first batches.
    """

    given: str
    pair: Callable[..., Pair]
    refuse: Callable[[Sequence[str]], str | None] = _nothing
    logits: tuple[Any, ...] = ()
    same_images: bool = True
