"""V and F against a naive float64 mean; whatever the order, batching, back end or precision."""

from __future__ import annotations

import copy
import inspect
import io
import math
import pickle
import random
import sys
import threading
import warnings
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SECONDS, examples
from hypothesis import given
from hypothesis import strategies as st

import kcd_core as kcd
from kcd_core.base.arrays import as_indices, checked_range
from kcd_core.skipped import SkipReport
from kcd_core.sums import MAX_TOTAL, SCALE
from kcd_core.values import host_entropy
from kcd_core.waiting import MAX_PENDING

Tracker = kcd.KnowledgeValueTracker
BACK_ENDS = pytest.mark.parametrize("device", [None, "cpu"], ids=["numpy", "torch"])
# Small enough for the sum of all that a test records never to be full, which makes the order matter.
VALUES = st.one_of(st.floats(-4, 4, width=32), st.floats(-(2.0**15), 2.0**15))


def number(x: Any) -> Any:
    return x.numpy() if isinstance(x, torch.Tensor) else x


def sums(tracker: Any) -> list[list[int]]:
    return [x.tolist() for x in tracker.sums()]


def untouched(tracker: Any) -> None:
    assert not number(tracker.count).any()
    assert np.isnan(number(tracker.value)).all()
    assert tracker.skipped == {"nonfinite": 0, "out_of_range": 0}


# -- what is recorded ----------------------------------------------------------------------------------


@BACK_ENDS
@given(recordings=st.lists(st.tuples(st.integers(0, 6), VALUES), max_size=60))
def test_mean_and_count(device: Any, recordings: list[tuple[int, float]]) -> None:
    tracker = Tracker(8, device=device)
    for place in range(0, len(recordings), 7):
        batch = recordings[place : place + 7]
        tracker.record([i for i, _ in batch], [v for _, v in batch])
    for i in range(8):
        mine = [v for j, v in recordings if j == i]
        assert int(tracker.count[i]) == len(mine)
        if mine:
            assert int(tracker.sums()[0][i]) == sum(round(v * SCALE) for v in mine)
            mean = math.fsum(mine) / len(mine)
            # Half a unit of the sum for each value, and float64's rounding of sum and mean.
            assert abs(float(tracker.value[i]) - mean) <= 0.5 / SCALE + 3 * math.ulp(mean)
        else:
            assert math.isnan(tracker.value[i])
    assert number(tracker.value).dtype == np.float64
    assert number(tracker.count).dtype == np.int32


@given(
    recordings=st.lists(st.tuples(st.integers(0, 4), VALUES), min_size=1, max_size=80),
    random=st.randoms(use_true_random=False),
    data=st.data(),
)
def test_order_batching_and_back_end_do_not_matter(recordings: Any, random: Any, data: Any) -> None:
    """To the bit: sums are integers."""
    want = None
    for device in (None, "cpu"):
        for size in (1, data.draw(st.integers(2, 80)), len(recordings)):
            shuffled = random.sample(recordings, len(recordings))
            tracker = Tracker(5, device=device)
            for place in range(0, len(shuffled), size):
                indices, values = zip(*shuffled[place : place + size], strict=True)
                tracker.record(np.array(indices), np.array(values))
            want = want or sums(tracker)
            assert sums(tracker) == want


def test_sums_of_parts_add_up() -> None:
    rng = np.random.default_rng(0)
    whole, parts = Tracker(20), [Tracker(20), Tracker(20, device="cpu"), Tracker(20)]
    for step in range(50):
        indices, values = rng.integers(0, 20, 9), rng.normal(size=9)
        whole.record(indices, values)
        parts[step % 3].record(indices, values)
    for total, *each in zip(whole.sums(), *(p.sums() for p in parts), strict=True):
        np.testing.assert_array_equal(total, sum(each))
    np.testing.assert_array_equal(Tracker.mean(*whole.sums()), whole.value)


@BACK_ENDS
def test_duplicates_in_a_batch_each_count(device: Any) -> None:
    tracker = Tracker(3, device=device)
    tracker.record([1, 1, 1, 2, 1], [1.0, 2.0, 4.0, 8.0, 1.0])
    assert number(tracker.count).tolist() == [0, 4, 1]
    assert number(tracker.value)[1:].tolist() == [2.0, 8.0]


