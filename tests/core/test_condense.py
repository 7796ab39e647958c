"""The EM step against a naive float64 reading of the formulas, and what it refuses."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import kcd_core as kcd

ALPHAS = st.sampled_from([0.0, 0.03, 0.5, 1.0])
# Many ties and zeros; negative values, too, which a user's own value function may have.
TIED = st.sampled_from([0.0, -0.0, 0.5, 1.0, 1.0, 2.25, -1.5, 1e-30])
ANY = st.floats(-1e6, 1e6, width=32)


@st.composite
def recorded(draw: Any, values: Any = TIED, counts: Any = None, min_size: int = 1) -> tuple[Any, Any]:
    n = draw(st.integers(min_size, 40))
    count = draw(st.lists(counts or st.sampled_from([0, 1, 1, 2, 7]), min_size=n, max_size=n))
    value = [draw(values) if f else math.nan for f in count]
    return np.array(value), np.array(count, np.int32)


@st.composite
def problems(draw: Any, values: Any = TIED) -> tuple[Any, Any, int, int]:
    value, count = draw(recorded(values))
    return value, count, draw(st.integers(1, len(value))), draw(st.integers(1, len(value)))


def agree(chosen: kcd.CondensedSet, expected: reference.Stage) -> None:
    assert chosen.kept.tolist() == sorted(expected.kept)
    assert chosen.dropped.tolist() == expected.dropped
    assert chosen.tail.tolist() == expected.tail
    np.testing.assert_allclose(chosen.weights, expected.weights, rtol=2e-7, atol=1e-7)
    assert chosen.kept.dtype == chosen.dropped.dtype == chosen.tail.dtype == np.int64
    assert chosen.weights.dtype == np.float32


def same(a: kcd.CondensedSet, b: kcd.CondensedSet) -> None:
    for name in ("kept", "dropped", "tail", "weights"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), strict=True)
    np.testing.assert_equal(a.cut, b.cut)
    assert (a.num_samples, a.stage) == (b.num_samples, b.stage)


@given(st.one_of(problems(), problems(ANY)), ALPHAS, st.sampled_from([0.0, 0.7, 1.0]))
def test_against_the_reference(problem: Any, alpha: float, min_weight: float) -> None:
    value, count, previous, target = problem
    before = value.copy(), count.copy()
    arguments = {"previous": previous, "target": target, "alpha": alpha, "min_weight": min_weight}
    chosen = kcd.condense(value, count, **arguments)
    agree(chosen, reference.condense(value, count, **arguments))
    np.testing.assert_array_equal(value, before[0])
    np.testing.assert_array_equal(count, before[1])
    last = sorted(chosen.kept, key=reference.ranking(value, count, alpha).index)[-1]
    cut = float(value[last]) * float(count[last]) ** alpha if count[last] else math.inf
    assert chosen.cut == pytest.approx(cut, rel=1e-14)


@given(recorded(min_size=4), ALPHAS, st.integers(1, 3), st.integers(1, 5))
def test_stage_after_stage(data: tuple[Any, Any], alpha: float, stages: int, seed: int) -> None:
    """Through tracker, schedule and sampler, with new recordings of what is kept between stages."""
    value, count = data
    assume(count.any())
    n, rng = len(value), np.random.default_rng(seed)
    tracker, sampler = kcd.KnowledgeValueTracker(n), kcd.CondensedSampler(n)
    schedule = kcd.CondensationSchedule(0.4, stages, 1)
    sizes = reference.sizes(n, "0.4", stages, 1, 0, stages + 3)
    record: list[list[float]] = [[float(v)] * int(f) for v, f in zip(value, count, strict=True)]
    for i in range(n):
        tracker.record(np.full(count[i], i), np.full(count[i], value[i]))
    images = rng.integers(0, 256, (n, 2, 2), np.uint8)
    mixed = dict(enumerate(images))
    dataset = type(
        "Images", (), {"data": images, "__len__": lambda _: n, "__getitem__": lambda s, i: s.data[i]}
    )()
    for stage in range(stages + 2):
        chosen = kcd.condense_step(tracker, sampler, schedule, alpha=alpha)
        mean = [math.fsum(x) / len(x) if x else math.nan for x in record]
        # Sums are rounded to 2**-40: these values are multiples of 2**-2, and 1e-30 rounds to 0.
        mean = [round(m, 20) for m in mean]
        expected = reference.condense(
            mean, [len(x) for x in record], previous=sizes[stage], target=sizes[stage + 1], alpha=alpha
        )
        agree(chosen, expected)
        mixed = reference.mix(mixed, expected.tail, expected.dropped, chosen.weights)
        for i in range(n):
            np.testing.assert_array_equal(kcd.mix_arrays(dataset, i, sampler.steps(i)), mixed[i])
        assert chosen.stage == sampler.stage == stage + 1
        drawn = list(sampler)
        tracker.record(drawn, np.full(len(drawn), 0.5 * stage))
        for i in drawn:
            record[i].append(0.5 * stage)


@given(
    values=st.lists(ANY, min_size=1, max_size=40, unique=True),
    random=st.randoms(use_true_random=False),
    alpha=ALPHAS,
)
def test_names_of_points_do_not_matter(values: list[float], random: Any, alpha: float) -> None:
    """Permutation equivariance, where no two scores are equal."""
    n = len(values)
    value, count = np.array(values), np.array([random.randint(1, 9) for _ in values])
    count[0] = 0
    previous, target = random.randint(1, n), random.randint(1, n)
    scores = [v * float(f) ** alpha for v, f in zip(value, count, strict=True) if f]
    assume(len(set(scores)) == len(scores))
    order = np.array(random.sample(range(n), n))
    a = kcd.condense(value, count, previous=previous, target=target, alpha=alpha)
    b = kcd.condense(value[order], count[order], previous=previous, target=target, alpha=alpha)
    np.testing.assert_array_equal(np.sort(order[b.kept]), a.kept)
    np.testing.assert_array_equal(order[b.dropped], a.dropped)
    np.testing.assert_array_equal(order[b.tail], a.tail)


class OnlyDLPack:
    """What an array of a library that kcd has never heard of (JAX, CuPy) looks like to it."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._array.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


