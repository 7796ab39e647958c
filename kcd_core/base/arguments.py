"""What is asked of arguments that are neither numbers nor arrays: an error that names the argument, or nothing."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["check_callable", "check_kind", "checked_bool", "checked_choice", "checked_length"]


def checked_bool(value: Any, name: str) -> bool:
    """``value`` as a ``bool``; a TypeError for what merely has a truth value, such as the text "no"."""
    if isinstance(value, (bool, np.bool_)) or (isinstance(value, (int, np.integer)) and value in (0, 1)):
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {value!r} ({type(value).__name__})")


def checked_choice(value: Any, name: str, choices: Sequence[str | None], *others: str) -> Any:
    """``value``, or a ValueError if it is not one of ``choices``; ``others`` are what else would have been taken."""
    if (value is None or isinstance(value, str)) and value in choices:
        return value
    *most, last = *map(repr, choices), *others
    raise ValueError(f"{name} must be {', '.join(most)} or {last}, got {value!r}")


def checked_length(value: Any, name: str) -> int:
    """How many entries ``value`` has, or a TypeError."""
    try:
        return len(value)
    except TypeError:
        raise TypeError(f"{name} must have a length, got {value!r}") from None


def check_kind(value: Any, name: str, *kinds: type) -> None:
    """TypeError unless ``value`` is of one of ``kinds``."""
    if not isinstance(value, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{name} must be a {wanted}, got {type(value).__name__}")


def check_callable(value: Any, name: str, wanted: str, places: int, *, named: bool = False) -> None:
    """TypeError unless ``value`` can be called with so many arguments, and, with ``named``, others by name.

    ``wanted``: how it is called.
    """
    if not callable(value):
        raise TypeError(f"{name} must be {wanted}, got {value!r} ({type(value).__name__})")
    try:
        signature = inspect.signature(value)
        (signature.bind_partial if named else signature.bind)(*range(places))
    except (TypeError, ValueError) as error:
        # What is built in may have no signature; a partial has none if it gives arguments that don't exist.
        if isinstance(error, TypeError) or hasattr(value, "func"):
            raise TypeError(
                f"{name} must be {wanted}, and {value!r} takes other arguments ({error})"
            ) from None
