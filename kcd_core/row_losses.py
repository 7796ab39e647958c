"""One loss of a batch of which the teacher was asked for some rows alone."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from .base.arguments import checked_choice
from .base.arrays import as_indices, checked_float, checked_range

__all__ = ["gated_loss"]


def gated_loss(
    label_losses: torch.Tensor,
    teacher_losses: torch.Tensor,
    rows: torch.Tensor,
    *,
    label_weight: float = 0.1,
    teacher_weight: float = 0.9,
    unasked_weight: float = 1.0,
    divide_by: Literal["batch", "asked"] = "batch",
) -> torch.Tensor:
    """The loss of a batch in which all rows learn from their labels, and some from the teacher.

    It is the sum of three terms, where D is B or the number of rows asked::

        unasked_weight * label_losses[rows not asked].sum() / B
        label_weight * label_losses[rows].sum() / B
        teacher_weight * teacher_losses.sum() / D

    Parameters
    ----------
    label_losses : floating tensor [B]
        The losses of all rows: ``cross_entropy(student_logits, targets, reduction="none")``.
    teacher_losses : floating tensor [A]
        The losses of the rows asked, in the order of ``rows``.
    rows : int64 tensor [A]
        The rows asked, each once: ``loader.asked_rows``. They are best in host memory, or on the losses' device.
    label_weight, teacher_weight : float, at least 0
        The weights of both losses on rows asked.
    unasked_weight : float, at least 0
        The weight of the label on rows that are not asked.
    divide_by : {"batch", "asked"}
        What the teacher's losses are divided by. With "batch", a row asked has the same weight in every batch, and
        the teacher has less weight in batches with few rows asked. With "asked", the teacher has the same weight in
        every batch with a row asked.

    Returns
    -------
    tensor
        A scalar. If no row is asked, it is the mean of the label losses times ``unasked_weight``.

    Raises
    ------
    TypeError
        If a loss is no tensor, ``rows`` does not hold integers, or a weight is not a number.
    ValueError
        If a shape is another, a weight is not finite or below 0, or ``divide_by`` is neither of the two.
    IndexError
        If rows in host memory are not in 0 .. B-1.

    Notes
    -----
    This waits for no device if ``rows`` are pinned, or on the device. If all rows are asked, it is the ordinary
    distillation loss, with either ``divide_by``.

    Examples
    --------
    >>> import torch
    >>> label_losses, teacher_losses = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([10.0])
    >>> round(gated_loss(label_losses, teacher_losses, torch.tensor([1])).item(), 4)  # (1 + 0.2 + 3 + 4 + 9) / 4
    4.3
    """
    weights = [
        _weight(value, name)
        for value, name in (
            (label_weight, "label_weight"),
            (teacher_weight, "teacher_weight"),
            (unasked_weight, "unasked_weight"),
        )
    ]
    checked_choice(divide_by, "divide_by", ("batch", "asked"))
    for losses, name in ((label_losses, "label_losses"), (teacher_losses, "teacher_losses")):
        if not isinstance(losses, torch.Tensor) or not losses.is_floating_point():
            raise TypeError(f"{name} must be a floating tensor, one loss a row, got {_kind(losses)}")
        if losses.ndim != 1:
            raise ValueError(
                f'{name} must be one-dimensional, one loss a row (reduction="none"), got shape {tuple(losses.shape)}'
            )
    size, asked = len(label_losses), len(teacher_losses)
    if not size:
        raise ValueError("label_losses must have at least one row")
    given = as_indices(rows, "rows")
    if len(given) != asked:
        raise ValueError(
            f"rows must be [{asked}], one for each of teacher_losses, got shape {tuple(given.shape)}"
        )
    if isinstance(given, np.ndarray):
        copied = torch.from_numpy(checked_range(given, "rows", size))
        given = rows if isinstance(rows, torch.Tensor) else copied  # a copy would not be pinned
    on_asked, of_teacher, on_others = weights
    weight = label_losses.new_full((size,), on_others)
    weight.index_fill_(0, given.to(label_losses.device, torch.int64, non_blocking=True), on_asked)
    divisor = size if divide_by == "batch" else max(asked, 1)
    return (label_losses * weight).sum() / size + of_teacher * teacher_losses.sum() / divisor


def _weight(value: Any, name: str) -> float:
    weight = checked_float(value, name, "a finite number, at least 0")
    if not 0 <= weight < np.inf:
        raise ValueError(f"{name} must be a finite number, at least 0, got {weight}")
    return weight


def _kind(x: Any) -> str:
    return f"dtype {x.dtype}" if isinstance(x, torch.Tensor) else type(x).__name__
