"""What docs/gate.md, and docs/results.md of four data sets, say of figures, against those that benchmarks/study.py wrote down."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STUDIES = (
    "study-fashion-mnist-20000x24-gate",
    "study-letter-16041x24",
    "study-satimage-5167x24",
    "study-penbased-8758x24",
)
PAGE = (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")


def rows_of(study):
    """The study's table of its small student, by arm and ratio."""
    table = json.loads((ROOT / f"benchmarks/results/{study}.json").read_text(encoding="utf-8"))["table"]
    return {(row["arm"], row["ratio"]): row for row in table if row["student"] == "small"}


def said(seeds, mean, interval, **others):
    """A difference, with its interval if there are seeds enough to call it one, and the seeds if they aren't ten."""
    if seeds < 4:
        return f"{mean:+.2f} ({seeds} seed{'s' * (seeds > 1)})"
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(mean, *interval) + f" ({seeds})" * (seeds != 10)


def tables_of(page):
    """The cells of each row that names an arm, between those of the header: (arm, {heading: cell})."""
    heads = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            heads = []
        elif not heads:
            heads = cells
        elif "arm" in heads and cells[heads.index("arm")].startswith("`"):
            row = dict(zip(heads, cells, strict=True))
            yield row.pop("arm").strip("`"), row


@pytest.mark.parametrize(("page", "least"), [("gate.md", 23), ("results.md", 20), ("settings.md", 10)])
def test_the_tables_are_the_studys(page, least):
    studies = dict(
        zip(("Fashion-MNIST", "Letter", "Satimage", "Pen digits"), map(rows_of, STUDIES), strict=True)
    )
    other = rows_of("study-fashion-mnist-20000x24")
    told = list(tables_of((ROOT / "docs" / page).read_text(encoding="utf-8")))
    assert len(told) >= least
    for arm, row in told:
        ratio = (
            float(row.get("ratio") or 1)
            if "ratio" in row
            else {"kc-gate-quarter": 0.3, "kc-kd-v2": 0.3}.get(arm, 1)
        )
        found = studies["Letter"].get((arm, ratio)) or studies["Fashion-MNIST"][arm, ratio]
        for heading, key in (("samples", "share"), ("teacher queries", "asked_share")):
            assert row.get(heading, f"{100 * found[key]:.1f} %") == f"{100 * found[key]:.1f} %", arm
        for name, study in studies.items():
            cell = row.get(name, "")
            if cell.endswith(" †"):
                assert (arm, ratio) not in study or study[arm, ratio]["seeds"] < 4, arm
                study, cell = other, cell.removesuffix(" †")
            if cell:
                there = study[arm, ratio]
                assert cell == (
                    said(**there["to_base"]) if there["to_base"] else f"{there['accuracy']:.2f} %"
                ), arm


def test_differences_in_the_text_are_printed():
    printed = " ".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks/results").glob("study-*.txt")
    )
    prose = " ".join(line for line in PAGE.splitlines() if not line.startswith("| "))
    differences = re.findall(r"[-+]\d\.\d\d \[.*?\]", prose)
    assert len(differences) >= 6
    assert [difference for difference in differences if difference not in printed] == []


def test_times_are_those_of_a_live_teacher():
    live = rows_of("study-fashion-mnist-2000x24-live-gate")
    told = re.findall(
        r"^\| [^|]+ \| ([\d.]+) s \| ([\d.]+) % \| ([\d.]+) % \| (.*?) ?\|$", PAGE, re.MULTILINE
    )
    arms = (("kd", 1.0), ("kc-kd-v3", 0.3), ("gate-quarter", 1.0), ("kc-gate-quarter", 0.3))
    for arm, (seconds, queries, flops, difference) in zip(arms, told, strict=True):
        shares = [f"{100 * live[arm][share]:.1f}" for share in ("asked_share", "flops_share")]
        assert (f"{live[arm]['cpu_seconds']:.1f}", *shares) == (seconds, queries, flops), arm
        apart = live[arm]["to_base"]
        assert difference == (
            (apart and "{:+.2f} [{:+.2f}, {:+.2f}]".format(apart["mean"], *apart["interval"])) or ""
        )
