"""What every arm's step takes on one pair, and what its recording adds."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import scipy.stats
import torch
from _common.counting import WINDOW, counts, on_device, peak
from _common.progress import Progress
from torch.utils.data import DataLoader, TensorDataset

import kcd_core as kcd
from kcd_adapters.demo.models import build

from .loop import Loop, Settings, in_turns
from .pairs import Pair
from .recorders import ARMS

FEWEST = 6  # measurements without which an interval says nothing
STEPS_AT_PEAK = 4
HALF_A_MINUTE = 30.0


def measure(pair: Pair, settings: Settings, progress: Progress) -> dict[str, Any]:
    """Interleaved steps of all arms on one pair, then their recordings alone.

    On CUDA, also what the recordings launch and wait for, and peak memory.
    """
    start = time.monotonic()
    progress.begin(f"{pair.name}: the models")
    loops = arms(pair, settings)
    step = {arm: loop.step for arm, loop in loops.items()}
    progress.begin(f"{pair.name}: first steps{', the students are compiled' if settings.backend else ''}")
    in_turns(step, settings.warmup, progress)
    progress.begin(f"{pair.name}: whole steps")
    begun = time.monotonic()
    limits = [settings.seconds, None if settings.until is None else settings.until - begun]
    budget = min((limit for limit in limits if limit is not None), default=None)
    until = None if budget is None else begun + 0.5 * budget
    steps = in_turns(step, settings.rounds * (10 if pair.short else 1), progress, until=until)
    progress.begin(f"{pair.name}: recordings alone")
    now = time.monotonic()
    # Where the forward pass takes long, no longer than the whole steps took.
    until = now + max(now - begun, HALF_A_MINUTE) if budget is None else begun + 0.8 * budget
    alone = {arm: loop.record_alone for arm, loop in loops.items() if arm != "kd"}
    in_turns(
        alone, WINDOW, progress
    )  # so that what is done once in a window is there from the first that counts
    taken = in_turns(alone, WINDOW * settings.windows, progress, until=until, least=2 * WINDOW)
    result: dict[str, Any] = {
        "pair": pair.name,
        "batch": pair.batch,
        "shape": list(pair.shape),
        "classes": pair.classes,
        "start_s": begun - start,
        "rounds": len(steps["kd"]),
        "windows": len(taken["kcd"]) // WINDOW,
        "arms": figures(steps, {arm: windows(own) for arm, own in taken.items()}),
    }
    if settings.device.type == "cuda":
        progress.begin(f"{pair.name}: launches, synchronisations and memory")
        idle = counts(partial(loops["kd"].again, WINDOW, recorded=False), settings.device)
        for arm, loop in loops.items():
            result["arms"][arm].update(counted(loop, idle, settings.device))
    return result


def arms(pair: Pair, settings: Settings) -> dict[str, Loop]:
    """Every arm with a student of its own, all with the same weights, and the same batches in their order."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(settings.samples, *pair.shape, generator=generator)
    targets = torch.randint(0, pair.classes, (settings.samples,), generator=generator)
    plain = TensorDataset(images, targets)
    with_index = TensorDataset(torch.arange(settings.samples), images, targets)
    teacher = build(lambda _: pair.teacher(), pair.classes, 0).to(settings.device).eval()
    if settings.backend:
        torch.compiler.reset()  # else students of several pairs add up to more than are compiled
    loops = {}
    for arm in ARMS:
        loader: Any = DataLoader(
            plain if arm in ("kd", "kcd") else with_index,
            batch_size=pair.batch,
            shuffle=True,
            drop_last=True,
            generator=torch.Generator().manual_seed(0),
            pin_memory=settings.device.type == "cuda",
        )
        if arm == "kcd":  # no stage ends, so that every arm's epochs stay alike
            loader = kcd.wrap_loader(loader, schedule=kcd.CondensationSchedule(period=10**9))
        student: Any = build(lambda _: pair.student(), pair.classes, 0).to(settings.device).train()
        if settings.backend:
            student = torch.compile(student, backend=settings.backend)
        loops[arm] = Loop(arm, teacher, student, loader, settings)
    return loops


def figures(steps: dict[str, Any], alone: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the table says of each arm, from seconds of whole steps and of recordings, a mean for each window."""
    base = steps["kd"]
    rows: dict[str, dict[str, Any]] = {}
    for arm, own in steps.items():
        rows[arm] = row = {"median_ms": 1e3 * float(np.median(own))}
        if arm != "kd":
            row["ratio"], row["ratio_95"] = float(ratio_of_medians(own, base)), interval(own, base)
            row["added_us"] = 1e6 * float(np.median(alone[arm]))
            row["added_share"] = row["added_us"] / (1e3 * rows["kd"]["median_ms"])
    rows["kcd"]["added_to_authors"] = float(ratio_of_medians(alone["kcd"], alone["authors"]))
    rows["kcd"]["added_to_authors_95"] = interval(alone["kcd"], alone["authors"])
    return rows


def windows(seconds: Any) -> Any:
    """The mean step of every whole window: each has its share of what is done only once in one."""
    whole = len(seconds) // WINDOW * WINDOW
    return seconds[:whole].reshape(-1, WINDOW).mean(1)


def interval(own: Any, base: Any) -> list[float] | None:
    """Of the ratio of medians, 95 %, by bootstrap of the rounds; None of too few."""
    if len(own) < FEWEST:
        return None
    found = scipy.stats.bootstrap(
        (own, base), ratio_of_medians, paired=True, n_resamples=2000, method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return [float(found.low), float(found.high)]


def ratio_of_medians(a: Any, b: Any, axis: int = -1) -> Any:
    return np.median(a, axis=axis) / np.median(b, axis=axis)


def counted(loop: Loop, idle: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """On CUDA: an arm's peak memory, and what its recording launches and waits for, beyond the ``idle`` counts."""

    def steps() -> None:
        for _ in range(STEPS_AT_PEAK):
            loop.step()

    highest, _ = peak(steps, device)
    row: dict[str, Any] = {"peak_bytes": highest}
    if loop.arm != "kd":
        row.update(on_device(partial(loop.again, WINDOW), idle, device, WINDOW))
    return row