@BACK_ENDS
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_update_records_the_entropy(device: Any, dtype: str) -> None:
    logits = torch.randn(16, 7, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    tracker = Tracker(16, device=device)
    tracker.update(torch.arange(16), logits.requires_grad_())
    np.testing.assert_allclose(number(tracker.value), kcd.entropy(logits.detach()).double(), atol=1e-12)
    log_p = torch.log_softmax(logits.detach().double(), -1)
    np.testing.assert_allclose(number(tracker.value), -(log_p.exp() * log_p).sum(-1), atol=1e-5)


@BACK_ENDS
def test_a_saturated_student_is_recorded_as_zero(device: Any) -> None:
    """An entropy of 0 is a value, not "not recorded"."""
    tracker = Tracker(2, device=device)
    tracker.update([0], np.array([[200.0, 0.0, 0.0]], np.float32))
    assert number(tracker.count).tolist() == [1, 0]
    assert number(tracker.value)[0] == 0


@BACK_ENDS
@pytest.mark.parametrize("integer", [np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64])
def test_index_dtypes_and_containers(device: Any, integer: Any) -> None:
    tracker = Tracker(5, device=device)
    indices = np.array([4, 0], integer)
    values = np.array([1.0, 2.0])
    for kind in (
        indices,
        indices.tolist(),
        tuple(indices.tolist()),
        torch.from_numpy(indices.astype(np.int64)),
    ):
        tracker.record(kind, values)
    tracker.record(torch.from_numpy(indices.astype(np.int32)), torch.from_numpy(values).float())
    tracker.record([], [])
    tracker.record(np.repeat(indices, 2)[::2], values.tolist())
    assert number(tracker.count).tolist() == [6, 0, 0, 0, 6]
    assert number(tracker.value)[[4, 0]].tolist() == [1.0, 2.0]


def test_back_ends_and_index_kinds_mixed_in_one_run() -> None:
    """Waiting steps of different kinds (NumPy logits, tensors, half precision) are all added."""
    for device in (None, "cpu"):
        tracker = Tracker(4, device=device)
        for step in range(3 * MAX_PENDING + 5):
            kind = (np.float32, np.float64, torch.float32, torch.bfloat16)[step % 4]
            values = [0.5, 0.25]
            given = (
                torch.tensor(values, dtype=kind) if isinstance(kind, torch.dtype) else np.array(values, kind)
            )
            tracker.record([step % 4, 3], given)
        assert int(tracker.count.sum()) == 2 * (3 * MAX_PENDING + 5)
        assert number(tracker.value)[:3].tolist() == [0.5, 0.5, 0.5]


def test_logits_of_every_kind_wait_in_turn() -> None:
    """Tensors of torch's own class, of another, parameters, and arrays, contiguous and not, of each precision."""

    class Other(torch.Tensor):
        pass

    rng = np.random.default_rng(0)
    kinds = (torch.tensor, np.asarray, lambda x: torch.tensor(x).as_subclass(Other), lambda x: torch.nn.Parameter(torch.tensor(x)),
             lambda x: torch.tensor(x.T.copy()).T)  # fmt: skip
    tracker, expected = Tracker(6 * MAX_PENDING + 10), {}
    for step in range(3 * MAX_PENDING + 5):
        logits = rng.normal(size=(2, 5)).astype((np.float64, np.float32)[step // 2 % 2])
        tracker.update([2 * step, 2 * step + 1], kinds[step % len(kinds)](logits))
        expected.update(zip([2 * step, 2 * step + 1], host_entropy(logits), strict=True))
    assert tracker.count.sum() == len(expected)
    np.testing.assert_allclose(tracker.value[list(expected)], list(expected.values()), rtol=0, atol=2**-40)


# -- what waits ----------------------------------------------------------------------------------------


@BACK_ENDS
@pytest.mark.parametrize("steps", [1, MAX_PENDING - 1, MAX_PENDING, MAX_PENDING + 1, 3 * MAX_PENDING + 2])
@pytest.mark.parametrize("read", ["value", "count", "sums", "state_dict", "skipped", "to", "pickle"])
def test_everything_that_reads_adds_first(device: Any, steps: int, read: str) -> None:
    tracker = Tracker(3, device=device)
    for step in range(steps):
        tracker.record([step % 2], [float(step)])
        assert len(tracker.recordings.waiting) < MAX_PENDING
    if read == "to":
        tracker = tracker.to("cpu" if device is None else None)
    elif read == "pickle":
        tracker = pickle.loads(pickle.dumps(tracker))
    else:
        got = getattr(tracker, read)
        got = got() if callable(got) else got
        assert not tracker.recordings.waiting
        if read == "count":
            assert int(got.sum()) == steps
        if read == "state_dict":
            assert int(got["count"].sum()) == steps
    assert int(tracker.count.sum()) == steps
    assert float(tracker.value[0]) == np.mean(range(0, steps, 2))


@BACK_ENDS
@pytest.mark.parametrize("as_tensor", [False, True])
def test_buffers_may_be_overwritten(device: Any, as_tensor: bool) -> None:
    """Logits (a compiled student's, a CUDA graph's), values and indices: all are free after the call."""
    logits, indices, values = np.zeros((2, 3)), np.zeros(2, np.int64), np.zeros(2)
    given = [torch.from_numpy(x) if as_tensor else x for x in (logits, indices, values)]
    tracker = Tracker(4, device=device)
    for step in range(5):
        logits[:], indices[:], values[:] = 0.0, [0, 1], step
        tracker.update(given[1], given[0])
        logits[:], indices[:] = [[99.0, 0, 0]] * 2, 3
        indices[:] = [2, 2]
        tracker.record(given[1], given[2])
        indices[:], values[:] = 3, 77.0
    assert number(tracker.count).tolist() == [5, 5, 10, 0]
    np.testing.assert_allclose(number(tracker.value)[:3], [math.log(3), math.log(3), 2.0])


@BACK_ENDS
def test_a_value_that_is_a_view_of_the_logits(device: Any) -> None:
    """What a user's function returns may be a view: it is copied before it waits."""
    for made in (np.zeros, torch.zeros):
        logits = made((2, 3))
        tracker = Tracker(2, device=device, value=lambda z: z[:, 0])
        for step in range(3):
            logits[:] = step + 1
            tracker.update([0, 1], logits)
            logits[:] = 50
        assert number(tracker.value).tolist() == [2.0, 2.0]


@BACK_ENDS
def test_what_is_read_is_a_copy(device: Any) -> None:
    tracker = Tracker(2, device=device)
    tracker.record([0, 1], [1.0, 2.0])
    tracker.value[:] = 9
    tracker.count[:] = 9
    for x in (*tracker.sums(), tracker.state_dict()["total"], tracker.state_dict()["count"]):
        x[:] = 9
    assert number(tracker.value).tolist() == [1.0, 2.0]
    assert number(tracker.count).tolist() == [1, 1]


# -- what is refused -----------------------------------------------------------------------------------


@BACK_ENDS
@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([0, -2], IndexError, r"must lie in 0 .. 9, got \[-2\]"),
        ([0, 10], IndexError, r"must lie in 0 .. 9, got \[10\]"),
        ([10**15, -(10**15)], IndexError, "nothing of this batch was recorded"),
        (np.array([2**63, 1], np.uint64), IndexError, "must lie in"),
        (torch.tensor([0, 10]), IndexError, "must lie in"),
        (torch.tensor([-2, -1], dtype=torch.int8), IndexError, "must lie in"),
        ([0.0, 1.0], TypeError, "indices must be integers, got dtype float64"),
        (torch.tensor([0.0, 1.0]), TypeError, "indices must be integers, got dtype float32"),
        ([True, False], TypeError, "indices must be integers, got dtype bool"),
        (torch.tensor([True, False]), TypeError, "indices must be integers, got dtype bool"),
        (["a", "b"], TypeError, "indices must be integers"),
        (None, TypeError, "indices must be integers"),
        ([[0, 1]], ValueError, r"indices must be \[B\], got shape \(1, 2\)"),
        (np.int64(1), ValueError, r"indices must be \[B\], got shape \(\)"),
        ([0], ValueError, "1 indices for 2 samples"),
        ([0, 1, 2], ValueError, "3 indices for 2 samples"),
        ([], ValueError, "0 indices for 2 samples"),
    ],
)
def test_indices_refused(device: Any, indices: Any, error: Any, message: str) -> None:
    for give in (
        lambda tracker: tracker.record(indices, [1.0, 2.0]),
        lambda tracker: tracker.update(indices, np.zeros((2, 3))),
        lambda tracker: tracker.update(indices, torch.zeros(2, 3)),
    ):
        tracker = Tracker(10, device=device)
        with pytest.raises(error, match=message):
            give(tracker)
        untouched(tracker)


@BACK_ENDS
def test_a_refused_batch_leaves_the_others(device: Any) -> None:
    tracker = Tracker(3, device=device)
    tracker.record([0], [1.0])
    with pytest.raises(IndexError):
        tracker.record([1, 3], [1.0, 1.0])
    tracker.record([2], [3.0])
    assert number(tracker.count).tolist() == [1, 0, 1]


@BACK_ENDS
@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([[1.0], [2.0]], ValueError, r"values must be \[B\], one per index, got shape \(2, 1\)"),
        (1.0, ValueError, r"values must be \[B\]"),
        ([1.0], ValueError, "2 indices for 1 samples"),
        ([True, False], TypeError, "values must be real numbers, got dtype bool"),
        ([1j, 2j], TypeError, "values must be real numbers, got dtype complex128"),
        (["1", "2"], TypeError, "values must be real numbers"),
        ([None, 1.0], TypeError, "values must be real numbers"),
        (torch.tensor([True, False]), TypeError, "values must be real numbers, got dtype bool"),
    ],
)
def test_values_refused(device: Any, values: Any, error: Any, message: str) -> None:
    tracker = Tracker(10, device=device)
    with pytest.raises(error, match=message):
        tracker.record([0, 1], values)
    untouched(tracker)


