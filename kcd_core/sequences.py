"""The value of a sequence of tokens, as language models have them: the mean entropy of those that are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import formulas
from .base.arrays import Array, backend, detached, dtype_name, is_integer, is_tensor
from .base.rows import by_rows, group_means, room
from .logits import beside, check_logits, like

__all__ = ["IGNORED", "checked_labels", "sequence_entropy", "token_entropy", "token_means"]

IGNORED = -100  # the label of a token that is not trained on, everywhere in PyTorch


def sequence_entropy(student_logits: Any, *, teacher_logits: Any = None, targets: Any = None) -> Array:
    """Mean entropy, in nats, of the tokens of a sequence whose label is not -100.

    Parameters
    ----------
    student_logits : array [B, T, C], floating
        The student's logits for each token.
    teacher_logits
        Accepted and ignored.
    targets : integer array [B, T], classes in 0 .. C-1, or -100
        The labels of the same tokens. For a causal model, the caller shifts them: the logits ``logits[:, :-1]``
        belong to the labels ``labels[:, 1:]``. A padding token whose label is not -100 counts like any other.

    Returns
    -------
    float64 array [B]
        Not differentiable. NaN, which no tracker records, for a sequence whose labels are all -100, such as one
        truncated within its prompt, and for one with a logit that is not finite at a token that counts.

    Raises
    ------
    TypeError
        If the logits are not floating-point, or ``targets`` not of an integer dtype.
    ValueError
        If the logits are not ``[B, T, C]`` with C >= 2, or ``targets`` is missing or is not their ``[B, T]``.
    IndexError
        If a target in host memory is neither -100 nor in ``0 .. C-1``. On a device it gives NaN instead.

    Notes
    -----
    A sequence's value depends to the bit neither on padding, on either side, nor on the other sequences of the batch.
    Tokens are computed like rows of `entropy`, including those that don't count: leaving them out would stall a
    device.

    Examples
    --------
    >>> import numpy as np
    >>> logits = np.array([[[0.0, 0.0], [0.0, 50.0], [0.0, 0.0]]])
    >>> sequence_entropy(logits, targets=[[1, 0, -100]]).round(4)
    array([0.3466])
    """
    logits = check_logits(student_logits, "student_logits", sequences=True)
    targets = checked_labels(targets, logits)
    tokens = token_entropy(logits, targets)
    return like(token_means(tokens, backend(tokens).own(targets != IGNORED)), logits)


def token_entropy(logits: Array, labels: Array) -> Array:
    """[B, T], without a graph: the entropy of each token; of one whose label is neither -100 nor a class, not finite.

    Parameters
    ----------
    logits, labels
        As `check_logits` and `checked_labels` gave them.
    """
    sequences, length, classes = logits.shape
    logits = detached(logits)
    most = room(logits)
    pieces: Sequence[Array] = [logits]
    # What lies in one piece is only looked at in another shape; logits[:, :-1] is copied, some sequences at a time.
    if sequences > 1 and not (logits.is_contiguous() if is_tensor(logits) else logits.flags.c_contiguous):
        copied_and_made = (logits.itemsize + 2 * max(4, logits.itemsize)) * length * classes
        pieces = backend(logits).split(logits, max(1, most // max(1, copied_and_made)))
    parts = [by_rows(formulas.entropy, 2, piece.reshape(-1, classes), most=most) for piece in pieces]
    tokens = backend(parts[0]).join(parts) if len(parts) > 1 else parts[0]
    known = (labels == IGNORED) | ((labels >= 0) & (labels < classes))
    with np.errstate(invalid="ignore", divide="ignore"):
        return tokens.reshape(sequences, length) / backend(tokens).own(known)


def token_means(tokens: Array, counted: Array) -> Array:
    """float64 [B]: the mean of each sequence's ``tokens`` [B, T] that are ``counted``; NaN if there is none.

    To the last bit the same, whatever lies between them.
    """
    back, (sequences, length) = backend(tokens), tokens.shape
    row = back.arange(sequences * length, tokens) // max(length, 1)
    group = (row - sequences) * counted.reshape(-1) + sequences
    return group_means(tokens.reshape(-1), group, sequences)


def checked_labels(labels: Any, logits: Array) -> Array:
    """The labels of the tokens of ``logits`` [B, T, C], as int64 beside them, or an error that names ``targets``."""
    labels = beside(labels, "targets", "sequence_entropy", logits)
    if not is_integer(labels):
        raise TypeError(f"targets must be the tokens' labels (integers), got dtype {dtype_name(labels)}")
    if tuple(labels.shape) != tuple(logits.shape[:2]):
        raise ValueError(
            f"targets must be [B, T] = {tuple(logits.shape[:2])}, one label per token of the logits, got shape "
            f"{tuple(labels.shape)}; a causal model's logits[:, :-1] go with labels[:, 1:]"
        )
    classes = logits.shape[-1]
    back = backend(labels)
    labels = back.to_int64(labels)
    if back.on_host(labels):
        wrong = labels[((labels < 0) | (labels >= classes)) & (labels != IGNORED)]
        if len(wrong):
            raise IndexError(
                f"targets must lie in 0 .. {classes - 1}, or be {IGNORED} for a token that is not trained on, "
                f"got {int(wrong[0])}"
            )
    return back.beside(labels, logits)
