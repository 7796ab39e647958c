"""Exact ranks without a full sort, against a full sort."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    kept = selection.top(score, size, cut)
    np.testing.assert_array_equal(kept, np.sort(order[:size]))
    assert window.dtype == kept.dtype == np.int64
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
        np.testing.assert_array_equal(selection.top(score, size, cut), np.sort(order[:size]))


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


def test_alpha_zero_is_the_value_to_the_bit() -> None:
    value = np.random.default_rng(0).random(1000)
    count = np.random.default_rng(1).integers(1, 50, 1000)
    np.testing.assert_array_equal(selection.rank_scores(value, count, 0.0), value)
