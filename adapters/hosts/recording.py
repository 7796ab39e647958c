"""Recording a batch's predictions, wherever they lie and whatever pads the rank's length."""

from __future__ import annotations

from typing import Any

import numpy as np

from kcd_core import CondensedSampler, KnowledgeValueTracker
from kcd_core.loading.keys import without_padding

__all__ = ["record"]


def record(
    tracker: KnowledgeValueTracker, order: CondensedSampler, indices: Any, logits: Any, targets: Any
) -> int:
    """Record logits [B, C] for ``indices`` [B] that ``order`` drew, and return for how many samples.

    An index below 0 pads a rank's length, and is no observation. The tracker moves to the device of the
    first logits.
    """
    if logits.is_cuda and tracker.device is None:
        tracker.to(logits.device)
    if order.num_replicas > 1:
        indices, logits, targets = without_padding(indices, logits, targets)
    # An array came straight from the sampler; what a host collated may lie on a device.
    update = tracker._update_drawn if isinstance(indices, np.ndarray) else tracker.update
    update(indices, logits, targets=targets)
    return len(indices)
