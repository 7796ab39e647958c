"""Draws the README's figure, accuracy against samples drawn, from what the study last measured."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from _common.report import RESULTS, needed

STUDY = RESULTS / "study-fashion-mnist-20000x24.json"
FIGURE = Path(__file__).parents[1] / "docs" / "images" / "accuracy.png"
# Told apart by shape and lightness, too, so that the figure is readable in grey.
ARMS = {
    "kc-kd-v3": ("KC-KD", {"color": "#c1272d", "marker": "o"}),
    "random": ("dropping at random, as many", {"color": "#8fb4d9", "marker": "s"}),
    "kd-equal": ("KD stopped at as many", {"color": "#333333", "marker": "v"}),
}


def draw(table: list[dict[str, Any]], path: Path) -> None:
    """A panel for each student: the differences to KD on all samples, with their 95 % intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.4), layout="constrained", dpi=160)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, student in zip(panels, ("small", "large"), strict=True):
        rows = {
            arm: [row for row in table if (row["student"], row["arm"]) == (student, arm)]
            for arm in (*ARMS, "kd")
        }
        axes.axhline(0, color="0.7", linewidth=1)
        axes.plot(100, 0, "*", markersize=12, color="black", label="KD on all samples")
        for arm, (label, style) in ARMS.items():
            share, mean, low, high = zip(
                *sorted(
                    (100 * row["share"], row["to_base"]["mean"], *row["to_base"]["interval"])
                    for row in rows[arm]
                ),
                strict=True,
            )
            ends = [
                [m - end for m, end in zip(mean, low, strict=True)],
                [end - m for m, end in zip(mean, high, strict=True)],
            ]
            axes.errorbar(share, mean, ends, label=label, capsize=3, **style)
        axes.set_title(f"{student} student (KD: {rows['kd'][0]['accuracy']:.2f} %)", fontsize=10)
        axes.set_xlabel("samples drawn, % of KD's")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("accuracy minus KD's,\npercentage points")
    panels[1].legend(frameon=False, fontsize=8, loc="upper right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    needed("plot", "matplotlib.figure")
    draw(json.loads(STUDY.read_text(encoding="utf-8"))["table"], FIGURE)
    print(FIGURE)


if __name__ == "__main__":
    main()
