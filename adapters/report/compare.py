"""``kcd report`` of several runs: what differs in their settings, in what they kept, and in what they took."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kcd_core.base import style

from .history_file import Recorded
from .html import GENERATOR, NO_PICTURES, cut, document, number, picture, row, safe, section, value

__all__ = ["as_json", "as_page", "as_text", "draw", "figure_of", "names_of"]

#: Of what a run says of itself: `started` and `command` differ between any two.
TABLES = {"run": ("repository", "method", "seed"), "settings": None}
#: What null means, where a file says it of a setting; "-" is for what it does not say.
NULL = {"select": "by value"}
MOST_SETTINGS = 60
Runs = Mapping[str, Recorded]


def names_of(paths: Sequence[Path]) -> list[str]:
    """A short name for each file: its own where these differ, else with its folder, else the whole path."""
    for tried in ([p.stem for p in paths], [f"{p.parent.name}/{p.stem}" for p in paths]):
        if len(set(tried)) == len(paths):
            return tried
    return [str(path) for path in paths]


def facts(run: Recorded) -> dict[str, int | float | str | None]:
    """What a run kept and took; None is what its file does not say."""
    spent, cost = run.history.account, run.cost
    if spent is not None and spent.first > 1:
        cost = None  # of a part of the epochs: not to be set beside others' costs
    return {
        "samples": run.num_samples,
        "epochs": run.epochs,
        "stages": len(run.stages),
        "kept in the end": run.stages[-1]["kept"] if run.stages else run.num_samples,
        "samples drawn, of one process": None if cost is None else cost.drawn,
        "drawn, % of plain distillation's": round(100 * run.drawn / run.full, 2),
        "teacher queries, of one process": None if cost is None else cost.asked,
        "seconds of training": round(cost.seconds, 1) if cost is not None and cost.seconds else None,
        "accuracy": run.told("summary", "accuracy") or None,
    }


def differing(runs: Runs) -> dict[str, dict[str, Any]]:
    """The settings that are not the same in all runs: name to each run's, None where it has none."""
    tables = {name: _settings(run) for name, run in runs.items()}
    every = dict.fromkeys(setting for table in tables.values() for setting in table)
    found = {setting: {name: table.get(setting) for name, table in tables.items()} for setting in every}
    return {setting: own for setting, own in found.items() if len({value(x) for x in own.values()}) > 1}


def kept(runs: Runs) -> dict[str, dict[str, int | None]]:
    """How many samples each stage kept, by the epoch at whose end it was decided; None where a run had no stage then."""
    own = {name: {stage["epoch"]: stage["kept"] for stage in run.stages} for name, run in runs.items()}
    epochs = sorted({epoch for stages in own.values() for epoch in stages})
    return {f"epoch {epoch}": {name: own[name].get(epoch) for name in runs} for epoch in epochs}


def as_json(runs: Runs) -> bytes:
    """All that is compared."""
    content = {
        "made_by": GENERATOR,
        "runs": {name: facts(run) for name, run in runs.items()},
        "settings_that_differ": {
            setting: {name: _plain(x) for name, x in own.items()} for setting, own in differing(runs).items()
        },
        "kept": kept(runs),
    }
    return (json.dumps(content, indent=1) + "\n").encode()


def as_text(runs: Runs) -> str:
    """A table with a column for each run."""
    cells = [["", *(_shown(name)[:40] for name in runs)]]
    for title, rows in _tables(runs).items():
        cells += [[title] + [""] * len(runs), *([f"  {_shown(name)[:40]}", *own] for name, own in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(runs) + 1)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in cells
    )


def as_page(runs: Runs, png: bytes | None, title: str) -> bytes:
    """The comparison as HTML; without a picture, if there is none, and it says so."""
    parts = [f"<p>{safe(NO_PICTURES)}</p>" if png is None else picture(CAPTION, ALTERNATIVE, png)]
    for heading, rows in _tables(runs).items():
        head = "".join(f"<th>{safe(cut(name))}</th>" for name in ("", *runs))
        parts.append(
            section(heading, f"<table><tr>{head}</tr>{''.join(row(line) for line in _lines(rows))}</table>")
        )
    parts.append(f"<p>{safe(NOTE)}</p>")
    return document(title, parts)


CAPTION = "Samples drawn, epoch by epoch"
ALTERNATIVE = "A step line for each run: the share of all samples that each of its epochs draws."
NOTE = (
    "A dash stands for what a file does not say. Histories have the sizes of sets, not the sets: how far those of two runs "
    "overlap is not in them."
)


def draw(runs: Runs) -> bytes:
    """`figure_of` these runs, as a PNG."""
    return style.png(figure_of(runs), GENERATOR)


def figure_of(runs: Runs) -> Any:
    """The share of all samples that each epoch of each run draws."""
    figure = style.figure(8.4, 3.6)
    axes = style.plain(figure.subplots())
    for place, (name, run) in enumerate(runs.items()):
        marker, color, dashes = style.ARMS[place % len(style.ARMS)]
        segments = run.segments()
        edges = [segments[0].first - 1, *(s.last for s in segments)]
        shares = [100 * s.size / run.num_samples for s in segments]
        label = _shown(name).replace("$", r"\$").lstrip("_")[:60] or f"run {place + 1}"
        # A later one is thinner, so that those that draw alike are all seen.
        axes.step(
            edges, [shares[0], *shares], where="pre", color=color, linestyle=dashes, marker=marker, label=label,
            markevery=[len(edges) - 1], markerfacecolor="none", linewidth=max(1.2, 4 - 0.8 * place),
            markersize=max(4, 14 - 3 * place),
        )  # fmt: skip
    axes.set_ylim(0, 103)
    axes.set_xlim(left=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch")
    axes.set_ylabel("samples drawn,\n% of all of the data set")
    style.legend(figure)
    return figure


def _tables(runs: Runs) -> dict[str, list[tuple[str, list[str]]]]:
    """Title to rows: a name, and each run's."""
    told = {name: facts(run) for name, run in runs.items()}
    first = next(iter(told.values()))
    differ = list(differing(runs).items())
    given = {name: _settings(run) for name, run in runs.items()}
    settings = [
        (
            name,
            [
                NULL[name] if x is None and name in NULL and name in given[run] else _text(x)
                for run, x in own.items()
            ],
        )
        for name, own in differ[:MOST_SETTINGS]
    ]
    if len(differ) > MOST_SETTINGS:
        settings.append((f"and {len(differ) - MOST_SETTINGS} more", [""] * len(runs)))
    if not settings:
        known = any(_settings(run) for run in runs.values())
        settings = [("none" if known else "not recorded in these files", [""] * len(runs))]
    return {
        "Settings that differ": settings,
        "What they took": [(name, [_text(own[name]) for own in told.values()]) for name in first],
        "Samples kept at a stage's end": [
            (epoch, [_text(x) for x in own.values()]) for epoch, own in kept(runs).items()
        ],
    }


def _lines(rows: Sequence[tuple[str, list[str]]]) -> list[list[str]]:
    return [[cut(name), *own] for name, own in rows]


def _settings(run: Recorded) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for table, names in TABLES.items():
        own = run.tables.get(table, {})
        found |= {name: own[name] for name in (own if names is None else names) if name in own}
    return found


def _text(x: Any) -> str:
    """A cell, on one line."""
    if x is None:
        return "-"
    return number(x) if type(x) is int else _shown(value(x))


def _shown(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _plain(x: Any) -> Any:
    """What JSON has a word for: a file may say 1e999."""
    if x is None or isinstance(x, (str, bool, int)) or (isinstance(x, float) and math.isfinite(x)):
        return x
    return value(x)