@pytest.mark.parametrize("value", ["entropy", "margin", lambda z: z[:, 0]])
def test_a_host_tracker_refuses_what_is_not_in_host_memory(value: Any) -> None:
    tracker = Tracker(4, value=value)
    tracker.record([0], torch.tensor([1.0]))
    for give in (
        lambda: tracker.update([1, 2], torch.zeros(2, 3, device="meta")),
        lambda: tracker.record([1, 2], torch.zeros(2, device="meta")),
    ):
        with pytest.raises(TypeError, match=r"logits are on meta but the tracker is in host memory"):
            give()
    assert tracker.count.tolist() == [1, 0, 0, 0]


@BACK_ENDS
def test_what_waits_survives_a_failure_to_add_it(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError("no room")

    tracker = Tracker(4, device=device)
    tracker.record([0, 1], torch.tensor([1.0, 2.0]))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "cat", fails)
        patch.setattr("kcd_core.base.arrays.NumPy.join", staticmethod(fails))
        for _ in range(2):
            with pytest.raises(MemoryError):
                tracker.value  # noqa: B018
    assert number(tracker.count).tolist() == [1, 1, 0, 0]
    assert number(tracker.value)[:2].tolist() == [1.0, 2.0]


TRACED = ("tracker.py", "recorded_values.py", "recordings.py", "sums.py", "skipped.py")


def interrupted(place: int, function: Any) -> bool:
    """Call ``function``; Ctrl-C comes at the ``place``-th line of the tracker's, or return from one of its functions, if there is one."""
    lines = 0

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.endswith(TRACED):
            return None
        # A generator's return is told when it yields, too, and as it is thrown away.
        counts = event == "line" or (event == "return" and not frame.f_code.co_flags & inspect.CO_GENERATOR)
        lines += counts
        if counts and lines == place:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    with torch.enable_grad():  # puts back the mode, if Ctrl-C comes as torch leaves another
        sys.settrace(trace)
        try:
            function()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
    return False


@BACK_ENDS
@pytest.mark.parametrize("large", [False, True])
def test_an_interrupt_while_adding_neither_loses_nor_adds_twice(device: Any, large: bool) -> None:
    """Between any two lines, and as a call returns. Large values are added on the host a half at a time."""
    made = ([0, 1, 1], [0.5, 2.0**20, 2.0**20]) if large else ([0, 1, 1], [0.5, 1.0, 4.0])
    want = Tracker(3, device=device)
    for _ in range(2):
        want.record(*made)
    for place in range(1, 1000):
        tracker = Tracker(3, device=device)
        for _ in range(2):
            tracker.record(*made)
        came = interrupted(place, lambda tracker=tracker: tracker.count)
        assert sums(tracker) == sums(want), place
        assert tracker.skipped == want.skipped, place
        if not came:
            break
    assert not came
    assert place > 15


@BACK_ENDS
@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16, torch.float32])
def test_whole_numbers_and_narrow_values_that_wait_together(device: Any, narrow: Any) -> None:
    """Both are recorded as they are: 2049 is no float16, and 2**20 - 1 no bfloat16."""
    tracker = Tracker(3, device=device)
    tracker.record([0, 2], torch.tensor([2049, 2**20 - 1]))
    tracker.record([1], torch.tensor([1.0], dtype=narrow))
    assert number(tracker.value).tolist() == [2049.0, 1.0, 2.0**20 - 1]


def test_whole_numbers_are_values() -> None:
    tracker = Tracker(2)
    tracker.record([0, 1], [3, -4])
    assert tracker.value.tolist() == [3.0, -4.0]


def test_settings_refused() -> None:
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="num_samples must be at least 1"):
            Tracker(wrong)
    for wrong in (1.0, "3", None, True):
        with pytest.raises(TypeError, match="num_samples must be an integer"):
            Tracker(wrong)
    with pytest.raises(ValueError, match="value must be 'entropy', "):
        Tracker(3, value="entropie")
    with pytest.raises(ValueError, match="on_nonfinite must be 'skip' or 'raise', got 'ignore'"):
        Tracker(3, on_nonfinite="ignore")


# -- what is not finite --------------------------------------------------------------------------------


@BACK_ENDS
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "value", ["entropy", "cross_entropy", "kd_divergence", "margin", "reducible_loss", "mine"]
)
def test_a_bad_logit_is_skipped_counted_and_warned_of_once(device: Any, bad: float, value: str) -> None:
    mine = value == "mine"
    # A user's function that hides the NaN: the logits are looked at all the same.
    hides = partial(lambda z, **_: (z * 0).nan_to_num(0, 0, 0)[:, 0])
    tracker = Tracker(4, device=device, value=hides if mine else value)
    logits = torch.zeros(4, 5)
    logits[2, 1] = bad
    for _ in range(3):
        tracker.update([0, 1, 2, 3], logits, teacher_logits=torch.zeros(4, 5), targets=torch.zeros(4).long())
    with pytest.warns(RuntimeWarning, match="3 values were not finite") as caught:
        tracker.value  # noqa: B018
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once
        tracker.update([2], logits[2:3], teacher_logits=torch.zeros(1, 5), targets=torch.zeros(1).long())
        assert number(tracker.count).tolist() == [3, 3, 0, 3]
        assert np.isnan(number(tracker.value)).tolist() == [False, False, True, False]
    assert tracker.skipped == {"nonfinite": 4, "out_of_range": 0}


@BACK_ENDS
def test_copies_and_states_share_no_sums_with_their_tracker(device: Any) -> None:
    tracker = Tracker(4, device=device)
    tracker.record([0, 1], [1.0, 2.0])
    state, before = tracker.state_dict(), sums(tracker)
    loaded, copied = Tracker(4, device=device), copy.copy(tracker)
    loaded.load_state_dict(state)
    again = Tracker(4, device=device)
    for one in (tracker, loaded, copied):
        one.record([1, 2], [4.0, 8.0])
        sums(one)
        assert [x.tolist() for x in (state["total"], state["count"])] == before
    assert sums(tracker) == sums(loaded) == sums(copied) != before
    again.load_state_dict(state)
    assert sums(again) == before


def test_each_cause_is_told_once_with_the_indices_that_there_are() -> None:
    """As a tracker tells what a device skipped, where indices can't be looked at on the way."""
    report = SkipReport("skip", looks=False)
    with pytest.warns(
        RuntimeWarning, match=r"2 recordings had an index outside 0 \.\. 3 and were not recorded"
    ):
        report.tell(np.array([0, 2]), 4)
    with pytest.warns(RuntimeWarning, match="3 values were not finite") as caught:
        report.tell(np.array([3, 5]), 4)
    assert len(caught) == 1
    strict = SkipReport("raise", looks=False)
    with pytest.raises(IndexError, match=r"2 recordings had an index outside 0 \.\. 3"):
        strict.tell(np.array([1, 2]), 4)
    with pytest.raises(ValueError, match="4 values were not finite"):
        strict.tell(np.array([5, 2]), 4)
    strict.tell(np.array([5, 2]), 4)


