"""Where a training loop can be seen: calls of models and losses, ``backward()``, and steps of optimizers.

Calls of modules are seen by replacing ``__call__`` of their class, and not by hooks on a model, which would be copied
and saved with it. While all are watched, that costs a few microseconds a module; one model alone costs nothing.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable
from threading import get_ident
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

__all__ = ["LOSSES", "Calls", "Seer"]

#: Functions of ``torch.nn.functional`` that are given the labels, and where: ``(the place, the name)``.
LOSSES = {"cross_entropy": (1, "target"), "nll_loss": (1, "target")}


class Seer(Protocol):
    """What is told of a loop."""

    def returned(self, module: torch.nn.Module, given: tuple[Any, Any], output: Any, *, inner: bool) -> None:
        """A module was ``given`` arguments, by place and by name, and returned.

        It is an outermost one, or one that such a one called: ``inner``.
        """

    def lost(self, function: str, given: Any, labels: Any) -> None:
        """A function was called with labels, and with what it compares them."""

    def backward(self, roots: list[torch.Tensor]) -> None:
        """The gradient is about to be computed."""

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer is about to step."""


class Calls:
    """Lets a `Seer` see the loop.

    Calls in a thread of a module's (replicas of ``DataParallel``) or in a backward pass (checkpoints are computed again) are
    left alone, and what is being compiled.
    """

    def __init__(self, seer: Seer) -> None:
        self._seer = seer
        self._depth = 0  # of calls of modules
        self._thread = 0  # of the outermost call
        self._back = False  # a backward pass
        self._replaced: dict[type, Any] = {}

    def install(self, torch: ModuleType) -> None:
        """See losses, backward passes and steps of optimizers from now on, in this process."""
        self._module = torch.nn.Module
        self._compiling: Callable[[], bool] = torch.compiler.is_compiling
        torch.autograd.backward = self._watched_backward(torch.autograd.backward)
        for name, (place, keyword) in LOSSES.items():
            functional = torch.nn.functional
            setattr(functional, name, self._watched_loss(getattr(functional, name), name, place, keyword))
        optimizers = importlib.import_module("torch.optim.optimizer")
        optimizers.register_optimizer_step_pre_hook(lambda optimizer, *_: self._seer.stepped(optimizer))

    def watch(self, modules: Iterable[torch.nn.Module] | None) -> None:
        """See the calls of these modules, and of others of their classes; of all, for None."""
        for kind, own in self._replaced.items():
            if own is None:
                del kind.__call__
            else:
                kind.__call__ = own  # type: ignore[method-assign]
        self._replaced.clear()
        for kind in [self._module] if modules is None else {type(module): None for module in modules}:
            original, own = kind.__call__, kind.__dict__.get("__call__")
            kind.__call__ = self._watched_call(original)  # type: ignore[method-assign]
            self._replaced[kind] = own

    def _watched_call(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            depth = self._depth
            if self._back or depth > 1 or (depth and get_ident() != self._thread) or self._compiling():
                return original(module, *args, **kwargs)
            self._depth, self._thread = depth + 1, get_ident()
            try:
                output = original(module, *args, **kwargs)
            finally:
                self._depth = depth
            self._seer.returned(module, (args, kwargs), output, inner=depth > 0)
            return output

        return call

    def _watched_backward(self, original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def backward(tensors: Any, *args: Any, **kwargs: Any) -> None:
            if self._back or self._depth:
                original(tensors, *args, **kwargs)
                return
            self._seer.backward(list(tensors) if isinstance(tensors, (tuple, list)) else [tensors])
            self._back = True
            try:
                original(tensors, *args, **kwargs)
            finally:
                self._back = False

        return backward

    def _watched_loss(
        self, original: Callable[..., Any], name: str, place: int, keyword: str
    ) -> Callable[..., Any]:
        @functools.wraps(original)
        def loss(*args: Any, **kwargs: Any) -> Any:
            if not (self._back or self._compiling()):
                labels = args[place] if len(args) > place else kwargs.get(keyword)
                self._seer.lost(name, args[0] if args else kwargs.get("input"), labels)
            return original(*args, **kwargs)

        return loss