@given(problems())
def test_inputs_of_every_kind_are_one(problem: Any) -> None:
    value, count, previous, target = problem
    chosen = partial(kcd.condense, previous=previous, target=target)
    expected = chosen(value, count)
    same(chosen(torch.from_numpy(value), torch.from_numpy(count)), expected)
    same(chosen(torch.from_numpy(value).requires_grad_(), torch.from_numpy(count).long()), expected)
    same(chosen(OnlyDLPack(value), OnlyDLPack(count)), expected)
    same(chosen(OnlyDLPack(torch.from_numpy(value)), torch.from_numpy(count)), expected)
    same(chosen(value.tolist(), count.tolist()), expected)
    same(chosen(np.repeat(value, 2)[::2], count.astype(np.uint8)), expected)  # strided
    value.flags.writeable = False
    same(chosen(value, count), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, torch.bfloat16])
def test_narrow_values(dtype: Any) -> None:
    numbers = [0.5, 0.25, 3.0, 1.5]  # exact in all of them
    value = torch.tensor(numbers, dtype=dtype) if dtype is torch.bfloat16 else np.array(numbers, dtype)
    chosen = kcd.condense(value, np.array([1, 2, 3, 4]), previous=4, target=2)
    same(chosen, kcd.condense(np.array(numbers), np.array([1, 2, 3, 4]), previous=4, target=2))


def test_ties_go_to_the_lower_index() -> None:
    chosen = kcd.condense(np.ones(9), np.ones(9, np.int64), previous=8, target=5)
    assert chosen.kept.tolist() == [0, 1, 2, 3, 4]
    assert chosen.tail.tolist() == [2, 3, 4]
    assert chosen.dropped.tolist() == [5, 6, 7]
    assert chosen.cut == 1.0


def test_count_raises_the_rank() -> None:
    """F ** alpha: of two equal values, the one recorded more often ranks higher; alpha 0 ignores it."""
    value, count = np.array([1.0, 1.0, 0.5]), np.array([1, 40, 40])
    assert kcd.condense(value, count, previous=3, target=1).kept.tolist() == [1]
    assert kcd.condense(value, count, previous=3, target=1, alpha=0).kept.tolist() == [0]
    # 1.1 once is worth less than 1.0 forty times (40 ** 0.03 = 1.117), and more than 1.0 twenty times (1.094)
    value = np.array([1.1, 1.0])
    assert kcd.condense(value, np.array([1, 40]), previous=2, target=1).kept.tolist() == [1]
    assert kcd.condense(value, np.array([1, 20]), previous=2, target=1).kept.tolist() == [0]