@BACK_ENDS
def test_a_nan_never_reaches_the_ranking(device: Any) -> None:
    tracker, sampler = Tracker(4, device=device), kcd.CondensedSampler(4)
    tracker.record([0, 1, 2, 3], [1.0, math.nan, math.inf, 3.0])
    tracker.record([1, 2], [0.5, 2.0])
    with pytest.warns(RuntimeWarning):
        chosen = kcd.condense_step(tracker, sampler, kcd.CondensationSchedule(0.5, 1, 1))
    assert chosen.kept.tolist() == [2, 3]


def test_raise_records_nothing_of_that_batch() -> None:
    tracker = Tracker(4, on_nonfinite="raise")
    tracker.record([0], [1.0])
    for bad in (math.nan, math.inf, -math.inf, 2.0**20 + 1):
        with pytest.raises(ValueError, match="1 values were not finite"):
            tracker.record([1, 2], [1.0, bad])
    with pytest.raises(ValueError, match="not finite"):
        tracker.update([1, 2], np.array([[0.0, 1.0], [0.0, math.nan]]))
    assert tracker.count.tolist() == [1, 0, 0, 0]
    assert tracker.skipped == {"nonfinite": 0, "out_of_range": 0}


def test_raise_on_a_device_comes_when_read() -> None:
    """Looking would stall every step there, so it comes with the first read; then the rest can be read."""
    tracker = Tracker(4, device="cpu", on_nonfinite="raise")
    tracker.record([0, 1], [1.0, math.nan])
    with pytest.raises(ValueError, match="1 values were not finite"):
        tracker.value  # noqa: B018
    assert number(tracker.count).tolist() == [1, 0, 0, 0]
    tracker.record([2], [math.inf])
    with pytest.raises(ValueError, match="1 values were not finite"):
        tracker.sums()


@BACK_ENDS
def test_values_beyond_the_fixed_point_range(device: Any) -> None:
    """2**20 is still recorded, exactly; anything larger is counted as not recordable."""
    tracker = Tracker(4, device=device)
    tracker.record([0, 1, 2, 3], [2.0**20, -(2.0**20), 2.0**20 + 0.5, -1e300])
    with pytest.warns(RuntimeWarning, match="2 values were not finite.* or larger"):
        assert number(tracker.count).tolist() == [1, 1, 0, 0]
    assert number(tracker.value)[:2].tolist() == [2.0**20, -(2.0**20)]
    assert tracker.skipped["nonfinite"] == 2


@BACK_ENDS
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.filterwarnings("ignore:.*larger than:RuntimeWarning")
def test_a_sum_stops_before_it_wraps(device: Any, sign: int) -> None:
    """Beyond 2**62 nothing is added to a sample's sum, and what is not is counted."""
    tracker = Tracker(2, device=device)
    for _ in range(20):
        tracker.record([0, 1], [sign * 2.0**20, sign * 1.0])
        tracker.count  # noqa: B018
    total, count = tracker.sums()
    assert count.tolist() == [5, 20]  # the fifth went beyond
    assert total.tolist() == [sign * 5 * 2**60, sign * 20 * 2**40]
    assert tracker.skipped == {"nonfinite": 15, "out_of_range": 0}
    assert number(tracker.value).tolist() == [sign * 2.0**20, sign * 1.0]


