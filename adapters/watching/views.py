"""Several rows for each sample, as of views of it that go through a model together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["MOST", "Views", "layout", "one_view"]

MOST = 16  # views of a sample

#: How many rows there are for each sample, and how they lie: "tiled" (all samples, and all again) or "interleaved".
Views = tuple[int, str]


def layout(labels: torch.Tensor, views: int) -> Views | None:
    """How the labels of several views lie; None if they are not repeated, or the same in either way."""
    tiled, interleaved = labels.view(views, -1), labels.view(-1, views)
    as_tiles, in_turn = bool((tiled == tiled[0]).all()), bool((interleaved == interleaved[:, :1]).all())
    if as_tiles == in_turn:
        return None
    return views, "tiled" if as_tiles else "interleaved"


def one_view(rows: torch.Tensor, views: Views) -> torch.Tensor:
    """The rows of the first view."""
    number, how = views
    return rows[: len(rows) // number] if how == "tiled" else rows[::number]