def test_never_recorded_ranks_first() -> None:
    value, count = np.array([9.0, math.nan, 5.0, math.inf, -math.inf]), np.array([3, 0, 3, 0, 0])
    chosen = kcd.condense(value, count, previous=5, target=4)
    assert chosen.kept.tolist() == [0, 1, 3, 4]
    assert chosen.dropped.tolist() == [2]
    assert chosen.tail.tolist() == [0]
    assert chosen.cut == pytest.approx(9 * 3**0.03)
    assert kcd.condense(value, count, previous=5, target=3).cut == math.inf
    # An entropy of exactly 0 is a recording, not a missing one: it ranks last.
    chosen = kcd.condense(np.array([0.0, 1.0, math.nan]), np.array([5, 5, 0]), previous=3, target=2)
    assert chosen.kept.tolist() == [1, 2]
    assert chosen.dropped.tolist() == [0]


def test_all_zero_negative_and_never() -> None:
    agree(
        kcd.condense(np.zeros(5), np.ones(5, int), previous=5, target=3),
        reference.condense([0] * 5, [1] * 5, previous=5, target=3),
    )
    agree(
        kcd.condense(np.full(5, math.nan), np.zeros(5, int), previous=5, target=3),
        reference.condense([math.nan] * 5, [0] * 5, previous=5, target=3),
    )


@pytest.mark.parametrize(("previous", "target"), [(6, 6), (3, 6), (1, 4), (6, 10)])
def test_nothing_dropped(previous: int, target: int) -> None:
    """L = 0: ranked anew at the size wanted. (The authors' tail would be the whole set.)"""
    value = np.arange(10.0)[::-1].copy()
    chosen = kcd.condense(value, np.ones(10, int), previous=previous, target=target)
    assert chosen.kept.tolist() == list(range(target))
    assert len(chosen.dropped) == len(chosen.tail) == len(chosen.weights) == 0
    assert chosen.cut == value[target - 1]


def test_a_dropped_point_comes_back() -> None:
    """Ranking is over all points: what was dropped at stage 1 is kept at stage 2, with its old value."""
    tracker, sampler = kcd.KnowledgeValueTracker(4), kcd.CondensedSampler(4)
    schedule = kcd.CondensationSchedule(0.5, 2, 1)
    tracker.record([0, 1, 2, 3], [4.0, 3.0, 2.0, 1.0])
    assert kcd.condense_step(tracker, sampler, schedule).dropped.tolist() == [3]
    tracker.record([0, 1, 2], [0.0, 0.0, 0.0])
    tracker.record([2, 2, 2, 2], [0.0] * 4)  # means: 2, 1.5, 0.33, 1
    assert kcd.condense_step(tracker, sampler, schedule).kept.tolist() == [0, 1]
    tracker.record([0] * 8, [0.0] * 8)  # 0 falls to 0.4, and 3 (1, recorded once) is back
    chosen = kcd.condense_step(tracker, sampler, schedule)
    assert chosen.kept.tolist() == [1, 3]
    assert sorted(sampler) == [1, 3]


def test_more_dropped_than_kept() -> None:
    """The tail can't be longer than the set: the highest dropped points are mixed in, the rest are not."""
    value = np.arange(10.0)[::-1].copy()
    chosen = kcd.condense(value, np.ones(10, int), previous=9, target=2)
    assert chosen.kept.tolist() == chosen.tail.tolist() == [0, 1]
    assert chosen.dropped.tolist() == [2, 3, 4, 5, 6, 7, 8]
    np.testing.assert_allclose(chosen.weights, [1.0, 0.85], rtol=1e-6)
    sampler = kcd.CondensedSampler(10)
    sampler.install(chosen)
    assert [step[:2] for step in sampler.steps(0) + sampler.steps(1)] == [(0, 2), (1, 3)]


def test_weights() -> None:
    chosen = kcd.condense(np.arange(10.0), np.ones(10, int), previous=8, target=5)
    np.testing.assert_allclose(chosen.weights, [1.0, 0.9, 0.8], rtol=1e-6)
    for min_weight, last in [(0.0, 1 / 3), (1.0, 1.0)]:
        chosen = kcd.condense(np.arange(10.0), np.ones(10, int), previous=8, target=5, min_weight=min_weight)
        assert chosen.weights[0] == 1
        assert chosen.weights[-1] == pytest.approx(last)