@BACK_ENDS
def test_a_full_sum_is_named_as_the_cause(device: Any) -> None:
    tracker = Tracker(1, device=device)
    for _ in range(3):
        tracker.record([0] * 2, [2.0**20] * 2)
        tracker.count  # noqa: B018
    tracker.record([0], [1.0])
    with pytest.warns(
        RuntimeWarning, match=r"1 values were .*of a sample whose values add up to more than 2\*\*22"
    ):
        tracker.count  # noqa: B018


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.filterwarnings("ignore:.*larger than:RuntimeWarning")
def test_a_sum_does_not_wrap_within_the_steps_that_wait(sign: int) -> None:
    tracker = Tracker(3)
    for _ in range(3 * MAX_PENDING):
        tracker.record([0, 1, 0, 2], [sign * 2.0**20, sign * 1.0, sign * 2.0**20, 0.25])
    total, count = tracker.sums()
    assert MAX_TOTAL <= sign * int(total[0]) < 2**63 - 1
    assert total[0] == sign * int(count[0]) * 2**60
    assert count.tolist() == [count[0], 3 * MAX_PENDING, 3 * MAX_PENDING]
    assert total[1:].tolist() == [sign * 3 * MAX_PENDING * int(SCALE), 3 * MAX_PENDING * int(SCALE) // 4]
    assert tracker.skipped["nonfinite"] == 6 * MAX_PENDING - count[0]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("in_one_batch", [True, False])
@pytest.mark.filterwarnings("ignore:.*larger than:RuntimeWarning")
def test_a_sum_on_a_device_does_not_wrap_within_the_steps_that_wait(sign: int, in_one_batch: bool) -> None:
    """They are added at once, without looking: those of a sample whose sum would wrap are refused together."""
    for recordings in (2, 5, 6, 7, 8, 10, 16, 31, 40):
        tracker = Tracker(3, device="cpu")
        indices, values = [0, 1] * recordings, [sign * 2.0**20, sign * 1.0] * recordings
        for place in range(0, len(indices), len(indices) if in_one_batch else 2):
            size = len(indices) if in_one_batch else 2
            tracker.record(indices[place : place + size], values[place : place + size])
        total, count = tracker.sums()
        assert total[0] == sign * int(count[0]) * 2**60
        assert count[0] <= 6
        assert count[0] == recordings or recordings > 6
        assert (total[1], count[1]) == (sign * recordings * 2**40, recordings)
        assert tracker.skipped == {"nonfinite": recordings - count[0], "out_of_range": 0}
        assert np.isnan(number(tracker.value)).tolist() == [count[0] == 0, False, True]


def test_a_sum_on_a_device_may_pass_the_end_on_its_way() -> None:
    """Large values that cancel out are all recorded, as on the host."""
    values = [2.0**20] * 15 + [-(2.0**20)] * 15 + [0.5]
    device = Tracker(1, device="cpu")
    device.record([0] * 31, values)
    assert sums(device) == [[2**39], [31]]
    assert device.skipped == {"nonfinite": 0, "out_of_range": 0}


# -- a user's own value --------------------------------------------------------------------------------


@BACK_ENDS
def test_callables_get_what_was_passed_and_nothing_else(device: Any) -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    tracker = Tracker(3, device=device, value=lambda z: z.max(-1).values)
    tracker.update([0, 1, 2], logits)
    np.testing.assert_allclose(number(tracker.value), logits.max(-1).values.double())

    tracker = Tracker(3, device=device, value=lambda z, teacher_logits: (z - teacher_logits).abs().sum(-1))
    tracker.update([0, 1, 2], logits, teacher_logits=logits + 1)
    np.testing.assert_allclose(number(tracker.value), [4.0] * 3, rtol=1e-6)

    seen = []
    tracker = Tracker(3, device=device, value=lambda z, **given: seen.append(given) or z[:, 0])
    tracker.update([0, 1, 2], logits, targets=torch.tensor([1, 2, 3]))
    assert list(seen[0]) == ["targets"]
    with pytest.raises(TypeError):  # the function's own: it was given what it does not take
        Tracker(3, device=device, value=lambda z: z[:, 0]).update([0, 1, 2], logits, targets=[1, 2, 3])


@BACK_ENDS
@pytest.mark.parametrize("value", [lambda z: z, lambda z: z.sum(), lambda z: z[:2, 0], lambda z: z[:, :1]])
def test_callables_of_the_wrong_shape(device: Any, value: Any) -> None:
    for made in (np.zeros, torch.zeros):
        tracker = Tracker(3, device=device, value=value)
        with pytest.raises(ValueError, match=r"one value per sample, shape \(3,\), got"):
            tracker.update([0, 1, 2], made((3, 4)))
        untouched(tracker)


RETURNED = {
    "array": lambda z: np.asarray(z).max(-1),
    "tensor": lambda z: torch.as_tensor(z).max(-1).values,
    "list": lambda z: [float(row.max()) for row in z],
    "whole numbers": lambda z: np.asarray(z).max(-1).astype(np.int64),
    "whole tensor": lambda z: torch.as_tensor(z).max(-1).values.long(),
    "backwards": lambda z: np.asarray(z).max(-1)[::-1][::-1],
}


@BACK_ENDS
@pytest.mark.parametrize("made", [np.float16, np.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("returned", RETURNED)
def test_callables_may_return_any_kind_of_array(device: Any, returned: str, made: Any) -> None:
    rows = [[0, 7, 1], [2048, 5, 6], [3, -1, 1]]
    logits = torch.tensor(rows, dtype=made) if isinstance(made, torch.dtype) else np.array(rows, made)
    tracker = Tracker(3, device=device, value=RETURNED[returned])
    tracker.update([0, 1, 2], logits)
    assert number(tracker.value).tolist() == [7.0, 2048.0, 3.0]


def test_callables_that_return_large_whole_numbers() -> None:
    """2049 is no float16, which the logits are."""
    tracker = Tracker(2, value=lambda z: torch.tensor([2049, 1]))
    tracker.update([0, 1], torch.zeros(2, 3, dtype=torch.float16))
    assert tracker.value.tolist() == [2049.0, 1.0]


@BACK_ENDS
@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (lambda z: z[:, 0] > 0, "bool"),
        (lambda z: z[:, 0] * 1j, "complex"),
        (lambda z: np.array([None, 1.0], object), "object"),
        (lambda z: ["1", "2"], "<U1"),
    ],
)
def test_callables_that_return_no_real_numbers(device: Any, value: Any, dtype: str) -> None:
    for made in (np.zeros, torch.zeros):
        tracker = Tracker(2, device=device, value=value)
        with pytest.raises(TypeError, match=f"value function must return real numbers, got dtype {dtype}"):
            tracker.update([0, 1], made((2, 3)))
        untouched(tracker)


@BACK_ENDS
def test_callables_run_without_a_graph(device: Any) -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    seen = []
    tracker = Tracker(2, device=device, value=lambda z: seen.append(torch.is_grad_enabled()) or (2 * z)[:, 0])
    tracker.update([0, 1], logits * 1)
    assert seen == [False]
    assert torch.is_grad_enabled()
    assert all(not getattr(x, "requires_grad", False) for _, x in tracker.recordings.waiting)


def test_logits_are_checked_for_callables_too() -> None:
    tracker = Tracker(2, value=lambda z: z[:, 0])
    with pytest.raises(TypeError, match="student_logits must be floating-point"):
        tracker.update([0, 1], np.zeros((2, 3), int))
    with pytest.raises(ValueError, match="C >= 2"):
        tracker.update([0, 1], np.zeros((2, 1)))


def test_missing_argument_names_the_value() -> None:
    tracker = Tracker(2, value="kd_divergence")
    with pytest.raises(ValueError, match="'kd_divergence' needs teacher_logits="):
        tracker.update([0, 1], np.zeros((2, 3)))
    untouched(tracker)


# -- padding -----------------------------------------------------------------------------------------------


@BACK_ENDS
@pytest.mark.parametrize(
    "convert", [list, np.array, torch.tensor, lambda x: torch.tensor(x, dtype=torch.int32)]
)
@pytest.mark.parametrize("value", ["entropy", "cross_entropy", "kd_divergence", lambda z, **given: z[:, 0]])
@pytest.mark.parametrize("indices", [[3, -1, 0, -1], [-1, 2], [-1, -1, -1], [1, 0], []])
def test_padding_is_not_recorded(device: Any, convert: Any, value: Any, indices: list[int]) -> None:
    """Its rows may hold anything: NaN, and targets that are no class."""
    rng = np.random.default_rng(0)
    padding = np.array(indices, int) == -1
    student, teacher = (rng.normal(size=(len(indices), 5)) for _ in range(2))
    targets = rng.integers(0, 5, len(indices))
    want = Tracker(4, device=device, value=value)
    rows = ~padding
    want.update(
        np.array(indices, int)[rows], student[rows], teacher_logits=teacher[rows], targets=targets[rows]
    )
    student[padding], teacher[padding], targets[padding] = math.nan, math.inf, -100
    for made in (np.asarray, torch.from_numpy):
        got = Tracker(4, device=device, value=value, on_nonfinite="raise")
        given = {"teacher_logits": made(teacher), "targets": made(targets)}
        index = convert(indices) if indices else []
        assert got.update(index, made(student), **given) == rows.sum()
        assert sums(got) == sums(want)
        again = Tracker(4, device=device, on_nonfinite="raise")
        assert again.record(index, made(np.where(padding, math.nan, 1.0))) == rows.sum()
        assert number(again.count).tolist() == number(want.count).tolist()


@BACK_ENDS
def test_padding_hides_no_row_too_many(device: Any) -> None:
    for wrong in (
        {"student_logits": np.zeros((3, 5))},
        {"student_logits": np.zeros((2, 5)), "targets": [0, 1, 2]},
        {"student_logits": np.zeros((2, 5)), "teacher_logits": np.zeros((1, 5))},
    ):
        tracker = Tracker(4, device=device, value=lambda z, **_: z[:, 0])
        with pytest.raises(ValueError, match="2 indices"):
            tracker.update([0, -1], **wrong)
        untouched(tracker)


# -- what is no logits -----------------------------------------------------------------------------------------


class Output(dict):
    """As Hugging Face's are: a dict whose entries are attributes, too."""

    logits = torch.zeros(8, 5)


@BACK_ENDS
@pytest.mark.parametrize(
    ("output", "message"),
    [
        ((torch.zeros(8, 5), torch.zeros(8, 64)), r"got a tuple of 2: .*output\[0\]"),
        ([np.zeros((8, 5)), None, None], r"got a list of 3: .*output\[0\]"),
        ((torch.tensor(0.5), torch.zeros(8, 5)), "got a tuple of 2"),
        ((torch.zeros(8, 5),) * 8, "got a tuple of 8"),
        (Output(loss=1), r"got a Output: pass its \.logits"),
        ({"logits": torch.zeros(8, 5), "loss": 1}, r'got a dict: pass its \["logits"\]'),
        ({"out": torch.zeros(8, 5), "aux": None}, r"one entry of \['out', 'aux'\]"),
        (torch.zeros(8, 7, 5), r"got shape \(8, 7, 5\); .*record\(values=\.\.\.\)"),
        (torch.zeros(8, 1), r"got shape \(8, 1\); a binary student's .*torch\.cat"),
        (torch.zeros(8), r"got shape \(8,\); a binary student's"),
    ],
)
@pytest.mark.parametrize("value", ["entropy", "margin", lambda z: z[:, 0]])
def test_what_a_model_returns_around_its_logits(device: Any, output: Any, message: str, value: Any) -> None:
    tracker = Tracker(8, device=device, value=value)
    with pytest.raises((TypeError, ValueError), match=f"student_logits must .*{message}"):
        tracker.update(range(8), output)
    untouched(tracker)


def test_the_way_of_a_binary_student() -> None:
    z = torch.randn(8, 1, dtype=torch.float64)
    p = torch.sigmoid(z[:, 0])
    tracker = Tracker(8)
    tracker.update(range(8), torch.cat([torch.zeros_like(z), z], 1))
    np.testing.assert_allclose(tracker.value, -(p * p.log() + (1 - p) * (1 - p).log()), atol=1e-12)


PRECISIONS = [np.float32, np.float64, torch.float16, torch.bfloat16, torch.float32]


def said_of(*batches: Any, **settings: Any) -> list[str]:
    tracker = Tracker(64, **settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for logits in batches:
            tracker.update(range(len(logits)), logits, targets=np.zeros(len(logits), int))
        tracker.report()
        tracker.report()
    return [f"{w.category.__name__}: {w.message}" for w in caught if w.filename == __file__]


def made(logits: torch.Tensor, dtype: Any) -> Any:
    return logits.to(dtype) if isinstance(dtype, torch.dtype) else logits.numpy().astype(dtype)


@BACK_ENDS
@pytest.mark.parametrize("value", ["entropy", "cross_entropy", "margin"])
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("classes", [2, 100, 20_000])
def test_probabilities_in_the_place_of_logits_are_told_once(
    device: Any, value: str, dtype: Any, classes: int
) -> None:
    logits = 3 * torch.randn(16, classes, generator=torch.Generator().manual_seed(0))
    p = made(logits.softmax(-1), dtype)
    said = said_of(p[:0], p, p, value=value, device=device)  # an empty batch is no batch
    assert len(said) == 1
    assert said[0].startswith("UserWarning: student_logits looks like probabilities")


@BACK_ENDS
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(
    "logits_of",
    [
        lambda z: z,
        lambda z: z.log_softmax(-1),  # of which the softmax is the probabilities
        lambda z: z.relu(),
        lambda z: z.sigmoid(),
        lambda z: z * 0,
        lambda z: torch.eye(16, 10)[:10],
        lambda z: z.softmax(-1) * 10,
        lambda z: torch.cat([z[:1], z[1:].softmax(-1)]),  # not all
    ],
)
def test_logits_are_not_taken_for_probabilities(device: Any, dtype: Any, logits_of: Any) -> None:
    z = 3 * torch.randn(16, 10, generator=torch.Generator().manual_seed(0))
    assert said_of(made(logits_of(z), dtype), made(z.softmax(-1), dtype), device=device) == []


def test_a_value_of_ones_own_may_be_one_of_probabilities() -> None:
    p = torch.randn(16, 10).softmax(-1)
    assert said_of(p, value=lambda z, targets: -(z * z.log()).sum(-1)) == []


@BACK_ENDS
def test_where_warnings_are_errors_probabilities_are_not_recorded(device: Any) -> None:
    tracker = Tracker(16, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="looks like probabilities"):
            tracker.update(range(16), torch.randn(16, 10).softmax(-1))
    untouched(tracker)


@pytest.mark.parametrize("read", ["value", "report"])
def test_probabilities_on_a_device_are_told_when_it_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    monkeypatch.setattr("kcd_core.base.arrays.Torch.on_host", lambda self, x: False)
    tracker = Tracker(16, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2 * MAX_PENDING):
            tracker.update(np.arange(16), torch.randn(16, 10).softmax(-1))
    with pytest.warns(UserWarning, match="looks like probabilities") as caught:
        tracker.report() if read == "report" else tracker.value
    assert len(caught) == 1
    assert number(tracker.count).tolist() == [2 * MAX_PENDING] * 16


# -- torch's modes -------------------------------------------------------------------------------------


@BACK_ENDS
def test_inference_mode(device: Any) -> None:
    with torch.inference_mode():
        inside = Tracker(2, device=device)
        logits = torch.zeros(2, 3)
        inside.update([0, 1], logits)
    outside = Tracker(2, device=device)
    for tracker in (inside, outside):
        for _ in range(MAX_PENDING + 1):
            tracker.update([0, 1], logits)  # tensors made in inference mode, read outside of it
        tracker.update([0, 1], torch.zeros(2, 3, requires_grad=True))
        with torch.inference_mode():
            for _ in range(MAX_PENDING + 1):
                tracker.update([0, 1], torch.zeros(2, 3))
        np.testing.assert_allclose(number(tracker.value), math.log(3), rtol=1e-6)
    assert number(outside.count).tolist() == [2 * MAX_PENDING + 3] * 2


@BACK_ENDS
def test_autocast(device: Any) -> None:
    student = torch.nn.Linear(6, 5)
    tracker = Tracker(8, device=device)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = student(torch.randn(8, 6))
        assert logits.dtype == torch.bfloat16
        tracker.update(torch.arange(8), logits)
    np.testing.assert_allclose(
        number(tracker.value), kcd.entropy(logits.detach().double()), rtol=1e-5, atol=1e-6
    )


@BACK_ENDS
def test_the_students_gradient_is_untouched(device: Any) -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    tracker = Tracker(4, device=device)
    loss = (logits**2).sum()
    tracker.update(range(4), logits)
    loss.backward()
    torch.testing.assert_close(logits.grad, 2 * logits.detach())


@BACK_ENDS
def test_compiled_student(device: Any) -> None:
    student = torch.compile(torch.nn.Linear(4, 3), backend="aot_eager")
    tracker = Tracker(4, device=device)
    images = torch.randn(4, 4)
    for _ in range(3):
        logits = student(images)
        tracker.update(range(4), logits)
        logits.sum().backward()
    np.testing.assert_allclose(number(tracker.value), kcd.entropy(student(images).detach()), rtol=1e-5)


@pytest.mark.parametrize(("classes", "backend"), [(10, "aot_eager"), (2000, "eager")])
@BACK_ENDS
@pytest.mark.filterwarnings("ignore")  # torch's compiler's own
def test_recording_in_a_compiled_step(device: Any, classes: int, backend: str) -> None:
    compiled, plain = Tracker(50, device=device), Tracker(50, device=device)

    def step(tracker: Any, indices: Any, logits: Any) -> Any:
        doubled = logits * 2
        tracker.update(indices, doubled)
        tracker.record(indices, doubled[:, 0])
        tracker.update(drawn, doubled)
        return doubled.sum()

    torch._dynamo.reset()
    made = torch.compile(partial(step, compiled), backend=backend)
    for _ in range(MAX_PENDING):
        indices, logits, drawn = torch.randint(50, (8,)), torch.randn(8, classes), np.arange(8)
        made(indices, logits)
        step(plain, indices, logits)
    torch._dynamo.reset()
    assert sums(compiled) == sums(plain)
    assert number(compiled.count).sum() == 3 * 8 * MAX_PENDING


def test_a_default_device_is_the_users_business() -> None:
    want = Tracker(4, device="cpu")
    want.record([1, 2], [0.5, 0.25])
    torch.set_default_device("meta")
    try:
        tracker = Tracker(4, device="cpu")
        tracker.record([1, 2], [0.5, 0.25])
        got = sums(tracker)
    finally:
        torch.set_default_device(None)
    assert got == sums(want)


class Wrapper(torch.Tensor):
    """As a DTensor is: made of other tensors, which only it knows."""

    def __tensor_flatten__(self) -> Any:
        return ["inner"], None


@BACK_ENDS
def test_tensors_without_memory_are_refused_at_once(device: Any) -> None:
    tracker = Tracker(4, device=device)
    tracker.record([0], [1.0])
    for logits in (torch.zeros(2, 3).as_subclass(Wrapper), torch.zeros(2, 3).to_sparse()):
        with pytest.raises(TypeError, match=r"student_logits must be a plain tensor, got a (Wrapper|Tensor)"):
            tracker.update([1, 2], logits)
    with pytest.raises(TypeError, match="values must be a plain tensor"):
        tracker.record([1, 2], torch.zeros(2).as_subclass(Wrapper))
    assert number(tracker.count).tolist() == [1, 0, 0, 0]


# -- threads -------------------------------------------------------------------------------------------


@BACK_ENDS
def test_threads_record_and_read(device: Any) -> None:
    """Nothing is lost or counted twice, whoever reads meanwhile."""
    updates, writers, each = 150, 3, 20
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(each, 4)).astype(np.float32) for _ in range(updates)]
    tracker, alone = Tracker(each, device=device), Tracker(each, device=device)
    for logits in batches * writers:
        alone.update(np.arange(each), logits)
    done, failed = threading.Event(), []

    def run(work: Any) -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    def write() -> None:
        for logits in batches:
            tracker.update(np.arange(each), logits)

    def read() -> None:
        while not done.is_set():
            mean, state, copied = tracker.value, tracker.state_dict(), copy.deepcopy(tracker)
            assert len(mean) == each
            assert len(set(state["count"].tolist())) == 1  # whole batches
            assert len(set(number(copied.count).tolist())) == 1

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        reader = threading.Thread(target=run, args=(read,))
        threads = [threading.Thread(target=run, args=(write,)) for _ in range(writers)]
        for thread in (reader, *threads):
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        done.set()
        reader.join()
        sys.setswitchinterval(interval)
    assert not failed
    assert sums(tracker) == sums(alone)
    assert tracker.batches == updates * writers


