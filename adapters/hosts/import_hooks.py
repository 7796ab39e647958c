"""Hooks: act on a module when it is imported, and on a function whenever it is called.

A host's modules must not be imported before the host imports them (that would change its order of
imports, and what it printed), nor after (``from utils import accuracy`` binds a name once). So each
module is acted on in the moment after its own code ran.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["after_call", "before_call", "module_of", "when_imported"]

Action = Callable[[ModuleType], None]


def when_imported(name: str, action: Action) -> None:
    """Run ``action(module)`` once module ``name`` is imported; at once if it is already."""
    if name in sys.modules:
        action(sys.modules[name])
    else:
        _FINDER.waiting.setdefault(name, []).append(action)
        if _FINDER not in sys.meta_path:
            sys.meta_path.insert(0, _FINDER)


def before_call(
    function: str, action: Callable[..., None], absent: Callable[[str], None] | None = None
) -> None:
    """Run ``action(*args, **kwargs)`` before every call of ``function``.

    That is ``"package.module.name"``, or a class's method: ``"package.module:Class.name"``. Where the module has none,
    that is told to ``absent(text)``; without it, it is a RuntimeError when the module is imported.
    """

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            action(*args, **kwargs)
            return original(*args, **kwargs)

        return wrapper

    _replace(function, wrap, absent)


def after_call(
    function: str, action: Callable[..., None], absent: Callable[[str], None] | None = None
) -> None:
    """Run ``action(result, *args, **kwargs)`` after every call of ``function`` that returned; else as `before_call`."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            action(result, *args, **kwargs)
            return result

        return wrapper

    _replace(function, wrap, absent)


def module_of(function: str) -> str:
    """The module that a function, or a class's method, is looked up in."""
    return function.partition(":")[0] if ":" in function else function.rpartition(".")[0]


def _replace(
    function: str,
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]],
    absent: Callable[[str], None] | None,
) -> None:
    module_name = module_of(function)
    *owners, name = function[len(module_name) + 1 :].split(".")

    def action(module: ModuleType) -> None:
        owner: Any = module
        for one in owners:
            owner = getattr(owner, one, None)
        if not callable(getattr(owner, name, None)):
            text = f"{module_name} has no function {'.'.join([*owners, name])}"
            if absent is None:
                raise RuntimeError(f"{text}: this checkout is not as its profile expects")
            absent(f"{text}, which the profile observes beside others")
            return
        setattr(owner, name, wrap(getattr(owner, name)))

    when_imported(module_name, action)


class _Finder(MetaPathFinder):
    """Finds what the others find, and adds the actions to its loader.

    A module may be looked for without being loaded (``importlib.util.find_spec``), also by the other
    finders: the actions wait until its code has run.
    """

    def __init__(self) -> None:
        self.waiting: dict[str, list[Action]] = {}
        self._looking: set[tuple[int, str]] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        key = threading.get_ident(), fullname
        if fullname not in self.waiting or key in self._looking:
            return None
        self._looking.add(key)
        try:
            for finder in list(sys.meta_path):
                if finder is self or not hasattr(finder, "find_spec"):
                    continue
                spec = finder.find_spec(fullname, path, target)
                if spec is not None:
                    if spec.loader is not None and not isinstance(spec.loader, _Loader):
                        spec.loader = _Loader(spec.loader, fullname)
                    return spec
        finally:
            self._looking.discard(key)
        return None


class _Loader(Loader):
    def __init__(self, inner: Any, name: str) -> None:
        self._inner, self._name = inner, name

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._inner.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._inner  # from here on, all is as if it had been found without us
        if module.__spec__ is not None:
            module.__spec__.loader = self._inner
        self._inner.exec_module(module)
        for action in _FINDER.waiting.pop(self._name, ()):
            action(module)

    def __getattr__(self, name: str) -> Any:  # get_source and its like, for tracebacks and inspect
        if name.startswith("__") or name == "_inner":
            raise AttributeError(name)
        return getattr(self._inner, name)


_FINDER = _Finder()
