"""Recording on a real CUDA device: ``pytest -m cuda tests/core/test_cuda_device.py``.

Most tests take the device as a parameter. On the CPU they run everywhere, which proves the test and not the
device; what streams, graphs and the allocator do can be seen on CUDA alone. A tracker with ``device="cpu"`` adds
as on any device, but its indices are checked at once and its values computed by NumPy, as in host memory.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    SCHEDULE,
    Plain,
    index_of,
    join_ranks,
    leave_together,
    logits_of,
    results_of,
    same,
    start_ranks,
    stop,
    wrap,
)
from torch.utils.data import DataLoader, DistributedSampler

import kcd_core as kcd
from kcd_core.base import distributed
from kcd_core.waiting import MAX_PENDING

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from _common.compiler import no_compiler

sys.path.pop(0)

Tracker = kcd.KnowledgeValueTracker
N, BATCH = 500, 64
STEPS = 2 * MAX_PENDING + 5  # what waits is added twice, and some of it waits when the values are read
CLASSES = [10, 2000]  # of logits that wait as they are, and of logits too large to wait
VALUES = ["entropy", "cross_entropy", "kd_divergence", "margin", "reducible_loss"]
CYCLES = 2_000_000  # of a kernel that does nothing: about a millisecond
NO_COMPILER = no_compiler(torch.device("cuda"))

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs a CUDA device: run `pytest -m cuda tests/core/test_cuda_device.py` on a machine that has one",
)
CUDA = pytest.param("cuda", marks=[pytest.mark.cuda, needs_cuda])
on_devices = pytest.mark.parametrize("device", ["cpu", CUDA])


def on_cuda(test: Any) -> Any:
    """For a test that says nothing on the CPU."""
    return pytest.mark.cuda(needs_cuda(test))


@contextmanager
def no_synchronisation(device: str = "cuda") -> Iterator[None]:
    """Makes an error of whatever waits for the device. Checks nothing on the CPU."""
    if device == "cpu":
        yield
        return
    torch.cuda.synchronize()
    set_sync_debug_mode("error")
    try:
        yield
    finally:
        set_sync_debug_mode("default")


def set_sync_debug_mode(mode: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, that this is a prototype
        torch.cuda.set_sync_debug_mode(mode)


def random_steps(device: str, classes: int = 10, steps: int = STEPS) -> list[tuple[Any, Any]]:
    """Indices in host memory, and logits on the device."""
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randint(N, (BATCH,), generator=generator),
            (3 * torch.randn(BATCH, classes, generator=generator)).to(device),
        )
        for _ in range(steps)
    ]


def on_host(steps: list[tuple[Any, Any]]) -> Any:
    """A tracker in host memory that recorded the values of these steps, as the device computes them."""
    tracker = Tracker(N)
    for indices, logits in steps:
        tracker.record(indices.cpu(), kcd.entropy(logits).cpu())
    return tracker


def assert_same_sums(a: Any, b: Any) -> None:
    for x, y in zip(a.sums(), b.sums(), strict=True):
        np.testing.assert_array_equal(x, y)


def assert_same_set(a: Any, b: Any) -> None:
    for name in ("kept", "dropped", "tail", "weights", "cut"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def exact(value: str, logits: Any, *, teacher_logits: Any = None, targets: Any = None) -> Any:
    """The value in float64, the long way, in host memory."""
    log_p = torch.log_softmax(logits.detach().cpu().double(), -1)
    if value == "entropy":
        return -(log_p.exp() * log_p).sum(-1)
    if value == "cross_entropy":
        return -log_p[torch.arange(len(log_p)), targets.cpu()]
    if value in ("kd_divergence", "reducible_loss"):
        log_t = torch.log_softmax(teacher_logits.cpu().double(), -1)
        if value == "reducible_loss":
            return (log_t - log_p)[torch.arange(len(log_p)), targets.cpu()]
        return (log_t.exp() * (log_t - log_p)).sum(-1)
    first, second = log_p.exp().sort(-1, descending=True).values[:, :2].unbind(-1)
    return 1 - (first - second)


def all_given(value: str, logits: Any) -> dict[str, Any]:
    """What ``value`` needs beside the logits, on their device."""
    rows, classes = logits.shape
    if value == "cross_entropy":
        return {"targets": torch.arange(rows, device=logits.device) * 7 % classes}
    if value == "kd_divergence":
        return {"teacher_logits": logits.flip(0)}
    if value == "reducible_loss":
        return {**all_given("cross_entropy", logits), **all_given("kd_divergence", logits)}
    return {}


# -- the same numbers ----------------------------------------------------------------------------------


@on_devices
@pytest.mark.parametrize("index_device", ["host", "device"])
@pytest.mark.parametrize("classes", CLASSES)
def test_same_sums_as_on_the_host(device: str, index_device: str, classes: int) -> None:
    """The values as the device computes them, recorded there and on the host: the same sums, to the bit."""
    steps, tracker = random_steps(device, classes), Tracker(N, device=device)
    for indices, logits in steps:
        tracker.update(indices.to(device) if index_device == "device" else indices, logits)
    here = on_host(steps)
    assert_same_sums(tracker, here)
    np.testing.assert_array_equal(tracker.value.cpu().numpy(), here.value)
    np.testing.assert_array_equal(tracker.count.cpu().numpy(), here.count)


@on_devices
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", VALUES)
def test_values_against_float64(device: str, dtype: Any, value: str) -> None:
    generator = torch.Generator().manual_seed(1)
    for classes in (2, 10, 1001, 5000):
        for scale in (0.01, 3, 30):
            logits = (scale * torch.randn(9, classes, generator=generator)).to(device, dtype)
            given = all_given(value, logits)
            got = getattr(kcd, value)(logits, **given)
            assert got.device.type == device
            assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            torch.testing.assert_close(
                got.cpu().double(), exact(value, logits, **given), rtol=2e-5, atol=1e-5, check_dtype=False
            )


@on_devices
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sequences_against_float64(device: str, dtype: Any) -> None:
    """Of a causal model's logits, which lie apart; recorded with no wait; to the bit those of each sequence alone."""
    generator = torch.Generator().manual_seed(1)
    logits = (3 * torch.randn(5, 10, 1001, generator=generator)).to(device, dtype)[:, :-1]
    labels = torch.randint(1001, (5, 9), generator=generator)
    for row in range(5):
        labels[row, :row] = labels[row, 9 - row :] = -100
    tokens = exact("entropy", logits)
    want = (tokens * (labels != -100)).sum(-1) / (labels != -100).sum(-1)
    labels, tracker = labels.to(device), Tracker(5, value="sequence_entropy", device=device)
    tracker.update([0], logits[:1], targets=labels[:1])  # the first batch is looked at
    with no_synchronisation(device):
        tracker.update([1, 2, 3, 4], logits[1:], targets=labels[1:])
    torch.testing.assert_close(tracker.value.cpu(), want, rtol=2e-5, atol=1e-5)
    whole = kcd.sequence_entropy(logits, targets=labels)
    alone = [kcd.sequence_entropy(logits[[row]], targets=labels[[row]]) for row in range(5)]
    assert torch.equal(torch.cat(alone), whole)


