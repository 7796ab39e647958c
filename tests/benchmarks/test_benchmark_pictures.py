"""The pictures of benchmarks/overhead.py and scale.py, read back from what is drawn."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import cut_off

pytest.importorskip("matplotlib")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from _overhead import report as overhead
from _scale import picture as scale

sys.path.pop(0)

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_a_steps_time_is_drawn_with_its_interval_and_the_target():
    arms = {
        "kd": {"median_ms": 4.9},
        "kcd": {"ratio": 1.02, "ratio_95": [1.01, 1.04]},
        "authors": {"ratio": 1.03, "ratio_95": None},
        "infobatch": {"ratio": 0.99, "ratio_95": [0.98, 1.0]},
    }
    pairs = [{"pair": name, "arms": arms} for name in ("small", "tiny")]
    figure = overhead.figure_of(pairs)
    titles = [f"{name}: plain KD takes 4.9 ms a step" for name in ("small", "tiny")]
    assert [axes.get_title() for axes in figure.axes] == titles
    for axes in figure.axes:
        ticks = zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)
        place = {label.get_text(): at for label, at in ticks}
        assert sorted(place, key=place.__getitem__) == ["infobatch", "authors", "kcd"]  # from below
        bars = {segment[0][1]: segment[:, 0] for part in axes.collections for segment in part.get_segments()}
        dots = {line.get_ydata()[0]: line for line in axes.lines if line.get_marker() == "o"}
        assert bars.keys() == {place["kcd"], place["infobatch"]}
        for arm, at in place.items():
            assert dots[at].get_xdata() == [arms[arm]["ratio"]]
            assert (dots[at].get_markerfacecolor() == "white") == (arms[arm]["ratio_95"] is None)
            if at in bars:
                np.testing.assert_allclose(bars[at], arms[arm]["ratio_95"])
        upright = {line.get_xdata()[0] for line in axes.lines if line.get_marker() != "o"}
        assert upright == {1, overhead.MOST}
    assert "95 % intervals" in figure.get_supxlabel()
    assert f"at most {overhead.MOST}" in figure.get_supxlabel()
    assert cut_off(figure) == []


@pytest.fixture(scope="module")
def points():
    committed = json.loads((RESULTS / "scale.json").read_text(encoding="utf-8"))
    return committed["rows"]["points"]


def test_growth_is_that_of_the_committed_points(points):
    figure = scale.figure_of(points)
    for axes, key, unit in zip(figure.axes, ("seconds", "peak_bytes", "sent_bytes"), ("seconds", "bytes", "bytes"),
                               strict=True):  # fmt: skip
        drawn = {tuple(point) for line in axes.lines for point in line.get_xydata()}
        assert drawn == {(point["n"], point[key]) for point in points if key in point}
        assert axes.get_ylabel().endswith(f", {unit}")
        assert "samples" in axes.get_xlabel()
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_lines_of_growth_differ_without_colour_and_all_have_a_key(points):
    figure = scale.figure_of(points)
    kinds = {(point["how"], point["world"]) for point in points}
    looks = {(line.get_linestyle(), repr(line._unscaled_dash_pattern), line.get_marker()) for line in figure.axes[0].lines}  # fmt: skip
    assert len(looks) == len(kinds)
    (legend,) = figure.legends
    keys = [text.get_text() for text in legend.get_texts() if text.get_text()]
    ranks = sorted({world for _, world in kinds})
    assert keys == [*(scale.HOW[how][2] for how in scale.HOW if how in {own for own, _ in kinds}),
                    *(f"{number} rank{'s' * (number > 1)}" for number in ranks)]  # fmt: skip
    assert "no interval" in legend.get_title().get_text()
    assert cut_off(figure) == []