@BACK_ENDS
def test_no_lock_is_held_while_a_value_function_runs(device: Any) -> None:
    """It may wait for another thread, which reads."""
    counts = []

    def value(logits: Any) -> Any:
        thread = threading.Thread(target=lambda: counts.append(number(tracker.count).tolist()))
        thread.start()
        thread.join(SECONDS)
        assert not thread.is_alive()
        return logits[:, 0]

    tracker = Tracker(2, device=device, value=value)
    for _ in range(2):
        tracker.update([0, 1], np.ones((2, 3)))
    assert counts == [[0, 0], [1, 1]]


# -- state ---------------------------------------------------------------------------------------------


def filled(device: Any, **settings: Any) -> Any:
    tracker = Tracker(6, device=device, **settings)
    rng = np.random.default_rng(0)
    for _ in range(MAX_PENDING + 3):
        tracker.record(rng.integers(0, 5, 4), rng.normal(size=4))
    return tracker


@pytest.mark.parametrize("to", [None, "cpu"])
@BACK_ENDS
def test_state_survives_a_safe_load(device: Any, to: Any) -> None:
    tracker = filled(device)
    file = io.BytesIO()
    torch.save(tracker.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = filled(to)
    other.record([0], [5.0])  # what waits in the other one is replaced as well
    other.load_state_dict(state)
    assert sums(other) == sums(tracker)
    state["total"][:] = 0
    assert sums(other) == sums(tracker)
    assert other.device == (None if to is None else torch.device(to))
    for t in (tracker, other):
        t.record([0, 5], [0.125, 2.0])
    assert sums(other) == sums(tracker)


def test_skipped_is_part_of_the_state() -> None:
    tracker = Tracker(2)
    tracker.record([0, 1], [math.nan, 1.0])
    with pytest.warns(RuntimeWarning):
        tracker.value  # noqa: B018
    state = tracker.state_dict()
    other = Tracker(2, on_nonfinite="raise")
    other.load_state_dict(state)
    assert other.skipped == {"nonfinite": 1, "out_of_range": 0}
    assert other.count.tolist() == [0, 1]  # what was reported before is not reported again


DAMAGE = {
    "another N": ({"num_samples": 7}, "saved with num_samples = 7, here it is 6"),
    "another version": ({"version": 2}, "saved with version = 2, here it is 1|is of version 2"),
    "another value": ({"value": "margin"}, "saved with value = 'margin', here it is 'entropy'"),
    "short": ({"total": torch.zeros(5, dtype=torch.int64)}, "damaged"),
    "two-dimensional": ({"total": torch.zeros(6, 1, dtype=torch.int64)}, "damaged"),
    "floats": ({"total": torch.zeros(6)}, "damaged"),
    "wide counts": ({"count": torch.ones(6, dtype=torch.int64)}, "damaged"),
    "negative count": ({"count": torch.full((6,), -1, dtype=torch.int32)}, "contradict"),
    "sums without counts": ({"count": torch.zeros(6, dtype=torch.int32)}, "contradict"),
    "skipped of three": ({"skipped": [0, 0, 0]}, "skipped|damaged"),
}


def test_partials_are_told_apart_by_what_they_set() -> None:
    def tracker(**settings: Any) -> Any:
        return Tracker(2, value=partial(kcd.kd_divergence, **settings))

    state = tracker(temperature=4.0).state_dict()
    assert state["value"] == "kd_divergence(temperature=4.0)"
    tracker(temperature=4.0).load_state_dict(state)
    tracker(temperature=np.float64(4.0)).load_state_dict(state)
    for other in (tracker(temperature=2.0), tracker(), Tracker(2, value="kd_divergence")):
        with pytest.raises(ValueError, match=r"saved with value = 'kd_divergence\(temperature=4.0\)'"):
            other.load_state_dict(state)
    assert tracker().state_dict()["value"] == "kd_divergence"

    # Names hold no addresses, which are others in the next process.
    def own(*arguments: Any, **settings: Any) -> Any: ...

    nested = partial(partial(own, 1, kcd.entropy), targets=(2, "x"), teacher_logits=object())
    assert Tracker(2, value=nested).state_dict()["value"] == (
        f"{own.__qualname__}(1, entropy, targets=[2, 'x'], teacher_logits=object)"
    )


@BACK_ENDS
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_wrong_state_changes_nothing(device: Any, damage: str) -> None:
    change, message = DAMAGE[damage]
    tracker = filled(device)
    before = sums(tracker)
    tracker.record([5], [1.0])
    with pytest.raises(ValueError, match=message):
        tracker.load_state_dict({**tracker.state_dict(), **change})
    assert tracker.count[5] == 1
    for wrong in (None, [], "state", 3):
        with pytest.raises(ValueError, match="not a tracker state"):
            tracker.load_state_dict(wrong)
    for key in tracker.state_dict().keys() - {"statistic"}:  # without it, a state is of means
        state = tracker.state_dict()
        del state[key]
        with pytest.raises(ValueError, match=f"not a tracker state: it has no '{key}'"):
            tracker.load_state_dict(state)
    before[0][5], before[1][5] = before[0][5] + int(SCALE), before[1][5] + 1
    assert sums(tracker) == before


def test_memory_is_twelve_bytes_a_sample() -> None:
    n = 1000
    for device in (None, "cpu"):
        tracker = Tracker(n, device=device)
        for _ in range(300):  # "epochs"
            tracker.record(np.arange(n), np.ones(n))
        tracker.count  # noqa: B018
        owners = (tracker, tracker.recordings)
        parts = (*owners, *(part for one in owners for part in vars(one).values()))
        known = {id(part): part for part in parts if hasattr(part, "__dict__")}
        held = [x for part in known.values() for x in vars(part).values()]
        assert 12 * n <= sum(getattr(x, "nbytes", 0) for x in held) <= 12 * n + 64
        state = tracker.state_dict()
        assert sum(x.nbytes for x in state.values() if hasattr(x, "nbytes")) == 12 * n


@BACK_ENDS
def test_moves(device: Any) -> None:
    tracker = filled(device)
    want = sums(tracker)
    tracker.record([5], [1.0])
    want[0][5], want[1][5] = want[0][5] + int(SCALE), want[1][5] + 1
    for to in ("cpu", torch.device("cpu"), None, None, "cpu"):
        assert tracker.to(to) is tracker
        assert tracker.device == (None if to is None else torch.device("cpu"))
        assert isinstance(tracker.value, np.ndarray if to is None else torch.Tensor)
        assert sums(tracker) == want


@BACK_ENDS
def test_copies_are_independent(device: Any) -> None:
    tracker = filled(device)
    before = sums(tracker)
    for made in (pickle.loads(pickle.dumps(tracker)), copy.deepcopy(tracker)):
        assert sums(made) == before
        made.record([0], [1.0])
        assert sums(made) != before
    assert sums(tracker) == before


def test_repr_says_what_it_is() -> None:
    assert repr(Tracker(5)) == "KnowledgeValueTracker(5, value='entropy', device='numpy')"
    assert "device='cpu'" in repr(Tracker(5, device="cpu", value=kcd.margin))


def test_no_global_random_state() -> None:
    def state() -> Any:
        return np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), random.getstate()  # noqa: NPY002

    before = state()
    filled(None), filled("cpu")
    assert state() == before


