"""Recording on CUDA: no synchronisation, no copy to the host, few operations. And that it is right.

None of it needs a GPU. Tensors of torch's ``FakeTensorMode`` on a fake ``cuda:0`` have shapes and
devices but no data: whatever would wait for data raises, and a ``TorchDispatchMode`` sees every operation.
What needs a real one is in ``test_cuda_device.py``.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import kcd_core as kcd
from kcd_core.waiting import MAX_PENDING, SMALL_ON_DEVICE

Tracker = kcd.KnowledgeValueTracker
STEPS, BATCH, CLASSES, N = 3 * MAX_PENDING, 64, 100, 1000
MOST_OPERATIONS = 3  # that launch or copy, a step on average, with what was deferred
MOST_WITH_INDICES = 4  # where indices lie on the device, they are copied, too
MOST_ONCE = 12  # of a tracker's first batch: are they probabilities?
# They make a tensor of memory that is there or was set aside: nothing is launched.
LAUNCH_NOTHING = ("alias", "detach", "empty", "expand", "lift_fresh", "new_empty", "select", "split", "view")


class Watch(TorchDispatchMode):
    """Counts operations, and those of them that move data to the host or wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.to_host: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (
            func.namespace == "aten" and func._opname not in LAUNCH_NOTHING
        ):  # others only ask a tensor's device
            self.operations[str(func)] += 1
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        made = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        on_device = any(x.device.type == "cuda" for x in given)
        scalar = func is torch.ops.aten._local_scalar_dense.default
        if on_device and (scalar or any(x.device.type == "cpu" for x in made)):
            self.to_host.append(str(func))
        if func is torch.ops.aten.copy_.default and args[0].device.type == "cpu" and on_device:
            self.to_host.append(str(func))
        # Without non_blocking a copy from the host waits for the device, too.
        to_device = any(x.device.type == "cuda" for x in made) and any(x.device.type == "cpu" for x in given)
        if to_device and func is torch.ops.aten._to_copy.default and not (kwargs or {}).get("non_blocking"):
            self.to_host.append(f"blocking {func}")
        return result


def no_fakes() -> str | None:
    """Why this torch can't have fake CUDA tensors, if it can't: old ones ask for a driver."""
    try:
        with FakeTensorMode():
            torch.zeros(3, device="cuda:0").abs()
    except RuntimeError as error:
        return str(error)
    return None


NO_FAKES = no_fakes()


@contextmanager
def fake_cuda() -> Iterator[None]:
    if NO_FAKES:
        pytest.skip(f"fake CUDA tensors need a newer torch than {torch.__version__}, or a driver: {NO_FAKES}")
    # Where there is a GPU, the tracker would pin memory and look at streams, which fakes can't.
    absent = (
        mock.patch(f"torch.cuda.{name}", return_value=False) for name in ("is_available", "is_initialized")
    )
    with FakeTensorMode(), warnings.catch_warnings(), next(absent), next(absent):
        warnings.simplefilter("error")
        yield


def step_inputs(index_device: str, dtype: Any = torch.float32) -> tuple[Any, Any]:
    logits = torch.randn(BATCH, CLASSES, device="cuda:0", dtype=dtype)
    if index_device == "numpy":
        return np.arange(BATCH), logits
    if index_device == "list":
        return list(range(BATCH)), logits
    return torch.zeros(BATCH, dtype=torch.int64, device="cuda:0"), logits


def no_wait(watch: Watch, index_device: str = "numpy", more: int = 0) -> None:
    most = (MOST_WITH_INDICES if index_device == "cuda:0" else MOST_OPERATIONS) + more
    assert not watch.to_host
    assert sum(watch.operations.values()) <= most * STEPS + MOST_ONCE, watch.operations.most_common()
    assert sum(watch.operations.values()) >= STEPS  # something was watched


def test_the_watch_sees_what_it_is_for() -> None:
    with fake_cuda():
        x = torch.zeros(3, device="cuda:0")
        with pytest.raises(DataDependentOutputException):
            x.sum().item()
        with pytest.raises(DataDependentOutputException):
            bool(x.any())
        for move in (lambda: x.cpu(), lambda: x.to("cpu", non_blocking=True)):
            with Watch() as watch:
                move()
            assert watch.to_host
        host = torch.zeros(3)
        with Watch() as watch:
            host.to("cuda:0")
        assert watch.to_host
        with Watch() as watch:
            host.to("cuda:0", non_blocking=True) + x
        assert not watch.to_host
        assert sum(watch.operations.values()) == 2


