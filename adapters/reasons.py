"""Why predictions were passed over: counted by kind, told by the first example of each."""

from __future__ import annotations

from collections import Counter
from typing import Any

__all__ = ["Reasons", "unfit"]


class Reasons:
    """Counts by kind; of each kind, the first text."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._texts: dict[str, str] = {}

    def note(self, kind: str, text: str | None = None, times: int = 1) -> None:
        self._counts[kind] += times
        self._texts.setdefault(kind, text or kind)

    def clear(self) -> None:
        self._counts.clear()
        self._texts.clear()

    def __bool__(self) -> bool:
        return bool(self._counts)

    def leading(self, most: int = 3) -> str:
        """The most frequent ones, each with how often."""
        return "; ".join(f"{self._texts[kind]} ({n} x)" for kind, n in self._counts.most_common(most))


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
