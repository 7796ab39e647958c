"""The study's tables and plot, from the JSON of its runs alone."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.stats
from _common.report import table_at, without_loss

import kcd_core as kcd
from kcd_core.base.files import write_whole

from .arms import ARMS, counterpart, ratio_of
from .flops import step_of
from .picture import draw
from .runs import Setting

NOTE = """\
Mean ± s.d. over seeds. Differences are paired by seed, in percentage points, with Student's t interval. The bootstrap's
(BCa) is in the JSON, too: it is too narrow for so few differences (of ten it covers 90 %, as a test simulates).
Better and worse: paired t tests at 5 %, by Holm's method corrected for all comparisons of the student's table (the
intervals are not).
Intervals and tests cover the seeds alone, that is the student's initial weights and the order of the samples: there is
one teacher, one training set and one test set.
The teacher learned from the whole training set, and Fashion-MNIST mirrored and shifted.
{seen}
Samples, queries and seconds are those of one run, on average. Seconds have all choosing, recording and mixing in them, too,
and depend on what else the machine did: rows made in one session compare.
Arms over another loss (PKT, CRD+KD) are compared with that loss on all samples.
A query is a sample for which the teacher is asked. FLOPs are those of a pass of the teacher for each, and of three of the
student for each sample drawn (backward is two), by torch's counter; losses are not counted."""

KEPT = """\
The students' samples are not augmented, so the teacher sees each once, and once more when it is mixed. What it says is kept:
its passes are in the seconds of runs with --live alone."""
LIVE = """\
The students' samples are not augmented. The teacher runs in every step, on the samples it is asked for: its passes are in
the seconds."""
AUGMENTED = """\
The students' samples are mirrored and shifted as well, in every epoch anew. The teacher sees them so, too: it runs in every
step, on the samples it is asked for, and its passes are in the seconds."""

#: Why arms may do the same.
WHY = {
    ("kc-kd-v1", "kc-kd-v2"): """
F is one number for all that was never dropped, so F^0.03 matters only where by V alone a dropped sample would come back."""
}

Runs = dict[int, dict[str, Any]]  # by seed
Key = tuple[str, float, str]  # arm, ratio, student


@dataclass(frozen=True)
class Difference:
    """Between two arms' accuracies, in percentage points, paired by seed. Without spread there is only the mean."""

    seeds: int
    mean: float
    interval: tuple[float, float] | None = None  # Student's t, 95 %
    bootstrap: tuple[float, float] | None = None  # BCa, 95 %; from five seeds on
    p: float | None = None  # of the paired t test


@dataclass(frozen=True)
class Row:
    """One arm at one ratio. Accuracies in percent."""

    student: str
    ratio: float
    arm: str
    seeds: int
    accuracy: float
    deviation: float | None
    drawn: float
    asked: float  # samples, of the teacher
    flops: float | None  # of the models' passes
    share: float | None  # of the samples that the arm it is compared with draws
    asked_share: float | None
    flops_share: float | None
    seconds: float
    cpu_seconds: float
    to_base: Difference | None
    to_equal: Difference | None


def report(setting: Setting, runs: list[dict[str, Any]], header: Mapping[str, Any] | None = None) -> str:
    """Write the study's .json, .txt and .png, or a trial's beside them if runs are there that are not here.

    Returns the text. Without ``runs`` it is that of those in the .json.
    ``header`` says how and where runs were made; those of earlier calls are kept.
    """
    path = setting.out / f"{setting.name}.json"
    if runs:
        path = without_loss(path, runs, "arm", "ratio", "student", "seed")
    old = table_at(path)
    runs = runs or old["runs"]
    if not runs:
        return f"{setting.name}: no run is finished"
    made_by = old["made_by"] + [header] * (header is not None and header not in old["made_by"])
    rows = rows_of(runs)
    text = text_of(path.stem, runs, rows, made_by, note_of(setting))
    content = {"made_by": made_by, "table": [asdict(row) for row in rows], "runs": runs}
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())
    write_whole(path.with_suffix(".txt"), f"{text}\n".encode())
    draw(rows, path.with_suffix(".png"))
    return text


# -- the figures -----------------------------------------------------------------------------------------


def rows_of(runs: Iterable[Mapping[str, Any]]) -> list[Row]:
    """All rows, by student and ratio, in the order of the arms."""
    groups = grouped(runs)
    order = list(ARMS)
    keys = sorted(
        (k for k in groups if k[0] in ARMS), key=lambda k: (k[2] != "small", -k[1], order.index(k[0]))
    )
    return [row_of(key, groups) for key in keys]


