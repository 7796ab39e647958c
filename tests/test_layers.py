"""The layers of the packages, read from their source: imports point inward, in no circle, and at public names.

Imports inside functions and under ``TYPE_CHECKING`` count like all others. Modules that are named in strings
(the command line's, the profiles') are not seen.
"""

from __future__ import annotations

import ast
import configparser
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: The packages whose circles and private names are looked for, and their folders.
PACKAGES = {"kcd_adapters": "adapters"}

#: Rooms (a module, or a package and all inside it) by layer, the innermost first. A module may import from its own
#: room and from the layers before; rooms of one layer do not know each other.
LAYERS = (
    ("kcd_core",),
    ("kcd_adapters.contrast", "kcd_adapters.extras", "kcd_adapters.files", "kcd_adapters.settings"),
    ("kcd_adapters.profiles",),
    ("kcd_adapters.patching",),
    ("kcd_adapters.hosts",),
    ("kcd_adapters.demo", "kcd_adapters.report", "kcd_adapters.torchdistill"),
    ("kcd_adapters.auto", "kcd_adapters.cli"),
    ("kcd_adapters.__main__",),
)

#: Private names of another module that are used all the same: (module, name).
BORROWED = {("kcd_adapters.hosts.recording", "_update_drawn")}

Sources = Mapping[str, str]


def sources(package: str, folder: str) -> dict[str, str]:
    """Module name to source; a package goes by the name of its ``__init__``."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = [package, *path.relative_to(ROOT / folder).with_suffix("").parts]
        found[".".join(parts)] = path.read_text(encoding="utf-8")
    return found


def imports(module: str, source: str, known: frozenset[str]) -> Iterator[tuple[str, str]]:
    """(module, name) for everything that ``source`` imports from the packages; the name is "" for the module itself.

    ``known`` are all modules: they tell ``from . import module`` from ``from . import name``.
    """
    tops = {name.partition(".")[0] for name in known} | {room.partition(".")[0] for room in sum(LAYERS, ())}

    def resolved(name: str) -> str:
        return f"{name}.__init__" if f"{name}.__init__" in known else name

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in tops:
                    yield resolved(alias.name), ""
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*base, *(node.module.split(".") if node.module else [])])
            if origin.partition(".")[0] not in tops:
                continue
            for alias in node.names:
                inner = resolved(f"{origin}.{alias.name}")
                yield (inner, "") if inner in known else (resolved(origin), alias.name)


def room_of(module: str) -> tuple[int, str]:
    """The layer of a module, and its room there."""
    for layer, rooms in enumerate(LAYERS):
        for room in rooms:
            if f"{module}.".startswith(f"{room}."):
                return layer, room
    raise AssertionError(f"{module} has no place in LAYERS")


def outward(modules: Sources) -> list[str]:
    """The imports that do not point inward."""
    found = []
    for module, source in modules.items():
        if module in {f"{package}.__init__" for package in PACKAGES} and not ast.parse(source).body[1:]:
            continue  # a docstring alone
        layer, room = room_of(module)
        for target, _ in imports(module, source, frozenset(modules)):
            other, place = room_of(target)
            if other >= layer and place != room:
                found.append(f"{module} imports {target}")
    return found


def circle(modules: Sources) -> list[str]:
    """The modules of a circle of imports; none, if there is no circle."""
    graph = {
        module: {target for target, _ in imports(module, source, frozenset(modules)) if target in modules}
        for module, source in modules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names(tree: ast.AST) -> set[str]:
    """Every name that a module defines or assigns, its attributes' among them."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return names


def borrowed(modules: Sources) -> set[tuple[str, str]]:
    """(module, name) for private names that a module uses and does not define."""
    found = set()
    for module, source in modules.items():
        tree = ast.parse(source)
        mine = own_names(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in mine:
                found.add((module, node.attr))
        for target, name in imports(module, source, frozenset(modules)):
            if private(name) or any(map(private, target.split("."))):
                found.add((module, name or target))
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_inward(package: str) -> None:
    assert outward(sources(package, PACKAGES[package])) == []


def test_the_core_knows_no_adapter() -> None:
    modules = sources("kcd_core", "kcd_core")
    targets = {t for m, source in modules.items() for t, _ in imports(m, source, frozenset(modules))}
    assert {target.partition(".")[0] for target in targets} == {"kcd_core"}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_make_no_circle(package: str) -> None:
    assert circle(sources(package, PACKAGES[package])) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_uses_anothers_private_names(package: str) -> None:
    assert borrowed(sources(package, PACKAGES[package])) == BORROWED


def test_every_room_is_there() -> None:
    there = {name for package, folder in PACKAGES.items() for name in sources(package, folder)}
    for room in sum(LAYERS[1:], ()):
        assert room in there or f"{room}.__init__" in there, room


def test_every_package_is_installed() -> None:
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    named = set(setup["options"]["packages"].split())
    folders = {"kcd_core": "kcd_core", **PACKAGES}
    there = {name for package, folder in folders.items() for name in sources(package, folder)}
    assert named == {name.removesuffix(".__init__") for name in there if name.endswith(".__init__")}


def test_only_a_package_imports_its_parts_by_itself() -> None:
    """No module imports the package that it lies in."""
    for package, folder in PACKAGES.items():
        modules = sources(package, folder)
        for module, source in modules.items():
            if module.endswith(".__init__"):
                continue
            for target, name in imports(module, source, frozenset(modules)):
                assert target != f"{module.rpartition('.')[0]}.__init__", (module, name)


@pytest.mark.parametrize(
    "statement",
    [
        "from ..hosts.run import run",
        "from kcd_adapters.hosts import run",
        "import kcd_adapters.hosts.run",
        "from ..cli import main",
        "def f():\n    from ..report.command import run",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..demo import command",
    ],
)
def test_an_import_that_points_outward_is_found(statement: str) -> None:
    modules = sources("kcd_adapters", "adapters")
    assert outward({**modules, "kcd_adapters.profiles.mine": statement}) != []


@pytest.mark.parametrize("where", ["", "if TYPE_CHECKING:\n    ", "def f():\n    "])
def test_a_circle_is_found(where: str) -> None:
    modules = {"p.a": f"{where}from .b import x", "p.b": "from . import c", "p.c": "from p.a import y"}
    assert set(circle(modules)) == set(modules)
    assert circle({**modules, "p.c": "from p.d import y"}) == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from .b import _x", "_x"),
        ("from . import b\nb._x()", "_x"),
        ("def f(loader):\n    return loader._x", "_x"),
        ("class A(B):\n    def f(self):\n        return self._x", "_x"),
        ("from ._b import x", "x"),
    ],
)
def test_a_private_name_of_another_module_is_found(source: str, name: str) -> None:
    assert borrowed({"p.a": source, "p.b": "", "p._b": ""}) == {("p.a", name)}


def test_a_modules_own_private_names_are_its_own() -> None:
    source = "class A:\n    def __init__(self):\n        self._x = 1\n    def f(self, other):\n        return other._x"
    assert borrowed({"p.a": source}) == set()
