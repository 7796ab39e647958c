"""The reference has every public name, and the site every page; read from the sources, without mkdocs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
#: The modules of kcd_adapters that are meant for use; what the others have is for these.
MODULES = (
    "auto",
    "contrast",
    "profiles",
    "torchdistill",
    "trainers.accelerate",
    "trainers.lightning",
    "trainers.packing",
    "trainers.timm",
    "trainers.transformers",
    "trainers.trl",
)


def described(page: str) -> list[str]:
    return re.findall(r"^::: (\S+)$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)


def public(path: Path) -> list[str]:
    """A module's ``__all__``, the first that is assigned."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    raise AssertionError(f"{path} has no __all__")


def source(module: str) -> Path:
    path = ROOT / "adapters" / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_every_name_of_kcd_core_is_in_the_reference() -> None:
    names = public(ROOT / "kcd_core" / "__init__.py")
    assert len(names) >= 25
    assert sorted(described("api.md")) == sorted(f"kcd_core.{name}" for name in names)


def test_every_name_of_kcd_adapters_is_in_the_reference() -> None:
    names = [f"kcd_adapters.{module}.{name}" for module in MODULES for name in public(source(module))]
    assert sorted(described("api-adapters.md")) == sorted(names)


def test_every_module_for_a_trainer_is_meant_for_use_or_a_part_of_one() -> None:
    """A new module does not stay out of the reference unseen."""
    parts = {"accelerate_loader", "lightning_loader", "lightning_student", "progress", "transformers_loader"}
    there = {path.stem for path in (ROOT / "adapters" / "trainers").glob("*.py")} - {"__init__"}
    assert there - parts == {
        name.removeprefix("trainers.") for name in MODULES if name.startswith("trainers.")
    }


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_every_page_is_in_the_sites_menu(page: str) -> None:
    assert f": {page}\n" in (DOCS / "site" / "mkdocs.yml").read_text(encoding="utf-8")
