"""Exact ranks without a full sort, against a full sort."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcd_core import condense
from kcd_core.algorithms import radix_select
from kcd_core.algorithms import ranks as selection

# Few distinct scores, so that nearly all are tied; both ends of the ranking.
SCORES = st.lists(st.sampled_from([-2.5, -0.0, 0.0, 1.0, 1.5, 3.0, np.inf]), min_size=1, max_size=40)


def full_sort(score: Any) -> Any:
    return np.lexsort((np.arange(len(score)), -score))


@given(SCORES, st.data())
def test_window_and_top(scores: list[float], data: st.DataObject) -> None:
    score = np.array(scores)
    order = full_sort(score)
    start = data.draw(st.integers(0, len(score) - 1))
    stop = data.draw(st.integers(start + 1, len(score)))
    size = data.draw(st.integers(1, len(score)))
    before = score.copy()
    high, cut, low = selection.scores_at_ranks(score, [start, size - 1, stop - 1])
    assert (high, cut, low) == tuple(score[order[[start, size - 1, stop - 1]]])
    window = selection.rank_window(score, start, stop, high, low)
    np.testing.assert_array_equal(window, order[start:stop])
    keep = selection.top(score, size, cut)
    np.testing.assert_array_equal(np.flatnonzero(keep), np.sort(order[:size]))
    assert window.dtype == np.int64
    np.testing.assert_array_equal(score, before)  # the scores are only read


@pytest.mark.parametrize("n", [1000, 20011])
def test_large(n: int) -> None:
    rng = np.random.default_rng(n)
    score = rng.random(n)
    score[rng.integers(0, n, n // 3)] = score[0]  # one crowd of ties
    order = full_sort(score)
    crowd = int(np.flatnonzero(score[order] == score[0])[0])
    for start, size, stop in [(crowd + 5, crowd + 9, crowd + 50), (crowd - 7, crowd + 3, n), (0, 1, n)]:
        high, cut, low = selection.scores_at_ranks(score, [start, size - 1, stop - 1])
        np.testing.assert_array_equal(selection.rank_window(score, start, stop, high, low), order[start:stop])
        keep = selection.top(score, size, cut)
        np.testing.assert_array_equal(np.flatnonzero(keep), np.sort(order[:size]))


@pytest.mark.parametrize("kind", ["random", "tied", "sorted", "periodic", "unseen"])
@pytest.mark.parametrize(("first", "last"), [(0, 0), (0, 300), (700, 900), (5000, 5000), (9990, 10006)])
def test_around(kind: str, first: int, last: int) -> None:
    """Whatever the scores, those of the wanted ranks are among them; they are few where the scores allow."""
    n, some = 10007, 625
    score = np.random.default_rng(first).random(n)
    if kind == "tied":
        score = score.round(1)
    elif kind == "sorted":
        score.sort()
    elif kind == "periodic":  # all that is looked at lies at one end
        score[:: -(-n // some)] = 2
    elif kind == "unseen":
        score[score < 0.6] = np.inf
    order = full_sort(score)
    places, before = selection.around(score, first, last, some)
    found = np.arange(n)[places]
    assert (np.diff(found) > 0).all()
    np.testing.assert_array_equal(order[before : before + len(found)], found[full_sort(score[found])])
    assert before <= first
    assert last < before + len(found)
    if kind in ("random", "sorted"):
        assert len(found) <= n / 4


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("previous", "target"), [(0.95, 0.9), (1.0, 0.3), (0.5, 0.5), (0.4, 0.6)])
def test_of_many_samples_the_set_is_that_of_a_full_sort(tied: bool, previous: float, target: float) -> None:
    n = 300_001
    rng = np.random.default_rng(0)
    value, count = rng.random(n), np.ones(n, np.int32)
    if tied:
        value, count[rng.random(n) < 0.2] = value.round(2), 0
    size, dropped = int(target * n), max(0, int(previous * n) - int(target * n))
    order = full_sort(np.where(count > 0, value, np.inf))
    chosen = condense(value, count, previous=int(previous * n), target=size)
    np.testing.assert_array_equal(chosen.kept, np.sort(order[:size]))
    np.testing.assert_array_equal(chosen.dropped, order[size : size + dropped])
    np.testing.assert_array_equal(chosen.tail, order[size - min(dropped, size) : size])


@given(
    counts=st.lists(st.integers(0, 300), min_size=1, max_size=30),
    alpha=st.sampled_from([0.0, 0.03, 0.5, 1.0, 2.0]),
    dtype=st.sampled_from([np.int16, np.int32, np.int64, np.uint16]),
)
def test_scores(counts: list[int], alpha: float, dtype: Any) -> None:
    value = np.linspace(-1, 4, len(counts))
    value[np.array(counts) == 0] = np.nan
    score = selection.rank_scores(value, np.array(counts, dtype), alpha)
    expected = [v * float(f) ** alpha if f else np.inf for v, f in zip(value, counts, strict=True)]
    np.testing.assert_allclose(score, expected, rtol=1e-14)
    assert score.dtype == np.float64
    # Equal value and equal count give an equal score, to the bit: ties stay ties.
    twice = selection.rank_scores(np.tile(value, 2), np.tile(np.array(counts, dtype), 2), alpha)
    np.testing.assert_array_equal(twice[: len(counts)], twice[len(counts) :])


def test_a_count_beyond_any_table_gives_the_score_that_it_gives_beside_others() -> None:
    count = np.array([3, 2**20 - 1, 2**20, 2**31 - 1])
    value = np.array([1.0, 0.5, 0.25, 2.0])
    together = selection.rank_scores(value, count, 0.03)
    np.testing.assert_allclose(together, [v * float(f) ** 0.03 for v, f in zip(value, count, strict=True)])
    for place in range(len(count)):
        alone = selection.rank_scores(value[[place]], count[[place]], 0.03)
        assert alone[0] == together[place]


def test_scores_that_differ_in_the_last_bit_are_in_order_beside_scores_far_away() -> None:
    """Where a window spans more than 64 bits can tell apart, with the index."""
    near = 1.0 + np.spacing(1.0) * np.random.default_rng(0).permutation(1000)
    score = np.concatenate([[1e300], near, [-1e300]])
    window = selection.rank_window(score, 0, len(score), 1e300, -1e300)
    np.testing.assert_array_equal(window, full_sort(score))


def test_alpha_zero_is_the_value_to_the_bit() -> None:
    value = np.random.default_rng(0).random(1000)
    count = np.random.default_rng(1).integers(1, 50, 1000)
    np.testing.assert_array_equal(selection.rank_scores(value, count, 0.0), value)


# -- radix select --------------------------------------------------------------------------------------

EXTREMES = [
    -np.inf, -1e308, -1.0, np.nextafter(-1.0, 0.0), -5e-324, -0.0, 0.0, 5e-324, 1.0, np.nextafter(1.0, 2.0), 1e308, np.inf,
]  # fmt: skip


def cut_in_shards(score: Any, sizes: list[int], shards: int) -> list[radix_select.Cuts]:
    parts = [score[slice(*ends)] for ends in ends_of(len(score), shards)]
    return radix_select.in_one_process(
        [radix_select.find_cuts(part, sizes, shard=shard, shards=shards) for shard, part in enumerate(parts)]
    )


def ends_of(n: int, shards: int) -> list[tuple[int, int]]:
    return [(n * shard // shards, n * (shard + 1) // shards) for shard in range(shards)]


def check_cuts(score: Any, sizes: list[int], shards: int) -> None:
    order, n = full_sort(score), len(score)
    before = score.copy()
    for shard, cuts in enumerate(cut_in_shards(score, sizes, shards)):
        np.testing.assert_array_equal(cuts.score, score[order[np.array(sizes) - 1]])
        start, stop = ends_of(n, shards)[shard]
        for _, part, masks in radix_select.split(score[start:stop], cuts):
            np.testing.assert_array_equal(part, score[start:stop])  # one block
            for mask, size in zip(masks, sizes, strict=True):
                above = np.sort(order[:size])
                expected = above[(above >= start) & (above < stop)]
                np.testing.assert_array_equal(np.flatnonzero(mask) + start, expected)
        for number, size in enumerate(sizes):
            above = order[:size]
            share = [int(((above >= a) & (above < b)).sum()) for a, b in ends_of(n, shards)]
            assert cuts.share[:, number].tolist() == share
    np.testing.assert_array_equal(score, before)


@given(
    scores=st.lists(st.sampled_from(EXTREMES) | st.floats(allow_nan=False), min_size=1, max_size=40),
    shards=st.integers(1, 5),
    data=st.data(),
)
def test_cuts_of_shards(scores: list[float], shards: int, data: st.DataObject) -> None:
    """Any floats, any number of cuts, shards without a sample."""
    sizes = data.draw(st.lists(st.integers(1, len(scores)), min_size=1, max_size=4))
    check_cuts(np.array(scores), sizes, shards)


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_cuts_at_every_place_of_extremes(shards: int) -> None:
    score = np.array(EXTREMES * 2)[np.random.default_rng(shards).permutation(2 * len(EXTREMES))]
    for size in range(1, len(score) + 1):
        check_cuts(score, [size], shards)
        check_cuts(score, [size, size], shards)
    check_cuts(score, list(range(1, len(score) + 1)), shards)


@pytest.mark.parametrize("low", [0.0, 1.0, 2.0**-60])
def test_cuts_where_digits_are_alike(low: float) -> None:
    """Scores that share all but the last digit: few enough to be copied from the first digit on, and not."""
    near = np.array([low])
    for _ in range(40):
        near = np.append(near, np.nextafter(near[-1], np.inf))
    rest = np.linspace(-100, -50, 2000)
    for score in (near, np.concatenate([near[::-1], rest]), np.concatenate([rest, near, near])):
        for size in (1, 7, len(near), len(score)):
            check_cuts(score, [size], 2)


def test_gather_puts_all_shards_in_ranking_order() -> None:
    score = np.array([1.0, np.inf, -0.0, 1.0, 0.0, -np.inf, np.inf, 3.0, 1.0])
    share = np.array([4, 0, 5])
    shards = [(0, 4), (4, 4), (4, 9)]
    got = radix_select.in_one_process(
        [
            radix_select.gather(np.arange(a, b), score[a:b], share, shard=shard)
            for shard, (a, b) in enumerate(shards)
        ]
    )
    for ranking in got:
        assert ranking.tolist() == full_sort(score).tolist()
