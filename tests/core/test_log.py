"""What a run tells the logger ``kcd``: each stage once, each epoch where asked, and nothing to anybody who did not ask."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from helpers import SECONDS, Plain, logits_of, run_epoch, wrap

import kcd_core as kcd

N = 40
LOGGER = logging.getLogger("kcd")
EVERY_OTHER = kcd.CondensationSchedule(0.5, stages=2, period=2)


class Told(logging.Handler):
    """What the logger was told: (level, text)."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelname, record.getMessage()))


@pytest.fixture
def told() -> Iterator[Any]:
    """``told(handler, level)`` adds a handler, whatever other tests made of the logger, which is as before afterwards."""
    before = LOGGER.handlers, LOGGER.level, LOGGER.propagate, LOGGER.disabled

    def listen(handler: logging.Handler, level: int) -> Any:
        LOGGER.handlers, LOGGER.disabled = [handler], False
        LOGGER.setLevel(level)
        return handler

    yield listen
    LOGGER.handlers, level, LOGGER.propagate, LOGGER.disabled = before
    LOGGER.setLevel(level)


def test_each_stage_is_told_once(told: Any) -> None:
    lines = told(Told(), logging.INFO).lines
    loader = wrap(Plain(N), schedule=EVERY_OTHER, kcd_options={"mixing": None})
    expected, batches = [], 5  # of 8 samples
    for epoch, kept in enumerate((40, 30, 30, 20, 20, 20), 1):
        run_epoch(loader)
        if epoch % 2 == 0:
            value, count = np.array(loader.tracker.value), np.array(loader.tracker.count)
            cut = np.sort(value * count**0.03)[::-1][kept - 1]
            dropped = {2: 10, 4: 10, 6: 0}[epoch]
            expected.append(
                f"stage {epoch // 2} after epoch {epoch}: {kept} of 40 kept, {dropped} dropped, 0 mixed, cut {cut:.4f}"
                + (
                    ""
                    if -(-kept // 8) == batches
                    else f"; {-(-kept // 8)} batches an epoch from now on, {batches} before"
                )
            )
            batches = -(-kept // 8)
    assert lines == [("INFO", line) for line in expected]


def test_mixtures_are_counted_and_a_rule_has_no_cut(told: Any) -> None:
    lines = told(Told(), logging.INFO).lines
    mixing, random = wrap(Plain(N), schedule=EVERY_OTHER), {"select": "random"}
    for loader in (mixing, wrap(Plain(N), schedule=EVERY_OTHER, kcd_options=random)):
        run_epoch(loader)
        run_epoch(loader)
    assert "30 of 40 kept, 10 dropped, 10 mixed, cut " in lines[0][1]
    shorter = "; 4 batches an epoch from now on, 5 before"
    assert lines[1][1] == f"stage 1 after epoch 2: 30 of 40 kept, 10 dropped, 0 mixed{shorter}"


def test_epochs_are_details_and_steps_are_nothing(told: Any) -> None:
    lines = told(Told(), logging.DEBUG).lines
    loader = wrap(Plain(N), schedule=EVERY_OTHER, batch_size=1)
    for epoch in range(1, 4):
        before = len(lines)
        run_epoch(loader, end=False)
        assert len(lines) == before
        loader.end_epoch()
        drawn = (40, 40, 30)[epoch - 1]
        share = "" if drawn == 40 else f"{drawn / 40:.1%}"
        assert lines[before][0] == "DEBUG"
        assert lines[before][1].startswith(f"epoch {epoch}: {drawn} samples drawn (")
        assert share in lines[before][1]
    assert [level for level, _ in lines] == ["DEBUG", "DEBUG", "INFO", "DEBUG"]


def test_of_a_gate_it_is_told_when_another_number_is_asked_for(told: Any) -> None:
    lines = told(Told(), logging.DEBUG).lines
    loader = wrap(Plain(N), schedule=None, kcd_options={"ask": 0.25})
    for _ in range(3):
        run_epoch(loader)
    asked = [(level, line) for level, line in lines if "asked for" in line]
    text = "from epoch {} on the teacher is asked for 10 of 40 samples"
    assert asked == [("INFO", text.format(2)), ("DEBUG", text.format(3)), ("DEBUG", text.format(4))]
    assert len(lines) == 6


def test_a_stage_of_which_the_log_can_not_be_told_has_not_ended(told: Any) -> None:
    class Full(Told):
        def emit(self, record: logging.LogRecord) -> None:
            super().emit(record)
            raise OSError("the disk is full")

    handler = told(Full(), logging.INFO)
    run = kcd.Condensation(kcd.CondensedSampler(N), schedule=kcd.CondensationSchedule(0.5, 1, 1))
    run.record(logits_of(range(N), 1), indices=np.arange(N))
    with pytest.raises(OSError, match="the disk is full"):
        run.end_epoch()
    assert (run.epoch, run.sampler.stage, len(run.history)) == (1, 0, 0)
    handler.emit = handler.lines.append
    assert len(run.end_epoch().kept) == 20
    assert (run.epoch, run.sampler.stage, len(run.history)) == (2, 1, 1)


RUN = """
import numpy as np
import kcd_core as kcd
run = kcd.Condensation(kcd.CondensedSampler(8), schedule=kcd.CondensationSchedule(0.5, 1, 1))
run.record(np.random.default_rng(0).normal(size=(8, 3)), indices=np.arange(8))
run.end_epoch()
"""


@pytest.mark.parametrize(
    ("setup", "shown"),
    [
        ("", ""),
        ("import logging; logging.getLogger('kcd').setLevel(logging.INFO)", ""),
        ("import logging; logging.basicConfig()", ""),
        (
            "import logging; logging.basicConfig(level=logging.INFO)",
            "INFO:kcd:stage 1 after epoch 1: 4 of 8 kept, 4 dropped, 4 mixed, cut ",
        ),
    ],
    ids=["nothing", "level", "warnings", "info"],
)
def test_nothing_is_printed_or_configured_unless_the_user_does(setup: str, shown: str) -> None:
    after = """
import logging, sys
logger, root = logging.getLogger("kcd"), logging.getLogger()
assert [type(handler) for handler in logger.handlers] == [logging.NullHandler], logger.handlers
assert logger.propagate and not logger.disabled
assert "torch" not in sys.modules
assert not logging.Logger.manager.loggerDict.keys() & {"kcd_core", "kcd_adapters"}
logger.warning("w") if not root.handlers else None
"""
    code = f"{setup}\n{RUN}\n{after}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=True
    )
    assert done.stdout == ""
    if shown:
        (line,) = done.stderr.splitlines()
        assert line.startswith(shown)
    else:
        assert done.stderr == ""
