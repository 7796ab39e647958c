"""When a stage ends and how many samples it keeps, against a loop in whole numbers."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import kcd_core as kcd

RATIOS = st.integers(1, 1000).map(lambda parts: f"{parts / 1000:.3f}")


@given(
    n=st.integers(1, 5000),
    ratio=RATIOS,
    stages=st.integers(1, 12),
    period=st.integers(1, 7),
    warmup=st.integers(0, 30),
)
def test_against_a_loop(n: int, ratio: str, stages: int, period: int, warmup: int) -> None:
    schedule = kcd.CondensationSchedule(float(ratio), stages, period, warmup)
    epochs = 60
    sizes = reference.sizes(n, ratio, stages, period, warmup, epochs)
    assert [schedule.size(n, epoch) for epoch in range(1, epochs + 1)] == sizes
    assert [schedule.due(epoch) for epoch in range(1, epochs + 1)] == [
        reference.due(epoch, period, warmup) for epoch in range(1, epochs + 1)
    ]
    for epoch in range(1, epochs):
        if schedule.due(epoch):
            assert schedule.target(n, sizes[epoch - 1]) == sizes[epoch]
        else:
            assert sizes[epoch] == sizes[epoch - 1]


@given(
    n=st.integers(1, 300),
    current=st.integers(1, 300),
    ratio=RATIOS,
    stages=st.integers(1, 5),
    period=st.integers(1, 4),
    warmup=st.integers(0, 9),
    start=st.integers(1, 20),
)
def test_size_from_any_size(
    n: int, current: int, ratio: str, stages: int, period: int, warmup: int, start: int
) -> None:
    """A set of any size (after a stage was left out, say) goes on from there by `target`."""
    schedule = kcd.CondensationSchedule(float(ratio), stages, period, warmup)
    size = current = min(n, current)
    for epoch in range(start, start + 25):
        assert schedule.size_from(n, epoch, current=current, current_epoch=start) == size
        if schedule.due(epoch):
            size = schedule.target(n, size)


class Iterated(kcd.CondensationSchedule):
    """The paper's schedule, its sizes found by asking `due` and `target` again and again."""

    def due(self, epoch: int) -> bool:
        return super().due(epoch)

    def target(self, num_samples: int, previous: int) -> int:
        return super().target(num_samples, previous)


@given(
    n=st.integers(1, 300),
    current=st.integers(1, 300),
    settings=st.tuples(RATIOS.map(float), st.integers(1, 5), st.integers(1, 4), st.integers(0, 9)),
    start=st.integers(1, 20),
    ahead=st.integers(0, 30),
)
def test_the_closed_form_is_the_iteration(
    n: int, current: int, settings: tuple[float, int, int, int], start: int, ahead: int
) -> None:
    closed, iterated = (make(*settings) for make in (kcd.CondensationSchedule, Iterated))
    assert closed.size(n, start) == iterated.size(n, start)
    closed_size, iterated_size = (
        schedule.size_from(n, start + ahead, current=min(n, current), current_epoch=start)
        for schedule in (closed, iterated)
    )
    assert closed_size == iterated_size


@dataclasses.dataclass(frozen=True)
class Own(kcd.CondensationSchedule):
    """Targets and due epochs from a table; `None` for the paper's."""

    targets: tuple[int, ...] | None = None
    epochs: frozenset[int] = frozenset()


class OwnTarget(Own):
    def target(self, num_samples: int, previous: int) -> int:
        assert self.targets is not None
        return self.targets[previous % len(self.targets)] % num_samples + 1


class OwnDue(Own):
    def due(self, epoch: int) -> bool:
        return epoch in self.epochs


class OwnBoth(OwnTarget, OwnDue):
    pass


@given(
    kind=st.sampled_from([OwnTarget, OwnDue, OwnBoth]),
    n=st.integers(1, 60),
    targets=st.lists(st.integers(0, 59), min_size=1, max_size=60).map(tuple),
    due=st.frozensets(st.integers(1, 30)),
    start=st.integers(1, 10),
    current=st.integers(1, 60),
)
def test_sizes_follow_a_schedule_of_ones_own(
    kind: type[Own], n: int, targets: tuple[int, ...], due: frozenset[int], start: int, current: int
) -> None:
    """Shrinking, growing, in circles, at any epochs."""
    schedule = kind(0.3, 3, 2, 0, targets=targets, epochs=due)
    for first, size in ((1, n), (start, min(n, current))):
        begun = size
        for epoch in range(first, 31):
            assert schedule.size_from(n, epoch, current=begun, current_epoch=first) == size
            if (first, begun) == (1, n):
                assert schedule.size(n, epoch) == size
            if schedule.due(epoch):
                size = schedule.target(n, size)


