"""Draws the README's figure, accuracy against samples drawn and teacher queries, from what the study last measured."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _common.report import RESULTS, needed
from _study.looks import LOOKS, START

from kcd_core.base import style
from kcd_core.base.files import write_whole
from kcd_core.base.style import FAINT, INK

FIGURE = Path(__file__).parents[1] / "docs" / "images" / "accuracy.png"
NOTE = """\
Bars: 95 % intervals (Student's t) of the mean difference to KD, paired by seed.
Numbers: the ratio, or the share of the samples that a gate asks for. The panels have different teachers."""
WORD: dict[str, Any] = {"fontsize": 9, "color": INK}

Row = Mapping[str, Any]  # of a study's table


@dataclass(frozen=True)
class Line:
    """Arms that are joined, each with the word that stands beside it. Without a word, that is its ratio."""

    look: str
    arms: Mapping[str, str]
    ratio: float | None = None  # None: all that were run
    caps: float = 3  # half the width of the bars' ends, which tell bars apart that overlap

    def points(self, table: Sequence[Row], share: str) -> list[Row]:
        """The small student's rows, by their share of KD's cost. What has one seed, and so no interval, is left out."""
        own = [
            row
            for row in table
            if row["student"] == "small" and row["arm"] in self.arms and self.ratio in (None, row["ratio"])
        ]
        return sorted((row for row in own if row["to_base"]["interval"]), key=lambda row: row[share])

    def word(self, row: Row) -> str:
        return self.arms[row["arm"]] or f"{row['ratio']:g}"


@dataclass(frozen=True)
class Panel:
    """What is drawn of a study, against which share of KD's cost."""

    study: str
    title: str
    share: str
    label: str
    lines: tuple[Line, ...]

    def table(self) -> list[Row]:
        path = RESULTS / f"{self.study}.json"
        rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))["table"]
        return rows


def gates(kind: str) -> dict[str, str]:
    words = {"half": "1/2", "quarter": "1/4", "eighth": "1/8"}
    return {f"{kind}-{share}": word for share, word in words.items()}


#: Each is of one study, with a teacher and with runs of KD of its own.
PANELS = (
    Panel(
        "study-fashion-mnist-20000x24",
        "Training on fewer samples",
        "share",
        "samples drawn, % of KD's",
        (Line("condensed", {"kc-kd-v3": ""}), Line("random", {"random": ""})),
    ),
    Panel(
        "study-fashion-mnist-20000x24-gate",
        "Asking the teacher for fewer",
        "asked_share",
        "teacher queries, % of KD's",
        (
            Line("condensed", {"kc-kd-v3": ""}, ratio=0.3),
            Line("recommended", {"kc-kd-for-epochs": "0.3"}, ratio=0.3),
            Line("random", gates("chance")),
            Line("random", {"random-for-epochs": ""}, ratio=0.3),
            Line("gate", gates("gate")),
            Line("both", {"kc-gate-quarter": "0.3, 1/4"}, ratio=0.3, caps=6),
        ),
    ),
)
#: In the legend, in this order.
LABELS = {
    "start": "KD on all samples",
    "condensed": "KC-KD, the paper's schedule, mixed",
    "recommended": "KC-KD, recommended: for_epochs, not mixed",
    "gate": "gate by value",
    "both": "KC-KD and gate, not mixed",
    "random": "as many, at random",
}


def figure_of(tables: Sequence[Sequence[Row]]) -> Any:
    """A panel for each table: the differences to KD on all samples, with their 95 % intervals."""
    figure = style.figure(9, 4.4)
    handles = {}
    for axes, panel, table in zip(figure.subplots(1, 2, sharey=True), PANELS, tables, strict=True):
        (kd,) = [row for row in table if (row["student"], row["arm"]) == ("small", "kd")]
        axes.axhline(0, color=FAINT, linewidth=1, zorder=0)
        (handles["start"],) = axes.plot(100, 0, **START)
        axes.annotate(
            f"{kd['accuracy']:.2f} %", (100, 0), (0, 9), textcoords="offset points", ha="center", **WORD
        )
        seeds = set()
        for line in panel.lines:
            rows = line.points(table, panel.share)
            shares = [100 * row[panel.share] for row in rows]
            means = [row["to_base"]["mean"] for row in rows]
            bars = [[abs(row["to_base"]["interval"][end] - row["to_base"]["mean"]) for row in rows]
                    for end in (0, 1)]  # fmt: skip
            handles[line.look] = axes.errorbar(shares, means, bars, capsize=line.caps, **LOOKS[line.look])
            points = list(zip(shares, means, strict=True))
            for row, at, following in zip(rows, points, [*points[1:], (100, 0)], strict=True):
                # On the right, below a line that rises; on the left, above it, where the next one's bar is on the right.
                rises = following[1] > at[1]
                near = following[0] - at[0] <= 4
                to, side = (
                    ((-5, 5 if rises else -12), "right") if near else ((6, -12 if rises else 4), "left")
                )
                axes.annotate(line.word(row), at, to, textcoords="offset points", ha=side, **WORD)
                seeds.add(row["to_base"]["seeds"])
        number = " to ".join(map(str, sorted({min(seeds), max(seeds)})))
        axes.set_title(f"{panel.title} ({number} seeds)", fontsize=11, color=INK)
        axes.set_xlabel(panel.label, color=INK)
        style.plain(axes)
    figure.axes[0].set_ylabel("accuracy minus KD's,\npercentage points", color=INK)
    shown = {look: label for look, label in LABELS.items() if look in handles}
    figure.legend([handles[look] for look in shown], shown.values(), loc="outside lower center", ncols=3,
                  frameon=False, fontsize=9.5, title=NOTE, title_fontsize=8.5)  # fmt: skip
    return figure


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    needed("plot", "matplotlib.figure")
    write_whole(FIGURE, style.png(figure_of([panel.table() for panel in PANELS])))
    print(FIGURE)


if __name__ == "__main__":
    main()
