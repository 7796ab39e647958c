"""The method a second time: float64, loops and full sorts, nothing clever and nothing shared with kcd_core.

Slow on purpose. Written from the formulas of the paper alone (KCD, ECCV 2022, sections 3.2 and 3.3), with
the choices that DESIGN.md makes where the paper is silent: ties to the lower index, points never recorded
first, L limited to what is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np


def softmax(logits: Any) -> list[float]:
    logits = [float(x) for x in logits]
    highest = max(logits)
    powers = [math.exp(x - highest) for x in logits]
    return [x / math.fsum(powers) for x in powers]


def entropy(logits: Any) -> float:
    return -math.fsum(p * math.log(p) for p in softmax(logits) if p > 0)


def recorded(record: Any) -> tuple[list[float], list[int]]:
    """V and F from a matrix [N, epochs] of everything ever recorded, negative where nothing was."""
    value, count = [], []
    for row in record:
        seen = [float(x) for x in row if x >= 0]
        value.append(math.fsum(seen) / len(seen) if seen else math.nan)
        count.append(len(seen))
    return value, count


def ranking(value: Any, count: Any, alpha: float) -> list[int]:
    """All indices, most valuable first."""

    def score(i: int) -> float:
        return float(value[i]) * float(count[i]) ** alpha if count[i] > 0 else math.inf

    return sorted(range(len(value)), key=lambda i: (-score(i), i))


@dataclass
class Stage:
    kept: list[int]  # in ranking order
    dropped: list[int]
    tail: list[int]
    weights: list[float]


def condense(
    value: Any, count: Any, *, previous: int, target: int, alpha: float = 0.03, min_weight: float = 0.7
) -> Stage:
    order = ranking(value, count, alpha)
    kept, dropped = order[:target], order[target:previous]
    length = min(len(dropped), len(kept))
    tail = kept[len(kept) - length :]
    weights = [min_weight + (1 - min_weight) * (length - i) / length for i in range(length)]
    return Stage(kept, dropped, tail, weights)


def mix(images: dict[int, Any], tail: Any, dropped: Any, weights: Any) -> dict[int, Any]:
    """Copies of ``images``, with those of the tail mixed; pixels truncated as the authors do."""
    mixed = {i: image.copy() for i, image in images.items()}
    for to, source, weight in zip(tail, dropped, weights, strict=False):
        w = np.float32(weight)
        a, b = images[int(to)].astype(np.float32), images[int(source)].astype(np.float32)
        mixed[int(to)] = (w * a + np.float32(1 - float(w)) * b).astype(images[int(to)].dtype)
    return mixed


def due(epoch: int, period: int, warmup: int) -> bool:
    return epoch in range(0, epoch + 1, period) and epoch >= warmup and epoch > 0


def sizes(n: int, ratio: str, stages: int, period: int, warmup: int, epochs: int) -> list[int]:
    """The size of the set in each of the epochs 1 .. ``epochs``, one epoch after the other.

    ``ratio`` is a decimal in text, so that the floors can be taken in whole numbers.
    """
    digits = len(ratio.partition(".")[2])
    parts = int(ratio.replace(".", ""))  # ratio = parts / 10 ** digits
    last = max(1, n * parts // 10**digits)
    step = n * (10**digits - parts) // (stages * 10**digits)
    result, size = [], n
    for epoch in range(1, epochs + 1):
        result.append(size)
        if due(epoch, period, warmup):
            size = max(last, size - step)
    return result