@pytest.mark.parametrize("kind", ["numpy", "torch", "half"])
@given(
    classes=st.sampled_from([2, 10, 100, 1000]),
    batches=st.lists(st.integers(0, 64), min_size=1, max_size=40),
    reads=st.sets(st.integers(0, 39)),
    seed=st.integers(0, 2**32 - 1),
)
@examples(25)
def test_when_values_are_read_changes_no_bit_of_them(
    kind: str, classes: int, batches: list[int], reads: set[int], seed: int
) -> None:
    """Logits that wait are reduced together: how many, must not show. Nor must a reused buffer."""
    rng = np.random.default_rng(seed)
    asked, alone = Tracker(200), Tracker(200)
    for number, size in enumerate(batches):
        indices = rng.integers(0, 200, size)
        logits: Any = rng.normal(0, 5, (size, classes)).astype(np.float32)
        if kind != "numpy":
            logits = torch.from_numpy(logits)
        if kind == "half":
            logits = logits.bfloat16()
        alone.record(indices, host_entropy(logits))  # values, computed for this batch by itself
        asked.update(indices, logits)
        logits[:] = 0.0
        if number in reads:
            asked.sums()
    for a, b in zip(asked.sums(), alone.sums(), strict=True):
        np.testing.assert_array_equal(a, b)


