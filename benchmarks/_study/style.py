"""How the study's pictures look: what is one arm in one of them is told by its marker and its lightness, too."""

from __future__ import annotations

from typing import Any

from kcd_core.base.style import FAINT, INK, KEPT

__all__ = ["BAND", "FAINT", "INK", "LOOKS", "START", "STUDENTS", "plain"]

BAND = "#f3f5f7"  # behind every other row
#: What is compared with.
START: dict[str, Any] = {"color": INK, "marker": "*", "markersize": 12, "linestyle": "none"}
#: By what a line stands for.
LOOKS: dict[str, dict[str, Any]] = {
    "condensed": {"color": KEPT, "marker": "o"},
    "recommended": {"color": KEPT, "marker": "P", "markersize": 8, "markerfacecolor": "white"},
    "gate": {"color": "#7b2d8e", "marker": "^", "markerfacecolor": "white"},
    "both": {"color": INK, "marker": "D"},
    "random": {"color": "#e08a3c", "marker": "s", "linestyle": "--"},
}
#: By the student's name.
STUDENTS: dict[str, dict[str, Any]] = {
    "small": {"color": KEPT, "marker": "o", "markersize": 4.5},
    "large": {"color": INK, "marker": "s", "markersize": 7},
}


def plain(axes: Any) -> None:
    """Axes with two spines alone, and no colour of their own."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)
