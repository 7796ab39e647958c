"""Packages that only some commands need, imported when they are needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["need"]


def need(module: str, extra: str = "demo") -> Any:
    """Import ``module``, or say which extra of kcd-core brings it.

    Raises
    ------
    ImportError
        If it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != top:
            raise  # it is installed, and lacks something itself
        raise ImportError(
            f"{top} is not installed: pip install '.[{extra}]' in a checkout of kcd_core"
        ) from None
