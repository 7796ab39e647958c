"""The pictures of ``kcd report``. Only numbers of the history enter them, never its text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kcd_core.base import style
from kcd_core.base.style import KEPT, MIXED, PALE

from .history_file import Recorded
from .html import GENERATOR

__all__ = ["PICTURES"]


def distribution(run: Recorded) -> bytes:
    """The distribution of the ranking score, a row for each stage, parted by the cut."""
    return style.png(run.history.plot().figure, GENERATOR)


def sizes(run: Recorded) -> bytes:
    """How many samples each stage keeps, mixes and drops."""
    axes = _axes(3.6)
    stages, n = run.stages, run.num_samples
    place = np.arange(len(stages) + 1)
    kept = np.array([n, *(s["kept"] for s in stages)]) / n * 100
    mixed = np.array([0, *(s["mixed"] for s in stages)]) / n * 100
    layers = ((kept, np.full_like(kept, 100), PALE), (mixed, kept, KEPT), (np.zeros_like(kept), mixed, MIXED))
    few = len(stages) <= 16
    for below, above, color in layers:
        if few:
            axes.bar(place, above - below, 0.72, bottom=below, color=color)
        else:
            axes.fill_between(place, below, above, step="mid", color=color, linewidth=0)
    if few:
        for x, share in zip(place, kept, strict=True):
            axes.annotate(
                f"{share:.3g} %", (x, share), (0, -4), textcoords="offset points", ha="center", va="top",
                color="white", fontsize=9, fontweight="bold",
            )  # fmt: skip
        labels = ["before", *(f"stage {s['stage']}\nepoch {s['epoch']}" for s in stages)]
        axes.set_xticks(place, labels, fontsize=9 if len(stages) <= 8 else 7)
        axes.set_xlabel("stage, and the epoch at whose end it was decided")
    else:
        axes.set_xlabel("stage (0: before the first)")
    axes.margins(x=0.02)
    axes.set_ylim(0, 100)
    axes.set_ylabel("% of all samples")
    style.keys(
        axes,
        [
            style.patch("kept as is", KEPT),
            style.patch("kept, mixed with a dropped sample", MIXED),
            style.patch("dropped", PALE),
        ],
    )
    return style.png(axes.figure, GENERATOR)


def drawn(run: Recorded) -> bytes:
    """How many samples each epoch draws, and what that saves."""
    axes = _axes(3.2)
    segments = run.segments()
    edges = [segments[0].first - 1, *(s.last for s in segments)]
    share = [s.size / run.num_samples * 100 for s in segments]
    axes.stairs(share, edges, baseline=0, fill=True, color=KEPT)
    axes.stairs([100] * len(share), edges, baseline=share, fill=True, color=PALE)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 100)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch")
    axes.set_ylabel("% of all samples")
    style.keys(axes, [style.patch(f"drawn: {run.drawn:,}", KEPT), style.patch(f"saved: {run.saved:,}", PALE)])
    return style.png(axes.figure, GENERATOR)


def classes(run: Recorded) -> bytes | None:
    """What share of each class every stage kept, as a map; nothing where labels were not known."""
    if not run.classes:
        return None
    width = max(len(one.shares) for one in run.classes)
    table = np.full((len(run.classes), width), np.nan)
    for row, one in enumerate(run.classes):
        table[row, : len(one.shares)] = [np.nan if x is None else 100 * x for x in one.shares]
    axes = _axes(1.6 + 0.3 * min(len(table), 16))
    image = axes.imshow(table, aspect="auto", cmap=style.SHARES, interpolation="nearest")
    few = table.size <= 160
    for (row, label), share in np.ndenumerate(table) if few else ():
        if np.isfinite(share):
            color = "black" if image.norm(share) > 0.6 else "white"  # on yellow, or on blue
            axes.annotate(f"{share:.0f}", (label, row), ha="center", va="center", color=color, fontsize=8)
    if len(table) <= 16:
        axes.set_yticks(range(len(table)), [f"stage {one.stage}" for one in run.classes])
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("class, in the order of the labels")
    axes.set_ylabel("stage, the first above")
    axes.figure.colorbar(image, ax=axes, label="kept, % of the class")
    return style.png(axes.figure, GENERATOR)


#: name: (caption, what draws it (None: it has nothing to show), the text for whoever can't see it)
PICTURES: dict[str, tuple[str, Callable[[Recorded], bytes | None], str]] = {
    "distribution": (
        "What the samples were worth, stage by stage",
        distribution,
        "Histograms of the ranking score, one row for each stage; a line marks the cut, left of it is dropped.",
    ),
    "sizes": (
        "The condensed set after each stage",
        sizes,
        "Stacked bars: the shares of samples that are kept, mixed and dropped after each stage.",
    ),
    "drawn": (
        "Samples drawn and saved, epoch by epoch",
        drawn,
        "An area chart of the share of samples that each epoch draws; the rest is saved.",
    ),
    "classes": (
        "What was kept of each class",
        classes,
        "A map, a row for each stage and a column for each class, of the share of the class's samples that is kept.",
    ),
}


def _axes(height: float) -> Any:
    return style.plain(style.figure(8.4, height).subplots())
