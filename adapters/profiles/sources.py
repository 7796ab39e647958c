"""What a script takes from its repository, read from its source: nothing is executed."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["calls", "globals_of", "imported", "literal_default", "parsed", "switches", "taken"]


def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file.

    Raises
    ------
    ValueError
        If it can't be read, or is no valid Python: why.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the script's style, which is its author's business
            return ast.parse(path.read_bytes())
    except SyntaxError as error:
        where = f" (line {error.lineno})" if error.lineno and "at line" not in error.msg else ""
        raise ValueError(f"it is no valid Python: {error.msg}{where}") from None
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"it can't be read: {error}") from None


def imported(tree: ast.AST) -> set[str]:
    """All modules that are imported, by their full names; ``from package import name`` counts as both."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def taken(tree: ast.AST, module: str, names: set[str]) -> set[str]:
    """Which of these names of a module a script imports and uses: what is imported in vain does not count."""
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(alias.name == module for alias in node.names):
            found |= attributes
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                if f"{node.module}.{alias.name}" == module:
                    found |= attributes
                elif node.module == module and alias.name == "*":
                    found |= used
                elif node.module == module and (alias.asname or alias.name) in used:
                    found.add(alias.name)
    return found & names


def calls(tree: ast.AST, name: str) -> bool:
    """Whether a function or method of this name is called anywhere inside."""
    called = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return any(getattr(one, "id", None) == name or getattr(one, "attr", None) == name for one in called)


def globals_of(tree: ast.Module) -> dict[str, ast.stmt]:
    """The names that a module's own statements define or import, each with its statement."""
    return {name: node for node in tree.body for name in _bound(node)}


def _bound(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name for alias in node.names)
    elif isinstance(node, ast.Assign):
        yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def literal_default(tree: ast.AST, option: str) -> Any:
    """The default that ``add_argument`` gives to an option, where it is a literal; None where there is none."""
    return next((given.get("default") for names, given in _options(tree) if option in names), None)


def switches(tree: ast.AST) -> set[str]:
    """The options that take no value and are off where they are not given."""
    return {name for names, given in _options(tree) if given.get("action") == "store_true" for name in names}


def _options(tree: ast.AST) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """The names and the literal settings of every ``add_argument``."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if getattr(call.func, "attr", None) == "add_argument":
            names = [str(argument.value) for argument in call.args if isinstance(argument, ast.Constant)]
            given: dict[str, Any] = {
                str(k.arg): k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)
            }
            yield names, given
