"""A value depends on its row alone: not on the batch's size, the order, or how the batch lies in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import kcd_core as kcd

from .part import Part

VALUES = (kcd.entropy, kcd.margin, kcd.cross_entropy, kcd.kd_divergence, kcd.reducible_loss)
CLASSES = (10, 100, 101, 1000, 1001, 32_768, 50_257)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (1, 16, 256)  # of batches, beside the whole
SINGLE = 64  # rows that are recorded one by one: as many steps are enough
GRAIN = 2.0**40  # a tracker's sums are integers, of these parts of a nat


def sums(part: Part, value: Any, batches: Any, rows: int) -> Any:
    """The sums of all rows, from a tracker that is given (indices, student's, teacher's, targets) of each batch."""
    where = part.device if part.device.type == "cuda" else None
    tracker = kcd.KnowledgeValueTracker(rows, value=value, device=where)
    for indices, logits, teacher, targets in batches:
        tracker.update(indices, logits, teacher_logits=teacher, targets=targets)
    return tracker.sums()[0]


def wide(x: torch.Tensor) -> torch.Tensor:
    """The same numbers as columns of a wider tensor, from an odd one on."""
    room = x.new_zeros(len(x), x.shape[1] + 7)
    room[:, 3:-4] = x
    return room[:, 3:-4]


def ways(logits: Any, teacher: Any, targets: Any) -> Iterator[tuple[str, int, Any]]:
    """Ways to record the same rows: a name, how many of them, and the batches."""
    rows = len(logits)
    order = np.arange(rows)
    for size in SIZES:
        first = min(rows, SINGLE) if size == 1 else rows
        parts = [slice(start, start + size) for start in range(0, first, size)]
        yield (f"batches of {size}", first, [(order[p], logits[p], teacher[p], targets[p]) for p in parts])
    shuffled = np.random.default_rng(0).permutation(rows)
    there = torch.from_numpy(shuffled).to(logits.device)
    yield ("permuted", rows, [(shuffled, logits[there], teacher[there], targets[there])])
    yield ("columns of a wider tensor", rows, [(order, wide(logits), wide(teacher), targets)])
    twice = logits.repeat_interleave(2, 0), teacher.repeat_interleave(2, 0)
    yield ("every other row", rows, [(order, twice[0][::2], twice[1][::2], targets)])
    yield ("transposed", rows, [(order, logits.t().contiguous().t(), teacher.t().contiguous().t(), targets)])


def differing(part: Part, value: Any, logits: Any, teacher: Any, targets: Any) -> list[str]:
    """Of each way by which sums come out that are not those of the whole: its name, and how many differ."""
    rows = len(logits)
    whole = sums(part, value, [(np.arange(rows), logits, teacher, targets)], rows)
    found = {}
    called = value(logits, teacher_logits=teacher, targets=targets)
    found["the function itself"] = np.rint(called.double().cpu().numpy() * GRAIN).astype(np.int64) != whole
    for way, first, batches in ways(logits, teacher, targets):
        found[way] = sums(part, value, batches, rows)[:first] != whole[:first]
    return [f"{way} ({np.count_nonzero(x)} of {len(x)})" for way, x in found.items() if x.any()]


def check_rows(part: Part) -> None:
    """A row for each number of classes, failed if a sum differs anywhere."""
    small = part.quick or part.device.type == "cpu"
    for classes in (10, 1000) if part.quick else CLASSES:
        rows = 1024 if not small else 40 if classes > 10_000 else 272
        wrong: list[str] = []
        checked, out_of_time = 0, False
        for dtype in DTYPES:
            torch.manual_seed(classes)
            logits = (3 * torch.randn(rows, classes, device=part.device)).to(dtype)
            teacher = (3 * torch.randn(rows, classes, device=part.device)).to(dtype)
            targets = torch.randint(0, classes, (rows,), device=part.device)
            for value in VALUES:
                out_of_time = out_of_time or part.left() < 2
                if out_of_time:
                    break
                name = f"{value.__name__}, {str(dtype).removeprefix('torch.')}"
                differ = differing(part, value, logits, teacher, targets)
                wrong += [f"{name}: {', '.join(differ)}"] if differ else []
                checked += 1
        what = f"a value depends on its row alone, {classes:,} classes"
        kinds = f"{checked} of {len(VALUES) * len(DTYPES)} kinds of value and dtype"
        if wrong:
            part.fail(what, f"{len(wrong)} of {kinds} differ: {'; '.join(wrong)}")
        elif out_of_time:
            part.leave_out(what, f"out of time after {kinds}, whose sums are the same")
        else:
            part.add(what, f"the same sums, {kinds}")