def grouped(runs: Iterable[Mapping[str, Any]]) -> dict[Key, Runs]:
    groups: dict[Key, Runs] = defaultdict(dict)
    for run in runs:
        groups[run["arm"], run["ratio"], run["student"]][run["seed"]] = dict(run)
    return groups


def row_of(key: Key, groups: Mapping[Key, Runs]) -> Row:
    arm, ratio, student = key
    own, base = groups[key], ARMS[arm].base
    kd = groups.get((base, ratio_of(base, ratio), student), {})
    equal = groups.get((f"{base}-equal", ratio, student), {})
    accuracy = 100 * column(own, "accuracy")
    cost, kd_cost, step = cost_of(own), cost_of(kd), step_of(own[min(own)].get("data", ""), student)
    return Row(
        student=student,
        ratio=ratio,
        arm=arm,
        seeds=len(own),
        accuracy=accuracy.mean(),
        deviation=accuracy.std(ddof=1) if len(own) > 1 else None,
        drawn=cost.drawn,
        asked=cost.asked,
        flops=step and step.of(cost),
        share=cost.drawn / kd_cost.drawn if kd else None,
        asked_share=cost.asked / kd_cost.asked if kd else None,
        flops_share=step.of(cost) / step.of(kd_cost) if step and kd else None,
        seconds=column(own, "seconds").mean(),
        cpu_seconds=column(own, "cpu_seconds").mean(),
        to_base=difference(own, kd) if arm != base else None,
        to_equal=difference(own, equal) if arm not in (base, f"{base}-equal") else None,
    )


def cost_of(runs: Runs) -> kcd.Cost:
    """What a run costs on average. Those made before teacher queries were counted asked for all samples."""
    counts = [(run["drawn"], run.get("asked", run["drawn"])) for run in runs.values()]
    return kcd.Cost(*np.mean(counts or [(0, 0)], 0).tolist())


def column(runs: Runs, name: str) -> npt.NDArray[np.float64]:
    return np.array([runs[seed][name] for seed in sorted(runs)], float)


def difference(own: Runs, other: Runs) -> Difference | None:
    seeds = sorted(own.keys() & other.keys())
    if not seeds:
        return None
    apart = 100 * np.array([own[seed]["accuracy"] - other[seed]["accuracy"] for seed in seeds])
    mean = float(apart.mean())
    if np.ptp(apart.round(9)) == 0:  # as many test samples apart is the same, whatever the last bit
        return Difference(len(seeds), mean)
    test = scipy.stats.ttest_1samp(apart, 0)
    bootstrap = bca(apart) if len(seeds) >= 5 else None
    return Difference(len(seeds), mean, ends(test.confidence_interval()), bootstrap, float(test.pvalue))


def bca(sample: npt.NDArray[np.float64]) -> tuple[float, float]:
    # `rng` in new versions of SciPy, which know `random_state`, too
    return ends(
        scipy.stats.bootstrap((sample,), np.mean, random_state=np.random.default_rng(0)).confidence_interval
    )


def ends(interval: Any) -> tuple[float, float]:
    return float(interval.low), float(interval.high)


