"""A value is that of its row alone, to the last bit, wherever batches are joined and cut into chunks."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import kcd_core as kcd
from kcd_core.base.rows import HOST_CHUNK
from kcd_core.base.states import value_name

BUILT_IN = [kcd.entropy, kcd.cross_entropy, kcd.kd_divergence, kcd.margin, kcd.reducible_loss]


def batch(rows: int, classes: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "student_logits": rng.normal(0, 3, (rows, classes)).astype(np.float32),
        "teacher_logits": rng.normal(0, 3, (rows, classes)).astype(np.float32),
        "targets": rng.integers(0, classes, rows),
    }


@pytest.mark.parametrize("function", BUILT_IN)
@pytest.mark.parametrize(
    ("rows", "classes"),
    [
        (HOST_CHUNK // 64, 64),  # a chunk, one row more, one less
        (HOST_CHUNK // 64 + 1, 64),
        (HOST_CHUNK // 64 - 1, 64),
        (3 * (HOST_CHUNK // 100) + 2, 100),  # chunks that are not filled by whole rows
        (7, 8192),  # where einsum's buffer ends, and beyond
        (7, 8193),
        (7, 9000),
        (5, 16_384),
        (3, HOST_CHUNK),  # a row that is a chunk, or more
        (3, HOST_CHUNK + 1),
    ],
)
@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_chunks_are_joined_row_by_row(function: Any, rows: int, classes: int, convert: Any) -> None:
    given = batch(rows, classes)
    whole = function(**{name: convert(x) for name, x in given.items()})
    assert len(whole) == rows
    for row in {0, 1, rows // 3, rows // 2, rows - 2, rows - 1}:
        alone = function(**{name: convert(x[row : row + 1]) for name, x in given.items()})
        assert float(whole[row]) == float(alone[0]), row


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize(
    ("rows", "classes", "batches"),
    [
        (2**7, 2**8, 5),  # 2**15 numbers a batch, which wait for nothing
        (2**4, 2**8, HOST_CHUNK // 2**12 + 1),  # 2**12 each: a chunk together, and one more
        (1, 2**8, 2**7 + 1),
        (1, 3, 300),  # more than wait together
        (81, 101, 130),  # 2**20 together, and more
    ],
)
def test_what_waits_together_is_added_sample_by_sample(
    device: Any, rows: int, classes: int, batches: int
) -> None:
    """Sums of ``round(value * 2**40)`` of each row alone."""
    n = 2 * rows + 1
    tracker = kcd.KnowledgeValueTracker(n, device=device)
    total, count = [0] * n, [0] * n
    for number in range(batches):
        logits = batch(rows, classes, number)["student_logits"]
        indices = np.random.default_rng(number).permutation(n)[:rows]
        tracker.update(indices, logits if device is None else torch.from_numpy(logits))
        for index, row in zip(indices, logits, strict=True):
            total[index] += round(float(kcd.entropy(row[None])[0]) * 2**40)
            count[index] += 1
    sums = tracker.sums()
    assert [x.tolist() for x in sums] == [total, count]


def test_sums_of_many_numbers_are_joined_exactly() -> None:
    """2**15 numbers that no float64 adds without loss, in one call, in many, and from many trackers."""
    n, size = 5, 2**15
    rng = np.random.default_rng(0)
    indices = rng.integers(0, n, size)
    values = rng.normal(3, 30, size)
    fixed = [round(float(x) * 2**40) for x in values]
    expected = [sum(x for i, x in zip(indices, fixed, strict=True) if i == sample) for sample in range(n)]
    assert max(map(abs, expected)) > 2**53
    whole = kcd.KnowledgeValueTracker(n)
    whole.record(indices, values)
    pieces = kcd.KnowledgeValueTracker(n)
    for place in range(0, size, 31):
        pieces.record(indices[place : place + 31], values[place : place + 31])
    parts = []
    for part in np.array_split(np.arange(size), 7):
        parts.append(kcd.KnowledgeValueTracker(n, device="cpu"))
        parts[-1].record(indices[part], torch.from_numpy(values[part]))
    summed = kcd.KnowledgeValueTracker(n)
    summed.load_state_dict([part.state_dict() for part in parts])
    for tracker in (whole, pieces, summed):
        total, count = tracker.sums()
        assert total.tolist() == expected
        assert count.tolist() == np.bincount(indices, minlength=n).tolist()


def test_a_partial_is_called_the_same_in_whatever_order_its_keywords_were_given() -> None:
    def value(student_logits: Any, *, a: int, b: str, teacher_logits: Any = None, targets: Any = None) -> Any:
        return student_logits[:, 0]

    one, other = partial(value, a=1, b="x"), partial(value, b="x", a=1)
    assert list(one.keywords) != list(other.keywords)
    assert value_name(one) == value_name(other)
    assert value_name(one).endswith("value(a=1, b='x')")
    assert value_name(partial(partial(value, b="x"), a=1)) == value_name(one)
    assert value_name(partial(value, a="x", b=1)) != value_name(one)
    tracker, again = (kcd.KnowledgeValueTracker(2, value=made) for made in (one, other))
    tracker.record([0], [1.0])
    again.load_state_dict(tracker.state_dict())
    assert again.count.tolist() == [1, 0]
