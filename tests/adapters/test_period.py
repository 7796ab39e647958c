"""``--period auto``: what it chooses, where it is refused, and that it is what the documentation recommends."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

import kcd_core as kcd
from kcd_adapters.cli import main
from kcd_adapters.options import RECOMMENDED, add_arguments, settings_of
from kcd_adapters.patching import marked_block
from kcd_adapters.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"


def parsed(*arguments: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return settings_of(parser.parse_args(arguments))


@pytest.mark.parametrize(("epochs", "period"), [(12, 1), (24, 3), (60, 9), (240, 34)])  # of docs/settings.md
def test_it_is_what_for_epochs_chooses(epochs: int, period: int) -> None:
    settings = parsed(*RECOMMENDED.split())
    assert settings.to_dict() == {"ratio": 0.3, "mixing": "none", "period": "auto"}
    assert Settings.from_json(settings.to_json()) == settings  # as spawned processes read it
    chosen = settings.for_epochs(epochs)
    assert chosen.to_dict() == {"ratio": 0.3, "mixing": "none", "period": period}
    assert chosen.schedule() == kcd.CondensationSchedule.for_epochs(epochs)


def test_a_number_is_left_as_it_is() -> None:
    settings = Settings(period=7)
    assert settings.for_epochs(None) is settings.for_epochs(3) is settings


def test_it_can_be_written_into_a_script() -> None:
    assert b"    period='auto',\n" in marked_block.call(parsed("--period", "auto").to_dict())


def test_it_is_no_schedule_before_the_epochs_are_known() -> None:
    with pytest.raises(ValueError, match="period can't be auto here, where the run's number of epochs"):
        Settings(period="auto").schedule()
    with pytest.raises(ValueError, match="ratio must be in"):
        Settings(period="auto", ratio=2)
    with pytest.raises(ValueError, match="period must be a number of epochs, or auto, got 'fast'"):
        Settings(period="fast")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("epochs", "reason"),
    [
        (None, r"needs the run's number of epochs.* --period P, the number of epochs divided by 5 \("),
        (
            4,
            "needs more than 4 epochs, .*; the script trains for 4. Give fewer --stages, or train for longer",
        ),
    ],
)
def test_it_is_refused_where_nothing_can_be_chosen(epochs: int | None, reason: str) -> None:
    settings = Settings(period="auto", stages=4)
    with pytest.raises(ValueError, match=f"^--period auto {reason}"):
        settings.for_epochs(epochs)
    assert settings.for_epochs(5).period == 1


def test_a_script_whose_epochs_nobody_knows_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "train.py").write_text("raise SystemExit(7)")
    assert main(["run", "--auto", *RECOMMENDED.split(), str(tmp_path / "train.py")]) == 2
    assert "kcd: --period auto needs the run's number of epochs" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["fast", "1.5", ""])
def test_what_is_no_period(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--period", wrong)
    said = capsys.readouterr().err
    assert f"argument --period: must be a number of epochs, or auto, got {wrong!r}\n" in said


@pytest.mark.parametrize("command", ["run", "patch"])
def test_the_help_recommends_it(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert RECOMMENDED in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("page", ["adapters.md", "settings.md", "../README.md"])
def test_the_first_command_of_a_page_is_the_recommended_one(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert f"kcd run {RECOMMENDED} " in text
    assert text.index(f"kcd run {RECOMMENDED} ") == text.index("kcd run --")
