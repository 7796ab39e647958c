"""How time, memory and communication grow with the number of samples, from what `scale.py` measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kcd_core.base import style
from kcd_core.base.style import ASKED, DROPPED, FAINT, INK, KEPT

__all__ = ["figure_of"]

#: A line's colour and dashes, by how the set is found, and what that is called.
HOW: dict[str, tuple[str, Any, str]] = {
    "counts": (KEPT, "-", "counts, on real processes"),
    "counts + pairs": (DROPPED, "--", "counts + pairs (with mixing)"),
    "gather": (INK, ":", "gather: every rank ranks all"),
    "sort": (FAINT, "-.", "argsort of all scores"),
    "simulated": (ASKED, (0, (5, 1)), "counts, simulated (seconds: of all ranks)"),
}
#: A point's marker, by the number of ranks; larger for more, so that points in one place are all seen.
RANKS = {1: ("o", 4.0), 2: ("s", 6.5), 4: ("^", 9.5), 64: ("D", 6.5)}
PANELS = (
    ("seconds", "time of a stage's end, seconds"),
    ("peak_bytes", "peak memory of a rank, bytes"),
    ("sent_bytes", "sent by a rank at a stage's end, bytes"),
)
CAPTION = """\
All axes are logarithmic. A time is the best of one to three rounds, and has no interval. Where points lie in one place, the more \
ranks, the larger."""


def figure_of(points: Sequence[dict[str, Any]]) -> Any:
    """A panel for each of `PANELS`, a line for each way to the set and number of ranks.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    figure = style.figure(11, 4.6)
    ordered = sorted(points, key=lambda point: point["n"])
    drawn = set()
    for axes, (key, label) in zip(figure.subplots(1, 3), PANELS, strict=True):
        for how, (color, dashes, _) in HOW.items():
            for ranks, (marker, size) in RANKS.items():
                own = [p for p in ordered if (p["how"], p["world"]) == (how, ranks) and key in p]
                if own:
                    drawn |= {how, ranks}
                    axes.plot(
                        [p["n"] for p in own], [p[key] for p in own], color=color, linestyle=dashes, linewidth=1.2,
                        marker=marker, markersize=size, markerfacecolor="none",
                    )  # fmt: skip
        axes.set(xscale="log", yscale="log")
        axes.set_xlabel("samples of the data set", color=INK)
        axes.set_ylabel(label, color=INK)
        axes.grid(color=style.BAND)
        style.plain(axes)
    keys = [
        style.line(name, color, linestyle=dashes)
        for how, (color, dashes, name) in HOW.items()
        if how in drawn
    ]
    keys += [style.line("", linestyle="none")] * (len(keys) % 2)  # no column of two has keys of both kinds
    keys += [
        style.line(
            f"{ranks} rank{'s' * (ranks > 1)}",
            linestyle="none",
            marker=marker,
            markersize=size,
            markerfacecolor="none",
        )
        for ranks, (marker, size) in RANKS.items()
        if ranks in drawn
    ]
    figure.legend(handles=keys, loc="outside lower left", ncols=5, frameon=False, fontsize=9, title=CAPTION,
                  title_fontsize=8, alignment="left")  # fmt: skip
    return figure
