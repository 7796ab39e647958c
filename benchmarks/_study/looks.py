"""What stands for what in the study's pictures: each by its marker, too, for who sees no colours."""

from __future__ import annotations

from typing import Any

from kcd_core.base.style import ASKED, DROPPED, INK, KEPT

__all__ = ["LOOKS", "START", "STUDENTS"]

#: What is compared with.
START: dict[str, Any] = {"color": INK, "marker": "*", "markersize": 12, "linestyle": "none"}
#: By what a line stands for.
LOOKS: dict[str, dict[str, Any]] = {
    "condensed": {"color": KEPT, "marker": "o"},
    "recommended": {"color": KEPT, "marker": "P", "markersize": 8, "markerfacecolor": "white"},
    "gate": {"color": ASKED, "marker": "^", "markerfacecolor": "white"},
    "both": {"color": INK, "marker": "D"},
    "random": {"color": DROPPED, "marker": "s", "linestyle": "--"},
}
#: By the student's name.
STUDENTS: dict[str, dict[str, Any]] = {
    "small": {"color": KEPT, "marker": "o", "markersize": 4.5},
    "large": {"color": INK, "marker": "s", "markersize": 7},
}
