"""Images that are mixed in the loop: told by the labels, of which a mixture has two."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["REFUSED", "of_two", "permuted"]

REFUSED = (
    "images are mixed, and the value of a mixture is that of neither sample: switch mixup and CutMix off, or run without "
    "KCD"
)


def permuted(labels: torch.Tensor, others: torch.Tensor) -> bool:
    """Whether these are other labels, and the same in another order."""
    if labels.shape != others.shape or bool((labels == others).all()):
        return False
    return bool((labels.sort().values == others.sort().values).all())


def of_two(soft: torch.Tensor) -> bool:
    """Whether soft labels [B, C] are of two classes at most, and some of two: neither smoothed ones nor a teacher's."""
    above = (soft > soft.amin(1, keepdim=True)).sum(1)
    return soft.shape[1] > 3 and bool((above.amax() == 2) & (above.amin() > 0))