@pytest.mark.parametrize(
    ("wrong", "error", "reason"),
    [
        (0, ValueError, r"Wrong.target\(10, 10\) must be at least 1, got 0"),
        (11, ValueError, r"Wrong.target\(10, 10\) must be at most num_samples = 10, got 11"),
        (5.0, TypeError, r"Wrong.target\(10, 10\) must be an integer, got 5.0"),
        (None, TypeError, r"Wrong.target\(10, 10\) must be an integer, got None"),
    ],
)
def test_a_target_of_ones_own_that_no_set_can_have(wrong: Any, error: type[Exception], reason: str) -> None:
    class Wrong(kcd.CondensationSchedule):
        def target(self, num_samples: int, previous: int) -> Any:
            return wrong

    schedule = Wrong(0.5, 2, 5)
    assert schedule.size(10, 5) == 10  # before the first stage ends, nobody asks
    with pytest.raises(error, match=reason):
        schedule.size(10, 6)


def test_a_loader_draws_what_a_schedule_of_ones_own_says() -> None:
    class InTurn(kcd.CondensationSchedule):
        def target(self, num_samples: int, previous: int) -> Any:
            return np.int64(num_samples // 2 if previous == num_samples else num_samples)

        def due(self, epoch: int) -> bool:
            return epoch != 3

    data = torch.utils.data.TensorDataset(torch.arange(200.0))
    loader = kcd.wrap_loader(
        torch.utils.data.DataLoader(data, batch_size=20, shuffle=True),
        schedule=InTurn(0.5, 1, 1),
        mixing=None,
    )
    promised, drawn = loader.total_steps(5), 0
    for _ in range(5):
        for (x,) in loader:
            loader.record(torch.stack([x, -x], 1))
            drawn += 1
        loader.end_epoch()
    assert promised == drawn == 10 + 5 + 10 + 10 + 5
    assert type(InTurn(0.5, 1, 1).size(200, 2)) is int


def test_paper() -> None:
    schedule = kcd.CondensationSchedule(ratio=0.7, stages=6, period=40)
    expected = np.repeat([50000, 47500, 45000, 42500, 40000, 37500], 40)
    sizes = [schedule.size(50000, epoch) for epoch in range(1, 241)]
    np.testing.assert_array_equal(sizes, expected)
    assert sum(sizes) / (240 * 50000) == 0.875  # the share of plain KD's samples
    assert schedule.size(50000, 241) == schedule.size(50000, 10**9) == 35000
    assert schedule == kcd.CondensationSchedule()


def test_a_floor_leaves_the_last_stage_later() -> None:
    schedule = kcd.CondensationSchedule(ratio=0.5, stages=2, period=1)
    assert [schedule.size(203, epoch) for epoch in range(1, 7)] == [203, 153, 103, 101, 101, 101]


@pytest.mark.parametrize(
    ("ratio", "n", "stages", "step", "last"),
    [
        (0.29, 100, 1, 71, 29),  # binary floating point: 28
        (0.9, 60000, 6, 1000, 54000),  # binary floating point: 999
        (0.7, 10, 1, 3, 7),
        (0.1, 10, 3, 3, 1),
        (1e-9, 10, 1, 9, 1),  # never empty
        (1.0, 7, 3, 0, 7),
        (1, 7, 1, 0, 7),
        (np.float32(0.7), 50000, 6, 2500, 35000),
        (np.float16(0.29), 100, 1, 71, 29),
        (np.float64(0.29), 100, 1, 71, 29),
    ],
)
def test_exact_decimals(ratio: Any, n: int, stages: int, step: int, last: int) -> None:
    schedule = kcd.CondensationSchedule(ratio=ratio, stages=stages, period=1)
    assert schedule.target(n, n) == n - step
    assert schedule.size(n, 1000) == last
    assert schedule.target(n, last) == last  # re-ranked at constant size ever after


@given(n=st.integers(1, 10**12), ratio=st.floats(1e-6, 1), stages=st.integers(1, 40))
def test_bounds(n: int, ratio: float, stages: int) -> None:
    schedule = kcd.CondensationSchedule(ratio=ratio, stages=stages, period=1)
    sizes = [schedule.size(n, epoch) for epoch in range(1, 3 * stages + 3)]
    assert sizes[0] == n
    assert all(1 <= b <= a for a, b in itertools.pairwise(sizes))
    steps = {a - b for a, b in itertools.pairwise(sizes)}
    assert len(steps - {0, max(steps)}) <= 1  # equal steps, but for the last one


@example(epochs=12, stages=6, ratio=0.7)  # a period of 2 would be nearer, and leave no epoch
@given(epochs=st.integers(2, 400), stages=st.integers(1, 20), ratio=RATIOS.map(float))
def test_the_period_for_a_number_of_epochs(epochs: int, stages: int, ratio: float) -> None:
    """Against every period that leaves an epoch: as many are left as a stage has, as nearly as can be."""
    stages = min(stages, epochs - 1)
    schedule = kcd.CondensationSchedule.for_epochs(epochs, ratio, stages)
    assert (schedule.ratio, schedule.stages, schedule.warmup) == (ratio, stages, 0)
    left = {}
    for period in range(1, epochs + 1):
        last_stage = [epoch for epoch in range(1, epochs * stages + 1) if epoch % period == 0][stages - 1]
        if last_stage < epochs:
            left[period] = epochs - last_stage
    off = {period: abs(epochs_left - period) for period, epochs_left in left.items()}
    assert schedule.period in off
    assert off[schedule.period] == min(off.values())
    assert schedule.period == min(period for period in off if off[period] == min(off.values()))
    n = 1000 * stages  # divides evenly, so that no floor makes the last stage a later one
    assert schedule.size(n, epochs) == max(1, n * round(ratio * 1000) // 1000)


@pytest.mark.parametrize(
    ("epochs", "stages", "period", "left"),
    [
        (100, 6, 14, 16),
        (240, 6, 34, 36),
        (24, 6, 3, 6),
        (30, 6, 4, 6),
        (7, 6, 1, 1),
        (11, 6, 1, 5),
        (10, 3, 2, 4),
    ],
)
def test_the_period_for_runs_that_people_make(epochs: int, stages: int, period: int, left: int) -> None:
    schedule = kcd.CondensationSchedule.for_epochs(epochs, ratio=0.7, stages=stages)
    assert (schedule.period, epochs - stages * schedule.period) == (period, left)
    assert schedule.size(100 * stages, epochs) == 70 * stages
    assert schedule.size(100 * stages, epochs - left) > 70 * stages


def test_no_schedule_for_too_few_epochs() -> None:
    with pytest.raises(ValueError, match=r"epochs must be more than stages = 6, .*got 6\. Use fewer stages"):
        kcd.CondensationSchedule.for_epochs(6, 0.7)
    with pytest.raises(TypeError, match="epochs must be an integer"):
        kcd.CondensationSchedule.for_epochs(10.0, 0.7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stages must be at least 1"):
        kcd.CondensationSchedule.for_epochs(10, 0.7, 0)
    with pytest.raises(ValueError, match=r"ratio must be in \(0, 1\]"):
        kcd.CondensationSchedule.for_epochs(10, 70)


def test_warmup_does_not_shift_the_grid() -> None:
    schedule = kcd.CondensationSchedule(ratio=0.5, stages=2, period=10, warmup=11)
    assert [epoch for epoch in range(1, 41) if schedule.due(epoch)] == [20, 30, 40]
    assert [schedule.size(100, epoch) for epoch in (1, 20, 21, 30, 31, 41)] == [100, 100, 75, 75, 50, 50]
    at_the_grid = kcd.CondensationSchedule(ratio=0.5, stages=2, period=10, warmup=10)
    assert at_the_grid.due(10)


@pytest.mark.parametrize("ratio", [0, 0.0, -0.1, 1.0000001, 2, 70, float("nan"), float("inf"), -float("inf")])
def test_ratio_out_of_range(ratio: Any) -> None:
    with pytest.raises(ValueError, match=r"ratio must be in \(0, 1\]"):
        kcd.CondensationSchedule(ratio=ratio)


@pytest.mark.parametrize("ratio", ["most", None, [0.5]])
def test_ratio_not_a_number(ratio: Any) -> None:
    with pytest.raises(TypeError, match="ratio must be a number"):
        kcd.CondensationSchedule(ratio=ratio)


@pytest.mark.parametrize(("name", "minimum"), [("stages", 1), ("period", 1), ("warmup", 0)])
def test_whole_numbers(name: str, minimum: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least {minimum}, got {minimum - 1}"):
        kcd.CondensationSchedule(**{name: minimum - 1})
    for wrong in (2.0, True, "2", None):
        with pytest.raises(TypeError, match=f"{name} must be an integer"):
            kcd.CondensationSchedule(**{name: wrong})
    assert type(getattr(kcd.CondensationSchedule(**{name: np.int32(3)}), name)) is int


def test_bad_questions() -> None:
    schedule = kcd.CondensationSchedule()
    for ask in (schedule.due, lambda epoch: schedule.size(100, epoch)):
        with pytest.raises(ValueError, match="epoch must be at least 1"):
            ask(0)
        with pytest.raises(TypeError, match="epoch must be an integer"):
            ask(1.5)
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        schedule.target(0, 1)
    with pytest.raises(ValueError, match="previous must be at least 1"):
        schedule.target(10, 0)
    with pytest.raises(ValueError, match="previous must be at most num_samples = 10, got 11"):
        schedule.target(10, 11)
    with pytest.raises(ValueError, match="current must be at most num_samples = 10, got 11"):
        schedule.size_from(10, 5, current=11, current_epoch=1)
    with pytest.raises(ValueError, match="epoch must be at least current_epoch = 6, got 5"):
        schedule.size_from(10, 5, current=10, current_epoch=6)
    with pytest.raises(ValueError, match="current_epoch must be at least 1, got 0"):
        schedule.size_from(10, 5, current=10, current_epoch=0)


def test_immutable_and_comparable() -> None:
    schedule = kcd.CondensationSchedule(0.5, 2, 3, 1)
    assert schedule.state_dict() == {"ratio": 0.5, "stages": 2, "period": 3, "warmup": 1}
    assert kcd.CondensationSchedule(**schedule.state_dict()) == schedule
    assert kcd.CondensationSchedule(0.5, 2, 3, 0) != schedule
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.ratio = 0.6  # type: ignore[misc]
