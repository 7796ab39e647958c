"""The arithmetic of values, for a chunk of rows of logits ``[B, C]`` that is known to be right: see `by_rows`."""

from __future__ import annotations

from .base.arrays import Array
from .base.rows import Rows

__all__ = ["cross_entropy", "entropy", "kd_divergence", "margin", "reducible_loss"]


def entropy(rows: Rows, logits: Array) -> Array:
    below = rows.below_top(logits)
    p = rows.exp(below)  # times their sum
    total = rows.sum(p)
    return rows.log(total) - rows.dot(p, below) / total  # both terms are at least 0: nothing cancels


def cross_entropy(rows: Rows, logits: Array, targets: Array) -> Array:
    below = rows.below_top(logits)
    picked = rows.pick(below, targets)
    log_p = picked - rows.log(rows.sum(rows.exp_(below)))
    return rows.nan_if_low(logits) - log_p


def kd_divergence(temperature: float, rows: Rows, student: Array, teacher: Array) -> Array:
    log_t = _log_softmax(rows, teacher, temperature)
    difference = log_t - _log_softmax(rows, student, temperature)
    return rows.dot(rows.exp_(log_t), difference) + rows.nan_if_low(student) + rows.nan_if_low(teacher)


def reducible_loss(rows: Rows, student: Array, teacher: Array, targets: Array) -> Array:
    return cross_entropy(rows, student, targets) - cross_entropy(rows, teacher, targets)


def margin(rows: Rows, logits: Array) -> Array:
    below = rows.below_top(logits)
    second = rows.exp(rows.second(below))  # and the highest is exp(0), both times the sum
    return 1 - (1 - second) / rows.sum(rows.exp_(below)) + rows.nan_if_low(logits)


def _log_softmax(rows: Rows, logits: Array, temperature: float = 1.0) -> Array:
    below = rows.below_top(logits)
    if temperature != 1.0:
        below = rows.div_(below, temperature)
    return rows.sub_(below, rows.log(rows.sum(rows.exp(below))).reshape(-1, 1))
