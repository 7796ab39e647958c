"""The layers of the packages, read from their source: imports point inward, in no circle, and at public names.

Imports inside functions and under ``TYPE_CHECKING`` count like all others. Modules that are named in strings
(the command line's, the profiles') are not seen.
"""

from __future__ import annotations

import ast
import configparser
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: The packages, and their folders.
PACKAGES = {"kcd_core": "kcd_core", "kcd_adapters": "adapters"}

#: Rooms (a module, or a package and all inside it) by layer, the innermost first. A module may import from its own
#: room and from the layers before; rooms of one layer do not know each other.
LAYERS = (
    ("kcd_core._version",),
    ("kcd_core.algorithms", "kcd_core.base", "kcd_core.log"),
    ("kcd_core.sample_weights",),
    (
        "kcd_core.account",
        "kcd_core.condense",
        "kcd_core.formulas",
        "kcd_core.history_plot",
        "kcd_core.logits",
        "kcd_core.raw_images",
        "kcd_core.recipes",
        "kcd_core.schedule",
        "kcd_core.sums",
    ),
    ("kcd_core.sequences",),
    ("kcd_core.values",),
    ("kcd_core.value_function",),
    (
        "kcd_core.epoch_sampler",
        "kcd_core.flops",
        "kcd_core.free_schedule",
        "kcd_core.gate",
        "kcd_core.row_losses",
        "kcd_core.rules",
        "kcd_core.history",
        "kcd_core.mixing",
        "kcd_core.sampler_state",
        "kcd_core.skipped",
        "kcd_core.waiting",
    ),
    ("kcd_core.statistics",),
    ("kcd_core.infobatch", "kcd_core.recordings", "kcd_core.rehearsal", "kcd_core.sampler"),
    ("kcd_core.recorded_values",),
    ("kcd_core.tracker",),
    ("kcd_core.all_ranks", "kcd_core.loss", "kcd_core.sole_run", "kcd_core.unused"),
    ("kcd_core.em_step",),
    ("kcd_core.layout",),
    ("kcd_core.agreement", "kcd_core.progress", "kcd_core.saved"),
    ("kcd_core.run_state",),
    ("kcd_core.run",),
    ("kcd_core.run_owner", "kcd_core.stages"),
    ("kcd_core.sharded", "kcd_core.streaming"),
    ("kcd_core.loading",),
    ("kcd_core.__init__",),
    ("kcd_adapters.__init__",),
    ("kcd_adapters.contrast", "kcd_adapters.extras", "kcd_adapters.settings", "kcd_adapters.telling"),
    ("kcd_adapters.options", "kcd_adapters.stage_log"),
    ("kcd_adapters.running",),
    ("kcd_adapters.watching",),
    ("kcd_adapters.profiles",),
    ("kcd_adapters.patching",),
    ("kcd_adapters.hosts",),
    ("kcd_adapters.demo", "kcd_adapters.report", "kcd_adapters.torchdistill", "kcd_adapters.trainers"),
    ("kcd_adapters.auto", "kcd_adapters.cli"),
    ("kcd_adapters.__main__",),
)

#: Private names of another module that are used all the same: (module, name). To be shortened.
BORROWED: set[tuple[str, str]] = {
    ("kcd_adapters.trainers.lightning_loader", "_data_source"),
    ("kcd_adapters.trainers.lightning_loader", "_process_dataloader"),
    ("kcd_adapters.trainers.trl", "_get_train_sampler"),
}

#: Private in name, and meant for others: methods of named tuples, and the module that holds the version.
MEANT_FOR_OTHERS = {"_asdict", "_fields", "_make", "_replace", "kcd_core._version"}

Sources = Mapping[str, str]
parsed = lru_cache(maxsize=None)(ast.parse)