def holm(p: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The p-values, corrected for their number: to reject those below a level errs at all with at most that chance.

    Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    p = np.asarray(p, float)
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return corrected


# -- text and picture ------------------------------------------------------------------------------------


def text_of(
    name: str, runs: list[dict[str, Any]], rows: list[Row], made_by: Iterable[Mapping[str, Any]], note: str
) -> str:
    one = runs[0]
    lines = [
        f"{name}: the first {one['samples']:,} training samples of {one['data']}, {one['epochs']} epochs, batch "
        f"{one['batch']}, the whole test set; teacher {one['teacher_accuracy']:.2%}",
        "",
        f"{'':26}{'':7}{'':6}{'accuracy':>15}{'samples':>11}{'share':>8}{'queries':>9}{'FLOPs':>8}{'wall':>7}{'CPU':>7}"
        f"{'difference to KD':>26}{'to KD at equal samples':>26}",
        f"{'arm':26}{'ratio':>7}{'seeds':>6}{'%':>15}{'drawn':>11}{'of KD':>8}{'of KD':>9}{'of KD':>8}{'s':>7}{'s':>7}"
        f"{'[95 % interval]':>26}{'[95 % interval]':>26}",
    ]
    for student in dict.fromkeys(row.student for row in rows):
        lines += ["", f"{student} student"]
        own = [row for row in rows if row.student == student]
        lines += [line_of(row) for row in own]
        lines += ["", *verdicts(own)]
    lines += [
        "",
        *note.splitlines(),
        *of_choice(runs),
        *twins(runs),
        "",
    ]
    for header in made_by:
        lines.append(
            "; ".join(f"{key} {value}" if key != "command" else str(value) for key, value in header.items())
        )
    return "\n".join(lines).rstrip()


def note_of(setting: Setting) -> str:
    """What has to be known of a study's figures."""
    return NOTE.format(seen=AUGMENTED if setting.augmented else LIVE if setting.live else KEPT)


def verdicts(rows: list[Row]) -> list[str]:
    """What the tests of one student's rows say, in words."""
    tested = {
        (row, what): apart
        for row in rows
        for what in ("to_base", "to_equal")
        if (apart := getattr(row, what)) is not None and apart.p is not None
    }
    real = dict(zip(tested, holm([apart.p for apart in tested.values()]) < 0.05, strict=True))

    def said(what: str, sign: int, most: float = np.inf) -> str:
        """The rows whose difference has this sign; 0: that can't be told from chance."""
        chosen = [
            row
            for (row, which), apart in tested.items()
            if which == what and (row.share or np.inf) <= most
            if sign == (np.sign(apart.mean) if real[row, which] else 0)
        ]
        return ", ".join(f"{row.arm} {row.ratio:g}" for row in chosen) or "none"

    return [
        f"better than KD: {said('to_base', 1)}",
        f"worse than KD: {said('to_base', -1)}",
        f"better than KD, on at least 30 % fewer samples: {said('to_base', 1, 0.7)}",
        f"neither better nor worse, on at least 30 % fewer samples: {said('to_base', 0, 0.7)}",
        f"better than KD at equal samples: {said('to_equal', 1)}",
        f"worse than KD at equal samples: {said('to_equal', -1)}",
    ]


def of_choice(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """What mixing adds, and what choosing by value does beside chance, a line for each arm and student."""
    groups = grouped(runs)
    found: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for (arm, ratio, student), own in sorted(groups.items(), key=lambda item: -item[0][1]):
        other = counterpart(arm)
        apart = difference(own, groups.get((other, ratio, student), {}))
        if apart:
            at = "" if ARMS[arm].free else f" at {ratio:g}"
            found[arm, other, student].append(f"{apart_of(apart)}{at}")
    return [
        f"{arm} minus {other}, {student} student: {'; '.join(at)}"
        for (arm, other, student), at in found.items()
    ]


def twins(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for every set of arms that gave one accuracy in every run at some ratio: they do the same here."""
    alike: dict[Any, list[str]] = defaultdict(list)
    for (arm, ratio, student), own in grouped(runs).items():
        if len(own) > 1:
            alike[student, ratio, tuple(sorted(own)), tuple(column(own, "accuracy"))].append(arm)
    where: dict[Any, list[str]] = defaultdict(list)
    for (student, ratio, *_), arms in sorted(alike.items(), key=lambda item: item[0][:2], reverse=True):
        if len(arms) > 1:
            where[student, tuple(sorted(arms))].append(f"{ratio:g}")
    return [
        f"The same accuracy in every run: {' and '.join(arms)} at {', '.join(ratios)}, {student} student."
        + WHY.get(arms, "")
        for (student, arms), ratios in where.items()
    ]


def line_of(row: Row) -> str:
    spread = "" if row.deviation is None else f" ± {row.deviation:.2f}"
    share, asked, flops = (
        "" if of_kd is None else f"{of_kd:.1%}" for of_kd in (row.share, row.asked_share, row.flops_share)
    )
    return (
        f"{ARMS[row.arm].title:26}{row.ratio:7g}{row.seeds:6}{f'{row.accuracy:.2f}{spread}':>15}"
        f"{row.drawn:11,.0f}{share:>8}{asked:>9}{flops:>8}{row.seconds:7.1f}{row.cpu_seconds:7.1f}"
        f"{apart_of(row.to_base):>26}{apart_of(row.to_equal):>26}"
    ).rstrip()


def apart_of(difference: Difference | None) -> str:
    if difference is None:
        return ""
    interval = " [{:+.2f}, {:+.2f}]".format(*difference.interval) if difference.interval else ""
    return f"{difference.mean:+.2f}{interval}"
