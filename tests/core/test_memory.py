"""What a stage, saving and loading take at their peak, and that working in parts changes nothing."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kcd_core as kcd

N = 4_000_003  # a history looks at every fourth; no multiple of anything that is done at once
SCHEDULE = kcd.CondensationSchedule(ratio=0.7, stages=6, period=1)


def run_of(n: int, **given: Any) -> kcd.Condensation:
    sampler = kcd.CondensedSampler(n, mixing=None)
    return kcd.Condensation(sampler, schedule=SCHEDULE, **given)


def record(run: kcd.Condensation, share: float = 1.0) -> None:
    n = run.tracker.num_samples
    rng = np.random.default_rng(run.epoch)
    for start in range(0, n, 1 << 13):
        indices = np.arange(start, min(start + (1 << 13), n))
        indices = indices[rng.random(len(indices)) < share]
        run.tracker.record(indices, rng.random(len(indices)) * 4.6)
    assert run.tracker.skipped == {"nonfinite": 0, "out_of_range": 0}  # adds what waits


def peak_of(step: Callable[[], Any]) -> tuple[Any, float]:
    """Its result, and the bytes a sample that it took at most, beyond what was held before."""
    gc.collect()
    tracemalloc.start()
    try:
        result = step()
        return result, tracemalloc.get_traced_memory()[1] / N
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("device", [None, "cpu"])
def test_bytes_a_sample_at_the_peak(device: Any) -> None:
    """Beside 12 for V and F, and 4 for each kept sample. NumPy's memory; that of the process: benchmarks/memory.py."""
    run = run_of(N, device=device)
    record(run)
    for _ in range(2):  # the second, with an earlier set in force
        chosen, peak = peak_of(run.end_epoch)
        assert peak < 18  # of which the history takes 8 of so few samples
        record(run)
    state, peak = peak_of(run.state_dict)
    assert peak < 16
    again = run_of(N, device=device)
    _, peak = peak_of(lambda: again.load_state_dict(state))
    assert peak < 16
    np.testing.assert_array_equal(again.sampler.kept, chosen.kept)
    np.testing.assert_array_equal(again.tracker.count, run.tracker.count)


def test_a_stage_in_parts_is_that_of_the_whole() -> None:
    run = run_of(N)
    record(run, share=0.7)
    value, count = run.tracker.value, run.tracker.count
    chosen = run.end_epoch()
    expected = kcd.condense(value, count, previous=N, target=SCHEDULE.target(N, N))
    for name in ("kept", "dropped", "tail", "weights"):
        np.testing.assert_array_equal(getattr(chosen, name), getattr(expected, name))
    assert chosen.cut == expected.cut
    history = kcd.CondensationHistory(N)
    history.append(expected, value, count, epoch=1, mixing=False)
    assert run.history.records == history.records


def test_a_score_that_is_not_finite_is_named() -> None:
    n = 300_000  # more than are scored at once
    run = run_of(n, alpha=1e4)
    run.tracker.record(np.arange(n), np.ones(n))
    run.tracker.record([n - 2], [1.0])
    with pytest.raises(ValueError, match=rf"alpha = 10000.0 is too large: .* the first at index {n - 2} "):
        run.end_epoch()


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("several", [False, True])
def test_a_loaded_state_is_copied(device: Any, several: bool) -> None:
    run = run_of(10, device=device)
    run.tracker.record([1, 2, 2], [1.0, 2.0, 3.0])
    state = run.tracker.state_dict()
    again = kcd.KnowledgeValueTracker(10, device=device)
    again.load_state_dict([state] if several else state)
    state["total"][:] = 0
    state["count"][:] = 0
    np.testing.assert_array_equal(again.value, run.tracker.value)
    again.record([1], [9.0])
    assert run.tracker.count[1] == 1


def test_a_set_without_pairs_says_nothing_of_mixtures() -> None:
    for mixing in (None, "fresh"):
        sampler = kcd.ShardedSampler(40, num_replicas=1, rank=0, mixing=mixing)
        tracker = kcd.KnowledgeValueTracker(40)
        tracker.record(np.arange(40), np.linspace(0, 1, 40))
        chosen = kcd.condense_sharded(tracker, sampler, SCHEDULE)
        assert ("mixed=" in repr(chosen)) == (mixing is not None)
