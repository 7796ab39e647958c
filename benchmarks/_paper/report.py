"""The published table beside what was run, as text, Markdown and JSON, from the runs' results alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _common.report import many, table_at, without_loss

from kcd_core.base.files import write_whole

from .published import METHODS, PAIRS
from .slots import hours, outcomes

Result = Mapping[str, Any]

NOTES = """\
All accuracies are top-1 in percent on the test images. Here: after the last epoch, which RepDistiller's table
reports, as its script says; mean ± s.d. over seeds. Best: of any epoch, chosen on the test images. Gain: over the
same method without KCD, paired by seed; the table says where that method has no run with a seed of the row. Samples:
drawn for the student's training, of which SSKD makes four rotations each; its teacher's head sees all data before, and
is not counted. Share: of what KD draws. SSKD's teachers are RepDistiller's, unless --sskd-teachers was given."""

SMOKE = """\
SMOKE RUN. The data are noise and the teachers untrained, so no accuracy, difference or gain below means anything. It shows
that runs end, that their accuracies are read, and that they draw as many samples as the schedule says."""


@dataclass(frozen=True)
class Row:
    """One method on one pair. Accuracies, differences and gains in percent (points), None where there is none."""

    pair: str
    method: str
    seeds: int
    published: float
    accuracy: float
    deviation: float | None
    difference: float
    best: float
    published_gain: float | None
    gain: float | None
    samples: int
    drawn: float
    share: float
    seconds: float


def report(folder: Path, header: Mapping[str, Any] | None, *, smoke: bool) -> str:
    """Write ``folder``.json, .txt and .md, or a trial's beside them if runs are there that are not here; return the text.

    What earlier calls said of how runs were made is kept.
    """
    path = folder.with_name(f"{folder.name}.json")
    results, failures = outcomes(folder)
    if results:
        path = without_loss(path, results, "method", "pair", "seed")
    old = table_at(path)
    results, headers = results or old["runs"], old["made_by"]
    if header is not None and not any(same(header, one) for one in headers):
        headers = [*headers, header]
    if not results and not failures:
        return f"{folder.name}: no run is finished"
    results = [{k: v for k, v in result.items() if k != "accuracy_by_epoch"} for result in results]
    rows = rows_of(results)
    content = {
        "smoke": smoke,
        "made_by": headers,
        "table": [asdict(row) for row in rows],
        "methods": means(rows),
        "teachers": teachers(results),
        "failures": failures,
        "runs": results,
    }
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())
    text = text_of(path.stem, content, rows, results)
    write_whole(path.with_suffix(".txt"), f"{text}\n".encode())
    write_whole(path.with_suffix(".md"), f"{markdown(path.stem, content, rows, results)}\n".encode())
    return text


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two commands differ in nothing but their date."""
    return {**one, "date": None} == {**other, "date": None}


# -- the figures -------------------------------------------------------------------------------------------


def rows_of(results: Iterable[Result]) -> list[Row]:
    """All rows, in the order of the published table."""
    by_seed: dict[tuple[str, str], dict[int, Result]] = {}
    for result in results:
        by_seed.setdefault((result["pair"], result["method"]), {})[result["seed"]] = result
    return [row_of(p, m, by_seed) for p in PAIRS for m in METHODS if (p, m) in by_seed]


def row_of(pair: str, method: str, by_seed: Mapping[tuple[str, str], Mapping[int, Result]]) -> Row:
    published, own = PAIRS[pair].published, by_seed[pair, method]
    accuracy = np.array([result["accuracy"] for result in own.values()])
    base = method.removeprefix("kc-")
    plain = by_seed.get((pair, base), {})
    gains = [own[seed]["accuracy"] - plain[seed]["accuracy"] for seed in own.keys() & plain.keys()]
    drawn, full = mean(own, "drawn"), mean(own, "samples") * mean(own, "epochs")
    return Row(
        pair=pair,
        method=method,
        seeds=len(own),
        published=published[method],
        accuracy=float(accuracy.mean()),
        deviation=float(accuracy.std(ddof=1)) if len(own) > 1 else None,
        difference=float(accuracy.mean()) - published[method],
        best=mean(own, "best"),
        published_gain=published[method] - published[base] if method != base else None,
        gain=float(np.mean(gains)) if method != base and gains else None,
        samples=int(mean(own, "samples")),
        drawn=drawn,
        share=drawn / full,
        seconds=mean(own, "seconds"),
    )


def mean(results: Mapping[int, Result], key: str) -> float:
    return float(np.mean([result[key] for result in results.values()]))


def means(rows: Sequence[Row]) -> dict[str, dict[str, float | None]]:
    """Of each method over its pairs; gains over those pairs alone that have one here."""
    table: dict[str, dict[str, float | None]] = {}
    for method in METHODS:
        own = [row for row in rows if row.method == method]
        gained = [row for row in own if row.gain is not None]
        if own:
            table[method] = {
                "pairs": len(own),
                "difference": float(np.mean([row.difference for row in own])),
                "published_gain": float(np.mean([r.published_gain for r in gained])) if gained else None,
                "gain": float(np.mean([row.gain for row in gained])) if gained else None,
            }
    return table


