"""What each arm adds to a real distillation step: in float32, under autocast and compiled."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from _common.compiler import no_compiler
from _common.progress import Progress
from _common.report import verdict
from _overhead.loop import Settings
from _overhead.measure import measure
from _overhead.pairs import PAIRS
from _overhead.report import MOST, MOST_OF_AUTHORS

from .part import Part

# Most telling first: the published pair, then those whose steps are short; to compile takes long.
WAYS = ("float32", "bfloat16 autocast", "compiled")
PLAN = (
    ("resnet32x4-resnet8x4", "float32"),
    ("resnet32x4-resnet8x4", "bfloat16 autocast"),
    ("tiny", "float32"),
    ("tiny", "compiled"),
    ("small", "float32"),
    ("tiny", "bfloat16 autocast"),
    ("resnet32x4-resnet8x4", "compiled"),
    ("small", "bfloat16 autocast"),
    ("small", "compiled"),
)
SECONDS = 3.0  # with less left, nothing is begun
FIRST_COMPILE = 40.0  # what is allowed for compiling as long as none was seen
COMPILE = 1.5  # times the longest that was seen
RESERVE = 4.0  # seconds for what ends later than planned
QUICK_BATCH = 8


def run(part: Part) -> None:
    """A row for each pair and way, or why it was left out."""
    plan = [("tiny", way) for way in WAYS] if part.quick else list(PLAN)
    torch.set_num_threads(1)  # as one process of many; on CUDA, the CPU only launches
    longest = 0.0  # that compiling took
    for number, (pair, way) in enumerate(plan):
        compiled = way == "compiled" and not part.quick
        left = part.left() - RESERVE
        compiling = (COMPILE * longest or FIRST_COMPILE) if compiled else 0.0
        why = no_compiler(part.device) if compiled else ""
        if left <= compiling + (0.0 if part.quick else SECONDS):
            why = why or f"{max(left, 0):.0f} s left" + (f", compiling may take {compiling:.0f} s" * compiled)
        if why:
            part.leave_out(f"{pair}, {way}", why)
            continue
        share = weight(pair, way) / sum(weight(*later) for later in plan[number:])
        begun, seconds = time.monotonic(), (left - compiling) * share
        try:
            models = PAIRS[pair]
            if part.quick:
                models = replace(models, short=False, batch=QUICK_BATCH)
            result = measure(models, settings(part, way, seconds), Progress())
        except Exception as error:  # of one pair; the others are measured all the same
            part.fail(f"{pair}, {way}", f"{type(error).__name__}: {error}".splitlines()[0][:300])
            longest = max(longest, time.monotonic() - begun) if compiled else longest
            continue
        longest = max(longest, result["start_s"]) if compiled else longest
        part.add(f"{pair}, {way}", told(result), **result)
        waits = result["arms"]["kcd"].get("syncs_warned") or 0.0
        if waits > 0:  # a difference, which may be less than nothing
            part.fail(f"{pair}, {way}: no recorded step waits", f"{waits:.2f} synchronisations a step")
    if part.device.type != "cuda":
        part.leave_out("launches, synchronisations, peak memory", "they are CUDA's")


def weight(pair: str, way: str) -> float:
    """Which share of the time that is left, to the others' not yet measured."""
    if way == "compiled":
        return 2.5
    return 1.0 if PAIRS[pair].short else 2.0


def settings(part: Part, way: str, seconds: float) -> Settings:
    """For one pair: as many rounds as fit, or with ``quick`` the fewest."""
    common = Settings(
        part.device,
        amp=torch.bfloat16 if way == "bfloat16 autocast" else None,
        backend="inductor" if way == "compiled" else None,
        rounds=320,
        warmup=5,
        seconds=seconds,
        until=part.deadline - RESERVE,
    )
    if not part.quick:
        return common
    # That backend compiles nothing, but the student's graph is taken all the same.
    backend = "eager" if way == "compiled" else None
    return replace(common, samples=64, backend=backend, rounds=2, warmup=1, windows=1)


def told(result: dict[str, Any]) -> str:
    """One pair's figures in a line."""
    kcd, authors = result["arms"]["kcd"], result["arms"]["authors"]
    parts = [
        f"kcd {kcd['ratio']:.4f} of plain KD's {result['arms']['kd']['median_ms']:.3g} ms"
        f"{between(kcd['ratio_95'], 4)}: {verdict(kcd['ratio_95'], at_most=MOST)}",
        f"recording {kcd['added_us']:.0f} us, {kcd['added_to_authors']:.2f} of the authors'"
        f"{between(kcd['added_to_authors_95'], 2)}: "
        f"{verdict(kcd['added_to_authors_95'], at_most=MOST_OF_AUTHORS)}",
    ]
    if "peak_bytes" in kcd:
        more = (kcd["peak_bytes"] - result["arms"]["kd"]["peak_bytes"]) / 1e3
        parts += [
            f"launches {launched(kcd)} (authors {launched(authors)})",
            f"waits {seen(kcd['syncs_profiled'])} by the profiler, {seen(kcd['syncs_warned'])} by the debug mode "
            f"(authors {seen(authors['syncs_profiled'])}, {seen(authors['syncs_warned'])})",
            f"peak memory {kcd['peak_bytes'] / 1e6:.1f} MB, {more:+.0f} kB to plain KD",
        ]
    return "; ".join(parts)


def between(interval: list[float] | None, digits: int) -> str:
    return "" if interval is None else f" ({interval[0]:.{digits}f} .. {interval[1]:.{digits}f})"


def launched(row: dict[str, Any]) -> str:
    return seen(None if row["kernels"] is None else row["kernels"] + row["copies"])


def seen(number: float | None) -> str:
    return "not counted" if number is None else f"{number:.2f}"
