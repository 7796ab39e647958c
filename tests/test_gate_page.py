"""What docs/gate.md says of figures, against those that benchmarks/study.py wrote down."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
STUDIES = "study-fashion-mnist-20000x24-gate", "study-letter-16041x24"
PAGE = (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")


def rows_of(study):
    """The study's table, by arm."""
    table = json.loads((ROOT / f"benchmarks/results/{study}.json").read_text(encoding="utf-8"))["table"]
    return {row["arm"]: row for row in table if row["student"] == "small"}


def said(seeds, mean, interval, **others):
    """A difference, with its interval if there are seeds enough to call it one."""
    if seeds < 4:
        return f"{mean:+.2f} ({seeds} seed{'s' * (seeds > 1)})"
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(mean, *interval)


def test_the_tables_are_the_studys():
    fashion, letter = map(rows_of, STUDIES)
    told = re.findall(
        r"^\| [^|]+ \| `([a-z0-9-]+)` \| ([\d.]+) % \| (.*?) ?\| (.*?) ?\|$", PAGE, re.MULTILINE
    )
    assert len(told) >= 20
    for arm, queries, *differences in told:
        assert f"{100 * letter.get(arm, fashion.get(arm))['asked_share']:.1f}" == queries, arm
        for row, difference in zip((fashion.get(arm), letter.get(arm)), differences, strict=True):
            if difference:
                assert difference == said(**row["to_base"]), arm
    assert {row["seeds"] for arm, row in fashion.items() if arm in ("kd", "gate-quarter")} == {5}
    assert {row["seeds"] for arm, row in letter.items() if arm in ("kd", "gate-quarter")} == {10}


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
    arms = ("kd", "kc-kd-v3", "gate-quarter", "kc-gate-quarter")
    for arm, (seconds, queries, flops, difference) in zip(arms, told, strict=True):
        shares = [f"{100 * live[arm][share]:.1f}" for share in ("asked_share", "flops_share")]
        assert (f"{live[arm]['cpu_seconds']:.1f}", *shares) == (seconds, queries, flops), arm
        apart = live[arm]["to_base"]
        assert difference == (
            (apart and "{:+.2f} [{:+.2f}, {:+.2f}]".format(apart["mean"], *apart["interval"])) or ""
        )
