"""The end of a stage from values on the device: how long it takes, what moves, and that the set is the host's."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import torch
from _common.report import duration
from torch.utils._python_dispatch import TorchDispatchMode

import kcd_core as kcd

from .part import Part

SIZES = (50_000, 1_281_167, 10**8)
LARGE = 10**7  # samples from which on the tracker itself is moved to the host: to add there takes too long
PIECE = 10**7  # samples recorded together
SAFETY = 3  # times as long, at most, as the size before lets expect
HOST_SAFETY = 1.5  # of the host's stage, once the device's was timed
OTHER = 2.0  # seconds for values, and for moving them
HOST_BYTES, DEVICE_BYTES = 100, 100  # a sample, at most, of both trackers, their values and the two sets
SET = ("kept", "dropped", "tail", "weights")
SCHEDULE = kcd.CondensationSchedule(ratio=0.7, stages=6, period=40)


class ToHost(TorchDispatchMode):
    """Counts the bytes that are copied from the device to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = [x for x in args if isinstance(x, torch.Tensor)]
        if isinstance(made, torch.Tensor) and made.device.type == "cpu" and any(x.is_cuda for x in given):
            self.bytes += made.nbytes
        return made


def recorded(part: Part, samples: int) -> tuple[Any, Any]:
    """A tracker on the device, and one on the host that was given the same values, unless there are too many."""
    on_device = kcd.KnowledgeValueTracker(samples, device=part.device)
    on_host = kcd.KnowledgeValueTracker(samples) if samples < LARGE else None
    for epoch in range(3 if on_host else 1):
        for start in range(0, samples, PIECE):
            indices = torch.arange(start, min(start + PIECE, samples), device=part.device)
            drawn = indices[torch.rand(len(indices), device=part.device) < 0.95] if epoch else indices
            values = 4.6 * torch.rand(len(drawn), device=part.device)
            on_device.record(drawn, values)
            on_device.skipped  # noqa: B018  (adds what waits: a piece is large)
            if on_host:
                on_host.record(drawn.cpu(), values.cpu())
    return on_device, on_host


def staged(part: Part, tracker: Any, rounds: int) -> tuple[float, Any]:
    """Seconds of the best of ``rounds`` first stages, and the set."""
    seconds = []
    for _ in range(rounds):
        sampler = kcd.CondensedSampler(tracker.num_samples)
        part.sync()
        start = time.perf_counter()
        chosen = kcd.condense_step(tracker, sampler, SCHEDULE)
        seconds.append(time.perf_counter() - start)
    return min(seconds), chosen


def measure(part: Part, samples: int, before: tuple[float, float] | None = None) -> tuple[float, float]:
    """A row for what it costs, and one for the set; the seconds of a stage on the device, and of one on the host.

    ``before``: those of the size before, where there may be too little time.
    """
    on_device, on_host = recorded(part, samples)
    rounds = 1 if samples >= LARGE or part.quick else 3
    with ToHost() as moved:
        seconds, chosen = staged(part, on_device, rounds)
    part.add(
        f"condense_step, {samples:,} samples",
        f"{duration(seconds)}, {moved.bytes / rounds / samples:.3g} bytes a sample to the host",
        seconds=seconds,
        bytes_to_host=moved.bytes / rounds,
        kept=chosen.num_kept,
        cut=chosen.cut,
    )
    what = f"the set of {samples:,} samples"
    needed = 0.0 if before is None else HOST_SAFETY * seconds * before[1] / before[0] + OTHER
    if part.left() < needed:
        part.leave_out(what, f"{part.left():.0f} s left, a stage on the host may take {needed:.0f} s")
        return seconds, needed
    on_host = on_host or on_device.to(None)
    expected_seconds, expected = staged(part, on_host, rounds)
    differ = [x for x in SET if not np.array_equal(getattr(chosen, x), getattr(expected, x))]
    if differ:
        part.fail(what, f"not that of a tracker in host memory: {', '.join(differ)} differ")
    else:
        part.add(
            what,
            f"that of a tracker in host memory, to the index ({duration(expected_seconds)} there)",
            host_seconds=expected_seconds,
        )
    return seconds, expected_seconds


def lacking(part: Part, samples: int, needed: float) -> str:
    """What there is too little of for so many samples, which may take so many seconds."""
    if part.left() < needed:
        return f"{part.left():.0f} s are left of the part's time, they may take {needed:.0f} s"
    host = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    if host < HOST_BYTES * samples:
        return f"they take {HOST_BYTES * samples / 1e9:.0f} GB of the host's memory, {host / 1e9:.0f} GB are free"
    free, _ = torch.cuda.mem_get_info(part.device)
    if free < DEVICE_BYTES * samples:
        return f"they take {DEVICE_BYTES * samples / 1e9:.0f} GB of the GPU's memory, {free / 1e9:.0f} GB are free"
    return ""


def run(part: Part) -> None:
    torch.manual_seed(0)
    with ToHost():
        staged(part, recorded(part, 100)[0], 1)  # the first mode imports a lot, and so may the first stage
    taken: tuple[int, tuple[float, float]] | None = None
    for samples in SIZES[:1] if part.quick else SIZES:
        large = samples >= LARGE and taken is not None
        if large:
            needed = OTHER + SAFETY * taken[1][0] * samples / taken[0]
            why = "for a GPU only" if part.device.type != "cuda" else lacking(part, samples, needed)
            if why:
                part.leave_out(f"condense_step, {samples:,} samples", why)
                continue
        taken = samples, measure(part, samples, taken[1] if large else None)
