"""What ``kcd demo`` wrote, results.json, as a history with tables."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any

__all__ = ["as_run"]

SHOWN = "KC-KD"  # the arm that is reported, where there is one of this name
PLAIN = "KD"  # what it is compared with


def as_run(content: Mapping[str, Any]) -> dict[str, Any]:
    """The first run of one arm, in the form in which ``kcd run --history`` writes one.

    Raises
    ------
    ValueError
        If there is no arm with the history of a run.
    """
    arms = {name: arm for name, arm in _mapping(content.get("arms")).items() if _stages(arm)}
    if not arms:
        raise ValueError('"arms" must be an object whose arms have a "history_of_first_run" with stages')
    name = SHOWN if SHOWN in arms else next(iter(arms))
    settings = _mapping(content.get("settings"))
    data = settings.get("data")
    return {
        "run": {
            "repository": f"kcd demo, {data}" if isinstance(data, str) else "kcd demo",
            "method": f"{name} (its first run)",
        },
        "settings": settings,
        "summary": {
            "epochs": settings.get("epochs"),
            "accuracy": _accuracy(arms[name]),
            "teacher accuracy": _accuracy({"accuracy": [content.get("teacher_accuracy")]}),
            **_flops(arms[name], _mapping(_mapping(content.get("arms")).get(PLAIN))),
        },
        "arms": {name: _told(arm) for name, arm in _mapping(content.get("arms")).items()},
        "versions": _mapping(content.get("versions")),
        "history": arms[name]["history_of_first_run"],
    }


def _mapping(given: Any) -> dict[str, Any]:
    return given if isinstance(given, dict) else {}


def _stages(arm: Any) -> bool:
    return bool(_mapping(_mapping(arm).get("history_of_first_run")).get("records"))


def _numbers(given: Any, most: float = 1e15) -> list[float]:
    """Numbers of a list that are shares or counts."""
    some = given if isinstance(given, list) else []
    return [float(x) for x in some if type(x) in (int, float) and 0 <= x < most]


def _flops(arm: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, float]:
    """Of the first run, and of plain distillation's."""
    names = ("flops", "flops of plain distillation")
    both = [_numbers(one.get("flops"), 1e300) for one in (arm, plain)]
    return {name: flops[0] for name, flops in zip(names, both, strict=True)} if all(both) else {}


def _accuracy(arm: Mapping[str, Any]) -> str | None:
    """``87.75 % ± 0.20 (4 runs)``: the mean over the runs, and their standard deviation."""
    percent = [100 * x for x in _numbers(arm.get("accuracy"))]
    if not percent:
        return None
    return f"{fmean(percent):.2f} %" + (
        f" ± {stdev(percent):.2f} ({len(percent)} runs)" if len(percent) > 1 else ""
    )


def _told(arm: Any) -> str:
    accuracy, drawn = _accuracy(_mapping(arm)), _numbers(_mapping(arm).get("samples_drawn"))
    told = [f"accuracy {accuracy}"] if accuracy else []
    told += [f"{drawn[0]:,.0f} samples drawn in a run"] if drawn else []
    return ", ".join(told) or "nothing is known"
