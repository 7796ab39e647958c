"""What it takes to record a step, from small logits to those of a large vocabulary: time, and memory at its peak.

Also that a value depends on its row alone, on the device: see `_gpu.rows`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _common.report import duration
from _common.timing import best, in_turns

import kcd_core as kcd

from .memory import peak
from .part import Part
from .rows import check_rows

SAMPLES = 50_000
BLOCK = 32  # steps timed together: what waits is added once in as many
BATCHES = 16  # different small logits, taken in turn
LARGE = 64_000_000  # bytes of logits: extra memory is bounded for as many or more
MOST_EXTRA = 0.25  # of them

SHAPES = (
    (64, 100, torch.float32),
    (256, 1000, torch.float32),
    (4096, 32_768, torch.bfloat16),
    (8192, 151_936, torch.bfloat16),
)
ARRAYS = 6  # of the logits' size: they, and what the authors' recording makes of them
FEWER_ROWS = {32_768: 1024, 151_936: 256}  # where there is no GPU; still more than `LARGE`


def authors(record: Any) -> Callable[[Any, torch.Tensor], None]:
    """Softmax, p log p, a copy to the host every step, and an assignment there: from their description."""

    def step(indices: Any, logits: torch.Tensor) -> None:
        with torch.no_grad():
            p = torch.softmax(logits, 1)
            record[indices] = -(p * torch.log(p)).sum(1).float().cpu().numpy()

    return step


def read(indices: Any, logits: torch.Tensor) -> None:
    with torch.no_grad():
        logits.amax(-1)


def log_softmax(indices: Any, logits: torch.Tensor) -> None:
    with torch.no_grad():
        torch.log_softmax(logits, -1)


def measure(part: Part, batch: int, classes: int, dtype: torch.dtype) -> None:
    """One shape's time and memory, in a row each."""
    size = batch * classes * dtype.itemsize
    large = size >= LARGE
    some = [
        # Few rows, repeated: to draw numbers takes longer on a CPU than to record them.
        torch.randn(16, classes, device=part.device).to(dtype).repeat(batch // 16, 1).requires_grad_()
        for _ in range(1 if large else BATCHES)
    ]
    rng = np.random.default_rng(0)
    indices = [rng.permutation(SAMPLES)[:batch] for _ in some]
    tracker = kcd.KnowledgeValueTracker(SAMPLES, device=part.device if part.device.type == "cuda" else None)
    steps = BLOCK if part.device.type == "cuda" or not large else 1

    def block(step: Callable[[Any, torch.Tensor], None]) -> Callable[[], None]:
        def run() -> None:
            for number in range(steps):
                step(indices[number % len(some)], some[number % len(some)])
            part.sync()

        return run

    arms = {
        "kcd": block(tracker.update),
        "authors": block(authors(np.full(SAMPLES, -1.0))),
        "read": block(read),
        "log_softmax": block(log_softmax),
    }
    rounds = 1 if part.quick and large else 3 if part.quick or large else 100
    seconds = {arm: best(times) / steps for arm, times in in_turns(arms, rounds).items()}
    ratios = {arm: seconds["kcd"] / seconds[arm] for arm in ("authors", "read", "log_softmax")}
    shape = f"{batch} x {classes:,} {str(dtype).removeprefix('torch.')}"
    part.add(
        f"tracker.update, {shape}",
        f"{duration(seconds['kcd'])}: {ratios['authors']:.3g} of the authors' recording, {ratios['read']:.3g} of one "
        f"read, {ratios['log_softmax']:.3g} of log_softmax",
        seconds=seconds,
        ratios=ratios,
        steps=steps,
        rounds=rounds,
    )
    del arms
    tracker.count  # noqa: B018  (what waits is added before, not meanwhile)

    def record() -> None:
        for number in range(1 if large else BLOCK + 1):
            tracker.update(indices[number % len(some)], some[number % len(some)])

    extra = peak(part.device, record)
    figure = f"{extra:,} bytes, {extra / size:.3g} of the logits'"
    if large and extra > MOST_EXTRA * size:
        part.fail(f"extra memory, {shape}", f"{figure}, more than {MOST_EXTRA}")
    else:
        part.add(f"extra memory, {shape}", figure, bytes=extra, share=extra / size)


def run(part: Part) -> None:
    torch.manual_seed(0)
    cuda = part.device.type == "cuda"
    # One large shape shows that it runs; on a CPU, each takes seconds.
    for batch, classes, dtype in SHAPES if cuda or not part.quick else SHAPES[:-1]:
        rows = batch if cuda and not part.quick else FEWER_ROWS.get(classes, batch)
        needed = ARRAYS * rows * classes * dtype.itemsize
        if cuda and torch.cuda.mem_get_info(part.device)[0] < needed:
            part.leave_out(f"{rows} x {classes:,}", f"{needed / 1e9:.0f} GB of the GPU's memory are not free")
            continue
        measure(part, rows, classes, dtype)
        if cuda:
            torch.cuda.empty_cache()
    check_rows(part)