def sources(package: str, folder: str) -> dict[str, str]:
    """Module name to source; a package goes by the name of its ``__init__``."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = [package, *path.relative_to(ROOT / folder).with_suffix("").parts]
        found[".".join(parts)] = path.read_text(encoding="utf-8")
    return found


@lru_cache
def all_sources() -> dict[str, str]:
    """The modules of all packages."""
    return {name: source for item in PACKAGES.items() for name, source in sources(*item).items()}


def imports(module: str, source: str, known: frozenset[str]) -> Iterator[tuple[str, str]]:
    """(module, name) for everything that ``source`` imports from the packages; the name is "" for the module itself.

    ``known`` are all modules: they tell ``from . import module`` from ``from . import name``.
    """
    tops = {name.partition(".")[0] for name in known} | {room.partition(".")[0] for room in sum(LAYERS, ())}

    def resolved(name: str) -> str:
        return f"{name}.__init__" if f"{name}.__init__" in known else name

    for node in ast.walk(parsed(source)):
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
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__slots__":
            names.update(ast.literal_eval(node.value))
    return names


def borrowed(modules: Sources) -> set[tuple[str, str]]:
    """(module, name) for private names that a module uses and does not define."""
    found = set()
    for module, source in modules.items():
        tree = parsed(source)
        mine = own_names(tree)
        for node in ast.walk(tree):
            name = node.attr if isinstance(node, ast.Attribute) else asked_for(node)
            if private(name) and name not in mine:
                found.add((module, name))
        for target, name in imports(module, source, frozenset(modules)):
            if private(name) or (any(map(private, target.split("."))) and target not in MEANT_FOR_OTHERS):
                found.add((module, name or target))
    return {(module, name) for module, name in found if name not in MEANT_FOR_OTHERS}


def asked_for(node: ast.AST) -> str:
    """The attribute that ``getattr(x, "name")``, or a function like it, asks for."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1:
        name = node.args[1]
        if node.func.id in ("getattr", "setattr", "hasattr", "delattr") and isinstance(name, ast.Constant):
            return str(name.value)
    return ""


def test_imports_point_inward() -> None:
    assert outward(all_sources()) == []


def test_imports_make_no_circle() -> None:
    assert circle(all_sources()) == []


def test_no_module_uses_anothers_private_names() -> None:
    assert borrowed(all_sources()) == BORROWED


def test_every_room_is_there() -> None:
    there = all_sources()
    for room in sum(LAYERS, ()):
        assert room in there or f"{room}.__init__" in there, room


def test_the_algorithms_know_numpy_alone() -> None:
    for module, source in sources("kcd_core", "kcd_core").items():
        if not module.startswith("kcd_core.algorithms."):
            continue
        for node in ast.walk(parsed(source)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level < 2, (module, node.module)
                names = [] if node.level else [str(node.module)]
            else:
                continue
            tops = {name.partition(".")[0] for name in names}
            assert tops <= {"__future__", "collections", "numpy", "typing"}, (module, names)


def test_every_package_is_installed() -> None:
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    named = set(setup["options"]["packages"].split())
    assert named == {name.removesuffix(".__init__") for name in all_sources() if name.endswith(".__init__")}


def test_no_module_imports_a_package_that_it_lies_in() -> None:
    modules = all_sources()
    for module, source in modules.items():
        if module.endswith(".__init__"):
            continue
        for target, name in imports(module, source, frozenset(modules)):
            package = target.removesuffix("__init__")
            assert package == target or not module.startswith(package), (module, name)


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("kcd_core.base.mine", "from ..tracker import KnowledgeValueTracker"),
        ("kcd_core.algorithms.mine", "from ..base.arrays import to_numpy"),
        ("kcd_core.sampler", "def f():\n    from .stages import Condensation"),
        ("kcd_core.history", "if TYPE_CHECKING:\n    from .sharded.slices import ShardedSet"),
        ("kcd_core.sharded.mine", "from ..loading.loader import CondensedLoader"),
        ("kcd_core.base.mine", "from .. import __version__"),
        ("kcd_core.stages", "import kcd_adapters.settings"),
        ("kcd_adapters.profiles.mine", "from ..hosts.run import run"),
        ("kcd_adapters.profiles.mine", "from kcd_adapters.hosts import run"),
        ("kcd_adapters.profiles.mine", "import kcd_adapters.hosts.run"),
        ("kcd_adapters.profiles.mine", "from ..cli import main"),
        ("kcd_adapters.profiles.mine", "def f():\n    from ..report.command import run"),
        ("kcd_adapters.profiles.mine", "if TYPE_CHECKING:\n    from ..demo import command"),
    ],
)
def test_an_import_that_points_outward_is_found(module: str, statement: str) -> None:
    assert [line for line in outward({**all_sources(), module: statement}) if line.startswith(module)]


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
        ("def f(x):\n    return getattr(x, '_x', None)", "_x"),
    ],
)
def test_a_private_name_of_another_module_is_found(source: str, name: str) -> None:
    assert borrowed({"p.a": source, "p.b": "", "p._b": ""}) == {("p.a", name)}


def test_a_modules_own_private_names_are_its_own() -> None:
    source = "class A:\n    def __init__(self):\n        self._x = 1\n    def f(self, other):\n        return other._x"
    assert borrowed({"p.a": source}) == set()


def test_the_map_for_contributors_names_every_module() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    drawn = set(re.findall(r"\w+", page.split("```")[3]))  # the second block
    modules = {path.stem for path in (ROOT / "kcd_core").glob("*.py") if not path.stem.startswith("_")}
    assert modules - drawn == set()
