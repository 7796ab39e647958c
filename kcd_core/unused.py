"""Settings that nothing would use, by what else is given: refused where they are given, and not ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .base.arguments import checked_bytes
from .rules import resolve_select

__all__ = ["UNSET", "check_used"]

#: What settings are where nobody gives them. A script may always pass these, as one does that has options of its own.
UNSET: dict[str, Any] = {
    "select": None,
    "alpha": 0.03,
    "min_weight": 0.7,
    "mixing": "auto",
    "mixer": "auto",
    "mixing_cache": 0,
    "ask_multiple": 1,
}
OFF = (None, "none")  # as commands say it
OF_MIXTURES = ("min_weight", "mixer", "mixing_cache")


def check_used(settings: Mapping[str, Any], *, stages: bool = True, named: str = "{}") -> None:
    """ValueError if one of these settings is given, and another says that nothing uses it.

    Parameters
    ----------
    settings : mapping
        By the names of `wrap_loader`'s arguments. Of those left out, nothing is known.
    stages : bool
        Whether stages end, in which samples may be dropped.
    named : str
        What the arguments are called where they are given, with ``{}`` for their name here.

    Notes
    -----
    A ratio of 1, with which nothing is dropped, is not such a setting: plain distillation is a value of it like others.
    """
    given = {name: settings[name] for name in UNSET if name in settings}
    if "mixing_cache" in given:
        given["mixing_cache"] = checked_bytes(given["mixing_cache"], "mixing_cache")
    why = _why_unused(settings, stages, named)
    for name, value in given.items():
        if name in why and value != UNSET[name]:
            unused = f"{named.format(name)}={settings[name]!r}"
            raise ValueError(f"{unused} would not be used: {why[name]}; leave it out")


def _why_unused(settings: Mapping[str, Any], stages: bool, named: str) -> dict[str, str]:
    """Which settings have no use, and why."""
    rule, mixing, why = resolve_select(settings.get("select")), settings.get("mixing", UNSET["mixing"]), {}
    schedule, select, mix = (named.format(name) for name in ("schedule", "select", "mixing"))
    if settings.get("ask") is None:
        why["ask_multiple"] = f"without {named.format('ask')}, the teacher is asked for all rows"
        if rule is not None:
            why["alpha"] = f"with {select}={rule.name} nothing is ranked"
    if rule is not None:
        why["min_weight"] = f"with {select}={rule.name}, the weights of mixtures are that rule's own"
    unmixed = ""
    if not stages:
        why["select"] = f"with {schedule}=None no stage ends, in which it would choose"
        unmixed = f"with {schedule}=None no stage ends, and nothing is mixed"
    elif rule is not None and not rule.mixes:
        unmixed = f"with {select}={rule.name} nothing is mixed"
    elif mixing in OFF:
        unmixed = f"with {mix}={mixing!r} nothing is mixed"
    if unmixed:
        why |= dict.fromkeys(OF_MIXTURES, unmixed)
        if mixing not in OFF:
            why["mixing"] = unmixed
    return why