# -- indices -------------------------------------------------------------------------------------------


@given(
    indices=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 12), max_size=9),
    lower=st.integers(0, 5),
    length=st.integers(1, 5),
)
def test_checked_range(indices: list[int], lower: int, length: int) -> None:
    outside = [i for i in indices if not lower <= i < lower + length]
    for kind in (indices, np.array(indices, np.int64), torch.tensor(indices, dtype=torch.int64)):
        if outside:
            said = f"which must lie in {lower} .. {lower + length - 1}, got {outside[:5]}"
            said += " and more" if len(outside) > 5 else ""
            with pytest.raises(IndexError) as caught:
                checked_range(
                    as_indices(kind, "which"), "which", lower + length, lower=lower, outcome="; none was used"
                )
            assert str(caught.value) == said + "; none was used"
        else:
            checked = checked_range(as_indices(kind, "which"), "which", lower + length, lower=lower)
            assert checked.tolist() == indices
            assert checked.dtype == np.int64
            assert not np.shares_memory(checked, np.asarray(kind))


def test_a_copy_tells_of_what_it_skipped_itself() -> None:
    tracker = Tracker(4, device="cpu", on_nonfinite="raise")
    tracker.record([0], [math.nan])
    copied = copy.copy(tracker)
    for one in (tracker, copied, tracker, copied):  # the copy holds that one, too, and is told of it once
        with suppress(ValueError):
            one.report()
    tracker.record([1], [math.nan])
    with pytest.raises(ValueError, match=r"^1 values were not finite"):
        tracker.report()
    copied.report()
