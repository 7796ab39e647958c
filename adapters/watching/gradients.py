"""What a tensor's gradient reaches: which model it is of."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["Model", "depends", "parameters"]


class Model:
    """A model, known by its parameters: the object may be wrapped anew, and part of it frozen."""

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        self._parameters = {id(one): weakref.ref(one) for one in known}

    def shares(self, found: Iterable[torch.Tensor]) -> bool:
        """Whether it has one of these parameters."""
        known = self._parameters
        return any(id(one) in known and known[id(one)]() is one for one in found)

    @property
    def gone(self) -> bool:
        """Whether none of its parameters is left."""
        return not any(ref() is not None for ref in self._parameters.values())


def parameters(predictions: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The leaves that the gradients of predictions reach."""
    return [
        node.variable for node in _nodes([one.grad_fn for one in predictions]) if hasattr(node, "variable")
    ]


def depends(roots: Iterable[torch.Tensor], nodes: Iterable[Any]) -> bool:
    """Whether the gradient of ``roots`` passes one of these nodes of the graph."""
    wanted = set(nodes)
    return any(node in wanted for node in _nodes([root.grad_fn for root in roots]))


def _nodes(left: list[Any]) -> Iterator[Any]:
    seen: set[Any] = set()
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        left += [following for following, _ in node.next_functions]
