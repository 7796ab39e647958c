"""Recording on a real CUDA device: ``pytest -m cuda tests/test_cuda_device.py``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

import kcd_core as kcd
from kcd_core.tracker import MAX_PENDING

Tracker = kcd.KnowledgeValueTracker

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs a CUDA device: run `pytest -m cuda tests/test_cuda_device.py` on a machine that has one",
)


@contextmanager
def no_synchronisation() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def random_steps(n: int = 500, steps: int = 2 * MAX_PENDING + 5) -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(0)
    return [(rng.integers(0, n, 64), rng.normal(0, 3, (64, 10)).astype(np.float32)) for _ in range(steps)]


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("index_device", ["cpu", "cuda"])
def test_same_sums_as_on_the_host(index_device: str) -> None:
    """The values as the GPU computes them, recorded there and on the host: the same sums, to the bit."""
    there, here = Tracker(500, device="cuda"), Tracker(500)
    for indices, logits in random_steps():
        on_device = torch.from_numpy(logits).cuda()
        there.update(torch.from_numpy(indices).to(index_device), on_device)
        here.record(indices, kcd.entropy(on_device).cpu())
    for a, b in zip(there.sums(), here.sums(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(there.value.cpu().numpy(), here.value)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("index_device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_no_synchronisation(index_device: str, dtype: Any) -> None:
    tracker = Tracker(500, device="cuda")
    steps = [
        (torch.from_numpy(i).to(index_device), torch.from_numpy(z).to("cuda", dtype))
        for i, z in random_steps()
    ]
    tracker.update(*steps[0])
    with no_synchronisation():
        for step in steps:
            tracker.update(*step)
    assert int(tracker.count.sum()) == 64 * (len(steps) + 1)


@pytest.mark.cuda
@needs_cuda
def test_device_assert_is_never_raised() -> None:
    tracker = Tracker(4, device="cuda")
    for _ in range(MAX_PENDING):
        tracker.update(torch.tensor([0, -1, 4, 10**12], device="cuda"), torch.zeros(4, 3, device="cuda"))
    with pytest.warns(RuntimeWarning, match="index outside"):
        assert tracker.count.tolist() == [MAX_PENDING, 0, 0, 0]
    ce = Tracker(2, device="cuda", value="cross_entropy")
    ce.update([0, 1], torch.zeros(2, 3, device="cuda"), targets=torch.tensor([0, -100], device="cuda"))
    with pytest.warns(RuntimeWarning, match="not finite"):
        assert ce.count.tolist() == [1, 0]
    torch.cuda.synchronize()


@pytest.mark.cuda
@needs_cuda
def test_autocast_and_compiled_student() -> None:
    student = torch.compile(torch.nn.Linear(8, 10).cuda(), mode="reduce-overhead")
    tracker, want = Tracker(64, device="cuda"), np.zeros(64)
    for _ in range(5):
        torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast("cuda", dtype=torch.bfloat16), torch.no_grad():
            logits = student(torch.randn(64, 8, device="cuda"))
            tracker.update(range(64), logits)
            want += kcd.entropy(logits).double().cpu().numpy() / 5
    np.testing.assert_allclose(tracker.value.cpu().numpy(), want, rtol=1e-6)


@pytest.mark.cuda
@needs_cuda
def test_student_in_a_cuda_graph() -> None:
    """Its output buffer is reused at every replay; recording is outside of the graph."""
    images, student = torch.randn(4, 8, device="cuda"), torch.nn.Linear(8, 3).cuda()
    with torch.no_grad():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            student(images)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = student(images)
    tracker, want = Tracker(4, device="cuda"), []
    for step in range(5):
        images.fill_(step)
        graph.replay()
        tracker.update(range(4), logits)
        want.append(kcd.entropy(logits).double().cpu().numpy())
    np.testing.assert_allclose(tracker.value.cpu().numpy(), np.mean(want, 0), rtol=1e-6)


@pytest.mark.cuda
@needs_cuda
def test_condensed_set_is_that_of_the_host() -> None:
    value = np.random.default_rng(0).normal(size=500).astype(np.float32)
    sets = []
    for device in (None, "cuda"):
        tracker = Tracker(500, device=device)
        tracker.record(np.arange(500), torch.from_numpy(value).to(device or "cpu"))
        sets.append(kcd.condense_step(tracker, kcd.CondensedSampler(500), kcd.CondensationSchedule()))
    for name in ("kept", "dropped", "tail", "weights"):
        np.testing.assert_array_equal(getattr(sets[0], name), getattr(sets[1], name))
