"""Warnings that point at the user's own line."""

from __future__ import annotations

import inspect
import warnings
from traceback import walk_stack

__all__ = ["warn"]

#: Packages whose lines are not the user's; torch calls a loss's forward pass, and what draws a loader's batches.
PASSED_OVER = frozenset({"kcd_core", "kcd_adapters", "torch"})


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that led here from outside these packages; where there is none, at the outermost."""
    stack = walk_stack(inspect.currentframe())
    packages = [frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in stack]
    users = (level for level, package in enumerate(packages, 1) if package not in PASSED_OVER)
    warnings.warn(text, category, stacklevel=next(users, len(packages)))
