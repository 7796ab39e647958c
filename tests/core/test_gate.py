"""The teacher's gate by hand, and the loss for a batch of which some rows were asked, against readings by index."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

import kcd_core as kcd

N = 32
QUARTER = kcd.CondensationSchedule(ratio=0.25, stages=1, period=1)


def values_of(epoch: int) -> Any:
    return np.random.default_rng([7, epoch]).uniform(0, 2, N)


def test_all_are_asked_first_and_then_the_top_share_of_all_samples() -> None:
    """Over five epochs, against a ranking of everything recorded; some samples leave and come back."""
    gate, tracker = kcd.TeacherGate(N), kcd.KnowledgeValueTracker(N)
    record: list[list[float]] = [[] for _ in range(N)]
    sets = []
    assert gate.asked(np.arange(N)).all()
    assert gate.num_kept == N
    assert gate.stage == 0
    for epoch in range(1, 6):
        recorded = np.flatnonzero(np.random.default_rng([8, epoch]).random(N) < 0.8)
        tracker.record(recorded, values_of(epoch)[recorded])
        for i in recorded:
            record[i].append(values_of(epoch)[i])
        chosen = kcd.condense_step(tracker, gate, QUARTER)
        value = [math.fsum(x) / len(x) if x else math.nan for x in record]
        expected = sorted(reference.ranking(value, [len(x) for x in record], 0.03)[: N // 4])
        assert gate.kept.tolist() == chosen.kept.tolist() == expected
        assert gate.stage == chosen.stage == epoch
        assert gate.num_kept == N // 4
        assert np.flatnonzero(gate.asked(np.arange(N))).tolist() == expected
        sets.append(set(expected))
    assert any(
        i in first and i not in then and i in last
        for first, then, last in zip(sets, sets[1:], sets[2:], strict=False)
        for i in range(N)
    )


def test_what_was_never_recorded_is_asked() -> None:
    gate, tracker = kcd.TeacherGate(N), kcd.KnowledgeValueTracker(N)
    tracker.record(np.arange(3, N), values_of(1)[3:])
    kcd.condense_step(tracker, gate, QUARTER)
    assert gate.asked([0, 1, 2]).all()


@given(
    st.lists(st.integers(-1, N - 1), max_size=12),
    st.sets(st.integers(0, N - 1), min_size=1),
    st.integers(0, 2**12 - 1),
    st.integers(1, 5),
)
def test_the_rows_that_are_asked(indices: list[int], kept: set[int], bits: int, multiple: int) -> None:
    gate = kcd.TeacherGate(N)
    gate.install(kcd.CondensedSet(np.array(sorted(kept)), N))
    mixed = [bool(bits >> row & 1) for row in range(len(indices))]
    rows = [row for row, i in enumerate(indices) if i >= 0 and (i in kept or mixed[row])]
    spare = [row for row, i in enumerate(indices) if i >= 0 and row not in rows]
    while len(rows) % multiple and spare:
        rows.append(spare.pop(0))
    for given_as in (indices, np.array(indices, np.int64), torch.tensor(indices, dtype=torch.int64)):
        asked = gate.asked(given_as, mixed=np.array(mixed, bool), multiple=multiple)
        assert asked.dtype == bool
        assert np.flatnonzero(asked).tolist() == sorted(rows)
    assert gate.kept.tolist() == sorted(kept)


def test_what_is_wrong_is_named() -> None:
    gate = kcd.TeacherGate(N)
    with pytest.raises(IndexError, match=r"indices must lie in -1 \.\. 31, got \[32\]"):
        gate.asked([1, 32])
    with pytest.raises(TypeError, match="indices must be in host memory, got a tensor on meta"):
        gate.asked(torch.zeros(3, dtype=torch.int64, device="meta"))
    with pytest.raises(ValueError, match=r"mixed must be \[2\]"):
        gate.asked([1, 2], mixed=[True])
    with pytest.raises(TypeError, match="mixed must be booleans"):
        gate.asked([1, 2], mixed=[1, 0])
    with pytest.raises(ValueError, match="multiple must be"):
        gate.asked([1], multiple=0)
    with pytest.raises(ValueError, match="the set is of 3 samples, this gate of 32"):
        gate.install(kcd.CondensedSet(np.array([1]), 3))
    assert gate.stage == 0
    assert gate.asked([5]).all()


def test_the_smallest_gate_is_of_one_sample() -> None:
    gate, tracker = kcd.TeacherGate(1), kcd.KnowledgeValueTracker(1)
    tracker.record([0], [0.5])
    kcd.condense_step(tracker, gate, QUARTER)
    assert gate.kept.tolist() == [0]
    assert gate.asked([0, -1]).tolist() == [True, False]
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        kcd.TeacherGate(0)


def run_of(gate: kcd.TeacherGate) -> kcd.Condensation:
    return kcd.Condensation(gate, schedule=QUARTER)


def train(run: kcd.Condensation, *epochs: int) -> list[list[int]]:
    sets = []
    for epoch in epochs:
        run.record(values=values_of(epoch), indices=np.arange(N))
        run.end_epoch()
        sets.append(run.sampler.kept.tolist())
    return sets


def test_a_run_of_a_gate_is_saved_and_goes_on() -> None:
    run, again = run_of(kcd.TeacherGate(N)), run_of(kcd.TeacherGate(N))
    train(run, 1, 2)
    file = io.BytesIO()
    torch.save(run.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert again.sampler.kept.tolist() == run.sampler.kept.tolist()
    assert again.sampler.stage == 2
    assert train(again, 3, 4) == train(run, 3, 4)
    assert [stage["kept"] for stage in again.history] == [8] * 4
    assert again.sampler.fingerprint() == run.sampler.fingerprint()


def test_a_gates_short_name_is_of_its_set_and_stage() -> None:
    gates = [kcd.TeacherGate(N) for _ in range(3)]
    assert len({gate.fingerprint() for gate in gates}) == 1
    for gate, kept in zip(gates, ([3, 9], [3, 10], [3, 9]), strict=True):
        gate.install(kcd.CondensedSet(np.array(kept), N))
    gates[2].install(kcd.CondensedSet(np.array([3, 9]), N))
    assert len({gate.fingerprint() for gate in gates}) == 3


def test_an_epochs_end_that_fails_leaves_the_gate_as_it_was() -> None:
    class Interrupted(kcd.TeacherGate):
        def install(self, condensed_set: kcd.CondensedSet) -> None:
            super().install(condensed_set)
            if self.stage == 2:
                raise KeyboardInterrupt

    run = run_of(Interrupted(N))
    train(run, 1)
    before = run.sampler.kept.tolist()
    with pytest.raises(KeyboardInterrupt):
        train(run, 2)
    assert run.sampler.kept.tolist() == before
    assert run.sampler.stage == 1
    assert run.epoch == 2
    assert len(run.history) == 1


def test_a_gate_beside_a_sampler_shares_its_tracker() -> None:
    """Two runs by hand: the samples that are drawn, and those that are asked."""
    draws = kcd.Condensation(
        kcd.CondensedSampler(N, seed=0, mixing=None),
        schedule=kcd.CondensationSchedule(0.5, stages=1, period=1),
    )
    asks = kcd.Condensation(kcd.TeacherGate(N), schedule=QUARTER, tracker=draws.tracker)
    draws.record(values=values_of(1), indices=np.arange(N))
    draws.end_epoch()
    asks.end_epoch()
    order = sorted(range(N), key=lambda i: -values_of(1)[i])
    assert draws.sampler.kept.tolist() == sorted(order[:16])
    assert asks.sampler.kept.tolist() == sorted(order[:8])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_samples": 33}, "num_samples"),
        ({"version": 2}, "of version 2"),
        ({"stage": -1}, "stage must be at least 0"),
        ({"asked": torch.zeros(3, dtype=torch.uint8)}, "must be bits of 32 samples"),
        ({"asked": torch.zeros(4, dtype=torch.int64)}, "must be bits of 32 samples"),
        ({"asked": torch.zeros(4, dtype=torch.uint8)}, "its set is empty"),
    ],
    ids=["size", "version", "stage", "length", "dtype", "empty"],
)
def test_a_damaged_state_is_refused(change: dict[str, Any], message: str) -> None:
    gate, other = kcd.TeacherGate(N), kcd.TeacherGate(N)
    gate.install(kcd.CondensedSet(np.array([3, 9, 29]), N))
    other.load_state_dict(gate.state_dict())
    assert other.kept.tolist() == [3, 9, 29]
    assert other.stage == 1
    fresh = kcd.TeacherGate(N)
    with pytest.raises(ValueError, match=message):
        fresh.load_state_dict({**gate.state_dict(), **change})
    assert fresh.num_kept == N
    assert fresh.stage == 0


# -- the loss --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("divide_by", ["batch", "asked"])
@pytest.mark.parametrize("rows", [[], [0], [1, 4, 5], list(range(6))], ids=["none", "one", "some", "all"])
def test_the_loss_and_its_gradient(rows: list[int], divide_by: Any) -> None:
    rng = np.random.default_rng(0)
    label, teacher = rng.uniform(0, 3, 6), rng.uniform(0, 9, len(rows))
    weights: dict[str, Any] = {"label_weight": 0.2, "teacher_weight": 0.7, "unasked_weight": 1.5}
    expected = sum((0.2 if i in rows else 1.5) * label[i] for i in range(6)) / 6
    divisor = 6 if divide_by == "batch" else len(rows)
    expected += 0.7 * sum(teacher) / divisor if rows else 0
    a, b = (torch.tensor(x, requires_grad=True) for x in (label, teacher))
    loss = kcd.gated_loss(a, b, torch.tensor(rows, dtype=torch.int64), **weights, divide_by=divide_by)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert a.grad is not None
    assert b.grad is not None
    assert a.grad.tolist() == pytest.approx([(0.2 if i in rows else 1.5) / 6 for i in range(6)])
    assert b.grad.tolist() == pytest.approx([0.7 / divisor for _ in rows])


def test_rows_may_be_a_list_or_of_numpy() -> None:
    label, teacher = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([8.0, 9.0])
    losses = {
        kcd.gated_loss(label, teacher, rows).item()  # type: ignore[arg-type]
        for rows in ([2, 0], np.array([0, 2])[::-1], torch.tensor([2, 0], dtype=torch.int32))
    }
    assert len(losses) == 1


def test_the_default_is_the_documented_rule() -> None:
    """Cross-entropy at weight 1 where nobody was asked, 0.1 of it and 0.9 of the teacher's loss elsewhere, over B."""
    loss = kcd.gated_loss(torch.tensor([1.0, 2.0]), torch.tensor([8.0]), torch.tensor([1]))
    assert loss.item() == pytest.approx((1 + 0.1 * 2 + 0.9 * 8) / 2)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"label_losses": torch.tensor(1.0)}, ValueError, "label_losses must be one-dimensional"),
        ({"label_losses": torch.ones(0)}, ValueError, "at least one row"),
        ({"label_losses": [1.0]}, TypeError, "label_losses must be a floating tensor"),
        ({"teacher_losses": torch.ones(2)}, ValueError, r"rows must be \[2\]"),
        ({"rows": torch.tensor([3])}, IndexError, r"rows must lie in 0 \.\. 2"),
        ({"rows": torch.tensor([-1])}, IndexError, r"rows must lie in 0 \.\. 2"),
        ({"rows": torch.tensor([True])}, TypeError, "rows must be integers"),
        ({"unasked_weight": -1}, ValueError, "unasked_weight must be"),
        ({"label_weight": math.inf}, ValueError, "label_weight must be"),
        ({"divide_by": "rows"}, ValueError, "divide_by"),
    ],
    ids=lambda x: "" if not isinstance(x, dict) else next(iter(x)),
)
def test_a_loss_of_wrong_parts_is_refused(given: dict[str, Any], error: type, message: str) -> None:
    right = {
        "label_losses": torch.ones(3),
        "teacher_losses": torch.ones(1),
        "rows": torch.tensor([2]),
    }
    with pytest.raises(error, match=message):
        kcd.gated_loss(**{**right, **given})  # type: ignore[arg-type]
