"""The study's tables and plot, from the JSON of its runs alone."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.stats
from _report import without_loss
from _study_arms import ARMS, ratio_of

#: Of the arms, in their order.
PALETTE = (
    *("black", "grey", "tab:cyan", "tab:blue", "tab:red", "tab:pink", "tab:olive", "tab:green", "tab:orange"),
    *("tab:purple", "tab:brown", "gold", "navy", "lime", "teal", "magenta", "salmon", "peru", "violet"),
)

Runs = dict[int, dict[str, Any]]  # by seed
Key = tuple[str, float, str]  # arm, ratio, student


@dataclass(frozen=True)
class Row:
    """One arm at one ratio. Accuracies and differences in percent, intervals at 95 %."""

    student: str
    ratio: float
    arm: str
    seeds: int
    accuracy: float
    deviation: float | None
    drawn: float
    share: float | None  # of the samples that the arm it is compared with draws
    seconds: float
    cpu_seconds: float
    to_base: list[float] | None  # difference and its interval
    to_equal: list[float] | None


def report(out: Path, name: str, header: Mapping[str, Any] | None = None) -> str:
    """Write ``name``.json, .txt and .png in ``out``, or a trial's beside them if runs are there that are not here.

    Returns the text.
    ``header`` says how and where runs were made; those of earlier calls are kept.
    """
    path = out / f"{name}.json"
    runs = [json.loads(file.read_text()) for file in sorted((out / name).glob("*.json"))]
    if runs:
        path = without_loss(path, runs, "arm", "ratio", "student", "seed")
    old: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"made_by": [], "runs": []}
    runs = runs or old["runs"]
    if not runs:
        return f"{name}: no run is finished"
    made_by = old["made_by"] + [header] * (header is not None and header not in old["made_by"])
    rows = rows_of(runs)
    text = text_of(path.stem, runs, rows, made_by)
    content = {"made_by": made_by, "table": [asdict(row) for row in rows], "runs": runs}
    path.write_text(json.dumps(content, indent=1) + "\n")
    path.with_suffix(".txt").write_text(text + "\n")
    draw(rows, path.with_suffix(".png"))
    return text


# -- the figures -----------------------------------------------------------------------------------------


def rows_of(runs: Iterable[Mapping[str, Any]]) -> list[Row]:
    """All rows, by student and ratio, in the order of the arms."""
    groups: dict[Key, Runs] = defaultdict(dict)
    for run in runs:
        groups[run["arm"], run["ratio"], run["student"]][run["seed"]] = dict(run)
    order = list(ARMS)
    keys = sorted(
        (k for k in groups if k[0] in ARMS), key=lambda k: (k[2] != "small", -k[1], order.index(k[0]))
    )
    return [row_of(key, groups) for key in keys]


def row_of(key: Key, groups: Mapping[Key, Runs]) -> Row:
    arm, ratio, student = key
    own, base = groups[key], ARMS[arm].base
    kd = groups.get((base, ratio_of(base, ratio), student), {})
    equal = groups.get((f"{base}-equal", ratio, student), {})
    accuracy = 100 * column(own, "accuracy")
    drawn = column(own, "drawn").mean()
    return Row(
        student=student,
        ratio=ratio,
        arm=arm,
        seeds=len(own),
        accuracy=accuracy.mean(),
        deviation=accuracy.std(ddof=1) if len(own) > 1 else None,
        drawn=drawn,
        share=drawn / column(kd, "drawn").mean() if kd else None,
        seconds=column(own, "seconds").mean(),
        cpu_seconds=column(own, "cpu_seconds").mean(),
        to_base=difference(own, kd) if arm != base else None,
        to_equal=difference(own, equal) if arm not in (base, f"{base}-equal") else None,
    )


def column(runs: Runs, name: str) -> npt.NDArray[np.float64]:
    return np.array([runs[seed][name] for seed in sorted(runs)], float)


def difference(own: Runs, other: Runs) -> list[float] | None:
    """Mean paired difference of the accuracies and, from five seeds on, its bootstrap 95 % interval."""
    seeds = sorted(own.keys() & other.keys())
    if not seeds:
        return None
    apart = 100 * np.array([own[seed]["accuracy"] - other[seed]["accuracy"] for seed in seeds])
    if len(seeds) < 5 or np.ptp(apart) == 0:
        return [float(apart.mean())]
    interval = scipy.stats.bootstrap((apart,), np.mean, rng=np.random.default_rng(0)).confidence_interval
    return [float(x) for x in (apart.mean(), interval.low, interval.high)]


# -- text and picture ------------------------------------------------------------------------------------


def text_of(
    name: str, runs: list[dict[str, Any]], rows: list[Row], made_by: Iterable[Mapping[str, Any]]
) -> str:
    one = runs[0]
    lines = [
        f"{name}: the first {one['samples']:,} training images of {one['data']}, {one['epochs']} epochs, batch "
        f"{one['batch']}, all test images; teacher {one['teacher_accuracy']:.2%}",
        "",
        f"{'':26}{'':7}{'':6}{'accuracy':>15}{'samples':>11}{'share':>8}{'wall':>7}{'CPU':>7}"
        f"{'difference to KD':>26}{'to KD at equal samples':>26}",
        f"{'arm':26}{'ratio':>7}{'seeds':>6}{'%':>15}{'drawn':>11}{'of KD':>8}{'s':>7}{'s':>7}"
        f"{'[95 % interval]':>26}{'[95 % interval]':>26}",
    ]
    for student in dict.fromkeys(row.student for row in rows):
        lines += ["", f"{student} student"]
        own = [row for row in rows if row.student == student]
        lines += [line_of(row) for row in own]
        lines += ["", *verdicts(own)]
    lines += [
        "",
        "Mean ± s.d. over seeds; differences are paired by seed, in percentage points, with BCa bootstrap intervals,",
        "which are not corrected for the number of comparisons. Better and worse: the interval is on one side of 0.",
        "Images are not augmented, so the teacher sees each once, and once more when it is mixed: times are the",
        "student's, with all choosing, recording and mixing. Wall times include what else the machine did.",
        "Arms over another loss (PKT, CRD+KD) are compared with that loss on all samples.",
        "",
    ]
    for header in made_by:
        lines.append(
            "; ".join(f"{key} {value}" if key != "command" else str(value) for key, value in header.items())
        )
    return "\n".join(lines).rstrip()


def verdicts(rows: list[Row]) -> list[str]:
    """What the intervals say, in words."""

    def names(chosen: Iterable[Row]) -> str:
        return ", ".join(f"{row.arm} {row.ratio:g}" for row in chosen) or "none"

    base = [(row, row.to_base[1:]) for row in rows if row.to_base and len(row.to_base) == 3]
    equal = [(row, row.to_equal[1:]) for row in rows if row.to_equal and len(row.to_equal) == 3]
    level = [row for row, (low, high) in base if low <= 0 <= high]
    return [
        f"better than KD: {names(row for row, (low, _) in base if low > 0)}",
        f"worse than KD: {names(row for row, (_, high) in base if high < 0)}",
        f"neither, on at least 30 % fewer samples: {names(r for r in level if r.share and r.share <= 0.7)}",
        f"better than KD at equal samples: {names(row for row, (low, _) in equal if low > 0)}",
        f"worse than KD at equal samples: {names(row for row, (_, high) in equal if high < 0)}",
    ]


def line_of(row: Row) -> str:
    spread = "" if row.deviation is None else f" ± {row.deviation:.2f}"
    share = "" if row.share is None else f"{row.share:.1%}"
    return (
        f"{ARMS[row.arm].title:26}{row.ratio:7g}{row.seeds:6}{f'{row.accuracy:.2f}{spread}':>15}"
        f"{row.drawn:11,.0f}{share:>8}{row.seconds:7.1f}{row.cpu_seconds:7.1f}"
        f"{apart_of(row.to_base):>26}{apart_of(row.to_equal):>26}"
    ).rstrip()


def apart_of(difference: list[float] | None) -> str:
    if difference is None:
        return ""
    mean, *interval = difference
    return f"{mean:+.2f}" + (" [{:+.2f}, {:+.2f}]".format(*interval) if interval else "")


def draw(rows: list[Row], path: Path) -> None:
    """Accuracy against samples drawn, a panel for each student and loss.

    The bars are standard errors; a line joins plain distillation at all its lengths. Arms that draw
    equally many samples are set a little apart.
    """
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((row.student, ARMS[row.arm].base) for row in rows))
    figure = Figure(figsize=(4.6 * len(panels) + 2.4, 4.4), layout="constrained")
    for axes, (student, base) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        own = [row for row in rows if (row.student, ARMS[row.arm].base) == (student, base)]
        present = [arm for arm in ARMS if any(row.arm == arm for row in own)]
        apart = 0.004 * max(row.drawn for row in own)
        for arm in present:
            points = [row for row in own if row.arm == arm]
            places = [[r.arm for r in own if r.drawn == row.drawn].index(arm) for row in points]
            axes.errorbar(
                [(row.drawn + apart * place) / 1e3 for row, place in zip(points, places, strict=True)],
                [row.accuracy for row in points],
                [(row.deviation or 0) / row.seeds**0.5 for row in points],
                fmt="*" if arm == base else "o",
                color=PALETTE[list(ARMS).index(arm) % len(PALETTE)],
                capsize=2,
                label=ARMS[arm].title,
            )
        plain = [(row.drawn / 1e3, row.accuracy) for row in own if row.arm in (base, f"{base}-equal")]
        if plain:
            axes.plot(*zip(*sorted(plain), strict=True), color="grey", linewidth=0.8, zorder=0)
        axes.set_title(f"{student} student, {ARMS[base].title}", fontsize=10)
        axes.set_xlabel("thousand samples drawn")
        axes.set_ylabel("test accuracy, %")
    known = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in figure.axes]
    handles = {label: handle for panel in known for handle, label in panel}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=130)
