"""Each subcommand of ``kcd`` imports what it needs, and no more."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import SECONDS

from kcd_adapters.cli import main
from kcd_adapters.profiles import find, profiles

HEAVY = ("torch", "torchvision", "matplotlib", "sklearn", "rich")
MINI = Path(__file__).parent / "miniatures" / "sskd"


def kcd(without: tuple[str, ...], *arguments: str) -> str:
    """What a command printed in a Python where some packages can't be imported."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({without})); from kcd_adapters.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("command", "without"),
    [
        ((), HEAVY),
        *(((name,), HEAVY) for name in ("run", "profiles", "patch", "unpatch")),
        (("report",), ("torch",)),
    ],
)
def test_help_needs_no_heavy_package(command: tuple[str, ...], without: tuple[str, ...]) -> None:
    text = kcd(without, *command, "--help")
    assert f"usage: kcd {' '.join(command)}".strip() in text
    if command:
        assert {
            "run": "--ratio",
            "profiles": "--profile NAME",
            "patch": "--diff",
            "unpatch": "--diff",
            "report": "--force",
        }[command[0]] in text
    else:
        assert all(name in text for name in ("demo", "run", "profiles", "patch", "unpatch", "report"))
        assert kcd(without) == text  # bare `kcd` shows it, too


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            ("run", "--ration", "0.3", "x.py"),
            "unknown option --ration (did you mean --ratio?); the script's own",
        ),
        (
            ("run", "--lr=1", "--stags=2", "x.py"),
            "unknown option --lr, --stags (did you mean --stages?); the",
        ),
        (("profiles", "--profle"), "unknown option --profle\n"),
        (("profiles", "sskd"), "unknown argument sskd\n"),
    ],
)
def test_what_may_be_meant_by_an_option_that_is_not_there(
    arguments: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert f"kcd {arguments[0]}: error: {reason}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "the following arguments are required: SCRIPT\n"),
        (
            ("--value", "kd_divergence", "x.py"),
            "kcd: value can't be kd_divergence here: it needs the teacher's",
        ),
        (
            ("--value", "reducible_loss", "x.py"),
            "kcd: value can't be reducible_loss here: it needs the teacher's",
        ),
        (("--no-shim", "nonsense", "x.py"), "kcd: there is no shim 'nonsense'; there are tensorboard_logger"),
    ],
)
def test_what_run_refuses(
    arguments: tuple[str, ...], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.py").touch()
    arguments = tuple(str(tmp_path / a) if a == "x.py" else a for a in arguments)
    with contextlib.suppress(SystemExit):
        assert main(["run", *arguments]) == 2
    out, err = capsys.readouterr()
    assert reason in err
    assert out == ""


def test_profiles_are_listed_by_the_names_that_run_takes(tmp_path: Path) -> None:
    lines = kcd(HEAVY, "profiles").splitlines()
    names = [line.partition(":")[0] for line in lines if not line.startswith(" ")]
    assert names == [profile.name for profile in profiles()]
    assert "mdistiller: mdistiller and its family" in lines
    for name in names:
        profile = find(tmp_path / "train.py", name)
        assert profile.covers
        assert profile.observed_at in " ".join(lines)
        assert f"    covers    {profile.covers}" in lines


@pytest.mark.parametrize(
    ("command", "unbuffered"),
    [("profiles", "1"), ("profiles", ""), ("--help", ""), ("run --auto script.py", "")],
)
def test_a_reader_that_goes_away_ends_it_quietly(command: str, unbuffered: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").touch()
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "kcd_adapters", *command.split()],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=SECONDS,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("command", ["profiles", "run --auto --if-unobserved warn script.py"])
def test_nobody_needs_a_standard_output(command: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import sys\nif sys.stdout: sys.stdout.close()\nsys.exit(5)")
    for closed in (">&-", "") if "run" in command else (">&-",):
        done = subprocess.run(
            ["sh", "-c", f"{sys.executable} -m kcd_adapters {command} {closed}"],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            cwd=tmp_path,
        )
        assert (done.returncode, done.stderr) == (5 if "run" in command else 0, "")


def test_patching_needs_no_heavy_package(tmp_path: Path) -> None:
    repo = tmp_path / "sskd"
    shutil.copytree(MINI, repo)
    assert "student.py: patched" in kcd(HEAVY, "patch", str(repo))
    assert "restored to the byte" in kcd(HEAVY, "unpatch", str(repo))
    assert (repo / "student.py").read_bytes() == (MINI / "student.py").read_bytes()
