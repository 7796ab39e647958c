r"""Knowledge values: how much a sample's teacher knowledge is worth to the student right now.

Pure functions from logits ``[B, C]`` to values ``[B]``; a higher value means "more worth learning".
They take NumPy arrays, torch tensors on any device, and whatever DLPack brings; float16 and bfloat16
are computed in float32, float64 stays float64. A row with a logit that is not finite gets NaN, which
no tracker records.

`entropy` is the paper's (KCD, ECCV 2022, section 3.2: OGVE). The others are for experiments, and so
is any callable ``f(student_logits, *, teacher_logits, targets) -> [B]``; it is given by keyword what
the caller of ``update()`` passed, and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ._arrays import Array, as_array, dtype_name, is_floating, is_integer, is_tensor, to_numpy

__all__ = ["Value", "cross_entropy", "entropy", "kd_divergence", "margin"]

Value = Callable[..., Array]

GRAIN = 2**15  # elements below which torch, too, uses one core


def entropy(student_logits: Any, *, teacher_logits: Any = None, targets: Any = None) -> Array:
    r"""Entropy of the student's softmax at temperature 1, in nats: ``-sum_c p_c log p_c``.

    Parameters
    ----------
    student_logits : array [B, C], floating
    teacher_logits, targets
        Accepted and ignored, so that every value has one signature.

    Returns
    -------
    array [B]
        Between 0 and ``log C``; exactly 0 for a saturated student; NaN where a logit is not finite.

    Raises
    ------
    TypeError
        If the logits are not floating-point.
    ValueError
        If they are not ``[B, C]`` with C >= 2 (the entropy of one class is 0 for every sample).

    Notes
    -----
    Computed from the log-softmax, so a probability that underflows contributes 0, as it should. A
    logit of -inf makes ``0 * -inf = NaN``: it is caught with no pass over the data of its own.
    """
    values = host_entropy(student_logits)
    if isinstance(values, np.ndarray) and is_tensor(student_logits):
        return sys.modules["torch"].from_numpy(values)
    return values


def host_entropy(student_logits: Any) -> Array:
    """`entropy`, as a NumPy array wherever NumPy computed it: what a tracker in host memory keeps."""
    log_p = _log_probs(student_logits, "student_logits")
    if not isinstance(log_p, np.ndarray):
        plain = type(log_p) is sys.modules["torch"].Tensor and not log_p.requires_grad
        if not (plain and log_p.is_cpu and log_p.numel() < GRAIN):
            p = log_p.exp()
            return (p * log_p if log_p.requires_grad else p.mul_(log_p)).sum(-1).neg()
        log_p = log_p.numpy()  # the same memory, and NumPy's exp takes about half the time of torch's
    # einsum makes no product in memory, and does not warn of the NaN that an infinite logit gives.
    negative = np.einsum("ij,ij->i", np.exp(log_p), log_p)
    return np.negative(negative, out=negative)


def cross_entropy(student_logits: Any, *, teacher_logits: Any = None, targets: Any = None) -> Array:
    """Cross-entropy of the student with the labels, in nats: ``-log p[target]``, at least 0.

    Parameters
    ----------
    student_logits : array [B, C], floating
    teacher_logits
        Accepted and ignored.
    targets : integer array [B], classes in 0 .. C-1

    Raises
    ------
    ValueError
        If ``targets`` is missing or is not ``[B]``.
    TypeError
        If ``targets`` is not of an integer dtype.
    IndexError
        If a target in host memory lies outside ``0 .. C-1``. On a device it gives NaN instead.
    """
    log_p = _log_probs(student_logits, "student_logits")
    targets = _required(targets, "targets", "cross_entropy", log_p)
    if not is_integer(targets):
        raise TypeError(f"targets must be class indices (integers), got dtype {dtype_name(targets)}")
    if targets.ndim != 1:
        raise ValueError(f"targets must be [B], one class per sample, got shape {tuple(targets.shape)}")
    classes = log_p.shape[-1]
    on_host = not is_tensor(targets) or targets.device.type == "cpu"
    if on_host and len(targets) and not 0 <= targets.min() <= targets.max() < classes:
        raise IndexError(
            f"targets must lie in 0 .. {classes - 1}, got {int(targets.min())} .. {int(targets.max())}"
        )
    if is_tensor(log_p):
        targets = targets.to(log_p.device, non_blocking=True).long()
        # On a device gather() would end in a device assert: masked there instead, and NaN.
        inside = None if on_host else (targets >= 0) & (targets < classes)
        place = targets if inside is None else targets.where(inside, 0)
        picked = log_p.gather(-1, place.unsqueeze(-1)).squeeze(-1)
        picked = picked if inside is None else picked.where(inside, float("nan"))
    else:
        picked = np.take_along_axis(log_p, targets.astype(np.int64)[:, None], -1)[:, 0]
    return poison(-picked, student_logits)


def kd_divergence(
    student_logits: Any,
    *,
    teacher_logits: Any = None,
    targets: Any = None,
    temperature: float = 1.0,
) -> Array:
    """KL divergence from the student to the teacher, in nats: ``KL(p_T || p_S)``, at least 0.

    Both are softened by ``temperature`` (use ``functools.partial`` to set it); there is no factor
    of ``temperature ** 2``, which is the same for every sample and cannot change a ranking.

    Parameters
    ----------
    student_logits, teacher_logits : array [B, C], floating
    targets
        Accepted and ignored.

    Raises
    ------
    ValueError
        If ``teacher_logits`` is missing, or its shape is not that of the student's.
    """
    log_s = _log_probs(student_logits, "student_logits", temperature)
    teacher_logits = _required(teacher_logits, "teacher_logits", "kd_divergence", log_s)
    if is_tensor(log_s):
        teacher_logits = teacher_logits.to(log_s.device, non_blocking=True)
    log_t = _log_probs(teacher_logits, "teacher_logits", temperature)
    if log_t.shape != log_s.shape:
        raise ValueError(
            f"teacher_logits must have the student's shape {tuple(log_s.shape)}, got {tuple(log_t.shape)}"
        )
    with np.errstate(invalid="ignore"):
        divergence = ((log_t - log_s) * _exp(log_t)).sum(-1)
    return poison(divergence, student_logits, teacher_logits)


def margin(student_logits: Any, *, teacher_logits: Any = None, targets: Any = None) -> Array:
    """One minus the gap between the two highest probabilities of the student: 0 when it is certain.

    Parameters
    ----------
    student_logits : array [B, C], floating
    teacher_logits, targets
        Accepted and ignored.
    """
    log_p = _log_probs(student_logits, "student_logits")
    if is_tensor(log_p):
        first, second = log_p.topk(2, -1).values.exp().unbind(-1)
        gap = first - second
    else:
        top = np.exp(np.partition(log_p, -2, axis=-1)[:, -2:])
        gap = top[:, 1] - top[:, 0]
    return poison(1 - gap, student_logits)


_BUILT_IN: dict[str, Value] = {f.__name__: f for f in (entropy, cross_entropy, kd_divergence, margin)}


def resolve(value: str | Value) -> Value:
    """The value function that ``value`` names, or ``value`` itself if it is callable."""
    if callable(value):
        return value
    try:
        return _BUILT_IN[value]
    except (KeyError, TypeError):
        raise ValueError(f"value must be one of {sorted(_BUILT_IN)} or a callable, got {value!r}") from None


def value_name(value: Value) -> str:
    """A name to recognise ``value`` by in a checkpoint: of a partial, with what it sets."""
    if isinstance(value, partial):
        given = [_setting(x) for x in value.args]
        given += [f"{key}={_setting(x)}" for key, x in sorted(value.keywords.items())]
        return value_name(value.func) + (f"({', '.join(given)})" if given else "")
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _setting(x: Any) -> str:
    """The same in every process, which the repr of what has an address is not."""
    if isinstance(x, np.generic):
        x = x.item()
    if x is None or isinstance(x, (bool, int, float, str, bytes)):
        return repr(x)
    if isinstance(x, (tuple, list)):
        return f"[{', '.join(map(_setting, x))}]"
    return value_name(x)  # of anything else, what it is called, or its type


def is_built_in(value: Value) -> bool:
    """Whether ``value`` gives NaN for logits that are not finite all by itself."""
    return value in _BUILT_IN.values() or getattr(value, "func", None) in _BUILT_IN.values()


def poison(values: Array, *logits: Any) -> Array:
    """``values`` with NaN where a row of ``logits`` holds something that is not finite."""
    for x in map(as_array, logits):
        with np.errstate(invalid="ignore"):
            # 0 * x is 0 for finite numbers and NaN for all others; a plain sum could overflow.
            values = values + (x * 0).sum(-1)
    return values


def check_logits(logits: Any, name: str) -> Array:
    """``logits`` as an array, or an error that says what is wrong with them."""
    logits = as_array(logits)
    if not is_floating(logits):
        raise TypeError(f"{name} must be floating-point logits, got dtype {dtype_name(logits)}")
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"{name} must be [B, C] with C >= 2 classes, got shape {tuple(logits.shape)}; "
            "reduce dense or multi-head predictions to one row per sample first"
        )
    return logits


def _log_probs(logits: Any, name: str, temperature: float = 1.0) -> Array:
    logits = check_logits(logits, name)
    half = logits.dtype.itemsize == 2
    if not isinstance(logits, np.ndarray):
        torch = sys.modules["torch"]
        if temperature != 1.0:
            logits = logits.float() / temperature if half else logits / temperature
        return torch.log_softmax(logits, -1, dtype=torch.float32) if half else torch.log_softmax(logits, -1)
    if half:
        logits = logits.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        if temperature != 1.0:
            logits = logits / temperature
        shifted = logits - logits.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _exp(x: Array) -> Array:
    return x.exp() if is_tensor(x) else np.exp(x)


def _required(x: Any, name: str, value: str, like: Array) -> Array:
    if x is None:
        raise ValueError(
            f"value {value!r} needs {name}=: pass it to update(), record() or the CondensedLoss call"
        )
    x = as_array(x)
    if is_tensor(like) and not is_tensor(x):
        import torch

        x = torch.as_tensor(x)
    elif is_tensor(x) and not is_tensor(like):
        x = to_numpy(x)
    if len(x) != len(like):
        raise ValueError(f"{name} must have one row per sample ({len(like)}), got {len(x)}")
    return x