@on_devices
@pytest.mark.parametrize("value", VALUES)
def test_a_row_that_is_not_finite_gets_nan(device: str, value: str) -> None:
    logits = torch.randn(6, 10, device=device)
    given = all_given(value, logits)
    logits[1, 3], logits[2, 9], logits[4, 0] = torch.inf, -torch.inf, torch.nan
    got = getattr(kcd, value)(logits, **given)
    wrong = torch.tensor([False, True, True, False, True, False])
    assert (got.isnan().cpu() == wrong).all()


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [10, 100, 101, 1000, 1001, 50_257])
def test_a_value_depends_on_its_row_alone(device: str, dtype: Any, classes: int) -> None:
    """One row at a time, in batches of 16 and 256, all at once, and from the last to the first."""
    rows = 257 if device == "cuda" or classes < 10_000 else 33
    generator = torch.Generator().manual_seed(2)
    logits = (3 * torch.randn(rows, classes, generator=generator)).to(device, dtype)
    teacher = (3 * torch.randn(rows, classes, generator=generator)).to(device, dtype)
    targets = torch.randint(classes, (rows,), generator=generator).to(device)
    order = torch.arange(rows)
    for value in VALUES:
        trackers = []
        for size in (rows, 1, 16, 256, -rows, -16):
            at = order if size > 0 else order.flip(0)
            tracker = Tracker(rows, value=value, device=device)
            for part in at.split(abs(size)):
                # Of a slice, a row lies where it lies in the whole; of a copy, elsewhere.
                here = slice(int(part[0]), int(part[-1]) + 1) if size > 0 else part.to(device)
                tracker.update(part, logits[here], teacher_logits=teacher[here], targets=targets[here])
            trackers.append(tracker)
        for tracker in trackers[1:]:
            assert_same_sums(tracker, trackers[0])


@on_devices
def test_the_set_is_that_of_the_host(device: str) -> None:
    """To the index, over three stages, with ties and samples that were never recorded."""
    n, rng = 20_000, np.random.default_rng(0)
    trackers = Tracker(n, device=device), Tracker(n)
    samplers = kcd.CondensedSampler(n), kcd.CondensedSampler(n)
    for _ in range(3):
        for _ in range(5):
            indices = torch.from_numpy(rng.integers(0, n - 10, 8192))
            values = torch.from_numpy(rng.integers(0, 1000, 8192) / 256).float()
            trackers[0].record(indices.to(device), values.to(device))
            trackers[1].record(indices, values)
        assert_same_set(*(kcd.condense_step(t, s, SCHEDULE) for t, s in zip(trackers, samplers, strict=True)))
    np.testing.assert_array_equal(samplers[0].kept, samplers[1].kept)


# -- no step waits for the device ------------------------------------------------------------------------


