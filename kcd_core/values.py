r"""Knowledge values: how much a sample's teacher knowledge is worth to the student right now.

Pure functions from logits ``[B, C]``, of sequences ``[B, T, C]``, to values ``[B]``; a higher value means "more
worth learning". They take NumPy arrays, torch tensors on any device, and whatever DLPack brings; float16 and bfloat16
are computed in float32, float64 stays float64. A row with a logit that is not finite gets NaN, which
no tracker records; so may one whose logits are further apart than that precision reaches, as 3e38 and -3e38
are in float32.

On a device they work through chunks of rows. What they hold at a time, beside the logits, is 15 MB, or a fifth
of the student's logits' bytes if that is more; one row at least (two float32 arrays of its size for `entropy`,
three for `kd_divergence`, one for the others); and the values themselves, twice where there are several chunks.
With 64 MB of logits or more that is at most a quarter of their bytes, if C is at least 128 and no chunk is a
single row. What is to be differentiated is computed whole.

`entropy` is the paper's (KCD, ECCV 2022, section 3.2: OGVE), and `sequence_entropy` its mean over a sequence's tokens,
for which C must be 4096 in the place of 128, since each token takes 40 bytes. The others are for experiments, and so
is any callable ``f(student_logits, *, teacher_logits, targets) -> [B]``; it is given by keyword what the caller of
``update()`` passed, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from .base.arguments import check_callable, checked_choice
from .base.arrays import (
    Array,
    as_array,
    backend,
    checked_float,
    detached,
    dtype_name,
    in_memory,
    is_floating,
    is_integer,
    is_real,
    is_tensor,
    torch_backend,
)
from .base.rows import Rows, by_rows, group_means, nan_unless_finite, room

__all__ = ["Value", "ValueName", "cross_entropy", "entropy", "kd_divergence", "margin", "sequence_entropy"]

Value = Callable[..., Array]
ValueName = Literal["entropy", "cross_entropy", "kd_divergence", "margin", "sequence_entropy"]

IGNORED = -100  # the label of a token that is not trained on, everywhere in PyTorch


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
        Between 0 and ``log C``; exactly 0 for a saturated student; NaN where a logit is not finite, or
        where the difference of two is not.

    Raises
    ------
    TypeError
        If the logits are not floating-point.
    ValueError
        If they are not ``[B, C]`` with C >= 2 (the entropy of one class is 0 for every sample).

    Notes
    -----
    With :math:`d_c = z_c - \max z`, :math:`\log \sum_c e^{d_c} - \sum_c e^{d_c} d_c / \sum_c e^{d_c}`: a
    probability that underflows contributes 0, as it should. A logit of -inf makes ``0 * -inf = NaN``: it is
    caught with no pass over the data of its own.
    """
    return like(host_entropy(student_logits), student_logits)


def host_entropy(student_logits: Any) -> Array:
    """`entropy`, as a NumPy array wherever NumPy computed it: what a tracker in host memory keeps."""
    return by_rows(_entropy, 2, check_logits(student_logits, "student_logits"))


def _entropy(rows: Rows, logits: Array) -> Array:
    below = rows.below_top(logits)
    p = rows.exp(below)  # times their sum
    total = rows.sum(p)
    return rows.log(total) - rows.dot(p, below) / total  # both terms are at least 0: nothing cancels


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
    logits = check_logits(student_logits, "student_logits")
    targets = _required(targets, "targets", "cross_entropy", logits)
    if not is_integer(targets):
        raise TypeError(f"targets must be class indices (integers), got dtype {dtype_name(targets)}")
    if targets.ndim != 1:
        raise ValueError(f"targets must be [B], one class per sample, got shape {tuple(targets.shape)}")
    classes = logits.shape[-1]
    if (
        backend(targets).on_host(targets)
        and len(targets)
        and not 0 <= targets.min() <= targets.max() < classes
    ):
        raise IndexError(
            f"targets must lie in 0 .. {classes - 1}, got {int(targets.min())} .. {int(targets.max())}"
        )
    back = backend(logits)
    targets = back.to_int64(back.beside(targets, logits))
    return like(by_rows(_cross_entropy, 1, logits, targets), logits)


