"""Rows of a batch: taken from what a model is given, and put back among those that it was not given."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from kcd_core.base.arrays import is_tensor

from ..watching.tensors import Path, named, tensors

if TYPE_CHECKING:
    import torch

__all__ = ["WAY", "logits_in", "rows_of", "selected", "sent", "spread"]

WAY = "Leave out --ask"


def rows_of(given: Any) -> int:
    """How many rows the tensors in a model's arguments have.

    Raises
    ------
    RuntimeError
        If they have several numbers of rows, or there is none.
    """
    found = {tuple(one.shape[:1]) for _, one in tensors(given)}
    if len(found) != 1 or found == {()}:
        raise RuntimeError(
            f"the teacher is given tensors with {sorted(found)} rows, of which a part can't be taken. {WAY}"
        )
    return int(found.pop()[0])


def selected(given: Any, rows: torch.Tensor) -> Any:
    """A model's arguments, of these rows alone."""
    return _mapped(given, lambda _, one: one.index_select(0, rows) if is_tensor(one) else one)


def logits_in(output: Any, path: Path, rows: int) -> torch.Tensor:
    """The logits in what a teacher returned for so many rows.

    Raises
    ------
    RuntimeError
        If they are not there, or have a gradient; or if something beside them is no tensor with a row for each sample.
    """
    found: list[torch.Tensor] = []

    def look(at: Path, one: Any) -> None:
        if one is None:
            return
        if not is_tensor(one) or one.shape[:1] != (rows,) or not one.is_floating_point():
            kind = f"{one.dtype} {list(one.shape)}" if is_tensor(one) else type(one).__name__
            raise RuntimeError(
                f"the teacher returns {kind}{_at(at)} for {rows} samples, which can't be put together from those of a part "
                f"of them. {WAY}"
            )
        if one.requires_grad:
            raise RuntimeError(
                f"the teacher is called with gradients, and --ask is for one under torch.no_grad(). {WAY}"
            )
        if at == path:
            found.append(one)

    _mapped(output, look)
    if not found or found[0].ndim != 2:
        raise RuntimeError(
            f"the teacher does not return logits [B, C]{_at(path)}, where its profile expects them. {WAY}"
        )
    return found[0]


def spread(output: Any, path: Path, logits: torch.Tensor) -> Any:
    """What a teacher returned for part of a batch, as if for all of it: with the ``logits`` [B, C], and else with NaN.

    Whatever is made of NaN shows it: features that a loss uses after all are not silently wrong.
    """

    def whole(at: Path, one: Any) -> Any:
        if at == path:
            return logits
        return None if one is None else one.new_tensor(math.nan).expand(len(logits), *one.shape[1:])

    return _mapped(output, whole)


def sent(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor in host memory, copied to a device for which the host does not wait."""
    if device.type == "cuda":
        x = x.pin_memory()  # only from pinned memory does a copy not wait
    return x.to(device, non_blocking=True)


def _at(path: Path) -> str:
    return f" at {named(path)}" if path else ""


def _mapped(value: Any, change: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """The same tuples, lists and dicts, with ``change(path, part)`` instead of each part that is none."""
    if isinstance(value, Mapping):
        made = copy.copy(value)
        for key, part in value.items():
            made[key] = _mapped(part, change, (*path, key))  # type: ignore[index]
        return made
    if isinstance(value, (tuple, list)):
        parts = [_mapped(part, change, (*path, place)) for place, part in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return change(path, value)
