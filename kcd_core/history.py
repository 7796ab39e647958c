"""What each stage did, as data, text and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .algorithms.ranks import rank_scores
from .base.arrays import checked_int, to_numpy

if TYPE_CHECKING:
    from .condense import CondensedSet
    from .sharded.slices import ShardedSet

__all__ = ["CondensationHistory"]

BINS = 60
MOST = 1 << 20  # points that a histogram looks at; of more, every k-th


class CondensationHistory:
    """One record per stage, oldest first: a dict of plain numbers and lists, ready for JSON.

    Each has ``stage``, ``epoch`` (at whose end it was decided), ``kept``, ``dropped``, ``mixed``
    (numbers of points), ``cut`` (ranking score of the lowest-ranked kept point; None if that was never
    recorded), ``unseen`` (points never recorded), ``quantiles`` of the ranking score (0, 5, 25, 50, 75,
    95, 100 %), and its histogram as ``edges`` and ``counts``.
    """

    def __init__(self, num_samples: int) -> None:
        self.num_samples = checked_int(num_samples, "num_samples", 1)
        self.records: list[dict[str, Any]] = []

    def append(
        self,
        condensed_set: CondensedSet | ShardedSet,
        value: Any,
        count: Any,
        *,
        epoch: int,
        alpha: float = 0.03,
        mixing: bool = True,
        unseen: int | None = None,
    ) -> None:
        """Add the `entry` of one stage."""
        self.records.append(
            self.entry(condensed_set, value, count, epoch=epoch, alpha=alpha, mixing=mixing, unseen=unseen)
        )

    def entry(
        self,
        condensed_set: CondensedSet | ShardedSet,
        value: Any,
        count: Any,
        *,
        epoch: int,
        alpha: float = 0.03,
        mixing: bool = True,
        unseen: int | None = None,
    ) -> dict[str, Any]:
        """The record of one stage that would come next; nothing is changed.

        Parameters
        ----------
        condensed_set
            What the stage decided.
        value, count : [N]
            What it was decided from: ``tracker.value`` and ``tracker.count``.
        epoch : int
            The epoch at whose end it was decided.
        alpha : float
            The exponent of the ranking score.
        mixing : bool
            Whether the set's tail is mixed by whoever draws it.
        unseen : int, optional
            How many samples were never recorded, where ``count`` is only that of every k-th sample.
        """
        value, count = to_numpy(value), to_numpy(count)
        every = -(-len(value) // MOST)
        some_value, some_count = value[::every], count[::every]
        seen = some_count > 0
        score = rank_scores(some_value[seen], some_count[seen], alpha) if seen.any() else np.zeros(0)
        low, high = (float(score.min()), float(score.max())) if len(score) else (0.0, 1.0)
        if high - low <= 1e-9 * max(1.0, abs(low)):  # too narrow to be cut into bins
            low, high = low - 0.5, high + 0.5
        counts, edges = np.histogram(score, bins=BINS, range=(low, high))
        quantiles = np.quantile(score, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]) if len(score) else np.zeros(0)
        before = self.records[-1]["kept"] if self.records else self.num_samples
        return {
            "stage": condensed_set.stage,
            "epoch": int(epoch),
            "kept": condensed_set.num_kept,
            "dropped": max(0, before - condensed_set.num_kept),
            "mixed": len(condensed_set.tail) if mixing else 0,
            "cut": float(condensed_set.cut) if np.isfinite(condensed_set.cut) else None,
            "unseen": int(np.count_nonzero(count == 0)) if unseen is None else unseen,
            "quantiles": quantiles.tolist(),
            "edges": edges.tolist(),
            "counts": counts.tolist(),
        }

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.records)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.records[place]

    def __str__(self) -> str:
        lines = ["stage  epoch     kept   share  dropped  mixed       cut"]
        for r in self.records:
            cut = "       -" if r["cut"] is None else f"{r['cut']:8.4f}"
            lines.append(
                f"{r['stage']:5d}  {r['epoch']:5d}  {r['kept']:7d}  {r['kept'] / self.num_samples:6.1%}  "
                f"{r['dropped']:7d}  {r['mixed']:5d}  {cut}"
            )
        return "\n".join(lines)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and lists."""
        return {"num_samples": self.num_samples, "records": [dict(r) for r in self.records]}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> CondensationHistory:
        """The history that a state was saved from.

        Raises
        ------
        ValueError
            If it is not a history's state.
        """
        try:
            history = cls(state["num_samples"])
            history.records = [dict(r) for r in state["records"]]
            str(history)  # whatever can't be shown is refused now
            for r in history.records:
                edges, counts, quantiles = (
                    np.asarray(r[key], float) for key in ("edges", "counts", "quantiles")
                )
                if (
                    edges.shape != (len(counts) + 1,)
                    or counts.ndim != 1
                    or quantiles.ndim != 1
                    or r["unseen"] < 0
                ):
                    raise ValueError(f"the histogram of stage {r['stage']} is damaged")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a history state: {error!r}") from None
        return history

    def to_json(self) -> str:
        """The state as a JSON text."""
        return json.dumps(self.state_dict())

    def plot(self, axes: Any = None) -> Any:
        """Draw the distribution of the ranking score stage by stage, the cut as a line.

        Parameters
        ----------
        axes : matplotlib Axes, optional
            Default: those of a new figure.

        Returns
        -------
        matplotlib Axes

        Raises
        ------
        ImportError
            If matplotlib is not installed (``pip install '.[plot]'`` in a checkout).
        """
        if axes is None:
            try:
                from matplotlib.figure import Figure
            except ImportError:
                raise ImportError(
                    "history.plot() needs matplotlib: pip install '.[plot]' in a checkout of kcd_core"
                ) from None
            height = 1.2 + 0.8 * max(1, len(self.records))
            axes = Figure(figsize=(7, height), layout="constrained").subplots()
        for row, r in enumerate(self.records):
            x, counts = np.asarray(r["edges"]), np.asarray(r["counts"], float)
            bars = 0.85 * np.append(counts, counts[-1]) / max(1.0, counts.max())
            kept = np.ones(len(x), bool)
            if r["cut"] is not None:  # split the bar that the cut goes through
                cut = np.clip(r["cut"], x[0], x[-1])  # the histogram of very many points is a sample's
                place = int(np.searchsorted(x, cut, "right"))
                x = np.insert(x, place, cut)
                bars = np.insert(bars, place, bars[place - 1])
                kept = x >= cut
                axes.fill_between(x, -row, bars - row, x <= cut, step="post", color="0.75", linewidth=0)
                axes.plot([cut] * 2, [-row, 0.9 - row], color="black", linewidth=1.2)
            axes.fill_between(x, -row, bars - row, kept, step="post", color="tab:blue", linewidth=0)
            axes.axhline(-row, color="0.6", linewidth=0.6)
        names = [f"stage {r['stage']}\nkeeps {r['kept']:,}" for r in self.records]
        axes.set_yticks([0.4 - row for row in range(len(names))], names)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(-len(names) + 0.9, 1)
        axes.set_xlabel(
            r"ranking score $V \cdot F^{\,\alpha}$ at the end of the stage (gray: dropped, blue: kept)"
        )
        axes.spines[["top", "right", "left"]].set_visible(False)
        return axes