def _cross_entropy(rows: Rows, logits: Array, targets: Array) -> Array:
    below = rows.below_top(logits)
    picked = rows.pick(below, targets)
    log_p = picked - rows.log(rows.sum(rows.exp_(below)))
    return rows.nan_if_low(logits) - log_p


def kd_divergence(
    student_logits: Any,
    *,
    teacher_logits: Any = None,
    targets: Any = None,
    temperature: float = 1.0,
) -> Array:
    """KL divergence from the student to the teacher, in nats: ``KL(p_T || p_S)``, at least 0 up to rounding.

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
        If ``teacher_logits`` is missing, its shape is not that of the student's, or ``temperature`` is not a finite
        number above 0.
    """
    temperature = checked_float(temperature, "temperature", "a finite number above 0")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be a finite number above 0, got {temperature}")
    student = check_logits(student_logits, "student_logits")
    teacher = check_logits(
        _required(teacher_logits, "teacher_logits", "kd_divergence", student), "teacher_logits"
    )
    teacher = backend(student).beside(teacher, student)
    if teacher.shape != student.shape:
        raise ValueError(
            f"teacher_logits must have the student's shape {tuple(student.shape)}, got {tuple(teacher.shape)}"
        )
    return like(by_rows(partial(_kd_divergence, temperature), 3, student, teacher), student)


def _kd_divergence(temperature: float, rows: Rows, student: Array, teacher: Array) -> Array:
    log_t = _log_softmax(rows, teacher, temperature)
    difference = log_t - _log_softmax(rows, student, temperature)
    return rows.dot(rows.exp_(log_t), difference) + rows.nan_if_low(student) + rows.nan_if_low(teacher)


def margin(student_logits: Any, *, teacher_logits: Any = None, targets: Any = None) -> Array:
    """One minus the gap between the two highest probabilities of the student: 0 when it is certain.

    Parameters
    ----------
    student_logits : array [B, C], floating
    teacher_logits, targets
        Accepted and ignored.
    """
    logits = check_logits(student_logits, "student_logits")
    return like(by_rows(_margin, 1, logits), logits)


def _margin(rows: Rows, logits: Array) -> Array:
    below = rows.below_top(logits)
    second = rows.exp(rows.second(below))  # and the highest is exp(0), both times the sum
    return 1 - (1 - second) / rows.sum(rows.exp_(below)) + rows.nan_if_low(logits)


