"""The settings of mixing, as commands and configurations give them."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import pytest

import kcd_core as kcd
from kcd_adapters.options import add_arguments, settings_of
from kcd_adapters.settings import Settings


def parsed(*arguments: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return settings_of(parser.parse_args(arguments))


@pytest.mark.parametrize(
    ("mixing", "raw", "after"),
    [("auto", "cumulative", "fresh"), ("cumulative",) * 3, ("fresh",) * 3, ("none", None, None)],
)
def test_mixing(mixing: str, raw: Any, after: Any) -> None:
    settings = parsed("--mixing", mixing)
    assert settings.recipes(kcd.mix_arrays) == raw
    assert (
        settings.recipes(kcd.mix_samples) == settings.recipes(partial(kcd.mix_samples, fields=[0])) == after
    )


def test_a_set_by_chance_has_no_mixtures() -> None:
    for settings in (parsed("--select", "random"), Settings(select="random", mixing="none")):
        assert settings.recipes(kcd.mix_arrays) is None
    assert parsed("--select", "rs2").to_dict() == {"select": "rs2"}
    assert parsed("--select", "rs2", "--ask", "0.5", "--alpha", "0").alpha == 0  # by which the gate ranks


def test_the_cache_is_off_unless_it_is_asked_for() -> None:
    assert parsed().cache_bytes == Settings.from_dict({}).cache_bytes == 0
    assert parsed().to_dict() == {}
    settings = parsed("--mixing-cache", "2 GB")
    assert settings.cache_bytes == 2 * 10**9
    assert Settings.from_json(settings.to_json()) == settings
    assert Settings.from_dict({"mixing_cache": 512}).cache_bytes == 512


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (
            {"mixing_cache": "1 GB", "mixing": "none"},
            "mixing_cache='1 GB' would .*: with mixing='none' nothing",
        ),
        ({"min_weight": 0.5, "mixing": "none"}, r"min_weight=0\.5 would not be used: with mixing='none'"),
        ({"mixing_cache": "1 GB", "select": "rs2"}, "mixing_cache='1 GB' would not be used: with select=rs2"),
        ({"mixing": "fresh", "select": "random"}, "mixing='fresh' would not be used: with select=random"),
        ({"min_weight": 0.5, "select": "rs2"}, r"min_weight=0\.5 would .*: with select=rs2 nothing is mixed"),
        ({"alpha": 0, "select": "rs2"}, "alpha=0 would not be used: with select=rs2 nothing is ranked"),
        ({"ask_multiple": 8}, "ask_multiple=8 would not be used: without ask"),
        ({"select": "infobatch"}, "select must be None, 'random' or 'rs2', got 'infobatch'"),
        ({"mixing_cache": "much"}, "mixing_cache must be a number of bytes"),
        ({"mixing_cache": -1}, "mixing_cache must be a number of bytes"),
    ],
)
def test_what_would_not_be_used_is_refused(given: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Settings.from_dict(given)