@given(st.integers(1, 3000), st.floats(0, 1))
def test_weights_stay_in_range(length: int, min_weight: float) -> None:
    chosen = kcd.condense(
        np.zeros(2 * length),
        np.ones(2 * length, int),
        previous=2 * length,
        target=length,
        min_weight=min_weight,
    )
    assert chosen.weights.max() <= 1
    assert chosen.weights.min() >= np.float32(min_weight) - 1e-7
    assert (np.diff(chosen.weights) <= 0).all()


VALUE, COUNT = np.arange(4.0), np.ones(4, np.int64)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"value": np.arange(3.0)}, ValueError, "both be"),
        ({"value": np.arange(5.0)}, ValueError, "both be"),
        ({"value": np.zeros((4, 1))}, ValueError, "both be"),
        ({"value": np.zeros((2, 2)), "count": np.ones((2, 2), int)}, ValueError, "both be"),
        ({"value": np.zeros(0), "count": np.zeros(0, int)}, ValueError, "N >= 1"),
        ({"value": np.arange(4)}, TypeError, "value must be floating-point, got dtype int64"),
        ({"value": np.arange(4) * 1j}, TypeError, "value must be floating-point"),
        ({"count": np.ones(4)}, TypeError, "count must be of an integer dtype, got float64"),
        ({"count": np.ones(4, bool)}, TypeError, "count must be of an integer dtype, got bool"),
        ({"count": np.array([1, 1, -1, 1])}, ValueError, "count must not be negative"),
        ({"value": np.array([0, 1, np.nan, np.nan])}, ValueError, "2 samples are not, the first at index 2"),
        ({"value": np.array([0, 1, 2, np.inf])}, ValueError, "1 samples are not, the first at index 3"),
        ({"value": np.array([-np.inf, 1, 2, 3])}, ValueError, "the first at index 0"),
        ({"previous": 0}, ValueError, "previous must be at least 1, got 0"),
        ({"previous": 5}, ValueError, "previous must be at most the number of samples, 4, got 5"),
        ({"target": 0}, ValueError, "target must be at least 1, got 0"),
        ({"target": 5}, ValueError, "target must be at most the number of samples, 4, got 5"),
        ({"target": 2.0}, TypeError, "target must be an integer"),
        ({"target": True}, TypeError, "target must be an integer"),
        ({"alpha": -0.1}, ValueError, "alpha must be a finite number, at least 0"),
        ({"alpha": np.nan}, ValueError, "alpha"),
        ({"alpha": np.inf}, ValueError, "alpha"),
        ({"min_weight": 1.1}, ValueError, r"min_weight must be in \[0, 1\], got 1.1"),
        ({"min_weight": -0.1}, ValueError, "min_weight"),
        ({"min_weight": np.nan}, ValueError, "min_weight"),
        ({"alpha": "0.03"}, TypeError, r"alpha must be a finite number, at least 0, got '0.03' \(str\)"),
        ({"alpha": None}, TypeError, "alpha must be a finite number"),
        ({"alpha": True}, TypeError, "alpha must be a finite number"),
        ({"min_weight": "0.7"}, TypeError, r"min_weight must be a number in \[0, 1\], got '0.7' \(str\)"),
        ({"min_weight": b"0.7"}, TypeError, "min_weight must be a number"),
        ({"min_weight": None}, TypeError, "min_weight must be a number"),
        ({"min_weight": np.bool_(True)}, TypeError, "min_weight must be a number"),
        ({"stage": 0}, ValueError, "stage must be at least 1"),
    ],
)
def test_refused(change: dict[str, Any], error: Any, message: str) -> None:
    arguments = {"value": VALUE, "count": COUNT, "previous": 4, "target": 3, **change}
    with pytest.raises(error, match=message):
        kcd.condense(arguments.pop("value"), arguments.pop("count"), **arguments)


@pytest.mark.parametrize("value", [[0.0, 1.0, 2.0, 3.0], [-1.0, 0.0, 1.0, 0.5], [1e300] * 4])
@pytest.mark.parametrize("most", [9, 2**21])
def test_an_alpha_whose_scores_are_not_finite_is_refused(value: list[float], most: int) -> None:
    """F ** alpha = inf would make 0 * inf = NaN of a value of 0, and ties of all others."""
    count = np.array([most, 2, most, 1])
    with pytest.raises(ValueError, match=r"alpha = 100000.0 is too large: .* the first at index 0"):
        kcd.condense(np.array(value), count, previous=4, target=2, alpha=1e5)
    # Where nothing was recorded more than once, any alpha will do.
    chosen = kcd.condense(np.array(value), np.array([1, 0, 1, 1]), previous=4, target=2, alpha=1e5)
    same(chosen, kcd.condense(np.array(value), np.array([1, 0, 1, 1]), previous=4, target=2))