def sequence_entropy(student_logits: Any, *, teacher_logits: Any = None, targets: Any = None) -> Array:
    """Mean entropy of a sequence's tokens, in nats: of those that are trained on, whose label is not -100.

    Parameters
    ----------
    student_logits : array [B, T, C], floating
        What the student says of each token.
    teacher_logits
        Accepted and ignored.
    targets : integer array [B, T], classes in 0 .. C-1, or -100
        The labels of the same tokens. Those of a causal model are shifted by the caller: the logits
        ``logits[:, :-1]`` are of the labels ``labels[:, 1:]``. A pad token that is no -100 counts like any other.

    Returns
    -------
    float64 array [B]
        Not differentiable. NaN for a sequence whose labels are all -100, as one that is truncated within its prompt,
        and for one with a logit that is not finite at a token that counts: no tracker records it.

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
    Neither the padding beside a sequence, on either side, nor the batch it is in changes a bit of its value. Tokens are
    computed like rows of `entropy`, those that don't count, too: leaving them out would stall a device.

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


def token_means(tokens: Array, counted: Array) -> Array:
    """float64 [B]: the mean of each sequence's ``tokens`` [B, T] that are ``counted``; NaN if there is none.

    To the last bit the same, whatever lies between them.
    """
    back, (sequences, length) = backend(tokens), tokens.shape
    row = back.arange(sequences * length, tokens) // max(length, 1)
    group = (row - sequences) * counted.reshape(-1) + sequences
    return group_means(tokens.reshape(-1), group, sequences)


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
    parts = [by_rows(_entropy, 2, piece.reshape(-1, classes), most=most) for piece in pieces]
    tokens = backend(parts[0]).join(parts) if len(parts) > 1 else parts[0]
    known = (labels == IGNORED) | ((labels >= 0) & (labels < classes))
    with np.errstate(invalid="ignore", divide="ignore"):
        return tokens.reshape(sequences, length) / backend(tokens).own(known)


def checked_labels(labels: Any, logits: Array) -> Array:
    """The labels of the tokens of ``logits`` [B, T, C], as int64 beside them, or an error that names ``targets``."""
    labels = _required(labels, "targets", "sequence_entropy", logits)
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


def _log_softmax(rows: Rows, logits: Array, temperature: float = 1.0) -> Array:
    below = rows.below_top(logits)
    if temperature != 1.0:
        below = rows.div_(below, temperature)
    return rows.sub_(below, rows.log(rows.sum(rows.exp(below))).reshape(-1, 1))


_BUILT_IN: dict[str, Value] = {
    f.__name__: f for f in (entropy, cross_entropy, kd_divergence, margin, sequence_entropy)
}


def resolve(value: str | Value) -> Value:
    """The value function that ``value`` names, or ``value`` itself if it is callable."""
    if callable(value):
        check_callable(
            value,
            "value",
            "a callable value(student_logits, *, teacher_logits, targets) -> [B]",
            places=1,
            named=True,
        )
        return value
    return _BUILT_IN[checked_choice(value, "value", tuple(_BUILT_IN), "a callable")]


def is_built_in(value: Value) -> bool:
    """Whether ``value`` gives NaN for logits that are not finite all by itself."""
    return value in _BUILT_IN.values() or getattr(value, "func", None) in _BUILT_IN.values()


def is_of_sequences(value: Value) -> bool:
    """Whether ``value`` takes logits [B, T, C]."""
    return sequence_entropy in (value, getattr(value, "func", None))


def values_of(function: Value, logits: Any, given: Mapping[str, Any]) -> Array:
    """The values [B] of a batch, in the logits' back end and without a graph, which nobody else holds.

    Parameters
    ----------
    function : callable
        One of this module, or a user's.
    logits : floating array [B, C]
        The student's, detached.
    given : dict
        ``function``'s keyword arguments.

    Raises
    ------
    TypeError
        If the logits are not floating-point, or what ``function`` returns is not real numbers.
    ValueError
        If the logits are not ``[B, C]`` with C >= 2, or ``function`` does not return ``[B]``.
    """
    if is_built_in(function):
        return function(logits, **given)
    logits = check_logits(logits, "student_logits")
    back = backend(logits)
    with back.no_grad():
        values = as_array(function(logits, **given))
        if values.shape != logits.shape[:1]:
            raise ValueError(
                f"the value function must return one value per sample, shape {tuple(logits.shape[:1])}, "
                f"got {tuple(values.shape)}"
            )
        if not is_real(values):
            raise TypeError(f"the value function must return real numbers, got dtype {dtype_name(values)}")
        values = back.beside(back.own(values), logits)
        if not is_floating(values):
            values = back.to_float64(values)
        return values + nan_unless_finite(logits)  # a new array: the function may have returned a view


def like(values: Array, logits: Any) -> Array:
    """``values`` as a tensor where the logits are one."""
    if isinstance(values, np.ndarray) and is_tensor(logits):
        return torch_backend().own(values)
    return values


def are_probabilities(logits: Array) -> Any:
    """Whether all rows are probabilities rather than logits: a boolean, on the device that they are on.

    Rows of 0 and 1 alone are not: they are what toy logits look like, and no softmax.
    """
    top = (logits.amax if is_tensor(logits) else logits.max)(-1)
    adds_up = abs(logits.sum(-1) - 1).max() < 0.02  # a sum of bfloat16 is that coarse
    return (logits.min() >= 0) & (top.min() < 1) & adds_up


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


def _required(x: Any, name: str, value: str, like: Array) -> Array:
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
