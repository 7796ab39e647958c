"""What is said of values that were not recorded, or are of no logits: an error at once, or one warning."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .base.arguments import checked_choice
from .base.arrays import Array, backend
from .base.users_line import warn
from .logits import are_probabilities
from .sums import recordable

__all__ = ["OnNonfinite", "SkipReport"]

OnNonfinite = Literal["skip", "raise"]


class SkipReport:
    """Says, once for each cause, what a tracker skipped, and whether it is given probabilities.

    Parameters
    ----------
    on_nonfinite : {"skip", "raise"}
        See `KnowledgeValueTracker`.
    looks : bool
        Whether `look` is to be called with the next batch: with the first one, of which logits are expected.
    largest : str
        Up to which size values are recorded.

    Raises
    ------
    ValueError
        If ``on_nonfinite`` is neither of both.
    """

    def __init__(self, on_nonfinite: OnNonfinite, looks: bool, largest: str = "2**20") -> None:
        self.raises = checked_choice(on_nonfinite, "on_nonfinite", ("skip", "raise")) == "raise"
        self.looks, self._largest = looks, largest
        self._found: Any = None  # by `look`, on a device
        self._told = np.zeros(2, np.int64)

    def look(self, logits: Array) -> None:
        """Warn if a batch [B, C] is one of probabilities: at once; of one on a device, with the next `tell`."""
        if len(logits):
            self.looks, self._found = False, are_probabilities(logits)
            if backend(logits).on_host(logits):
                self._tell_found()

    def _tell_found(self) -> None:
        found, self._found = self._found, None
        if found is not None and found:
            warn(
                "student_logits looks like probabilities: in the first batch each row lies in [0, 1] and adds up to 1. "
                "Pass what goes into the softmax; else the samples' values hardly differ"
            )

    def refuse(self, values: npt.NDArray[np.float64]) -> None:
        """Raise ValueError if one of these values cannot be recorded, before any of them is."""
        wrong = int(np.count_nonzero(~recordable(values)))
        if wrong:
            raise ValueError(self._unrecordable(wrong))

    def told(self, skipped: npt.NDArray[np.int64]) -> None:
        """Take it that this was said: it is what a state holds."""
        self._told = skipped.copy()

    def tell(self, skipped: npt.NDArray[np.int64], num_samples: int) -> None:
        """Warn of what was skipped since the last call, where it is the first of its kind, or raise for it.

        Waits for what `look` found on a device.

        Parameters
        ----------
        skipped : int64 [2]
            How many values were not recordable, and how many indices lay outside ``0 .. num_samples-1``.

        Raises
        ------
        IndexError, ValueError
            With ``on_nonfinite="raise"``, if there are more of them than at the last call.
        """
        self._tell_found()
        new, first = skipped - self._told, self._told == 0
        if not new.any():
            return
        self.told(skipped)
        unrecordable, out_of_range = new.tolist()
        texts = (
            self._unrecordable(unrecordable),
            f"{out_of_range} recordings had an index outside 0 .. {num_samples - 1} and were not recorded",
        )
        if self.raises:
            raise IndexError(texts[1]) if out_of_range else ValueError(texts[0])
        for text in (text for text, *now in zip(texts, new, first, strict=True) if all(now)):
            warn(text + "; further ones are only counted (tracker.skipped)", RuntimeWarning)

    def _unrecordable(self, number: int) -> str:
        return (
            f"{number} values were not finite (a NaN or infinite logit? classes masked with -inf, where -1e4 would do? a "
            f"sequence whose labels are all -100?) or larger than {self._largest} in size, or of a sample whose values add "
            "up to more than 2**22 already, and were not recorded"
        )