def test_a_score_that_overflows_is_refused() -> None:
    """The power is finite, the product is not."""
    with pytest.raises(ValueError, match=r"alpha = 1.0 is too large: .*1 samples, the first at index 1"):
        kcd.condense(np.array([1.0, 1e308]), np.array([40, 40]), previous=2, target=1, alpha=1.0)


def test_a_step_with_a_huge_alpha_changes_nothing() -> None:
    tracker, sampler, schedule = ready()
    tracker.record([3] * 9, [1.0] * 9)
    with pytest.raises(ValueError, match=r"alpha = 100000\.0 is too large"):
        kcd.condense_step(tracker, sampler, schedule, alpha=1e5)
    unchanged(sampler)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kept": []}, ValueError, "at least one"),
        ({"kept": [2, 1]}, ValueError, "ascending"),
        ({"kept": [1, 1]}, ValueError, "ascending"),
        ({"kept": [0, 6]}, IndexError, r"kept must lie in 0 .. 5"),
        ({"kept": [-1, 2]}, IndexError, "kept must lie in"),
        ({"kept": [0.0, 1.0]}, TypeError, "kept must be a one-dimensional array of integers"),
        ({"kept": [[0, 1]]}, TypeError, "kept must be a one-dimensional"),
        ({"kept": np.ones(6, bool)}, TypeError, "kept must be a one-dimensional array of integers"),
        ({"num_samples": 0}, ValueError, "num_samples"),
        ({"stage": 0}, ValueError, "stage"),
        ({"tail": [1]}, ValueError, "one length"),
        ({"tail": [1], "weights": [0.5]}, ValueError, "one length"),
        ({"tail": [4], "dropped": [5], "weights": [0.5]}, ValueError, "tail must hold kept samples only"),
        ({"tail": [1], "dropped": [2], "weights": [0.5]}, ValueError, "dropped must hold no kept sample"),
        ({"tail": [1, 1], "dropped": [4, 5], "weights": [0.5, 0.5]}, ValueError, "tail must be without"),
        ({"tail": [1, 2], "dropped": [4, 4], "weights": [0.5, 0.5]}, ValueError, "dropped must be without"),
        ({"tail": [1], "dropped": [4], "weights": [1.5]}, ValueError, "weights must lie in"),
        ({"tail": [1], "dropped": [4], "weights": [np.nan]}, ValueError, "weights must lie in"),
    ],
)
def test_a_set_that_contradicts_itself(change: dict[str, Any], error: Any, message: str) -> None:
    arguments: dict[str, Any] = {"kept": [0, 1, 2, 3], "num_samples": 6, **change}
    with pytest.raises(error, match=message):
        kcd.CondensedSet(**arguments)


def test_set_by_hand() -> None:
    chosen = kcd.CondensedSet(kept=[0, 2], num_samples=3, dropped=[1], tail=[2], weights=[0.5])
    assert chosen.kept.dtype == np.int64
    assert chosen.weights.dtype == np.float32
    assert chosen.stage == 1
    assert math.isnan(chosen.cut)


@pytest.mark.parametrize("ratio", ["0.7", b"0.5", bytearray(b"0.5"), True, np.bool_(True), np.str_("0.7")])
def test_a_ratio_that_only_looks_like_a_number(ratio: Any) -> None:
    with pytest.raises(TypeError, match="ratio must be a number"):
        kcd.CondensationSchedule(ratio=ratio)


@pytest.mark.parametrize("ratio", [0.5, np.float32(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2)])
def test_numbers_of_any_kind_are_settings(ratio: Any) -> None:
    assert kcd.CondensationSchedule(ratio=ratio).ratio == 0.5
    chosen = kcd.condense(VALUE, COUNT, previous=4, target=3, alpha=ratio, min_weight=ratio)
    same(chosen, kcd.condense(VALUE, COUNT, previous=4, target=3, alpha=0.5, min_weight=0.5))


# -- condense_step -------------------------------------------------------------------------------------


def ready(n: int = 10) -> tuple[Any, Any, Any]:
    tracker = kcd.KnowledgeValueTracker(n)
    tracker.record(np.arange(n), np.arange(n, dtype=float))
    return tracker, kcd.CondensedSampler(n), kcd.CondensationSchedule(0.5, 2, 1)


