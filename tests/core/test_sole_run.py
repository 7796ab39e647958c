"""That one run alone ends a tracker's windows of a stage, and that a run made anew is no second one."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from helpers import Plain, logits_of, run_epoch, wrap

import kcd_core as kcd

N = 40
REFUSED = r"another was made after it with its tracker, .*statistic='stage_mean'"


def made(tracker: Any, sampler: Any = kcd.CondensedSampler) -> kcd.Condensation:
    return kcd.Condensation(sampler(N), schedule=kcd.CondensationSchedule(0.5, 1, 1), tracker=tracker)


def stage(run: kcd.Condensation) -> None:
    run.record(logits_of(range(N), run.epoch), indices=np.arange(N))
    assert run.end_epoch() is not None


@pytest.mark.parametrize("statistic", ["mean", "stage_mean", "last", "variance"])
def test_the_stages_of_one_run_alone_end_the_windows_of_a_tracker(statistic: Any) -> None:
    tracker = kcd.KnowledgeValueTracker(N, statistic=statistic)
    first, second = made(tracker), made(tracker, kcd.TeacherGate)
    if statistic != "stage_mean":
        stage(first)
        assert second.end_epoch() is not None
        return
    with pytest.raises(RuntimeError, match=REFUSED):
        first.record(logits_of(range(N), 1), indices=np.arange(N))
    with pytest.raises(RuntimeError, match=REFUSED):
        first.end_epoch()
    assert (first.epoch, tracker.count.sum()) == (1, 0)
    second.me = second  # type: ignore[attr-defined]  # so that it goes when the garbage is collected
    del second
    stage(first)


def test_a_run_that_is_made_anew_goes_on_though_the_one_before_is_there_still() -> None:
    tracker = kcd.KnowledgeValueTracker(N, statistic="stage_mean")
    before = [made(tracker)]
    stage(before[0])
    before.append(made(tracker))  # a notebook's cell, run again
    run = made(tracker)
    stage(run)
    stage(run)
    copied = pickle.loads(pickle.dumps(run))
    for each in (copied, copy.deepcopy(run), run):
        stage(each)
    with pytest.raises(RuntimeError, match=REFUSED):
        before[0].end_epoch()
    before.append(made(copied.tracker))
    with pytest.raises(RuntimeError, match=REFUSED):
        copied.end_epoch()


def test_a_loader_is_told_of_a_run_that_shares_its_stage_means() -> None:
    settings: dict[str, Any] = {"statistic": "stage_mean", "mixing": None}
    loader = wrap(Plain(N), schedule=kcd.CondensationSchedule(0.5, 2, 2), kcd_options=settings)
    gated = wrap(Plain(N), schedule=None, kcd_options={"statistic": "stage_mean", "ask": 0.5})
    for _ in range(3):
        run_epoch(loader)
        run_epoch(gated)
    gate = made(loader.tracker, kcd.TeacherGate)
    with pytest.raises(RuntimeError, match=REFUSED):
        next(iter(loader))
    assert gate.epoch == 1