def teachers(results: Iterable[Result]) -> dict[str, dict[str, Any]]:
    """Test accuracy of each teacher as the repositories printed it, and as published."""
    found: dict[str, set[float]] = {}
    for result in results:
        found.setdefault(PAIRS[result["pair"]].teacher, set()).add(round(result["teacher_accuracy"], 2))
    published = {pair.teacher: pair.teacher_accuracy for pair in PAIRS.values()}
    return {name: {"published": published[name], "here": sorted(here)} for name, here in found.items()}


# -- the text ----------------------------------------------------------------------------------------------

COLUMNS = (
    *("pair", "method", "seeds", "published", "here", "difference", "best", "published gain", "gain here"),
    *("samples drawn", "share", "time"),
)


def cells(row: Row) -> list[str]:
    spread = "" if row.deviation is None else f" ± {row.deviation:.2f}"
    return [
        PAIRS[row.pair].title,
        row.method.upper(),
        f"{row.seeds}",
        f"{row.published:.2f}",
        f"{row.accuracy:.2f}{spread}",
        signed(row.difference),
        f"{row.best:.2f}",
        signed(row.published_gain),
        f"no {missing.upper()} run" if (missing := without_base(row)) else signed(row.gain),
        f"{row.drawn:,.0f}",
        f"{row.share:.1%}",
        hours(row.seconds),
    ]


def without_base(row: Row) -> str | None:
    """The method that a gain would be over, if no run of it is here."""
    return row.method.removeprefix("kc-") if row.gain is None and row.published_gain is not None else None


def signed(number: float | None) -> str:
    return "" if number is None else f"{number:+.2f}"


def text_of(name: str, content: Mapping[str, Any], rows: Sequence[Row], results: Sequence[Result]) -> str:
    lines = [name, "", *([SMOKE, ""] if content["smoke"] else [])]
    table = [list(COLUMNS), *(cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(COLUMNS))]
    for place, line in enumerate(table):
        if place and line[0] != table[place - 1][0]:
            lines.append("")
        left = [line[i].ljust(widths[i]) for i in range(2)]
        right = [line[i].rjust(widths[i]) for i in range(2, len(line))]
        lines.append("  ".join(left + right).rstrip())
    lines += ["", *closing(content, results)]
    return "\n".join(lines)


def markdown(name: str, content: Mapping[str, Any], rows: Sequence[Row], results: Sequence[Result]) -> str:
    def line(parts: Iterable[str]) -> str:
        return "| " + " | ".join(parts) + " |"

    found = {(row.pair, row.method): row for row in rows}
    lines = [f"# {name}", "", *([SMOKE, ""] if content["smoke"] else [])]
    lines += ["Accuracy here, and its difference to the published one.", ""]
    lines += [line(["teacher → student", *map(str.upper, METHODS)]), "|" + "---|" * (1 + len(METHODS))]
    for pair in PAIRS.values():
        own = [found.get((pair.name, method)) for method in METHODS]
        if any(own):
            shown = ["" if row is None else f"{row.accuracy:.2f} ({row.difference:+.2f})" for row in own]
            lines.append(line([pair.title, *shown]))
    lines += ["", line(COLUMNS), "|" + "---|" * len(COLUMNS)]
    lines += [line(cells(row)) for row in rows]
    return "\n".join([*lines, "", *(part or "" for part in closing(content, results, "- "))])


def closing(content: Mapping[str, Any], results: Sequence[Result], bullet: str = "") -> list[str]:
    """All that stands below the table."""
    lines = [NOTES, ""]
    for method, one in content["methods"].items():
        gains = (
            f", gain {signed(one['gain'])}, published {signed(one['published_gain'])}"
            if one["gain"] is not None
            else ""
        )
        lines.append(
            f"{bullet}{method.upper()}, mean over pairs ({one['pairs']}): {one['difference']:+.2f} to published{gains}"
        )
    for name, one in content["teachers"].items():
        here = ", ".join(f"{x:.2f}" for x in one["here"])
        lines.append(f"{bullet}teacher {name}: {here} here, {one['published']:.2f} published")
    if results:
        epochs, samples = results[0]["epochs"], results[0]["samples"]
        exact = sum(result["drawn"] == result["scheduled"] for result in results)
        lines += [
            "",
            f"{many(len(results), 'run')} of {epochs} epochs on {many(samples, 'image')}, {exact} of which drew "
            "exactly as many samples as the schedule says.",
        ]
    lines += ["", f"{many(len(content['failures']), 'run')} failed" + (":" if content["failures"] else ".")]
    for failure in content["failures"]:
        last = failure["tail"][-1:] or [""]
        name = f"{failure['method']}-{failure['pair']}-{failure['seed']}"
        lines.append(f"{bullet}{name}: {failure['why']}; its log ends with: {last[0].strip()}")
    for header in content["made_by"]:
        lines += [
            "",
            "; ".join(
                value if key in ("command", "date") else f"{key} {value}" for key, value in header.items()
            ),
        ]
    return lines
