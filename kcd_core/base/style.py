"""How all pictures look: colours that differ in grey as well, plain axes, legends above them.

Figures are made without pyplot: no window system, no global state. matplotlib is imported when the first is made.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from io import BytesIO
from typing import Any

__all__ = [
    "ARMS",
    "ASKED",
    "BAND",
    "DROPPED",
    "FAINT",
    "INK",
    "KEPT",
    "MIXED",
    "PALE",
    "SHARES",
    "UNPARTED",
    "figure",
    "keys",
    "lacking",
    "legend",
    "line",
    "patch",
    "plain",
    "png",
]

INK, FAINT = "#1f2933", "#8a94a0"  # text, and what stays behind
#: Samples that are kept, kept and mixed, dropped; what was dropped long ago; what nothing parts.
KEPT, MIXED, DROPPED, PALE, UNPARTED = "#0f766e", "#5eb8ad", "#f0a35e", "#f8d6b5", "#b8c0c8"
ASKED = "#7b2d8e"  # what the teacher is asked for
BAND = "#f3f5f7"  # behind every other row
#: (marker, colour, line) of what stands side by side, told apart by shape, too.
ARMS = (
    ("*", INK, "-"),
    ("o", KEPT, "--"),
    ("s", DROPPED, "-."),
    ("v", FAINT, ":"),
    ("D", ASKED, (0, (5, 1))),
    ("^", MIXED, (0, (1, 1))),
)
SHARES = "viridis"  # a map whose lightness rises


def lacking() -> str:
    """What has to be installed before anything can be drawn, if anything has."""
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError:
        return "drawing needs matplotlib: pip install '.[plot]' in a checkout of kcd_core"
    return ""


def figure(width: float, height: float) -> Any:
    """An empty figure, in inches.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    if why := lacking():
        raise ImportError(why)
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plain(axes: Any, *spines: str) -> Any:
    """``axes`` with these spines alone, the left and the bottom one by default."""
    axes.spines[:].set_visible(False)
    shown = list(spines or ("left", "bottom"))
    axes.spines[shown].set_visible(True)
    axes.spines[shown].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)
    return axes


def patch(label: str, color: str) -> Any:
    """The key of an area."""
    from matplotlib.patches import Patch

    return Patch(color=color, label=label)


def line(label: str, color: str = INK, **look: Any) -> Any:
    """The key of a line; ``look`` is what else matplotlib's `Line2D` takes."""
    from matplotlib.lines import Line2D

    return Line2D([], [], **{"color": color, "linewidth": 1.6, "label": label, **look})


def keys(axes: Any, handles: Sequence[Any]) -> None:
    """A legend of these keys, above the axes."""
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(handles), **_LEGEND)


def legend(figure: Any, columns: int = 2) -> None:
    """A legend of all that has a label, below the figure's axes."""
    figure.legend(loc="outside lower left", ncols=columns, frameon=False, fontsize=9)


def png(figure: Any, software: str | None = None) -> bytes:
    """The picture as a file's content, which names what made it."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=160, metadata={"Software": software} if software else None)
    return file.getvalue()


_LEGEND: dict[str, Any] = {
    "frameon": False,
    "fontsize": 9,
    "handlelength": 1.0,
    "handleheight": 1.0,
    "borderaxespad": 0.2,
}
