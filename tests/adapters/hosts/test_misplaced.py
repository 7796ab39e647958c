"""Options of kcd's that were given after the script: a line says so, but not where the script has such an option itself."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from kcd_adapters.hosts.misplaced import MOST, why_misplaced
from kcd_adapters.options import add_arguments, named_by

PARSER = argparse.ArgumentParser()
add_arguments(PARSER)
OWN = named_by(PARSER)
PLAIN = "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--epochs')\n"


def told(root: Path, arguments: str, **files: str) -> str:
    """What is said of a script, with these files in and around its folder."""
    (root / "repo" / "tools" / "lib" / "more").mkdir(parents=True)
    places = {
        "script": "tools/train.py",
        "beside": "tools/options.py",
        "around": "opts.py",
        "below": "tools/lib/more/cfg.py",
    }
    for name, text in {"script": PLAIN, **files}.items():
        (root / "repo" / places[name]).write_text(text)
    return why_misplaced(root / "repo" / "tools" / "train.py", arguments.split(), OWN)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--epochs 3 --ratio 0.3", "--ratio"),
        ("--ratio=0.3 --mixing none --ratio=0.4", "--ratio, --mixing"),
        ("--auto --min-weight 1 --no-shim all", "--auto, --min-weight, --no-shim"),
    ],
)
def test_what_no_file_names_is_told(arguments: str, named: str, tmp_path: Path) -> None:
    assert told(tmp_path, arguments) == (
        f"after train.py stand options that no Python file around it names: {named}. They go to the script; kcd's own stand "
        "before train.py"
    )


@pytest.mark.parametrize(
    "arguments", ["", "--epochs 3", "ratio", "-- --ratio 0.3", "--ratios 3", "--help", "--name=--ratio"]
)
def test_what_is_no_option_of_kcds_is_the_scripts_own(arguments: str, tmp_path: Path) -> None:
    assert told(tmp_path, arguments) == ""


@pytest.mark.parametrize("place", ["script", "beside", "around", "below"])
@pytest.mark.parametrize(
    "text",
    [
        "parser.add_argument('--min-weight', type=float)",
        "parser.add_argument('--min_weight', type=float)",
        "parser.add_argument('--min-weight-decay', type=float)",  # which argparse lets be shortened
        "class Options:\n    min_weight: float = 0.1",
        "def main(epochs=3, min_weight=0.1): ...",
        'flags.DEFINE_float("min_weight", 0.1, "help")',
    ],
)
def test_what_a_file_may_declare_is_not_told(place: str, text: str, tmp_path: Path) -> None:
    assert told(tmp_path, "--min-weight 0.5", **{place: text}) == ""


def test_only_what_is_not_declared_is_told(tmp_path: Path) -> None:
    why = told(tmp_path, "--ratio 0.3 --period 5", beside="parser.add_argument('--period')")
    assert "names: --ratio. They" in why


def test_nothing_is_told_of_what_was_not_looked_through(tmp_path: Path) -> None:
    assert told(tmp_path, "--ratio 0.3")
    (tmp_path / "repo" / "tools" / "unreadable.py").mkdir()
    script = tmp_path / "repo" / "tools" / "train.py"
    assert why_misplaced(script, ["--ratio"], OWN)
    for number in range(MOST):
        (tmp_path / "repo" / f"file{number}.py").touch()
    assert why_misplaced(script, ["--ratio"], OWN) == ""
