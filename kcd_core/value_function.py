"""What ``value=`` of a tracker names: looked at once, and called with every batch."""

from __future__ import annotations

from typing import Any

from .base.arguments import check_callable, checked_choice, takes_named
from .base.arrays import Array, as_array, backend, detached, dtype_name, is_floating, is_real
from .base.padding import PADDING
from .base.rows import nan_unless_finite
from .base.states import value_name
from .logits import check_logits
from .sequences import sequence_entropy
from .values import BUILT_IN, Value

__all__ = ["ValueFunction"]

WANTED = "a callable value(student_logits, *, teacher_logits, targets) -> [B], with indices besides if it uses them"


class ValueFunction:
    """One of `kcd_core.values`, or the user's own.

    Parameters
    ----------
    value : str or callable
        See `KnowledgeValueTracker`.
    first : int
        Added to the indices that the function is given.

    Attributes
    ----------
    function : callable
    name : str
        What it is called in a state, and where ranks compare their settings.
    built_in : bool
        Whether it gives NaN for logits that are not finite all by itself.
    of_sequences : bool
        Whether it takes logits [B, T, C].
    takes_indices : bool
        Whether it has a parameter named ``indices``, which no partial has set.

    Raises
    ------
    ValueError
        If ``value`` is neither callable nor one of the names.
    TypeError
        If it can't be called as values are.
    """

    def __init__(self, value: Any, first: int = 0) -> None:
        self.function: Value
        if callable(value):
            check_callable(value, "value", WANTED, places=1, named=True)
            self.function = value
        else:
            self.function = BUILT_IN[checked_choice(value, "value", tuple(BUILT_IN), "a callable")]
        kinds = self.function, getattr(self.function, "func", None)
        self.name = value_name(self.function)
        self.built_in = any(kind in BUILT_IN.values() for kind in kinds)
        self.of_sequences = sequence_entropy in kinds
        self.takes_indices = takes_named(self.function, "value", WANTED, 1, "indices")
        self._first = first

    def __call__(self, indices: Array, logits: Array, teacher_logits: Any, targets: Any) -> Array:
        """The values [B] of a batch, in the logits' back end and without a graph, which nobody else holds.

        Parameters
        ----------
        indices : int64 array [B]
            The tracker's.
        logits : floating array
            The student's.
        teacher_logits, targets
            Given to the function where they are not None.

        Raises
        ------
        TypeError
            If the logits are not floating-point, or what the function returns is not real numbers.
        ValueError
            If the logits are not ``[B, C]`` with C >= 2, or the function does not return ``[B]``.
        """
        logits = detached(logits)
        given: dict[str, Any] = {}
        if teacher_logits is not None:
            given["teacher_logits"] = detached(teacher_logits)
        if targets is not None:
            given["targets"] = targets
        if self.built_in:
            return self.function(logits, **given)
        logits = check_logits(logits, "student_logits")
        back = backend(logits)
        if self.takes_indices:
            # A new array: what is recorded does not change with what the function does to its own.
            numbers = indices + (indices != PADDING) * self._first
            given["indices"] = back.beside(back.own(numbers), logits)
        with back.no_grad():
            values = as_array(self.function(logits, **given))
            if values.shape != logits.shape[:1]:
                raise ValueError(
                    f"the value function must return one value per sample, shape {tuple(logits.shape[:1])}, "
                    f"got {tuple(values.shape)}"
                )
            if not is_real(values):
                raise TypeError(
                    f"the value function must return real numbers, got dtype {dtype_name(values)}"
                )
            values = back.beside(back.own(values), logits)
            if not is_floating(values):
                values = back.to_float64(values)
            return values + nan_unless_finite(logits)  # a new array: the function may have returned a view
