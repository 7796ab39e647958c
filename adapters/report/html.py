"""The parts of the pages of ``kcd report``: each needs nothing else, and trusts nothing it shows."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from html import escape
from typing import Any

import kcd_core

__all__ = [
    "GENERATOR",
    "MARK",
    "NO_PICTURES",
    "cut",
    "document",
    "number",
    "picture",
    "row",
    "safe",
    "section",
    "short",
    "value",
]

GENERATOR = "kcd report"
MARK = f'<meta name="generator" content="{GENERATOR}">'  # tells our own pages from other people's files
MOST_TEXT = 300
NO_PICTURES = "The pictures are left out: where this page was made, matplotlib was not installed."

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


def document(title: str, parts: Iterable[str]) -> bytes:
    """A page of these parts, as UTF-8."""
    lines = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        MARK,
        # Were something in a file to slip through as markup after all, it could still load and run nothing.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{safe(title)}</title><style>{_STYLE}</style></head><body><main>",
        f"<h1>{safe(title)}</h1>",
        *parts,
        f"<footer>Made by kcd report, kcd-core {safe(kcd_core.__version__)}</footer></main></body></html>\n",
    ]
    return "\n".join(lines).encode("utf-8", "backslashreplace")  # a lone surrogate is JSON, but no UTF-8


def section(title: str, inside: str) -> str:
    """``inside`` is markup, the title any text."""
    return f"<section><h2>{safe(title)}</h2>{inside}</section>"


def picture(caption: str, alternative: str, png: bytes) -> str:
    """A section that holds a picture, and the text for whoever can't see it."""
    data = base64.b64encode(png).decode()
    return section(caption, f'<img alt="{safe(alternative)}" src="data:image/png;base64,{data}">')


def row(cells: Iterable[str]) -> str:
    """A row of a table; cells are any text."""
    return "<tr>" + "".join(f"<td>{safe(cell)}</td>" for cell in cells) + "</tr>"


def value(given: Any) -> str:
    """Any value of a JSON text, as text."""
    return cut(given if isinstance(given, str) else json.dumps(given, ensure_ascii=False))


def number(count: float) -> str:
    """Whole numbers in groups of three digits, others to three digits."""
    return f"{count:,}" if isinstance(count, int) else f"{count:.3g}"


def cut(text: str) -> str:
    """Not more than `MOST_TEXT` characters of it."""
    return text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + " …"


def short(number: int) -> str:
    """``1,234`` or ``1.23 M``."""
    for size, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M")):
        if number >= size:
            return f"{number / size:,.3g} {unit}" if number < 1000 * size else f"{number:.3g}"
    return f"{number:,}"


def safe(text: str) -> str:
    """Escaped for HTML text and attributes, control characters made visible."""
    shown = "".join(c if c.isprintable() or c in " \n\t" else f"\\u{ord(c):04x}" for c in text)
    return escape(shown, quote=True)