@on_devices
@pytest.mark.parametrize("index_device", ["host", "device"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", CLASSES)
def test_no_synchronisation(device: str, index_device: str, dtype: Any, classes: int) -> None:
    steps = [
        (i.to(device if index_device == "device" else "cpu"), z.to(dtype))
        for i, z in random_steps(device, classes)
    ]
    tracker = Tracker(N, device=device)
    with no_synchronisation(device):
        for indices, logits in steps:
            tracker.update(indices, logits)
    assert_same_sums(tracker, on_host(steps))


@on_devices
@pytest.mark.parametrize("index_device", ["host", "device"])
@pytest.mark.parametrize("value", [*VALUES, "mine", "recorded"])
def test_no_value_synchronises(device: str, index_device: str, value: str) -> None:
    mine = value not in VALUES
    tracker = Tracker(N, device=device, value=(lambda z, **_: z.amax(-1)) if mine else value)
    steps = []
    for indices, logits in random_steps(device):
        given = all_given(value, logits)
        wanted = logits.amax(-1) if mine else getattr(kcd, value)(logits, **given)
        steps.append((indices.to(device) if index_device == "device" else indices, logits, given, wanted))
    with no_synchronisation(device):
        for indices, logits, given, wanted in steps:
            if value == "recorded":
                tracker.record(indices, wanted)
            else:
                tracker.update(indices, logits, **given)
    here = Tracker(N)
    for indices, *_, wanted in steps:
        here.record(indices.cpu(), wanted.cpu())
    assert_same_sums(tracker, here)


@on_devices
@pytest.mark.parametrize("index_device", ["host", "device"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_condensed_loss(device: str, index_device: str, reduction: str) -> None:
    """The loss and the gradient of the kept samples alone, backward included in what must not wait."""
    kept = np.flatnonzero(np.arange(N) % 3)
    loss = kcd.CondensedLoss(
        torch.nn.CrossEntropyLoss(reduction="none"), Tracker(N, device=device), reduction=reduction
    ).to(device)
    loss.install(kcd.CondensedSet(kept, N))
    steps = random_steps(device)
    targets = torch.arange(BATCH, device=device) % 10
    leaves = [logits.requires_grad_() for _, logits in steps]
    given = [i.to(device) if index_device == "device" else i for i, _ in steps]
    losses = []
    with no_synchronisation(device):
        for indices, logits in zip(given, leaves, strict=True):
            losses.append(loss(logits, targets, indices=indices))
            losses[-1].sum().backward()
    for (indices, _), logits, got in zip(steps, leaves, losses, strict=True):
        inside = torch.from_numpy(np.isin(indices.numpy(), kept)).to(device)
        own = logits.detach().clone().requires_grad_()
        want = torch.nn.functional.cross_entropy(
            own[inside], targets[inside], reduction="sum" if reduction == "none" else reduction
        )
        want.backward()
        torch.testing.assert_close(got.sum(), want)
        torch.testing.assert_close(logits.grad, own.grad)
    assert_same_sums(loss.tracker, on_host([(i, z.detach()) for i, z in steps]))


@on_devices
def test_condensed_stream(device: str) -> None:
    """By id, through two stages, beside a stream in host memory."""
    names = [f"image {i}" for i in range(200)]
    streams = [
        kcd.CondensedStream(
            names, key=str, slots=4096, schedule=SCHEDULE, value=lambda student_logits: student_logits[:, 0]
        )
        for _ in range(2)
    ]
    for epoch in (1, 2):
        generator = torch.Generator().manual_seed(epoch)
        passed = list(streams[0])
        assert passed == list(streams[1])
        logits = torch.randn(len(passed), 10, generator=generator)
        on_device = logits.to(device)
        for stream, z in zip(streams, (on_device, logits), strict=True):
            # The first record moves the table to the device, for which it may wait.
            with no_synchronisation(device) if epoch > 1 else nullcontext():
                for start in range(0, len(passed), 16):
                    stream.record(z[start : start + 16], ids=passed[start : start + 16])
        if device == "cuda":
            assert streams[0].tracker.device == on_device.device
        assert streams[1].tracker.device is None
        assert_same_sums(streams[0].tracker, streams[1].tracker)
        assert_same_set(*(stream.end_epoch() for stream in streams))
    assert len(list(streams[0])) < len(names)


# -- memory ------------------------------------------------------------------------------------------------


@on_devices
@pytest.mark.parametrize("on_device", [False, True])
def test_a_value_that_is_given_indices(device: str, on_device: bool) -> None:
    table = torch.rand(N + 9, dtype=torch.float64)
    there = table.to(device)

    def value(logits: Any, indices: Any) -> Any:
        assert indices.device == logits.device
        return there.index_select(0, indices)

    tracker = Tracker(N, device=device, value=value, first=9)
    steps = random_steps(device)
    given = [(indices.to(device) if on_device else indices, logits) for indices, logits in steps]
    with no_synchronisation(device):
        for indices, logits in given:
            tracker.update(indices, logits)
    seen = torch.cat([indices for indices, _ in steps]).unique()
    np.testing.assert_allclose(tracker.value.cpu()[seen], table[seen + 9], atol=2**-40, rtol=0)


@on_cuda
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(
    ("rows", "classes", "dtype"),
    [(4096, 4096, torch.float32), (1024, 32_768, torch.bfloat16), (4096, 32_768, torch.bfloat16)],
)
def test_a_quarter_of_the_logits_is_enough(value: str, rows: int, classes: int, dtype: Any) -> None:
    """From 64 MB of logits on, at the peak."""
    logits = torch.randn(rows, classes, device="cuda", dtype=dtype)
    given = all_given(value, logits)
    tracker = Tracker(rows, value=value, device="cuda")
    tracker.update(torch.arange(rows), logits, **given)
    recorded = tracker.value[:4]
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    tracker.update(torch.arange(rows), logits, **given)
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - before
    assert extra <= logits.numel() * logits.element_size() / 4
    head = {name: x[:4] for name, x in given.items()}
    torch.testing.assert_close(recorded.cpu(), exact(value, logits[:4], **head), rtol=2e-5, atol=1e-5)


@on_cuda
@pytest.mark.parametrize("classes", [500, 2_000, 20_000])
def test_what_waits_is_bounded(classes: int) -> None:
    """To 16 MB of float32: of small logits a copy, of large ones the values."""
    step = random_steps("cuda", classes, steps=1)[0]
    tracker = Tracker(N, device="cuda")
    tracker.update(*step)
    assert int(tracker.count.sum()) == BATCH  # nothing waits
    before = torch.cuda.memory_allocated()
    for _ in range(MAX_PENDING - 1):
        tracker.update(*step)
    assert torch.cuda.memory_allocated() - before <= 1.05 * 2**24


# -- indices that are not there ----------------------------------------------------------------------------


@on_cuda
@pytest.mark.parametrize("classes", CLASSES)
def test_an_index_out_of_range_is_masked_and_counted(classes: int) -> None:
    """A device assert would end the process: everything after it would fail."""
    wrong = torch.tensor([0, -2, 4, 10**12], device="cuda")
    tracker = Tracker(4, device="cuda")
    for _ in range(MAX_PENDING + 1):
        tracker.update(wrong, torch.zeros(4, classes, device="cuda"))
    with pytest.warns(RuntimeWarning, match="index outside 0 .. 3"):
        assert tracker.count.tolist() == [MAX_PENDING + 1, 0, 0, 0]
    assert tracker.skipped == {"nonfinite": 0, "out_of_range": 3 * (MAX_PENDING + 1)}
    strict = Tracker(4, device="cuda", on_nonfinite="raise")
    strict.update(wrong, torch.zeros(4, classes, device="cuda"))
    with pytest.raises(IndexError, match="3 recordings had an index outside"):
        strict.sums()
    torch.cuda.synchronize()


@on_cuda
def test_a_target_out_of_range_is_not_recorded() -> None:
    tracker = Tracker(4, device="cuda", value="cross_entropy")
    targets = torch.tensor([0, -100, 3, 2], device="cuda")
    tracker.update([0, 1, 2, 3], torch.zeros(4, 3, device="cuda"), targets=targets)
    with pytest.warns(RuntimeWarning, match="not finite"):
        assert tracker.count.tolist() == [1, 0, 0, 1]
    torch.cuda.synchronize()


@on_cuda
def test_a_loss_at_an_index_out_of_range() -> None:
    loss = kcd.CondensedLoss(torch.nn.CrossEntropyLoss(reduction="none"), Tracker(4, device="cuda")).cuda()
    logits = torch.zeros(3, 10, device="cuda", requires_grad=True)
    targets = torch.zeros(3, dtype=torch.int64, device="cuda")
    loss(logits, targets, indices=torch.tensor([1, 4, -1], device="cuda")).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()  # noqa: PT018
    with pytest.warns(RuntimeWarning, match="index outside"):
        assert loss.tracker.count.tolist() == [0, 1, 0, 0]
    torch.cuda.synchronize()


# -- mixed precision ---------------------------------------------------------------------------------------


def scaler_of(device: str, *, enabled: bool) -> Any:
    """torch 2.2 knows CUDA's alone."""
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler(device, enabled=enabled)
    return torch.cuda.amp.GradScaler(enabled=enabled)


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", torch.bfloat16),
        pytest.param("cuda", torch.bfloat16, marks=[pytest.mark.cuda, needs_cuda]),
        pytest.param("cuda", torch.float16, marks=[pytest.mark.cuda, needs_cuda]),
    ],
)
@pytest.mark.parametrize("classes", CLASSES)
def test_mixed_precision(device: str, dtype: Any, classes: int) -> None:
    """Under float16 one step overflows: its sample is not recorded then, and the scaler skips the step."""
    torch.manual_seed(0)
    student = torch.nn.Linear(8, classes).to(device)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
    scaler = scaler_of(device, enabled=dtype == torch.float16)
    tracker, wanted = Tracker(BATCH, device=device), []
    targets = torch.arange(BATCH, device=device) % classes
    steps = MAX_PENDING + 3
    for step in range(steps):
        images = torch.randn(BATCH, 8, device=device)
        if dtype == torch.float16 and step == 3:
            images[0] = 1e6
        with torch.autocast(device, dtype=dtype):
            logits = student(images)
            loss = torch.nn.functional.cross_entropy(logits, targets)
            assert logits.dtype == dtype
            with no_synchronisation(device):
                tracker.update(range(BATCH), logits)
        wanted.append(exact("entropy", logits).numpy())
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    overflows = int(dtype == torch.float16)
    with pytest.warns(RuntimeWarning, match="not finite") if overflows else nullcontext():
        count = tracker.count.tolist()
    assert count == [steps - overflows] + [steps] * (BATCH - 1)
    assert tracker.skipped == {"nonfinite": overflows, "out_of_range": 0}
    np.testing.assert_allclose(tracker.value.cpu().numpy(), np.nanmean(wanted, 0), rtol=2e-5, atol=1e-5)


# -- logits in a buffer that the next step overwrites --------------------------------------------------------


@on_devices
@pytest.mark.parametrize("classes", CLASSES)
def test_values_are_those_of_their_step(device: str, classes: int) -> None:
    """Logits, indices, targets and teacher in buffers that are overwritten before anything is read."""
    for value in VALUES:
        steps, tracker, here = (
            random_steps(device, classes),
            Tracker(N, value=value, device=device),
            Tracker(N),
        )
        indices, logits = (torch.empty_like(x) for x in steps[0])
        buffers = {name: torch.empty_like(x) for name, x in all_given(value, logits).items()}
        for i, z in steps:
            given = all_given(value, z)
            indices.copy_(i)
            logits.copy_(z)
            for name, x in given.items():
                buffers[name].copy_(x)
            tracker.update(indices, logits, **buffers)
            indices.zero_()
            logits.fill_(torch.nan)
            here.record(i, getattr(kcd, value)(z, **given).cpu())
        assert_same_sums(tracker, here)


class TwoHeads(torch.nn.Module):
    """Gives small logits and large ones, so that one compilation sees both."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = torch.nn.ModuleList(torch.nn.Linear(8, classes) for classes in CLASSES)

    def forward(self, images: Any) -> Any:
        return [head(images) for head in self.heads]


@on_cuda
@pytest.mark.skipif(bool(NO_COMPILER), reason=NO_COMPILER)
@pytest.mark.filterwarnings("ignore")  # torch's compiler's own
def test_compiled_student(monkeypatch: pytest.MonkeyPatch) -> None:
    """With CUDA graphs inside, under autocast, trained: torch frees a step's output when the next one begins."""
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor.config, "compile_threads", 1)  # starting others takes longer
    torch.manual_seed(0)
    student = TwoHeads().cuda()
    try:
        compiled = torch.compile(student, mode="reduce-overhead")
    except RuntimeError as error:  # an old torch on a new Python
        pytest.skip(str(error))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
    trackers: Any = [Tracker(N, device="cuda") for _ in CLASSES]
    steps: Any = [[] for _ in CLASSES]
    for indices, _ in random_steps("cuda", steps=8):  # it warms up, captures, and then replays
        torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            outputs = compiled(torch.randn(BATCH, 8, device="cuda"))
        with no_synchronisation():
            for tracker, logits in zip(trackers, outputs, strict=True):
                tracker.update(indices, logits)
        for own, logits in zip(steps, outputs, strict=True):
            assert logits.dtype == torch.bfloat16
            own.append((indices, logits.detach().clone()))
        loss = sum(logits.float().logsumexp(-1).mean() for logits in outputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        del outputs, logits, loss
    for tracker, own in zip(trackers, steps, strict=True):
        assert not (own[0][1] == own[-1][1]).all()
        assert_same_sums(tracker, on_host(own))


def captured(classes: int) -> tuple[Callable[[Any], Any], Any]:
    """A student's forward pass in a graph, which is what is replayed, and its input."""
    images, student = torch.zeros(BATCH, 8, device="cuda"), torch.nn.Linear(8, classes).cuda()
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                student(images)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = student(images)

    def run(x: Any) -> Any:
        images.copy_(x)
        graph.replay()
        return logits

    return run, student


def graphed(classes: int) -> tuple[Callable[[Any], Any], Any]:
    """A student whose forward and backward pass are graphs."""
    student = torch.nn.Linear(8, classes).cuda()
    sample = torch.zeros(BATCH, 8, device="cuda")
    return torch.cuda.make_graphed_callables(student, (sample,)), student


@on_cuda
@pytest.mark.filterwarnings("ignore:.*AccumulateGrad")  # torch warms up on a stream of its own
@pytest.mark.parametrize("make", [captured, graphed])
@pytest.mark.parametrize("classes", CLASSES)
def test_student_in_a_cuda_graph(make: Any, classes: int) -> None:
    """Every replay writes its logits to the same memory. Recording is outside of the graph."""
    torch.manual_seed(0)
    run, student = make(classes)
    tracker, steps, places = Tracker(N, device="cuda"), [], set()
    for indices, _ in random_steps("cuda"):
        logits = run(torch.randn(BATCH, 8, device="cuda"))
        with no_synchronisation():
            tracker.update(indices, logits)
        steps.append((indices, logits.detach().clone()))
        places.add(logits.data_ptr())
        if make is graphed:
            logits.float().logsumexp(-1).mean().backward()
            with torch.no_grad():
                for parameter in student.parameters():
                    parameter.sub_(parameter.grad, alpha=0.01)
                    parameter.grad = None
    assert len(places) == 1
    assert not (steps[0][1] == steps[-1][1]).all()
    assert_same_sums(tracker, on_host(steps))


@on_cuda
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("index_device", ["host", "device"])
def test_recording_inside_a_graph_is_refused(classes: int, index_device: str) -> None:
    """Its replays would record nothing, or the same again. The capture itself goes on."""
    images, student = torch.ones(4, 8, device="cuda"), torch.nn.Linear(8, classes).cuda()
    indices = torch.arange(4, device="cuda" if index_device == "device" else "cpu")
    tracker = Tracker(4, device="cuda")
    loss = kcd.CondensedLoss(lambda z: z.mean(-1), tracker).cuda()
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            student(images)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        refused = []
        with torch.cuda.graph(graph):
            logits = student(images)
            for record in (
                lambda: tracker.update(indices, logits),
                lambda: tracker.record(indices, logits.select(1, 0)),
                lambda: loss(logits, indices=indices, record=True),
            ):
                try:  # an error that leaves the block would end the capture, and hide behind CUDA's own
                    record()
                except RuntimeError as error:
                    refused.append(str(error))
    assert len(refused) == 3
    for message in refused:
        assert "graph" in message
        assert "outside" in message
    assert tracker.count.tolist() == [0] * 4
    graph.replay()
    tracker.update(indices, logits)
    assert tracker.count.tolist() == [1] * 4
    torch.testing.assert_close(tracker.value.cpu(), exact("entropy", student(images)), rtol=2e-5, atol=1e-5)


# -- streams -----------------------------------------------------------------------------------------------


def churn(logits: Any) -> None:
    """Write to the memory that is free on this stream, of the logits' size and of their values': what was freed
    too early becomes NaN."""
    held = [torch.full_like(x, torch.nan) for x in (logits, logits[:, 0]) for _ in range(MAX_PENDING + 2)]
    del held


@on_cuda
@pytest.mark.parametrize("index_device", ["host", "device"])
@pytest.mark.parametrize("classes", CLASSES)
def test_recording_on_two_streams_in_turns(index_device: str, classes: int) -> None:
    """Of logits that are not there yet when they are recorded, and whose memory is used again at once."""
    steps = random_steps("cuda", classes)
    given = [i.to("cuda" if index_device == "device" else "cpu") for i, _ in steps]
    tracker, streams = Tracker(N, device="cuda"), [torch.cuda.Stream(), torch.cuda.Stream()]
    here = on_host(steps)
    with no_synchronisation():
        for step, (indices, (_, source)) in enumerate(zip(given, steps, strict=True)):
            with torch.cuda.stream(streams[step // 3 % 2]):
                logits = torch.full_like(source, torch.nan)
                torch.cuda._sleep(CYCLES)
                logits.copy_(source)
                tracker.update(indices, logits)
                logits.fill_(torch.nan)
                del logits
                churn(source)
    assert_same_sums(tracker, here)


@on_cuda
@pytest.mark.parametrize("recorded_on", ["default", "other"])
@pytest.mark.parametrize("read", ["value", "count", "sums", "state_dict", "to"])
def test_reading_on_another_stream(recorded_on: str, read: str) -> None:
    """Than the one that recorded, which is far behind."""
    steps, other = random_steps("cuda", steps=MAX_PENDING + 3), torch.cuda.Stream()
    here, tracker = on_host(steps), Tracker(N, device="cuda")
    default = torch.cuda.current_stream()
    torch.cuda.synchronize()
    recording, reading = (default, other) if recorded_on == "default" else (other, default)
    with torch.cuda.stream(recording):
        for indices, source in steps:
            logits = torch.full_like(source, torch.nan)
            torch.cuda._sleep(CYCLES)
            tracker.update(indices, logits.copy_(source))
    with torch.cuda.stream(reading):
        if read in ("value", "count"):
            np.testing.assert_array_equal(getattr(tracker, read).cpu().numpy(), getattr(here, read))
        elif read == "state_dict":
            assert same(tracker.state_dict(), here.state_dict())
        else:
            assert_same_sums(tracker.to("cpu") if read == "to" else tracker, here)


@on_cuda
def test_batches_prefetched_on_a_side_stream() -> None:
    """As apex's and timm's prefetchers do: the next batch travels while the student is at work."""
    student = torch.nn.Linear(8, 10).cuda()
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randint(N, (BATCH,), generator=generator).pin_memory(), torch.randn(BATCH, 8).pin_memory())
        for _ in range(STEPS)
    ]
    side, main = torch.cuda.Stream(), torch.cuda.current_stream()
    tracker, steps = Tracker(N, device="cuda"), []

    def fetch(batch: Any) -> Any:
        with torch.cuda.stream(side):
            torch.cuda._sleep(CYCLES)
            return [x.to("cuda", non_blocking=True) for x in batch]

    with torch.no_grad(), no_synchronisation():
        ahead = fetch(batches[0])
        for step in range(STEPS):
            main.wait_stream(side)
            indices, images = ahead
            for x in ahead:
                x.record_stream(main)
            if step + 1 < STEPS:
                ahead = fetch(batches[step + 1])
            logits = student(images)
            tracker.update(indices, logits)
            steps.append((batches[step][0], logits.clone()))
            del indices, images
    assert_same_sums(tracker, on_host(steps))


# -- loaders -----------------------------------------------------------------------------------------------


@on_devices
@pytest.mark.parametrize("workers", [0, 2])
def test_loader_from_workers_to_the_set(device: str, workers: int) -> None:
    """Two epochs from pinned memory: V is what a float64 reading of the logits, kept aside, says."""
    torch.manual_seed(0)
    loader = wrap(Plain(N), batch_size=BATCH, num_workers=workers, pin_memory=device == "cuda")
    student = torch.nn.Linear(12, 10).to(device)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-5)
    recorded: Any = [[] for _ in range(N)]
    assert loader.tracker.device is None
    for _ in range(2):
        aside = []
        for step, batch in enumerate(loader):
            images, targets = batch[0].flatten(1), torch.tensor(index_of(batch)) % 10
            if device == "cuda":
                assert images.is_pinned()
                images = images.to(device, non_blocking=True)
            logits = student(images / 64)
            loss = torch.nn.functional.cross_entropy(logits, targets.to(device))
            optimizer.zero_grad()
            loss.backward()
            # The first record moves V and F to the device, for which it may wait.
            with no_synchronisation(device) if step or loader.epoch > 1 else nullcontext():
                loader.record(logits)
            optimizer.step()
            aside.append((index_of(batch), logits.detach().clone()))
        for indices, logits in aside:
            for i, value in zip(indices, exact("entropy", logits).tolist(), strict=True):
                recorded[i].append(value)
        if device == "cuda":
            assert loader.tracker.device == logits.device
        assert loader.tracker.count.tolist() == [len(values) for values in recorded]
        np.testing.assert_allclose(
            loader.tracker.value if loader.tracker.device is None else loader.tracker.value.cpu().numpy(),
            [np.mean(values) for values in recorded],
            rtol=2e-5,
            atol=1e-5,
        )
        before = loader.sampler.num_kept
        assert len(loader.end_epoch().kept) == SCHEDULE.target(N, before) < before


@on_devices
def test_loader_chooses_the_device_at_the_first_record(device: str) -> None:
    loaders = [wrap(Plain(64), kcd_options={"device": given}) for given in (None, "cpu")]
    for loader in loaders[: 2 if device == "cpu" else 1]:
        before = loader.tracker.device
        assert before == (None if loader is loaders[0] else torch.device("cpu"))
        batch = next(iter(loader))
        logits = logits_of(index_of(batch), 1).to(device)
        loader.record(logits)
        assert loader.tracker.device == (logits.device if device == "cuda" else before)
        count = loader.tracker.count
        assert isinstance(count, np.ndarray if loader.tracker.device is None else torch.Tensor)
        assert int(count.sum()) == len(logits)


@on_cuda
def test_a_tracker_in_host_memory_takes_no_cuda_logits() -> None:
    """But a loader that was given a device records there from the start."""
    loader = wrap(Plain(64), kcd_options={"device": "cuda:0"})
    assert loader.tracker.device == torch.device("cuda:0")
    loader.record(logits_of(index_of(next(iter(loader))), 1).cuda())
    with pytest.raises(TypeError, match="tracker is in host memory"):
        Tracker(N).update(range(BATCH), torch.zeros(BATCH, 10, device="cuda"))


@on_devices
def test_data_parallel(device: str) -> None:
    loader = wrap(Plain(N), batch_size=BATCH)
    torch.manual_seed(0)
    student = torch.nn.DataParallel(torch.nn.Linear(12, 10).to(device), device_ids=[0])
    steps = []
    for batch in loader:
        logits = student((batch[0].flatten(1) / 64).to(device))
        assert logits.device.type == device
        loader.record(logits)
        steps.append((torch.tensor(index_of(batch)), logits.detach()))
    assert_same_sums(loader.tracker, on_host(steps))
    assert len(loader.end_epoch().kept) == SCHEDULE.target(N, N)


# -- state -------------------------------------------------------------------------------------------------


@on_devices
def test_state_moves_between_device_and_host(device: str) -> None:
    steps = random_steps(device)
    first, rest = steps[:40], steps[40:]
    there, here = Tracker(N, device=device), on_host(first)
    for step in first:
        there.update(*step)
    assert same(there.state_dict(), here.state_dict())
    back, away = Tracker(N), Tracker(N, device=device)
    back.load_state_dict(there.state_dict())
    away.load_state_dict(here.state_dict())
    assert back.device is None
    assert away.device == torch.device(device)
    for indices, logits in rest:
        back.record(indices, kcd.entropy(logits).cpu())
        away.update(indices, logits)
    assert_same_sums(back, on_host(steps))
    assert_same_sums(away, back)
    away.load_state_dict([there.state_dict(), on_host(rest).state_dict()])
    assert_same_sums(away, back)


@on_devices
@pytest.mark.parametrize("classes", CLASSES)
def test_moving_while_training(device: str, classes: int) -> None:
    """With values that wait: nothing is lost, and nothing recorded twice."""
    steps, tracker = random_steps(device, classes), Tracker(N, device=device)
    for number, (indices, logits) in enumerate(steps):
        if number % 10 == 9:
            place = (None, device)[number // 10 % 2]
            assert tracker.to(place) is tracker
            assert (tracker.device and tracker.device.type) == (place and torch.device(place).type)
        if tracker.device is None:
            tracker.record(indices, kcd.entropy(logits).cpu())
        else:
            tracker.update(indices, logits)
    assert_same_sums(tracker, on_host(steps))


@on_devices
@pytest.mark.parametrize("loaded_on", ["same", "cpu"])
def test_checkpoint(device: str, loaded_on: str, tmp_path: Any) -> None:
    """Saved in the middle of an epoch, with a student on the device: goes on as if nothing had happened."""

    def make(device: str) -> tuple[Any, Any, Any]:
        torch.manual_seed(0)
        student = torch.nn.Linear(12, 5).to(device)
        return wrap(Plain(100)), student, torch.optim.Adam(student.parameters())

    def train(loader: Any, student: Any, optimizer: Any, device: str, last: int = -1) -> list[Any]:
        drawn = []
        for batch in loader:
            drawn.append(index_of(batch))
            student((batch[0].flatten(1) / 64).to(device)).logsumexp(-1).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            # Logits that have the same entropy on every device, where the run goes on.
            loader.record(logits_of(drawn[-1], loader.epoch).to(device))
            if len(drawn) == last:
                return drawn
        loader.end_epoch()
        return drawn

    first, there = make(device), device if loaded_on == "same" else "cpu"
    train(*first, device)
    drawn = train(*first, device, last=3)
    path = tmp_path / "run.ckpt"
    names = ("loader", "student", "optimizer")
    kcd.save_checkpoint(path, {name: x.state_dict() for name, x in zip(names, first, strict=True)})
    state, second = kcd.load_checkpoint(path), make(there)
    for name, x in zip(names, second, strict=True):
        x.load_state_dict(state[name])
    assert_same_sums(second[0].tracker, first[0].tracker)
    for a, b in zip(first[1].parameters(), second[1].parameters(), strict=True):
        assert a.device.type == device
        assert b.device.type == there
        assert torch.equal(a.detach().cpu(), b.detach().cpu())
    # A pass that was left can't go on beside its successor, so what follows is compared with a third run.
    whole = make(device)
    train(*whole, device)
    everything = train(*whole, device)
    assert drawn + train(*second, there) == everything
    np.testing.assert_array_equal(second[0].sampler.kept, whole[0].sampler.kept)
    if there == device:
        assert_same_sums(second[0].tracker, whole[0].tracker)


# -- ranks -------------------------------------------------------------------------------------------------

RANK_N, RANK_EPOCHS = 23, 3  # an odd number: the last rank's part is padded


def train_as_a_rank(rank: int, world: int, folder: Any, backend: str, device: str) -> None:
    """What it recorded and which sets were chosen, by epoch."""
    torch.set_num_threads(1)
    if sys.platform == "linux":  # a machine without a network has ranks, too
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    if device == "cuda":
        torch.cuda.set_device(0)  # all ranks share it
    join_ranks(rank, world, folder, backend)
    sampler = DistributedSampler(range(RANK_N), seed=5)
    loader = kcd.wrap_loader(
        DataLoader(Plain(RANK_N), batch_size=3, sampler=sampler),
        schedule=SCHEDULE,
        return_index=True,
        device=None if device == "cuda" else device,
    )
    log = []
    for epoch in range(1, RANK_EPOCHS + 1):
        recorded = []
        for indices, batch in loader:
            logits = logits_of(index_of(batch), epoch).to(device)
            loader.record(logits)
            values = kcd.entropy(logits).tolist()
            recorded += [[i, v] for i, v in zip(indices.tolist(), values, strict=True) if i >= 0]
        chosen = loader.end_epoch()
        assert chosen is not None
        log.append([recorded, [x.tolist() for x in (chosen.kept, chosen.tail, chosen.dropped)]])
    # A single rank has nothing to send, so its back end is asked once here.
    summed = distributed.communicate(
        torch.distributed, np.array([2**60 + rank, -1]), torch.distributed.all_reduce
    )
    result = {"epochs": log, "device": str(loader.tracker.device), "summed": summed.tolist()}
    leave_together(folder / f"rank{rank}.json", result, world)


def ranks_to_start(session: Any) -> list[tuple[str, int, str]]:
    """Of the tests that will run."""
    if not torch.distributed.is_available():
        return []
    wanted = [getattr(item, "callspec", None) for item in session.items if item.path.samefile(__file__)]
    ranks = {call.params["ranks"] for call in wanted if call is not None and "ranks" in call.params}
    return sorted(r for r in ranks if r[2] == "cpu" or torch.cuda.is_available())


@pytest.fixture(scope="module", autouse=True)
def started(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Ranks, started before the first test: they import torch while others run."""
    jobs = {}
    try:
        for ranks in ranks_to_start(request.session):
            backend, world, device = ranks
            folder = tmp_path_factory.mktemp("ranks")
            jobs[ranks] = start_ranks(train_as_a_rank, world, folder, backend, device), folder
        yield jobs
    finally:
        for processes, _ in jobs.values():
            stop(processes)


@pytest.fixture
def ranks(request: pytest.FixtureRequest, started: Any) -> list[Any]:
    return results_of(*started[request.param])


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.parametrize(
    "ranks",
    [
        ("gloo", 2, "cpu"),
        pytest.param(("gloo", 2, "cuda"), marks=[pytest.mark.cuda, needs_cuda]),
        pytest.param(("nccl", 1, "cuda"), marks=[pytest.mark.cuda, needs_cuda]),
    ],
    indirect=True,
    ids=lambda ranks: "-".join(map(str, ranks)),
)
def test_ranks_choose_as_one_tracker_in_host_memory(ranks: list[Any], request: pytest.FixtureRequest) -> None:
    """Which recorded everything that they did: over gloo, the back end of the host, and over NCCL."""
    device, world = request.node.callspec.params["ranks"][2], len(ranks)
    tracker, sampler = Tracker(RANK_N), kcd.CondensedSampler(RANK_N)
    for epoch in range(RANK_EPOCHS):
        seen = [rank["epochs"][epoch] for rank in ranks]
        for recorded, _ in seen:
            indices, values = zip(*recorded, strict=True)
            tracker.record(indices, np.array(values))
        chosen = kcd.condense_step(tracker, sampler, SCHEDULE)
        want = [x.tolist() for x in (chosen.kept, chosen.tail, chosen.dropped)]
        assert [sets for _, sets in seen] == [want] * world
    for rank in ranks:
        assert rank["device"] == ("cuda:0" if device == "cuda" else "cpu")
        assert rank["summed"] == [world * 2**60 + world * (world - 1) // 2, -world]
