"""The pictures of benchmarks/study.py and of the README, read back from what is drawn."""

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from helpers import cut_off

pytest.importorskip("rich")
pytest.importorskip("matplotlib")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def parts():
    """The modules of benchmarks/ by name, which find their neighbours."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield lambda name: importlib.import_module(name)
    sys.path.remove(str(ROOT / "benchmarks"))


def runs_of(arm, ratio, accuracies, student="small", drawn=100, asked=None):
    return [
        {"arm": arm, "ratio": ratio, "student": student, "seed": seed, "accuracy": accuracy, "drawn": drawn}
        | {"asked": drawn if asked is None else asked, "seconds": 1.0, "cpu_seconds": 1.0}
        for seed, accuracy in enumerate(accuracies)
    ]


KD = 0.8 + 0.01 * np.arange(5)
NOISE = 0.001 * np.array([1, -1, 2, -2, 0])


@pytest.fixture
def rows(parts):
    """Of arms near each other, and one far away; the large student has two."""
    runs = runs_of("kd", 1.0, KD) + runs_of("kd", 1.0, KD + 0.05, "large")
    runs += runs_of("gate-quarter", 1.0, KD + 0.002 + NOISE, asked=28) + runs_of(
        "labels", 1.0, KD[:1], asked=0
    )
    for ratio, drawn in ((0.7, 87), (0.3, 70)):
        runs += runs_of("random", ratio, KD - 0.003 - NOISE, drawn=drawn)
        runs += runs_of("kc-kd-v3", ratio, KD + 0.004 + NOISE, drawn=drawn)
    runs += runs_of("rs2", 0.3, KD - 0.3 + NOISE, drawn=70)
    runs += runs_of("kc-kd-v3", 0.5, KD + 0.052 + NOISE, "large", drawn=79)
    return parts("_study.report").rows_of(runs)


def test_a_row_for_each_arm_in_the_order_of_the_table(parts, rows):
    figure = parts("_study.picture").figure_of(rows)
    ticks = zip(figure.axes[0].get_yticks(), figure.axes[0].get_yticklabels(), strict=True)
    names = [label.get_text() for _, label in sorted(ticks, key=lambda tick: -tick[0])]
    assert names == [
        *("KD", "labels alone", "gate by V, quarter"),
        *("KC-KD v3: and mixing, 0.7", "random dropping, 0.7"),
        "KC-KD v3: and mixing, 0.5",
        *("KC-KD v3: and mixing, 0.3", "random dropping, 0.3", "RS2: random every epoch, 0.3"),
    ]
    assert [axes.get_title() for axes in figure.axes[:2]] == ["small student", "large student"]
    assert {axes.get_ylim() for axes in figure.axes} == {(-8.5, 0.5)}
    assert cut_off(figure) == []


def drawn_at(axes, place):
    return [
        line
        for line in axes.lines
        if list(line.get_ydata()) == [place] and line.get_marker() in ("o", "s", "*")
    ]


def test_differences_and_their_bars_are_the_tables(parts, rows):
    axes = parts("_study.picture").figure_of(rows).axes[0]
    (mixed,) = drawn_at(axes, -3)
    assert mixed.get_xdata()[0] == pytest.approx(0.4)
    half = (
        2.776445 * 100 * np.std(NOISE, ddof=1) / 5**0.5
    )  # the quantile for four degrees of freedom, from a table
    (bar,) = [x for part in axes.collections for x in part.get_segments() if x[0][1] == -3]
    assert bar[:, 0] == pytest.approx([0.4 - half, 0.4 + half])
    (star,) = drawn_at(axes, 0)
    assert (star.get_marker(), star.get_xdata()[0]) == ("*", 0)
    assert "82.00 %" in [text.get_text() for text in axes.texts]
    (single,) = drawn_at(axes, -1)
    assert (single.get_markerfacecolor(), mixed.get_markerfacecolor()) == ("white", mixed.get_color())


def test_an_arm_far_away_flattens_nothing_and_is_told(parts, rows):
    figure = parts("_study.picture").figure_of(rows)
    axes = figure.axes[0]
    low, high = axes.get_xlim()
    assert -2 < low < -0.4
    assert 0.5 < high < 2
    assert not drawn_at(axes, -8)
    (said,) = [text for text in axes.texts if "◂" in text.get_text()]
    assert said.get_text().split() == ["◂", "-30.00"]
    assert said.xy == (low, -8)
    assert "beyond the edge" in figure.get_supxlabel()
    near = [row for row in rows if row.arm != "rs2"]
    assert "beyond the edge" not in parts("_study.picture").figure_of(near).get_supxlabel()


def test_a_bar_that_goes_on_is_told_without_a_number(parts):
    """Two seeds far apart, beside arms that are sure."""
    runs = runs_of("kd", 1.0, KD) + runs_of("rs2", 0.3, KD[:2] + np.array([0.05, -0.05]))
    for arm, ratio in (("random", 0.7), ("random", 0.3), ("kc-kd-v2", 0.3), ("kc-kd-v3", 0.3)):
        runs += runs_of(arm, ratio, KD + 0.002 + NOISE)
    axes = parts("_study.picture").figure_of(parts("_study.report").rows_of(runs)).axes[0]
    assert {text.get_text().strip() for text in axes.texts} == {"82.00 %", "◂", "▸"}
    assert axes.get_xlim()[1] < 2


def test_what_it_costs_beside(parts, rows):
    figure = parts("_study.picture").figure_of(rows)
    found = [
        {tuple(point) for line in axes.lines for point in np.round(line.get_xydata(), 6)}
        for axes in figure.axes[-2:]
    ]
    assert {(100, 0), (100, -1), (100, -2), (87, -3), (79, -5), (70, -8)} <= found[0]
    assert {(100, 0), (0, -1), (28, -2), (87, -3), (79, -5), (70, -8)} <= found[1]
    assert [axes.get_xlabel() for axes in figure.axes[-2:]] == [
        "samples drawn,\n% of KD's",
        "teacher queries,\n% of KD's",
    ]


def test_arms_without_kd_are_rows_all_the_same(parts):
    rows = parts("_study.report").rows_of(runs_of("random", 0.7, KD))
    figure = parts("_study.picture").figure_of(rows)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["random dropping, 0.7"]
    assert not drawn_at(figure.axes[0], 0)


def test_arms_are_told_apart_without_colour(parts):
    """By the marker, and, where lines cross, by the style of the line."""
    of = parts("_study.looks")
    looks = [of.START, *of.LOOKS.values()]
    assert len({look["marker"] for look in looks}) == len(looks)
    assert len({look["marker"] for look in of.STUDENTS.values()}) == 2


# ------------------------------------------------------------------------------------------ the README's


def committed(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))["runs"]


def apart(name, arm, ratio):
    """From the runs of the study alone: the mean difference to KD, and the ends of its interval."""
    of = {
        (run["arm"], run["ratio"], run["seed"]): 100 * run["accuracy"]
        for run in committed(name)
        if run["student"] == "small"
    }
    seeds = [seed for (own, at, seed) in of if (own, at) == (arm, ratio) and ("kd", 1.0, seed) in of]
    found = np.array([of[arm, ratio, seed] - of["kd", 1.0, seed] for seed in seeds])
    half = scipy.stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / len(found) ** 0.5
    return found.mean(), found.mean() - half, found.mean() + half


@pytest.fixture(scope="module")
def figure(parts):
    readme = parts("readme_figure")
    return readme.figure_of([panel.table() for panel in readme.PANELS])


@pytest.mark.parametrize(
    ("panel", "study", "marker", "arms"),
    [
        (
            0,
            "study-fashion-mnist-20000x24",
            "o",
            [("kc-kd-v3", ratio) for ratio in (0.1, 0.25, 0.3, 0.5, 0.7)],
        ),
        (0, "study-fashion-mnist-20000x24", "s", [("random", ratio) for ratio in (0.1, 0.25, 0.3, 0.5, 0.7)]),
        *[
            (1, "study-fashion-mnist-20000x24-gate", marker, [(arm, ratio) for arm in arms])
            for marker, ratio, arms in (
                ("o", 0.3, ["kc-kd-v3"]),
                ("P", 0.3, ["kc-kd-for-epochs"]),
                ("^", 1.0, ["gate-eighth", "gate-quarter", "gate-half"]),
                ("s", 1.0, ["chance-eighth", "chance-quarter", "chance-half"]),
                ("s", 0.3, ["random-for-epochs"]),
                ("D", 0.3, ["kc-gate-quarter"]),
            )
        ],
    ],
)
def test_the_readmes_figure_draws_the_committed_runs(figure, panel, study, marker, arms):
    (drawn,) = [
        bars
        for bars in figure.axes[panel].containers
        if (bars[0].get_marker(), len(bars[0].get_ydata())) == (marker, len(arms))
    ]
    line, (bars,) = drawn[0], drawn[2]
    expected = np.array([apart(study, *arm) for arm in arms])
    np.testing.assert_allclose(np.array(line.get_ydata(), float), expected[:, 0])
    ends = np.array([bar[:, 1] for bar in bars.get_segments()], float)
    np.testing.assert_allclose(ends, expected[:, 1:])
    assert all(0 < x < 100 for x in line.get_xdata())


def test_the_readmes_figure_explains_itself(figure):
    (legend,) = figure.legends
    assert "95 % intervals" in legend.get_title().get_text()
    assert [text.get_text() for text in legend.get_texts()] == [*sys.modules["readme_figure"].LABELS.values()]
    for axes, cost in zip(figure.axes, ("samples drawn", "teacher queries"), strict=True):
        assert re.search(r"\(\d+( to \d+)? seeds\)", axes.get_title())
        assert axes.get_xlabel() == f"{cost}, % of KD's"
    assert "percentage points" in figure.axes[0].get_ylabel()
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    # Those of the choice by value, and the same again of that by chance.
    assert [words.count(ratio) for ratio in ("0.1", "0.25", "0.5", "0.7")] == [2] * 4
    assert words.count("0.3") == 2 + 3  # the paper's schedule, too, beside another teacher
    assert [words.count(share) for share in ("1/8", "1/4", "1/2")] == [2] * 3


def test_the_readmes_figure_sets_nothing_apart(figure, parts):
    for axes, panel in zip(figure.axes, parts("readme_figure").PANELS, strict=True):
        costs = {100 * row[panel.share] for row in panel.table()}
        drawn = {x for bars in axes.containers for x in bars[0].get_xdata()}
        assert drawn
        assert drawn <= costs


def test_the_readmes_figure_words_stay_in_it(figure):
    assert cut_off(figure) == []
