"""Logits as they are given: what is wrong with them, and what lies beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .base.arrays import (
    Array,
    as_array,
    backend,
    dtype_name,
    in_memory,
    is_floating,
    is_tensor,
    torch_backend,
)

__all__ = ["are_probabilities", "beside", "check_logits", "like", "one_of", "refuse_output"]


def check_logits(logits: Any, name: str, *, sequences: bool = False) -> Array:
    """``logits`` [B, C], or [B, T, C] of ``sequences``, as an array, or an error that says what is wrong with them."""
    refuse_output(logits, name)
    logits = in_memory(logits, name)
    if not is_floating(logits):
        raise TypeError(f"{name} must be floating-point logits, got dtype {dtype_name(logits)}")
    if sequences:
        if logits.ndim != 3 or logits.shape[2] < 2:
            raise ValueError(
                f"{name} must be [B, T, C] with C >= 2 classes, logits for each token of a sequence, got shape "
                f"{tuple(logits.shape)}"
            )
    elif logits.ndim != 2 or logits.shape[1] < 2:
        advice = "a binary student's logit z [B, 1] stands for two: torch.cat([torch.zeros_like(z), z], 1)"
        if logits.ndim > 2:
            advice = (
                'of sequences [B, T, C], choose value="sequence_entropy"; of a map, record one value a sample, such as its '
                "mean entropy: record(values=...)"
            )
        raise ValueError(
            f"{name} must be [B, C] with C >= 2 classes, got shape {tuple(logits.shape)}; {advice}"
        )
    return logits


def beside(x: Any, name: str, value: str, like: Array) -> Array:
    if x is None:
        raise ValueError(
            f"value {value!r} needs {name}=: pass it to update(), record() or the CondensedLoss call"
        )
    x = as_array(x)
    if x.ndim == 0 or (isinstance(x, np.ndarray) and x.dtype.kind not in "biuf"):
        raise TypeError(
            f"{name} must be numbers, a row per sample, got dtype {dtype_name(x)}, shape {tuple(x.shape)}"
        )
    x = backend(like).own(x)
    if len(x) != len(like):
        raise ValueError(f"{name} must have one row per sample ({len(like)}), got {len(x)}")
    return x


def one_of(student_logits: Any, values: Any) -> Any:
    """What is recorded of a batch, which has rows that can be counted."""
    if (student_logits is None) == (values is None):
        raise TypeError("record() needs one of student_logits and values=, and not both")
    given, name = (student_logits, "student_logits") if values is None else (values, "values")
    refuse_output(given, name)
    return given


def refuse_output(output: Any, name: str) -> None:
    """Raise a TypeError that says where the logits are, if ``output`` is what a model returns around them, or has no rows."""
    what, how = type(output).__name__, ""
    if isinstance(output, np.ndarray) or is_tensor(output):
        if output.ndim:
            return
        how = "one row a sample is wanted, and not one number for all"
    elif hasattr(output, "logits"):
        how = "pass its .logits"
    elif isinstance(output, Mapping):
        how = (
            'pass its ["logits"]'
            if "logits" in output
            else f"pass the one entry of {[*output]} that they are"
        )
    elif isinstance(output, (tuple, list)) and any(getattr(x, "ndim", 0) > 1 for x in output):
        what, how = f"{what} of {len(output)}", "pass the logits alone, e.g. output[0]"
    elif not hasattr(output, "__len__") and not hasattr(output, "__dlpack__"):
        how = "pass the array or tensor"
    if how:
        raise TypeError(f"{name} must have a row for each sample, got a {what}: {how}")


def are_probabilities(logits: Array) -> Any:
    """Whether all rows are probabilities rather than logits: a boolean, on the device that they are on.

    Rows of 0 and 1 alone are not: they are what toy logits look like, and no softmax.
    """
    top = (logits.amax if is_tensor(logits) else logits.max)(-1)
    adds_up = abs(logits.sum(-1) - 1).max() < 0.02  # a sum of bfloat16 is that coarse
    return (logits.min() >= 0) & (top.min() < 1) & adds_up


def like(values: Array, logits: Any) -> Array:
    """``values`` as a tensor where the logits are one."""
    if isinstance(values, np.ndarray) and is_tensor(logits):
        return torch_backend().own(values)
    return values
