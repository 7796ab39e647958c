"""The pictures' style: what stands side by side differs in grey, and every picture says what it shows."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from helpers import cut_off

import kcd_core as kcd
from kcd_core.base import style

pytest.importorskip("matplotlib")


def lightness(color: str) -> float:
    """CIE's L*, from sRGB."""
    channels = np.array([int(color[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    return 116 * luminance ** (1 / 3) - 16


@pytest.mark.parametrize(
    "together", [("KEPT", "DROPPED", "INK"), ("KEPT", "MIXED", "PALE"), ("KEPT", "UNPARTED")]
)
def test_areas_that_touch_differ_in_grey(together):
    for a, b in combinations(together, 2):
        assert abs(lightness(getattr(style, a)) - lightness(getattr(style, b))) > 15


def test_arms_differ_by_shape():
    markers, _, lines = zip(*style.ARMS, strict=True)
    assert len(set(markers)) == len(set(lines)) == len(style.ARMS)


def test_the_map_of_shares_gets_lighter():
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    levels = [lightness(to_hex(colormaps[style.SHARES](x))) for x in np.linspace(0, 1, 20)]
    assert np.all(np.diff(levels) > 0)


def test_a_history_says_what_it_draws():
    history = kcd.CondensationHistory(10)
    value, count = np.linspace(0, 1, 10), np.ones(10, np.int64)
    history.append(kcd.condense(value, count, previous=10, target=6, stage=1), value, count, epoch=1)
    axes = history.plot()
    assert "ranking score" in axes.get_xlabel()
    assert "samples" in axes.get_ylabel()
    keys = [text.get_text() for text in axes.get_legend().get_texts()]
    assert keys == ["kept", "below the cut: left out", "cut"]
    assert not axes.spines["top"].get_visible()
    assert cut_off(axes.figure) == []


def test_a_picture_names_its_maker():
    assert b"Software\0someone" in style.png(style.figure(1, 1), "someone")[:4096]
