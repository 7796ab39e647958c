"""Slices on many ranks: together the set is `condense`'s on the whole, to the point."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kcd_core as kcd
from kcd_core import counting, sharded
from kcd_core.selection import rank_scores

# Crowds of ties, values that differ in the last bit only, both signs, and any numbers.
VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, np.nextafter(1.0, 2.0), np.nextafter(1.0, 0.0), -2.5, 3.0]),
    st.floats(-1e6, 1e6),
)


@st.composite
def stages(draw: st.DrawFn) -> dict[str, Any]:
    n = draw(st.integers(1, 60))
    same = draw(st.booleans())
    value = np.array([draw(VALUES)] * n if same else draw(st.lists(VALUES, min_size=n, max_size=n)))
    count = np.array(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), np.int32)
    value[count == 0] = np.nan
    previous = draw(st.integers(1, n))
    return {
        "value": value,
        "count": count,
        "ranks": draw(st.integers(1, min(n, 7))),
        "previous": previous,
        "target": draw(st.integers(1, n)),
        "alpha": draw(st.sampled_from([0.0, 0.03, 1.0])),
    }


def on_shards(
    value: Any, count: Any, *, ranks: int, alpha: float = 0.03, **sizes: Any
) -> list[sharded.ShardedSet]:
    """`condense_shard` on every slice, driven in turns."""
    n, countings = len(value), []
    for rank in range(ranks):
        part = slice(*sharded.bounds(n, rank, ranks))
        score = rank_scores(value[part], count[part], alpha)
        countings.append(sharded.condense_shard(score, num_samples=n, rank=rank, ranks=ranks, **sizes))
    return counting.in_one_process(countings)


@given(stages())
def test_together_the_shards_choose_what_condense_does(stage: dict[str, Any]) -> None:
    whole = kcd.condense(**{k: v for k, v in stage.items() if k != "ranks"})
    try:
        shards = on_shards(**stage)
    except ValueError:
        ends = [sharded.bounds(len(stage["value"]), r, stage["ranks"]) for r in range(stage["ranks"])]
        assert any(not ((whole.kept >= a) & (whole.kept < b)).any() for a, b in ends)
        return
    np.testing.assert_array_equal(np.concatenate([s.kept for s in shards]), whole.kept)
    for shard in shards:
        np.testing.assert_array_equal(shard.sizes, [len(s.members) for s in shards])
        np.testing.assert_array_equal(shard.tail, whole.tail)
        np.testing.assert_array_equal(shard.dropped, whole.dropped[: len(whole.tail)])
        np.testing.assert_array_equal(shard.weights, whole.weights)
        assert shard.cut == whole.cut


@pytest.mark.parametrize("distinct", [3, 50, 10**9])
def test_large_shards(distinct: int) -> None:
    """More than one block a shard, with and without so few candidates that they are copied."""
    rng = np.random.default_rng(distinct)
    n = 300_007
    value = rng.integers(0, distinct, n) / distinct
    count = rng.integers(0, 40, n).astype(np.int32)
    sizes = {"previous": 280_000, "target": 250_001}
    whole = kcd.condense(value, count, **sizes)
    shards = on_shards(value, count, ranks=3, **sizes)
    np.testing.assert_array_equal(np.concatenate([s.kept for s in shards]), whole.kept)
    np.testing.assert_array_equal(shards[1].tail, whole.tail)
    np.testing.assert_array_equal(shards[2].dropped, whole.dropped)
    assert all(len(s.tail) == 0 for s in on_shards(value, count, ranks=3, mixing=False, **sizes))


def test_what_is_sent_does_not_depend_on_the_number_of_points() -> None:
    def sent(n: int) -> int:
        value, sizes = np.random.default_rng(n).random(n), []
        shard = sharded.condense_shard(
            value, num_samples=n, rank=0, ranks=1, previous=n, target=n // 2, mixing=False
        )
        with suppress(StopIteration):
            counts = next(shard)
            while True:
                sizes.append(counts.nbytes)
                counts = shard.send(counts)
        return sum(sizes)

    assert sent(100) == sent(100_000) == 4 * 2**16 * 8 + 2 * 8


@given(st.lists(st.booleans(), min_size=1, max_size=3000))
def test_members(member: list[bool]) -> None:
    expected = np.flatnonzero(member)
    members = sharded.Members(np.packbits(member), len(member))
    assert len(members) == len(expected)
    np.testing.assert_array_equal(members.indices(), expected)
    np.testing.assert_array_equal(members.select(np.arange(len(expected))), expected)
    np.testing.assert_array_equal(members.bits, np.packbits(member))


def test_members_take_nine_bits_for_eight_points() -> None:
    member = np.random.default_rng(0).random(1_000_000) < 0.7
    members = sharded.Members(np.packbits(member), len(member))
    assert members.nbytes / len(member) == pytest.approx(9 / 64, rel=1e-3)
    places = np.random.default_rng(1).integers(0, len(members), 1000)
    np.testing.assert_array_equal(members.select(places), np.flatnonzero(member)[places])
