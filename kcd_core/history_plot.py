"""The picture of a history: the distribution of the ranking score, a row for each stage, parted by the cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .base import style
from .base.style import DROPPED, FAINT, INK, KEPT, UNPARTED

__all__ = ["draw_ridges"]

MOST_ROWS = 20  # more can't be read
SHOWN = 0.998  # of each row, at least: a long thin tail would squeeze everything else

Record = Mapping[str, Any]


def draw_ridges(records: Sequence[Record], num_samples: int, axes: Any = None) -> Any:
    """Draw the records of a history; see `CondensationHistory.plot`.

    Parameters
    ----------
    records : sequence of dict
        Of more than 20 stages, 20 are shown, evenly spaced, the first and the last among them.
    num_samples : int
        N, which the sizes are shares of.
    axes : matplotlib Axes, optional
        Default: those of a new figure.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    shown = _some_of(records)
    if axes is None:
        axes = style.figure(8.4, 1.4 + 0.62 * max(2, len(shown))).subplots()
    for row, record in enumerate(shown):
        _draw_row(axes, record, -row)
        axes.annotate(
            f"keeps {record['kept'] / num_samples:.1%}",
            (1.01, 0.12 - row),
            xycoords=axes.get_yaxis_transform(),
            color=INK,
            fontsize=9,
        )
    low, high, left_out = _range(shown)
    axes.set_xlim(low, high)
    axes.set_ylim(0.85 - max(1, len(shown)), 1.0)
    names = [f"stage {record['stage']}, epoch {record['epoch']}" for record in shown]
    axes.set_yticks([0.2 - row for row in range(len(shown))], names)
    notes = [f"{len(shown)} of {len(records)} stages"] if len(shown) < len(records) else []
    if left_out:
        notes.append(f"up to {high:.3g}; at most {left_out:.2%} of a row lies above")
    note = f"\n({'; '.join(notes)})" if notes else ""
    axes.set_xlabel(
        f"ranking score $V\\cdot F^{{\\alpha}}$ at the end of the stage, in the value's unit (entropy's: nats){note}"
    )
    axes.set_ylabel("samples, each row\nto its own height", color=INK)
    axes.tick_params(axis="y", length=0)
    style.plain(axes, "bottom")
    keys = [style.patch("kept", KEPT), style.patch("below the cut: left out", DROPPED), style.line("cut")]
    if any(record["cut"] is None for record in shown):
        keys.append(style.patch("no cut", UNPARTED))
    style.keys(axes, keys)
    return axes


def _some_of(records: Sequence[Record]) -> Sequence[Record]:
    """At most 20 of them, evenly spaced, the first and the last among them."""
    if len(records) <= MOST_ROWS:
        return records
    return [records[place] for place in np.linspace(0, len(records) - 1, MOST_ROWS).round().astype(int)]


def _draw_row(axes: Any, record: Record, base: float) -> None:
    edges, counts = np.array(record["edges"], float), np.array(record["counts"], float)
    top = 0.86 * counts / max(1.0, counts.max())
    x, y = np.repeat(edges, 2)[1:-1], np.repeat(top, 2) + base
    if record["cut"] is None:
        axes.fill_between(x, base, y, color=UNPARTED, linewidth=0)
    else:
        # Of many samples the histogram shows every k-th, so the cut can lie beside it.
        cut = float(np.clip(record["cut"], edges[0], edges[-1]))
        # The bin that the cut falls into belongs to both sides.
        place, level = int(np.searchsorted(x, cut, "right")), float(np.interp(cut, x, y))
        left, right = slice(None, place), slice(place, None)
        axes.fill_between([*x[left], cut], base, [*y[left], level], color=DROPPED, linewidth=0)
        axes.fill_between([cut, *x[right]], base, [level, *y[right]], color=KEPT, linewidth=0)
        axes.plot([cut, cut], [base, base + 0.9], color=INK, linewidth=1.6)
    axes.axhline(base, color=FAINT, linewidth=0.6)


def _range(records: Sequence[Record]) -> tuple[float, float, float]:
    """A common range for all rows, and the largest share of a row that lies above it."""
    filled = [record for record in records if any(record["counts"])] or records
    if not filled:
        return 0.0, 1.0, 0.0
    low, ends = min(record["edges"][0] for record in filled), []
    for record in filled:
        share = np.cumsum(record["counts"]) / max(1, sum(record["counts"]))
        place = int(np.searchsorted(share, SHOWN)) if share[-1] else len(share) - 1
        ends.append(record["edges"][1 + place])
    cuts = [record["cut"] for record in records if record["cut"] is not None]
    low, high = min([low, *cuts]), max([*ends, *cuts])
    above = [
        sum(c for c, left in zip(record["counts"], record["edges"], strict=False) if left >= high)
        / max(1, sum(record["counts"]))
        for record in filled
    ]
    margin = 0.02 * (high - low) or 1.0
    return low - margin, high, max(above)
