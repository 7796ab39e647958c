"""The study's plot: a row for each arm, what it does to the accuracy and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kcd_core.base import style
from kcd_core.base.files import write_whole
from kcd_core.base.style import BAND, FAINT, INK

from .arms import ARMS
from .looks import START, STUDENTS

NOTE = """\
Rows: by ratio, the largest first, then in the order of the table. Bars: 95 % intervals (Student's t) of the mean difference,
paired by seed, not corrected for their number. Hollow: one seed, or no spread, so no interval. Star: the arm compared with
(KD, or the one that a row names), and its accuracy."""
BEYOND = "\n◂ ▸: a bar extends beyond the edge, or, with a number, the mean lies there."


def draw(rows: Sequence[Any], path: Path) -> None:
    """Write the picture of a study's table."""
    write_whole(path, style.png(figure_of(rows)))


def figure_of(rows: Sequence[Any]) -> Any:
    """Rows of arms, at each ratio: the difference to plain distillation, a panel for each student, and both costs."""
    from matplotlib.lines import Line2D

    students = list(dict.fromkeys(row.student for row in rows))
    # Of all students, in the order of the table: what one has alone stands where it would in the other's.
    keys = sorted({(row.ratio, row.arm) for row in rows}, key=lambda key: (-key[0], list(ARMS).index(key[1])))
    place = {key: -at for at, key in enumerate(keys)}
    figure = style.figure(4.4 + 3.4 * len(students), 2.0 + 0.22 * len(keys))
    panels = figure.subplots(
        1, len(students) + 2, sharey=True, width_ratios=[*[2] * len(students), 1, 1], squeeze=False
    )[0]
    limits, beyond = limits_of(rows), False
    for axes, student in zip(panels, students, strict=False):
        beyond |= _differences(axes, [row for row in rows if row.student == student], place, limits)
        axes.set_title(f"{student} student", fontsize=10, color=INK)
        axes.set_xlabel("accuracy minus KD's,\npercentage points", fontsize=9, color=INK)
    for axes, share, label in zip(panels[-2:], ("share", "asked_share"), ("samples drawn", "teacher queries"),
                                  strict=True):  # fmt: skip
        for student in students:
            own = [row for row in rows if row.student == student and getattr(row, share) is not None]
            axes.plot([100 * getattr(row, share) for row in own], [place[row.ratio, row.arm] for row in own],
                      linestyle="none", markerfacecolor="none", **STUDENTS[student])  # fmt: skip
        axes.set_xlim(-8, 108)
        axes.set_xlabel(f"{label},\n% of KD's", fontsize=9, color=INK)
    for axes in panels:
        for at in range(0, len(keys), 2):
            axes.axhspan(-at - 0.5, -at + 0.5, color=BAND, zorder=0)
        style.plain(axes)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks([*place.values()], [name_of(arm, ratio) for ratio, arm in keys])
    panels[0].set_ylim(0.5 - len(keys), 0.5)
    if len(students) > 1:
        keyed = [Line2D([], [], linestyle="none", markerfacecolor="none", **STUDENTS[x]) for x in students]
        panels[-1].legend(keyed, students, title="student", frameon=False, fontsize=8, title_fontsize=8,
                          loc="lower right", bbox_to_anchor=(1, 1), ncols=2)  # fmt: skip
    figure.supxlabel(NOTE + BEYOND * beyond, fontsize=8, color=INK, x=0.01, ha="left")
    return figure


def name_of(arm: str, ratio: float) -> str:
    """What a row is called: its ratio, if it has one, and what it is compared with, if that is not KD."""
    own = ARMS[arm]
    ending = f", to {ARMS[own.base].title}" if own.base not in ("kd", arm) else ""
    return own.title + ("" if own.free else f", {ratio:g}") + ending


def limits_of(rows: Sequence[Any]) -> tuple[float, float]:
    """Of the differences: of those that are not far from the others, by Tukey's fences, and of 0.

    An arm that fails, or has two seeds, would flatten all others.
    """
    known = [row.to_base for row in rows if row.to_base is not None]
    values = np.array([end for apart in known for end in (apart.mean, *(apart.interval or ()))])
    near = np.zeros(1)
    if len(values):
        first, third = np.quantile(values, [0.25, 0.75])
        fence = 1.5 * (third - first)
        near = np.append(values[(values >= first - fence) & (values <= third + fence)], 0)
    margin = 0.08 * np.ptp(near) or 0.5
    return float(near.min() - margin), float(near.max() + margin)


def _differences(axes: Any, rows: Sequence[Any], place: dict[Any, int], limits: tuple[float, float]) -> bool:
    """Draw one student's; whether anything lies beyond the edges."""
    low, high = limits
    axes.axvline(0, color=FAINT, linewidth=0.9)
    axes.set_xlim(low, high)
    beyond = False
    look = STUDENTS[rows[0].student]
    for row in rows:
        at, apart = place[row.ratio, row.arm], row.to_base
        if row.arm == ARMS[row.arm].base:
            axes.plot(0, at, **{**START, "markersize": 9})
            side, gap = ("left", 7) if high > -low / 2 else ("right", -7)  # where there is room
            axes.annotate(f"{row.accuracy:.2f} %", (0, at), (gap, 0), textcoords="offset points", ha=side,
                          va="center", fontsize=8, color=INK)  # fmt: skip
        if apart is None:
            continue
        ends, inside = apart.interval or (apart.mean, apart.mean), low <= apart.mean <= high
        if inside:
            axes.hlines(at, *np.clip(ends, low, high), color=look["color"], linewidth=1.5)
            axes.plot(apart.mean, at, **look, markerfacecolor=None if apart.interval else "white")
        value = "" if inside else f" {apart.mean:+.2f} "
        for edge, goes_on, text, side in (
            (low, ends[0] < low if inside else apart.mean < low, f"◂{value}", "left"),
            (high, ends[1] > high if inside else apart.mean > high, f"{value}▸", "right"),
        ):
            if goes_on:
                beyond = True
                axes.annotate(text, (edge, at), ha=side, va="center", fontsize=8, color=INK)
    return beyond
