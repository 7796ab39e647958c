"""The page of ``kcd report``: one HTML file that needs nothing else, and trusts nothing it shows."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import kcd_core
from kcd_core import Cost

from .history_file import Recorded
from .pictures import GENERATOR, PICTURES

__all__ = ["MARK", "page"]

MARK = f'<meta name="generator" content="{GENERATOR}">'  # tells our own pages from other people's files
MOST_ROWS = 200
MOST_TEXT = 300

_STYLE = """
:root { --ink: #1f2933; --soft: #5b6672; --line: #e3e7eb; --kept: #0f766e; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f7f8; color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 920px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { margin: 0; font-size: 28px; line-height: 1.25; }
h2 { margin: 0 0 12px; font-size: 18px; }
p { margin: 6px 0 0; color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 28px 0; }
.tile, section { background: #fff; border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: 14px 16px; }
.tile b { display: block; font-size: 24px; line-height: 1.3; color: var(--kept); overflow-wrap: anywhere; }
.tile span { font-size: 13px; color: var(--soft); }
section { padding: 20px 22px; margin-top: 16px; overflow-x: auto; }
img { display: block; width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
table tr:last-child > * { border-bottom: 0; }
table.names td, table.names th { text-align: left; }
table.names th { width: 34%; font-weight: 500; overflow-wrap: anywhere; }
td code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere; unicode-bidi: isolate; }
footer { margin-top: 24px; font-size: 13px; color: var(--soft); }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""


def page(run: Recorded, pictures: Mapping[str, bytes], title: str) -> bytes:
    """The report as UTF-8.

    Parameters
    ----------
    run : Recorded
        What is reported.
    pictures : mapping
        Name to PNG, of those in `PICTURES`.
    title : str
        Any text.
    """
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        MARK,
        # Were something in the file to slip through as markup after all, it could still load and run nothing.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_safe(title)}</title><style>{_STYLE}</style></head><body><main>",
        f"<h1>{_safe(title)}</h1>",
        *(f"<p>{_origin(run)}</p>" for _ in range(bool(_origin(run)))),
        f"<p>{_sentence(run)}</p>",
        _tiles(run),
    ]
    for name, png in pictures.items():
        caption, _, alternative = PICTURES[name]
        data = base64.b64encode(png).decode()
        parts.append(
            f"<section><h2>{_safe(caption)}</h2>"
            f'<img alt="{_safe(alternative)}" src="data:image/png;base64,{data}"></section>'
        )
    if run.cost is not None:
        parts.append(f"<section><h2>What it cost</h2>{_cost(run, run.cost)}</section>")
    parts.append(f"<section><h2>Every stage</h2>{_stages(run)}</section>")
    parts += [
        f"<section><h2>{_safe(_title(name))}</h2>{_names(table)}</section>"
        for name, table in list(run.tables.items())[:MOST_ROWS]
        if table
    ]
    parts.append(
        f"<footer>Made by kcd report, kcd-core {_safe(kcd_core.__version__)}</footer></main></body></html>\n"
    )
    return "\n".join(parts).encode("utf-8", "backslashreplace")  # a lone surrogate is JSON, but no UTF-8


def _origin(run: Recorded) -> str:
    """When it was run, with which seed, and how."""
    told = {name: run.told("run", name) for name in ("started", "seed", "command")}
    parts = [f"{name} {_safe(_cut(told[name]))}" for name in ("started", "seed") if told[name]]
    if told["command"]:
        parts.append(f"<code>{_safe(_cut(told['command']))}</code>")
    return ", ".join(parts)


def _sentence(run: Recorded) -> str:
    last = run.stages[-1]
    text = f"1 condensation stage, after epoch {last['epoch']}"
    if len(run.stages) > 1:
        text = (
            f"{len(run.stages)} condensation stages, after epochs {run.stages[0]['epoch']} to {last['epoch']}"
        )
    text += f": {run.num_samples:,} samples became {last['kept']:,}."
    if run.epochs == last["epoch"]:
        text += " Samples are counted up to the end of the last stage recorded."
    return _safe(text)


def _tiles(run: Recorded) -> str:
    last, saved, accuracy = run.stages[-1], run.saved, run.told("summary", "accuracy")
    tiles = [
        (f"{last['kept']:,}", f"samples kept of {run.num_samples:,}"),
        (f"{last['kept'] / run.num_samples:.1%}", "of all samples kept"),
        (f"{saved / run.full:.1%}", f"of all samples saved, in {run.epochs:,} epochs"),
        (_short(saved), f"samples saved of {_short(run.full)}"),
    ]
    if accuracy:
        tiles.append((_cut(accuracy), "accuracy"))
    inside = "".join(f'<div class="tile"><b>{_safe(a)}</b><span>{_safe(b)}</span></div>' for a, b in tiles)
    return f'<div class="tiles">{inside}</div>'


def _cost(run: Recorded, cost: Cost) -> str:
    """A table of what the run took beside plain distillation, as far as both are known."""
    counts: list[tuple[str, float, float]] = [
        ("samples drawn, each a pass of the student", cost.drawn, cost.plain),
        ("teacher queries", cost.asked, cost.plain),
    ]
    if run.flops is not None:
        counts.append(("floating-point operations", *run.flops))
    rows = [
        (name, _number(own), _number(plain) if plain else "", f"{own / plain:.1%}" if plain else "")
        for name, own, plain in counts
    ]
    if cost.seconds:
        rows.append(("seconds of training", f"{cost.seconds:,.1f}", "", ""))
    head = "".join(f"<th>{name}</th>" for name in ("", "this run", "plain distillation", "share"))
    note = (
        "Plain distillation draws all samples in as many epochs, and asks the teacher for each. Without a gate, it is taken "
        "that this run asks for each sample that it draws. Of several processes, these are one's."
    )
    spent = run.history.account
    if spent is not None and spent.first > 1:
        note += f" Epochs before {spent.first} were not counted."
    return f"<table><tr>{head}</tr>{''.join(map(_row, rows))}</table><p>{_safe(note)}</p>"


def _number(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:.3g}"


def _stages(run: Recorded) -> str:
    rows = [
        (
            f"{s['stage']}",
            f"{s['epoch']:,}",
            f"{s['kept']:,}",
            f"{s['kept'] / run.num_samples:.1%}",
            f"{s['dropped']:,}",
            f"{s['mixed']:,}",
            f"{s['unseen']:,}",
            "none" if s["cut"] is None else f"{s['cut']:.4g}",
            f"{s['quantiles'][len(s['quantiles']) // 2]:.4g}" if s["quantiles"] else "none",
        )
        for s in run.stages[-MOST_ROWS:]
    ]
    names = ("stage", "epoch", "kept", "share", "dropped", "mixed", "never recorded", "cut", "median score")
    head = "<tr>" + "".join(f"<th>{name}</th>" for name in names) + "</tr>"
    left_out = len(run.stages) - len(rows)
    note = f"<p>The first {left_out} stages are left out.</p>" if left_out else ""
    return f"<table>{head}{''.join(map(_row, rows))}</table>{note}<p>{_safe(_meaning(run))}</p>"


def _meaning(run: Recorded) -> str:
    alpha = run.told("settings", "alpha")
    return (
        "A stage ranks the samples that were drawn until then by their score: the mean of the values that were recorded "
        f"for a sample, times the number of its recordings to the power of alpha{f' ({alpha})' if alpha else ''}. The "
        "cut is the lowest score among those that it keeps: what scores below is dropped, and mixed into the lowest of "
        "the kept ones where there is mixing. There is none where a kept sample was never recorded, or samples were not "
        "chosen by score."
    )


def _names(table: Mapping[str, Any]) -> str:
    table = {name: value for name, value in table.items() if value not in (None, [], {}, "")}
    rows = [
        f"<tr><th>{_safe(_cut(k))}</th><td><code>{_safe(_value(v))}</code></td></tr>"
        for k, v in _first(table)
    ]
    left_out = len(table) - len(rows)
    note = f"<p>{left_out} more are left out.</p>" if left_out else ""
    return f'<table class="names">{"".join(rows)}</table>{note}'


def _row(cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<td>{_safe(cell)}</td>" for cell in cells) + "</tr>"


def _first(table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return list(table.items())[:MOST_ROWS]


def _value(value: Any) -> str:
    return _cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _cut(text: str) -> str:
    return text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + " …"


def _title(name: str) -> str:
    return _cut(name[:1].upper() + name[1:].replace("_", " "))


def _short(number: int) -> str:
    """``1,234`` or ``1.23 M``."""
    for size, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M")):
        if number >= size:
            return f"{number / size:,.3g} {unit}" if number < 1000 * size else f"{number:.3g}"
    return f"{number:,}"


def _safe(text: str) -> str:
    """Escaped for HTML text and attributes, control characters made visible."""
    shown = "".join(c if c.isprintable() or c in " \n\t" else f"\\u{ord(c):04x}" for c in text)
    return escape(shown, quote=True)
