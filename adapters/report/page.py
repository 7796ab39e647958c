"""The page of ``kcd report``: one HTML file that needs nothing else, and trusts nothing it shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kcd_core import Cost

from .history_file import Recorded
from .html import NO_PICTURES, cut, document, number, picture, row, safe, section, short, value
from .pictures import PICTURES

__all__ = ["page"]

MOST_ROWS = 200


def page(run: Recorded, pictures: Mapping[str, bytes], title: str) -> bytes:
    """The report as UTF-8.

    Parameters
    ----------
    run : Recorded
        What is reported.
    pictures : mapping
        Name to PNG, of those in `PICTURES`. Without any, the page says why.
    title : str
        Any text.
    """
    parts = [
        *(f"<p>{_origin(run)}</p>" for _ in range(bool(_origin(run)))),
        f"<p>{_sentence(run)}</p>",
        _tiles(run),
    ]
    if not pictures:
        parts.append(f"<p>{safe(NO_PICTURES)}</p>")
    for name, png in pictures.items():
        caption, _, alternative = PICTURES[name]
        parts.append(picture(caption, alternative, png))
    if run.cost is not None:
        parts.append(section("What it cost", _cost(run, run.cost)))
    parts.append(section("Every stage", _stages(run)))
    parts += [
        section(_title(name), _names(table)) for name, table in list(run.tables.items())[:MOST_ROWS] if table
    ]
    return document(title, parts)


def _origin(run: Recorded) -> str:
    """When it was run, with which seed, and how."""
    told = {name: run.told("run", name) for name in ("started", "seed", "command")}
    parts = [f"{name} {safe(cut(told[name]))}" for name in ("started", "seed") if told[name]]
    if told["command"]:
        parts.append(f"<code>{safe(cut(told['command']))}</code>")
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
    return safe(text)


def _tiles(run: Recorded) -> str:
    last, saved, accuracy = run.stages[-1], run.saved, run.told("summary", "accuracy")
    tiles = [
        (f"{last['kept']:,}", f"samples kept of {run.num_samples:,}"),
        (f"{last['kept'] / run.num_samples:.1%}", "of all samples kept"),
        (f"{saved / run.full:.1%}", f"of all samples saved, in {run.epochs:,} epochs"),
        (short(saved), f"samples saved of {short(run.full)}"),
    ]
    if accuracy:
        tiles.append((cut(accuracy), "accuracy"))
    inside = "".join(f'<div class="tile"><b>{safe(a)}</b><span>{safe(b)}</span></div>' for a, b in tiles)
    return f'<div class="tiles">{inside}</div>'


def _cost(run: Recorded, cost: Cost) -> str:
    """A table of what the run took beside plain distillation, as far as both are known."""
    counts: list[tuple[str, float, float]] = [
        ("samples drawn, each a pass of the student", cost.drawn, cost.plain),
        ("teacher queries", cost.asked, cost.plain),
    ]
    rows = [
        (name, number(own), number(plain) if plain else "", f"{own / plain:.1%}" if plain else "")
        for name, own, plain in counts
    ]
    if run.flops is not None:
        own, plain = (flops / 1e9 for flops in run.flops)
        rows.append(("GFLOP", _giga(own), _giga(plain), f"{own / plain:.1%}"))
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
    return f"<table><tr>{head}</tr>{''.join(map(row, rows))}</table><p>{safe(note)}</p>"


def _giga(count: float) -> str:
    """Without an exponent, as far as people read one: ``0.0036``, ``20``, ``12,346``."""
    return f"{count:,.0f}" if 1000 <= count < 1e15 else f"{count:.3g}"


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
    return f"<table>{head}{''.join(map(row, rows))}</table>{note}<p>{safe(_meaning(run))}</p>"


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
        f"<tr><th>{safe(cut(k))}</th><td><code>{safe(value(v))}</code></td></tr>" for k, v in _first(table)
    ]
    left_out = len(table) - len(rows)
    note = f"<p>{left_out} more are left out.</p>" if left_out else ""
    return f'<table class="names">{"".join(rows)}</table>{note}'


def _first(table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return list(table.items())[:MOST_ROWS]


def _title(name: str) -> str:
    return cut(name[:1].upper() + name[1:].replace("_", " "))
