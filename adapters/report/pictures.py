"""The pictures of ``kcd report``. Only numbers of the history enter them, never its text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

import numpy as np

from ..extras import need
from .history_file import Recorded, Stage

__all__ = ["GENERATOR", "PICTURES"]

GENERATOR = "kcd report"
KEPT, MIXED, DROPPED, PALE = "#0f766e", "#5eb8ad", "#f0a35e", "#f8d6b5"
INK, FAINT = "#1f2933", "#8a94a0"
MOST_ROWS = 20  # a ridge line with more can't be read


def distribution(run: Recorded) -> bytes:
    """The distribution of the ranking score, a row for each stage, parted by the cut."""
    stages = _some(run.stages)
    figure, axes = _figure(1.3 + 0.62 * len(stages))
    low, high, clipped = _range(stages)
    for row, stage in enumerate(stages):
        edges, counts = np.array(stage.edges), np.array(stage.counts, float)
        top = 0.86 * counts / max(1.0, counts.max())
        x, y = np.repeat(edges, 2)[1:-1], np.repeat(top, 2) - row
        cut = None if stage.cut is None else float(np.clip(stage.cut, edges[0], edges[-1]))
        axes.fill_between(x, -row, y, color=KEPT, linewidth=0)
        if cut is not None:
            # The bin that the cut falls into belongs to both sides.
            left = x <= cut
            x_left, y_left = np.append(x[left], cut), np.append(y[left], np.interp(cut, x, y))
            axes.fill_between(x_left, -row, y_left, color=DROPPED, linewidth=0)
            axes.plot([cut, cut], [-row, -row + 0.9], color=INK, linewidth=1.6)
        axes.axhline(-row, color=FAINT, linewidth=0.6)
        share = f"{stage.kept / run.num_samples:.1%}"
        axes.annotate(
            f"keeps {share}", (1.01, -row + 0.12), xycoords=axes.get_yaxis_transform(), color=INK, fontsize=9
        )
    axes.set_xlim(low, high)
    axes.set_ylim(-len(stages) + 0.85, 1.0)
    axes.set_yticks(
        [-row + 0.2 for row in range(len(stages))], [f"stage {s.stage}, epoch {s.epoch}" for s in stages]
    )
    axes.tick_params(axis="y", length=0)
    note = "" if not clipped else f"   (shown up to {high:.3g}; at most {clipped:.2%} of a row lies above)"
    axes.set_xlabel(f"ranking score $V\\cdot F^{{\\alpha}}${note}")
    axes.spines["left"].set_visible(False)
    _legend(axes, [("kept", KEPT), ("below the cut: left out", DROPPED)])
    return _png(figure)


def sizes(run: Recorded) -> bytes:
    """How many points each stage keeps, mixes and drops."""
    figure, axes = _figure(3.6)
    stages, n = run.stages, run.num_samples
    place = np.arange(len(stages) + 1)
    kept = np.array([n, *(s.kept for s in stages)]) / n * 100
    mixed = np.array([0, *(min(s.mixed, s.kept) for s in stages)]) / n * 100
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
        labels = ["before", *(f"stage {s.stage}\nepoch {s.epoch}" for s in stages)]
        axes.set_xticks(place, labels, fontsize=9 if len(stages) <= 8 else 7)
    else:
        axes.set_xlabel("stage (0: before the first)")
    axes.margins(x=0.02)
    axes.set_ylim(0, 100)
    axes.set_ylabel("% of all points")
    _legend(axes, [("kept as is", KEPT), ("kept, mixed with a dropped point", MIXED), ("dropped", PALE)])
    return _png(figure)


def drawn(run: Recorded) -> bytes:
    """How many points each epoch draws, and what that saves."""
    figure, axes = _figure(3.2)
    segments = run.segments()
    edges = [segments[0].first - 1, *(s.last for s in segments)]
    share = [s.size / run.num_samples * 100 for s in segments]
    axes.stairs(share, edges, baseline=0, fill=True, color=KEPT)
    axes.stairs([100] * len(share), edges, baseline=share, fill=True, color=PALE)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 100)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch")
    axes.set_ylabel("% of all points")
    _legend(axes, [(f"drawn: {run.drawn:,}", KEPT), (f"saved: {run.full - run.drawn:,}", PALE)])
    return _png(figure)


#: name: (caption, what draws it, the text for whoever can't see it)
PICTURES: dict[str, tuple[str, Callable[[Recorded], bytes], str]] = {
    "distribution": (
        "What the points were worth, stage by stage",
        distribution,
        "Histograms of the ranking score, one row for each stage; a line marks the cut, left of it is dropped.",
    ),
    "sizes": (
        "The condensed set after each stage",
        sizes,
        "Stacked bars: the shares of points that are kept, mixed and dropped after each stage.",
    ),
    "drawn": (
        "Samples drawn and saved, epoch by epoch",
        drawn,
        "An area chart of the share of points that each epoch draws; the rest is saved.",
    ),
}


def _some(stages: Sequence[Stage]) -> Sequence[Stage]:
    """At most `MOST_ROWS` of them, evenly spaced, the first and the last among them."""
    if len(stages) <= MOST_ROWS:
        return stages
    places = np.linspace(0, len(stages) - 1, MOST_ROWS).round().astype(int)
    return [stages[place] for place in places]


def _range(stages: Sequence[Stage]) -> tuple[float, float, float]:
    """A common range for all rows, and the largest share of a row that lies above: a thin tail, left out."""
    filled = [s for s in stages if any(s.counts)] or stages
    low, high = min(s.edges[0] for s in filled), max(s.edges[-1] for s in filled)
    cuts = [s.cut for s in stages if s.cut is not None]
    ends = []
    for stage in filled:
        share = np.cumsum(stage.counts) / max(1, sum(stage.counts))
        ends.append(stage.edges[1 + int(np.searchsorted(share, 0.998))] if share[-1] else high)
    low, shown = min([low, *cuts]), max([*ends, *cuts])
    above = [
        sum(c for c, left in zip(s.counts, s.edges, strict=False) if left >= shown) / max(1, sum(s.counts))
        for s in filled
    ]
    margin = 0.02 * (shown - low) or 1.0
    return low - margin, shown, max(above)


def _figure(height: float) -> tuple[Any, Any]:
    # The Figure class alone: no pyplot, no window system, no global state.
    figure = need("matplotlib.figure", "plot").Figure(figsize=(8.4, height), dpi=160, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK)
    return figure, axes


def _legend(axes: Any, entries: Sequence[tuple[str, str]]) -> None:
    patch = need("matplotlib.patches", "plot").Patch
    axes.legend(
        handles=[patch(color=color, label=label) for label, color in entries],
        loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(entries), frameon=False, fontsize=9,
        handlelength=1.0, handleheight=1.0, borderaxespad=0.2,
    )  # fmt: skip


def _png(figure: Any) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="png", metadata={"Software": GENERATOR})
    return file.getvalue()