def unchanged(sampler: Any) -> None:
    assert sampler.stage == 0
    assert sampler.num_kept == sampler.num_samples
    assert len(sampler.recipes) == 0


def test_step_is_unconditional_and_numbers_its_stages() -> None:
    tracker, sampler, _ = ready()
    schedule = kcd.CondensationSchedule(0.5, 2, period=1000, warmup=10**6)
    for stage, size in enumerate([8, 6, 5, 5], 1):
        chosen = kcd.condense_step(tracker, sampler, schedule)
        assert (chosen.stage, sampler.stage, len(sampler.kept)) == (stage, stage, size)
        assert len(chosen.tail) == (2, 2, 1, 0)[stage - 1]


def test_nothing_recorded_changes_nothing() -> None:
    _, sampler, schedule = ready()
    with pytest.raises(RuntimeError, match="no value was ever recorded"):
        kcd.condense_step(kcd.KnowledgeValueTracker(10), sampler, schedule)
    unchanged(sampler)


def test_sizes_disagree() -> None:
    tracker, _, schedule = ready()
    sampler = kcd.CondensedSampler(11)
    with pytest.raises(ValueError, match="num_samples = 10 and 11"):
        kcd.condense_step(tracker, sampler, schedule)
    unchanged(sampler)


def test_ranks_without_a_process_group() -> None:
    tracker, _, schedule = ready()
    sampler = kcd.CondensedSampler(10, num_replicas=2, rank=1)
    with pytest.raises(RuntimeError, match=r"one of num_replicas = 2 ranks.*init_process_group"):
        kcd.condense_step(tracker, sampler, schedule)
    unchanged(sampler)


def test_settings_are_passed_on() -> None:
    tracker, sampler, schedule = ready(4)
    tracker.record([0] * 99, [0.0] * 99)
    tracker.record([1] * 99, [1.0] * 99)
    arguments = {"alpha": 2.0, "min_weight": 0.25}
    chosen = kcd.condense_step(tracker, sampler, schedule, **arguments)
    same(chosen, kcd.condense(tracker.value, tracker.count, previous=4, target=3, **arguments))
    assert chosen.kept.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="alpha"):
        kcd.condense_step(tracker, sampler, schedule, alpha=-1)
    assert sampler.stage == 1


def test_step_installs_in_anything() -> None:
    class Target:
        num_samples = 10
        kept = np.arange(10)
        installed = None

        def install(self, condensed_set: Any) -> None:
            self.installed = condensed_set

    tracker, _, schedule = ready()
    target = Target()
    assert kcd.condense_step(tracker, target, schedule) is target.installed
    assert target.installed.kept.tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    assert target.installed.stage == 1


def test_select() -> None:
    seen = []

    def select(value: Any, count: Any, kept: Any, target: int, generator: Any) -> kcd.CondensedSet:
        seen.append((value.copy(), count.copy(), kept.copy(), target, generator.random()))
        return kcd.CondensedSet(np.sort(generator.choice(len(value), target, replace=False)), len(value))

    results = []
    for seed in (0, 0, 1):
        tracker, _, schedule = ready()
        sampler = kcd.CondensedSampler(10, seed=seed)
        sets = [kcd.condense_step(tracker, sampler, schedule, select=select) for _ in range(2)]
        assert [s.stage for s in sets] == [1, 2]
        np.testing.assert_array_equal(sampler.kept, sets[1].kept)
        np.testing.assert_array_equal(seen[-1][2], sets[0].kept)
        results.append([s.kept.tolist() for s in sets])
    np.testing.assert_array_equal(seen[0][0], np.arange(10.0))
    np.testing.assert_array_equal(seen[0][1], np.ones(10))
    assert [s[3] for s in seen[:2]] == [8, 6]
    # The generator is that of seed and stage: ranks agree, and a resumed run does.
    assert results[0] == results[1] != results[2]
    assert seen[0][4] != seen[1][4]


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (kcd.CondensedSet([0, 1, 2], 10), ValueError),  # 8 were promised
        (kcd.CondensedSet(np.arange(8), 11), ValueError),
        (np.arange(8), TypeError),
        (None, TypeError),
    ],
)
def test_select_breaks_its_promise(result: Any, error: Any) -> None:
    tracker, sampler, schedule = ready()
    with pytest.raises(error, match="select must"):
        kcd.condense_step(tracker, sampler, schedule, select=lambda *_: result)
    unchanged(sampler)
