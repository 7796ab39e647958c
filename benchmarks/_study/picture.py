"""The study's plot."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kcd_core.base.files import write_whole

from .arms import ARMS

#: Of the arms, in their order.
PALETTE = (
    *("black", "grey", "tab:cyan", "tab:blue", "tab:red", "tab:pink", "tab:olive", "tab:green", "tab:orange"),
    *("tab:purple", "tab:brown", "gold", "navy", "lime", "teal", "magenta", "salmon", "peru", "violet"),
)


def draw(rows: Sequence[Any], path: Path) -> None:
    """Accuracy against samples drawn, a panel for each student and loss.

    The bars are standard errors; a line joins plain distillation at all its lengths. Arms that draw
    equally many samples are set a little apart.
    """
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((row.student, ARMS[row.arm].base) for row in rows))
    figure = Figure(figsize=(4.6 * len(panels) + 2.4, 4.4), layout="constrained")
    for axes, (student, base) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        own = [row for row in rows if (row.student, ARMS[row.arm].base) == (student, base)]
        present = [arm for arm in ARMS if any(row.arm == arm for row in own)]
        apart = 0.004 * max(row.drawn for row in own)
        for arm in present:
            points = [row for row in own if row.arm == arm]
            places = [[r.arm for r in own if r.drawn == row.drawn].index(arm) for row in points]
            axes.errorbar(
                [(row.drawn + apart * place) / 1e3 for row, place in zip(points, places, strict=True)],
                [row.accuracy for row in points],
                [(row.deviation or 0) / row.seeds**0.5 for row in points],
                fmt="*" if arm == base else "o",
                color=PALETTE[list(ARMS).index(arm) % len(PALETTE)],
                capsize=2,
                label=ARMS[arm].title,
            )
        plain = [(row.drawn / 1e3, row.accuracy) for row in own if row.arm in (base, f"{base}-equal")]
        if plain:
            axes.plot(*zip(*sorted(plain), strict=True), color="grey", linewidth=0.8, zorder=0)
        axes.set_title(f"{student} student, {ARMS[base].title}", fontsize=10)
        axes.set_xlabel("thousand samples drawn")
        axes.set_ylabel("test accuracy, %")
    known = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in figure.axes]
    handles = {label: handle for panel in known for handle, label in panel}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=130)
    write_whole(path, image.getvalue())
