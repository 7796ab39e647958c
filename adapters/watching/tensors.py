"""The tensors in what models take and return, and in batches, however these are nested."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["Path", "is_labels", "labels_first", "labels_of", "named", "tensors"]

Path = tuple[Any, ...]

#: What the field of the labels is called in most data sets whose batches have names.
LABELS = ("labels", "label", "targets", "target", "y")


def tensors(value: Any, path: Path = ()) -> Iterator[tuple[Path, torch.Tensor]]:
    """The tensors in tuples, lists, mappings and data classes, each with its keys and places there."""
    import torch  # which the host has imported by now

    if isinstance(value, torch.Tensor):
        yield path, value
        return
    if isinstance(value, Mapping):
        parts: Any = value.items()
    elif isinstance(value, (tuple, list)):
        parts = enumerate(value)
    elif is_dataclass(value) and not isinstance(value, type):
        parts = ((field.name, getattr(value, field.name)) for field in fields(value))
    else:
        return
    for key, part in parts:
        yield from tensors(part, (*path, key))


def is_labels(tensor: torch.Tensor) -> bool:
    """Whether it can be the labels of a batch: whole numbers [B]."""
    whole = not (tensor.is_floating_point() or tensor.is_complex() or str(tensor.dtype) == "torch.bool")
    return whole and tensor.ndim == 1


def labels_of(batch: Any) -> dict[str, torch.Tensor]:
    """All that can be the labels in a batch: first what is called so, then by place."""
    found = {named(path): tensor for path, tensor in tensors(batch) if is_labels(tensor)}
    return labels_first(found)


def labels_first(found: dict[str, Any]) -> dict[str, Any]:
    """The same, those that are called labels first."""
    return dict(sorted(found.items(), key=lambda item: item[0].rpartition(".")[2].lower() not in LABELS))


def named(path: Path) -> str:
    """A path, for people and as a key."""
    return ".".join(map(str, path))
