"""The examples in the docstrings of kcd_core and kcd_adapters do what they show."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

pytest.importorskip("torch")

ROOT = Path(__file__).parents[1]


def modules() -> list[str]:
    """Those that have examples, by the names they are imported by."""
    found = [
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for package in ("kcd_core", "adapters")
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"^ +>>> ", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    return sorted(name.replace("adapters.", "kcd_adapters.", 1) for name in found)


@pytest.mark.parametrize("name", modules())
def test_examples(name: str) -> None:
    done = doctest.testmod(importlib.import_module(name))
    assert done.attempted
    assert not done.failed
