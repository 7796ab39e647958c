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
for which C must be 4096 instead of 128, since each token takes 40 bytes. The others are for experiments, and so
is any callable ``f(student_logits, *, teacher_logits, targets) -> [B]``. It is given by keyword what the caller of
``update()`` passed, the batch's ``indices`` too if it has a parameter of that name, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from . import formulas
from .base.arrays import Array, backend, checked_float, dtype_name, is_integer
from .base.rows import by_rows
from .logits import beside, check_logits, like
from .sequences import sequence_entropy

__all__ = [
    "BUILT_IN",
    "Value",
    "ValueName",
    "cross_entropy",
    "entropy",
    "kd_divergence",
    "margin",
    "reducible_loss",
    "sequence_entropy",
]

Value = Callable[..., Array]
ValueName = Literal[
    "entropy", "cross_entropy", "kd_divergence", "margin", "reducible_loss", "sequence_entropy"
]


def entropy(student_logits: Any, *, teacher_logits: Any = None, targets: Any = None) -> Array:
    """Entropy of the student's softmax at temperature 1, in nats: ``-sum_c p_c log p_c``.

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
    With ``d = z - max(z)`` it is ``log(sum(exp(d))) - sum(exp(d) * d) / sum(exp(d))``: a
    probability that underflows contributes 0, as it should. A logit of -inf makes ``0 * -inf = NaN``: it is
    caught with no pass over the data of its own.
    """
    return like(host_entropy(student_logits), student_logits)


def host_entropy(student_logits: Any) -> Array:
    """`entropy`, as a NumPy array wherever NumPy computed it: what a tracker in host memory keeps."""
    return by_rows(formulas.entropy, 2, check_logits(student_logits, "student_logits"))


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
    return like(by_rows(formulas.cross_entropy, 1, logits, _labels(targets, "cross_entropy", logits)), logits)


def reducible_loss(student_logits: Any, *, teacher_logits: Any = None, targets: Any = None) -> Array:
    """The student's cross-entropy with the label minus the teacher's, in nats; below 0 where the teacher's is larger.

    A wrong or ambiguous label is costly to both, so it does not rank high, unlike with `cross_entropy`.

    Parameters
    ----------
    student_logits, teacher_logits : array [B, C], floating
    targets : integer array [B], classes in 0 .. C-1

    Raises
    ------
    ValueError, TypeError, IndexError
        As `kd_divergence` does for ``teacher_logits``, and `cross_entropy` for ``targets``.

    Notes
    -----
    This is the reducible holdout loss of Mindermann et al., "Prioritized Training on Points that are Learnable, Worth
    Learning, and Not Yet Learnt" (ICML 2022, arXiv 2206.07137), with the teacher instead of their model that was
    trained on holdout data. A teacher that has memorised the same labels has no loss on them, and `cross_entropy`
    remains.
    """
    student = check_logits(student_logits, "student_logits")
    teacher = _teacher(teacher_logits, "reducible_loss", student)
    labels = _labels(targets, "reducible_loss", student)
    return like(by_rows(formulas.reducible_loss, 1, student, teacher, labels), student)


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
    teacher = _teacher(teacher_logits, "kd_divergence", student)
    return like(by_rows(partial(formulas.kd_divergence, temperature), 3, student, teacher), student)


def margin(student_logits: Any, *, teacher_logits: Any = None, targets: Any = None) -> Array:
    """One minus the gap between the two highest probabilities of the student: 0 when it is certain.

    Parameters
    ----------
    student_logits : array [B, C], floating
    teacher_logits, targets
        Accepted and ignored.
    """
    logits = check_logits(student_logits, "student_logits")
    return like(by_rows(formulas.margin, 1, logits), logits)


def _teacher(teacher_logits: Any, value: str, student: Array) -> Array:
    """The teacher's logits, where the student's are, or an error that says what is wrong with them."""
    given = beside(teacher_logits, "teacher_logits", value, student)
    teacher = backend(student).beside(check_logits(given, "teacher_logits"), student)
    if teacher.shape != student.shape:
        raise ValueError(
            f"teacher_logits must have the student's shape {tuple(student.shape)}, got {tuple(teacher.shape)}"
        )
    return teacher


def _labels(targets: Any, value: str, logits: Array) -> Array:
    """The labels, where the logits are, or an error that says what is wrong with them."""
    targets = beside(targets, "targets", value, logits)
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
    return back.to_int64(back.beside(targets, logits))


#: By the names that ``value=`` takes.
BUILT_IN: dict[str, Value] = {
    f.__name__: f for f in (entropy, cross_entropy, kd_divergence, margin, reducible_loss, sequence_entropy)
}
