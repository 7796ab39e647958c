"""What benchmarks/mutants.py makes: Python that differs from the original, and never in an annotation."""

import ast
import importlib
import random
import sys
from pathlib import Path

import pytest

pytest.importorskip("cosmic_ray", reason="needs the extra 'mutants'")

SOURCE = '''\
"""A module."""

from __future__ import annotations

LIMIT = 3


def count(items: list[int] | None, table: dict[str, int] | None = None) -> int | None:
    """How many."""
    for item in items or ():
        if item > LIMIT:
            table.update({"item": item, "limit": LIMIT})
    return len(table)
'''


@pytest.fixture(scope="module")
def mutants():
    folder = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("mutants")
    finally:
        sys.path.remove(folder)


@pytest.fixture
def made(mutants, tmp_path):
    (tmp_path / "module.py").write_text(SOURCE)
    return list(mutants.mutations(tmp_path, "module.py", random.Random(0)))


def applied(mutant):
    lines, at = SOURCE.splitlines(), mutant["line"] - 1
    assert lines[at : at + len(mutant["was"])] == mutant["was"]
    return "\n".join([*lines[:at], *mutant["now"], *lines[at + len(mutant["was"]) :]])


def test_every_mutant_is_another_program(made):
    programs = {ast.dump(ast.parse(applied(mutant))) for mutant in made}
    assert len(programs) == len(made) > 5
    assert ast.dump(ast.parse(SOURCE)) not in programs


def test_calls_and_entries_are_left_out_and_annotations_stay(made):
    left_out = {mutant["operator"]: applied(mutant) for mutant in made if "LeaveOut" in mutant["operator"]}
    assert "            pass\n    return" in left_out["LeaveOut"]
    assert left_out["LeaveOutEntry"].count('"item"') + left_out["LeaveOutEntry"].count('"limit"') == 1
    assert all("items: list[int] | None, table: dict[str, int] | None" in applied(mutant) for mutant in made)


def test_the_same_seed_draws_the_same(mutants, made, tmp_path):
    assert list(mutants.mutations(tmp_path, "module.py", random.Random(0))) == made
    assert list(mutants.mutations(tmp_path, "module.py", random.Random(1))) != made


def test_every_test_that_serves_a_module_is_there(mutants):
    for pattern, (number, tests) in mutants.SERVING.items():
        assert list(mutants.CHECKOUT.glob(pattern)), pattern
        assert number > 0
        for path in mutants.paths_of(tests):
            assert (mutants.CHECKOUT / path).is_file(), path