@pytest.mark.parametrize("index_device", ["numpy", "list", "cuda:0"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("on_nonfinite", ["skip", "raise"])
def test_recording_does_not_wait(index_device: str, dtype: Any, on_nonfinite: str) -> None:
    with fake_cuda():
        tracker = Tracker(N, device="cuda:0", on_nonfinite=on_nonfinite)
        flushes = 0
        indices, logits = step_inputs(index_device, dtype)
        with Watch() as watch:
            for _ in range(STEPS):
                before = len(tracker.recordings.waiting)
                tracker.update(indices, logits)
                flushes += len(tracker.recordings.waiting) <= before
                assert len(tracker.recordings.waiting) < MAX_PENDING
        assert flushes == STEPS // MAX_PENDING  # what is deferred was done, and counted
        no_wait(watch, index_device)


@pytest.mark.parametrize(
    "value", ["entropy", "margin", "cross_entropy", "kd_divergence", "reducible_loss", "mine"]
)
@pytest.mark.parametrize("index_device", ["numpy", "cuda:0"])
def test_no_value_waits(value: str, index_device: str) -> None:
    with fake_cuda():
        tracker = Tracker(
            N, device="cuda:0", value=(lambda z, **_: z.max(-1).values) if value == "mine" else value
        )
        indices, logits = step_inputs(index_device)
        given: dict[str, Any] = {"teacher_logits": torch.randn(BATCH, CLASSES, device="cuda:0")}
        given["targets"] = torch.zeros(BATCH, dtype=torch.int64, device="cuda:0")
        with Watch() as watch:
            for _ in range(STEPS):
                tracker.update(indices, logits, **given)
        assert not watch.to_host


@pytest.mark.parametrize("statistic", ["stage_mean", "last", "variance"])
@pytest.mark.parametrize("index_device", ["numpy", "cuda:0"])
def test_no_statistic_waits(statistic: Any, index_device: str) -> None:
    with fake_cuda():
        tracker = Tracker(N, device="cuda:0", statistic=statistic)
        indices, logits = step_inputs(index_device)
        with Watch() as watch:
            for _ in range(STEPS):
                tracker.update(indices, logits)
        no_wait(watch, index_device, more=statistic == "variance")  # squares are summed, too


@pytest.mark.parametrize("index_device", ["numpy", "cuda:0"])
@pytest.mark.parametrize("first", [0, 7])
def test_a_value_that_is_given_indices_does_not_wait(index_device: str, first: int) -> None:
    with fake_cuda():
        table, seen = torch.zeros(N, device="cuda:0"), []

        def value(logits: Any, indices: Any) -> Any:
            seen.append((indices.device.type, indices.dtype, tuple(indices.shape)))
            return logits.amax(-1) - table.index_select(0, indices)

        tracker = Tracker(N, device="cuda:0", value=value, first=first)
        indices, logits = step_inputs(index_device)
        with Watch() as watch:
            for _ in range(STEPS):
                tracker.update(indices, logits)
        assert not watch.to_host
        assert seen == [("cuda", torch.int64, (BATCH,))] * STEPS


def test_a_step_that_asks_for_some_rows_does_not_wait() -> None:
    with fake_cuda():
        asked = torch.zeros(BATCH // 3, dtype=torch.int64)  # in host memory, as a loader's are
        logits, teacher = (torch.randn(BATCH, CLASSES, device="cuda:0") for _ in range(2))
        with Watch() as watch:
            rows = asked.to("cuda:0", non_blocking=True)
            distilled = (logits - teacher).index_select(0, rows).square().sum(1)
            kcd.gated_loss(logits.logsumexp(1), distilled, rows)
        assert not watch.to_host
        assert watch.operations["aten.index_fill_.int_Scalar"] == 1


@pytest.mark.parametrize("index_device", ["numpy", "cuda:0"])
def test_recording_values_does_not_wait(index_device: str) -> None:
    with fake_cuda():
        tracker = Tracker(N, device="cuda:0")
        indices, logits = step_inputs(index_device)
        with Watch() as watch:
            for _ in range(STEPS):
                tracker.record(indices, logits.select(1, 0))
        no_wait(watch, index_device)


@pytest.mark.parametrize(
    ("value", "numbers", "shape"),
    [
        ("entropy", SMALL_ON_DEVICE - CLASSES, True),  # small logits wait as they are
        ("entropy", SMALL_ON_DEVICE, False),  # of large ones, and of other values, only [B]
        ("margin", BATCH * CLASSES, False),
        (lambda z: z.select(1, 0), BATCH * CLASSES, False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_waits_is_bounded_and_no_one_elses(value: Any, numbers: int, shape: bool, dtype: Any) -> None:
    """At most 31 steps are held between two, and none of the memory of the caller's logits or indices."""
    batch = numbers // CLASSES + (numbers % CLASSES > 0)
    with fake_cuda():
        tracker = Tracker(10**6, device="cuda:0", value=value)
        logits = torch.randn(batch, CLASSES, device="cuda:0", dtype=dtype)
        indices = torch.zeros(batch, dtype=torch.int64, device="cuda:0")
        theirs = {x.untyped_storage()._cdata for x in (logits, indices)}
        most = 0
        for _ in range(STEPS):
            tracker.update(indices, logits)
            most = max(most, len(tracker.recordings.waiting))
            for held in tracker.recordings.waiting:
                assert held[1].shape == ((batch, CLASSES) if shape else (batch,))
                for x in held:
                    assert x.untyped_storage().nbytes() == x.numel() * x.element_size()
                    assert x.untyped_storage()._cdata not in theirs
            waiting = sum(x.untyped_storage().nbytes() for _, x in tracker.recordings.waiting)
            assert waiting <= MAX_PENDING * SMALL_ON_DEVICE * 4 == 2**24
        assert most == MAX_PENDING - 1 == 31


class Bytes(Watch):
    """The most bytes that were alive at once of what was made on the device while it watched."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        for x in tree_leaves((args, kwargs)):  # what was there before is not counted
            if isinstance(x, torch.Tensor):
                self.known.add(x.untyped_storage()._cdata)
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.device.type == "cuda":
                self.made(x.untyped_storage())
        return result

    def made(self, storage: Any) -> None:
        if storage._cdata in self.known:
            return
        self.known.add(storage._cdata)
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())

    def gone(self, which: int, size: int) -> None:
        self.known.discard(which)
        self.alive -= size


@pytest.mark.parametrize("value", ["entropy", "margin", "cross_entropy", "kd_divergence", "reducible_loss"])
@pytest.mark.parametrize(
    ("batch", "classes", "dtype"),
    [
        (4096, 32_768, torch.bfloat16),
        (8192, 151_936, torch.bfloat16),
        (16_384, 1024, torch.float32),  # 64 MB
        (2**18, 128, torch.bfloat16),
        (8192, 1024, torch.float64),
    ],
)
@pytest.mark.parametrize("by_columns", [False, True])
def test_large_logits_take_a_quarter_of_their_memory(
    value: str, batch: int, classes: int, dtype: Any, by_columns: bool
) -> None:
    with fake_cuda():
        tracker = Tracker(10**6, device="cuda:0", value=value)

        def empty() -> Any:
            shape = (classes, batch) if by_columns else (batch, classes)
            made = torch.empty(shape, dtype=dtype, device="cuda:0")
            return made.t() if by_columns else made

        logits = empty()
        given = {
            "teacher_logits": empty(),
            "targets": torch.empty(batch, dtype=torch.int64, device="cuda:0"),
        }
        with Bytes() as watch:
            tracker.update(np.arange(batch), logits, **given)
        size = logits.numel() * logits.element_size()
        assert size >= 2**26
        assert 0 < watch.peak <= size / 4
        assert not watch.to_host


@pytest.mark.parametrize(
    ("sequences", "length", "classes", "dtype"),
    [
        (8, 1024, 128_256, torch.bfloat16),
        (1, 4096, 32_768, torch.bfloat16),
        (512, 16, 32_768, torch.float32),
        (16, 512, 4096, torch.bfloat16),  # 64 MB
    ],
)
@pytest.mark.parametrize("shifted", [False, True])
def test_sequences_take_a_quarter_of_their_logits(
    sequences: int, length: int, classes: int, dtype: Any, shifted: bool
) -> None:
    """Also those of a causal model, which lie apart: without the last token of each."""
    with fake_cuda():
        tracker = Tracker(10**6, device="cuda:0", value="sequence_entropy")
        logits = torch.empty(sequences, length + shifted, classes, dtype=dtype, device="cuda:0")
        logits = logits.narrow(1, 0, length)  # as [:, :-1], which fakes ask a driver for
        labels = torch.empty(sequences, length, dtype=torch.int64, device="cuda:0")
        with Bytes() as watch:
            tracker.update(np.arange(sequences), logits, targets=labels)
        size = logits.numel() * logits.element_size()
        assert size >= 2**26
        assert 0 < watch.peak <= size / 4
        assert not watch.to_host
        assert sum(watch.operations.values()) <= 650


MOST_FOR_LARGE = {
    "entropy": 350,
    "margin": 200,
    "cross_entropy": 280,
    "kd_divergence": 1050,
    "reducible_loss": 560,
}


@pytest.mark.parametrize("value", MOST_FOR_LARGE)
@pytest.mark.parametrize(
    ("batch", "classes", "dtype", "share"),
    [
        (4096, 32_768, torch.bfloat16, 1),
        (8192, 151_936, torch.bfloat16, 1),
        (16_384, 1024, torch.float32, 0.4),
        (1024, 1000, torch.float32, 0.075),  # 4 MB are computed in one piece
    ],
)
def test_large_logits_take_few_operations(
    value: str, batch: int, classes: int, dtype: Any, share: float
) -> None:
    with fake_cuda():
        logits = torch.empty(batch, classes, dtype=dtype, device="cuda:0")
        targets = torch.empty(batch, dtype=torch.int64, device="cuda:0")
        with Watch() as watch:
            getattr(kcd, value)(logits, teacher_logits=torch.empty_like(logits), targets=targets)
        assert 0 < sum(watch.operations.values()) <= MOST_FOR_LARGE[value] * share


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reducing_what_waited_takes_less_than_what_waits(dtype: Any) -> None:
    batch = (SMALL_ON_DEVICE - 1) // CLASSES
    with fake_cuda():
        tracker = Tracker(10**6, device="cuda:0")
        logits = torch.empty(batch, CLASSES, dtype=dtype, device="cuda:0")
        with Bytes() as watch:
            for _ in range(MAX_PENDING):
                tracker.update(np.arange(batch), logits)
        assert not tracker.recordings.waiting
        assert watch.peak <= (16 + 13) * 2**20 * dtype.itemsize // 4


@pytest.mark.parametrize("value", MOST_FOR_LARGE)
def test_no_rows(value: str) -> None:
    with fake_cuda():
        tracker = Tracker(4, device="cuda:0", value=value)
        logits, targets = (
            torch.empty(0, 5, device="cuda:0"),
            torch.empty(0, dtype=torch.int64, device="cuda:0"),
        )
        for _ in range(MAX_PENDING):
            tracker.update([], logits, teacher_logits=logits, targets=targets)
        assert not tracker.recordings.waiting


def test_reading_waits() -> None:
    """The other way round: reading is where the waiting is, so the fakes refuse it."""
    with fake_cuda():
        tracker = Tracker(N, device="cuda:0")
        tracker.update(*step_inputs("cuda:0"))
        for read in ("value", "count", "sums", "state_dict"):
            with Watch() as watch, suppress(Exception):
                got = getattr(tracker, read)
                got() if callable(got) else got
            assert watch.to_host


def test_cuda_logits_need_a_cuda_tracker() -> None:
    with fake_cuda():
        indices, logits = step_inputs("numpy")
        tracker = Tracker(N)
        with pytest.raises(TypeError, match=r"tracker is in host memory.*tracker.to\('cuda'\)"):
            tracker.update(indices, logits)
        with pytest.raises(TypeError, match="tracker is in host memory"):
            tracker.record(torch.zeros(BATCH, dtype=torch.int64, device="cuda:0"), np.zeros(BATCH))
        assert not tracker.recordings.waiting


def test_host_indices_are_checked_at_once() -> None:
    with fake_cuda():
        tracker = Tracker(N, device="cuda:0")
        _, logits = step_inputs("numpy")
        for wrong in (-2, N):
            with pytest.raises(IndexError, match="must lie in"):
                tracker.update([0] * (BATCH - 1) + [wrong], logits)
        with pytest.raises(ValueError, match="one length"):
            tracker.update([0], logits)
        assert not tracker.recordings.waiting


def test_recording_by_id_does_not_wait() -> None:
    stream = kcd.CondensedStream(key="name", slots=N, schedule=kcd.CondensationSchedule())
    with fake_cuda():
        ids, logits = [f"image {i}" for i in range(BATCH)], torch.randn(BATCH, CLASSES, device="cuda:0")
        stream.record(logits, ids=ids)  # moves the table, once
        assert stream.tracker.device == torch.device("cuda:0")
        with Watch() as watch:
            for _ in range(STEPS):
                stream.record(logits, ids=ids)
        no_wait(watch)
        with pytest.raises(TypeError, match="leave them in host memory"):
            stream.record(logits, ids=torch.arange(BATCH, device="cuda:0"))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("index_device", ["numpy", "cuda:0"])
def test_condensed_loss_does_not_wait(reduction: str, index_device: str) -> None:
    with fake_cuda():
        tracker = Tracker(N, device="cuda:0")
        criterion = torch.nn.CrossEntropyLoss(reduction="none")
        loss = kcd.CondensedLoss(criterion, tracker, reduction=reduction).to("cuda:0")
        weight = torch.zeros(4, CLASSES, device="cuda:0")
        images = torch.randn(BATCH, 4, device="cuda:0")
        targets = torch.zeros(BATCH, dtype=torch.int64, device="cuda:0")
        indices, _ = step_inputs(index_device)
        with Watch() as watch:
            for _ in range(MAX_PENDING + 3):
                result = loss(images @ weight, targets, indices=indices)
                assert result.shape == ((BATCH,) if reduction == "none" else ())
        assert not watch.to_host


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_backward_of_condensed_loss_does_not_wait(reduction: str) -> None:
    """On fake CPU tensors, which refuse to wait, too: a build without CUDA can't differentiate fake CUDA ones."""
    with FakeTensorMode():
        criterion = torch.nn.CrossEntropyLoss(reduction="none")
        loss = kcd.CondensedLoss(criterion, Tracker(N), reduction=reduction).eval()  # recording is above
        weight = torch.zeros(4, CLASSES, requires_grad=True)
        logits = torch.randn(BATCH, 4) @ weight
        result = loss(logits, torch.zeros(BATCH, dtype=torch.int64), indices=np.arange(BATCH))
        with Watch() as watch:
            result.sum().backward()
        assert weight.grad is not None
        assert watch.operations
        assert "aten._local_scalar_dense.default" not in watch.operations


# Device indices can't be checked without waiting. What is done with them is the same code on every
# device, so it can be seen with real numbers on the CPU, given that they come in as tensors.


def record_on_device(tracker: Any, indices: list[int], values: list[float]) -> None:
    made = torch.tensor(indices), torch.tensor(values)
    tracker.recordings.waiting.append(made)
    if len(tracker.recordings.waiting) >= MAX_PENDING:
        tracker.recordings.flush()


def test_device_indices_out_of_range_are_masked_and_counted() -> None:
    tracker = Tracker(4, device="cpu")
    for _ in range(MAX_PENDING + 1):
        record_on_device(tracker, [0, 4, 3, -2, 10**12], [1.0, 7.0, 2.0, 8.0, math.nan])
    with pytest.warns(RuntimeWarning, match="index outside 0 .. 3 and were not recorded"):
        assert tracker.count.tolist() == [MAX_PENDING + 1, 0, 0, MAX_PENDING + 1]
    assert tracker.value[[0, 3]].tolist() == [1.0, 2.0]
    # A value that is not finite at an index that is out of range is counted once.
    assert tracker.skipped == {"nonfinite": 0, "out_of_range": 3 * (MAX_PENDING + 1)}


def test_padding_on_a_device_is_masked_and_not_counted() -> None:
    tracker = Tracker(4, device="cpu")
    record_on_device(tracker, [0, -1, 3, -1], [1.0, 7.0, 2.0, math.nan])
    assert tracker.count.tolist() == [1, 0, 0, 1]  # and no warning
    assert tracker.skipped == {"nonfinite": 0, "out_of_range": 0}


def test_device_values_that_are_not_finite() -> None:
    tracker = Tracker(4, device="cpu")
    record_on_device(tracker, [0, 1, 2, 9], [1.0, math.nan, math.inf, 1.0])
    with pytest.warns(RuntimeWarning) as caught:
        assert tracker.count.tolist() == [1, 0, 0, 0]
    assert len(caught) == 2
    assert tracker.skipped == {"nonfinite": 2, "out_of_range": 1}


def test_device_indices_out_of_range_raise_on_request() -> None:
    tracker = Tracker(4, device="cpu", on_nonfinite="raise")
    record_on_device(tracker, [0, 4], [1.0, 1.0])
    with pytest.raises(IndexError, match="1 recordings had an index outside"):
        kcd.condense_step(tracker, kcd.CondensedSampler(4), kcd.CondensationSchedule())
    assert tracker.count.tolist() == [1, 0, 0, 0]


def test_device_and_host_indices_add_up() -> None:
    """A step with host indices after one with device indices: each is added as what it is."""
    mixed, host = Tracker(4, device="cpu"), Tracker(4)
    for step in range(3 * MAX_PENDING):
        values = [float(step), 0.5]
        host.record([step % 4, 3], values)
        if step % 3:
            mixed.record([step % 4, 3], values)
        else:
            if mixed.recordings.waiting and not isinstance(mixed.recordings.waiting[0][0], torch.Tensor):
                mixed.recordings.flush()
            record_on_device(mixed, [step % 4, 3], values)
    for a, b in zip(mixed.sums(), host.sums(), strict=True):
        np.testing.assert_array_equal(a, b)
