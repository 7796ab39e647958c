"""Recording a batch's predictions, wherever they lie and whatever pads the rank's length."""

from __future__ import annotations

from typing import Any

from kcd_core import CondensedSampler, KnowledgeValueTracker

__all__ = ["record"]


def record(
    tracker: KnowledgeValueTracker, order: CondensedSampler, indices: Any, logits: Any, targets: Any
) -> int:
    """Record logits [B, C] for ``indices`` [B], and return for how many samples.

    An index below 0 pads a rank's length, and is no observation. The tracker moves to the device of the
    first logits.
    """
    if logits.is_cuda and tracker.device is None:
        tracker.to(logits.device)
    if order.num_replicas > 1 and bool((indices < 0).any()):
        rows = (indices >= 0).nonzero().squeeze(1)
        indices, rows = indices[rows], rows.to(logits.device, non_blocking=True)
        logits, targets = logits[rows], None if targets is None else targets[rows]
    tracker.update(indices, logits, targets=targets)
    return len(indices)
