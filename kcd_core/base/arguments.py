"""What is asked of arguments that are neither numbers nor arrays: an error that names the argument, or nothing."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from .arrays import is_tensor

__all__ = [
    "COMPILED",
    "check_callable",
    "check_kind",
    "checked_bool",
    "checked_bytes",
    "checked_choice",
    "checked_length",
    "takes_named",
]

COMPILED = "_orig_mod"  # where `torch.compile` keeps a module


def checked_bool(value: Any, name: str) -> bool:
    """``value`` as a ``bool``; a TypeError for what merely has a truth value, such as the text "no"."""
    if isinstance(value, (bool, np.bool_)) or (isinstance(value, (int, np.integer)) and value in (0, 1)):
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {value!r} ({type(value).__name__})")


UNITS = {
    f"{prefix}{unit}": (1024 if unit == "iB" else 1000) ** power
    for unit in ("B", "iB")
    for power, prefix in enumerate(("", "k", "M", "G", "T"))
    if prefix or unit == "B"
}


def checked_bytes(value: Any, name: str) -> int:
    """A number of bytes: an integer, or a text such as "1 GB" or "512 MiB"; None is 0."""
    if value is None:
        return 0
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", value, re.IGNORECASE)
        units = {unit.lower(): size for unit, size in UNITS.items()} | {"": 1}
        if found and found[2].lower() in units:
            return int(float(found[1]) * units[found[2].lower()])
    elif isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 0:
        return int(value)
    kind = (
        ValueError if isinstance(value, (str, int, np.integer)) and not isinstance(value, bool) else TypeError
    )
    raise kind(f'{name} must be a number of bytes, at least 0, or a text such as "1 GB", got {value!r}')


def checked_choice(value: Any, name: str, choices: Sequence[str | None], *others: str) -> Any:
    """``value``, or a ValueError if it is not one of ``choices``; ``others`` are what else would have been taken."""
    if (value is None or isinstance(value, str)) and value in choices:
        return value
    *most, last = *map(repr, choices), *others
    raise ValueError(f"{name} must be {', '.join(most)} or {last}, got {value!r}")


def checked_length(value: Any, name: str) -> int:
    """How many entries ``value`` has, or a TypeError."""
    try:
        return int(value.shape[0]) if is_tensor(value) and value.ndim else len(value)  # as a rule the cheaper
    except TypeError:
        raise TypeError(f"{name} must have a length, got {value!r}") from None


def check_kind(value: Any, name: str, *kinds: type) -> None:
    """TypeError unless ``value`` is of one of ``kinds``."""
    if not isinstance(value, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{name} must be a {wanted}, got {type(value).__name__}")


def takes_named(value: Any, name: str, wanted: str, places: int, parameter: str) -> bool:
    """Whether a callable that is given so many arguments by place has a ``parameter`` that is to be given by its name.

    One that a partial sets already is not. TypeError if it is among those that are given by place, where it would be
    something else. ``name``, ``wanted``: as for `check_callable`.
    """
    called = _called(value)
    try:
        parameters = inspect.signature(called).parameters
    except (TypeError, ValueError):  # what is built in may have no signature
        return False
    if parameter not in parameters or (isinstance(called, partial) and parameter in called.keywords):
        return False
    kind, place = parameters[parameter].kind, [*parameters].index(parameter)
    if kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and place < places:
        raise TypeError(
            f"{name} must be {wanted}, and {value!r} takes {parameter} in place {place + 1}, where it is given something "
            "else: let it be a parameter that is given by name"
        )
    if kind is inspect.Parameter.POSITIONAL_ONLY:
        raise TypeError(
            f"{name} must be {wanted}, and {value!r} takes {parameter} by its place alone: let it be a parameter that is "
            "given by name"
        )
    return kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _called(value: Any) -> Any:
    """What says which parameters ``value`` has: a torch module takes anything, and hands it on to ``forward()``."""
    if isinstance(value, partial):
        return partial(_called(value.func), *value.args, **value.keywords)
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.nn.Module):
        return value
    while hasattr(value, COMPILED):  # whose own forward() takes anything, too
        value = getattr(value, COMPILED)
    return value.forward


def check_callable(
    value: Any, name: str, wanted: str, places: int, *, named: bool = False, also: Sequence[str] = ()
) -> None:
    """TypeError unless ``value`` can be called with so many arguments, and, with ``named``, others by name.

    ``wanted``: how it is called. ``also``: what is given by name in any case.
    """
    if not callable(value):
        raise TypeError(f"{name} must be {wanted}, got {value!r} ({type(value).__name__})")
    try:
        signature = inspect.signature(value)
        (signature.bind_partial if named else signature.bind)(*range(places), **dict.fromkeys(also))
    except (TypeError, ValueError) as error:
        # What is built in may have no signature; a partial has none if it gives arguments that don't exist.
        if isinstance(error, TypeError) or hasattr(value, "func"):
            raise TypeError(
                f"{name} must be {wanted}, and {value!r} takes other arguments ({error})"
            ) from None
