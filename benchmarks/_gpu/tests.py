"""The tests marked cuda, in this process: each outcome is a row's the moment it is known."""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import Any

import pytest

from .checkout import ROOT
from .part import Part

EVERY = 16  # one test in so many, where it only matters that they run
MARKED = re.compile(r"\bmark\.cuda\b")


class Outcomes:
    """A plugin of pytest that keeps one row of all outcomes, and adds a row for each failure."""

    def __init__(self, part: Part, every: int) -> None:
        self.part, self.every = part, every
        self.outcomes: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.row: dict[str, Any] = {"what": "pytest", "figure": "", "tests": self.outcomes}
        part.rows.append(self.row)

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = items[:: self.every]

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:  # a module that can't be imported; the others run all the same
            self.failed(report.nodeid or "collection", report)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed(
                report.nodeid if report.when == "call" else f"{report.nodeid} ({report.when})", report
            )
        elif report.skipped:
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else "it fails as expected"
            self.told(report.nodeid, "skipped", f": {why.removeprefix('Skipped: ')}")
        elif report.when == "call":
            self.told(report.nodeid, "passed", f" in {report.duration:.1f} s")

    def failed(self, name: str, report: Any) -> None:
        crash = getattr(report.longrepr, "reprcrash", None)
        why = crash.message if crash is not None else str(report.longrepr)
        lines = [line for line in why.splitlines() if line.strip()] or ["no reason given"]
        short = (lines[0] if crash is not None else lines[-1].removeprefix("E   "))[:300]
        self.told(name, "failed", f": {short}")
        self.part.fail(name, short)

    def told(self, name: str, outcome: str, more: str) -> None:
        self.outcomes[name] = outcome + more
        self.counts[outcome] += 1
        self.row["figure"] = ", ".join(f"{number} {what}" for what, number in self.counts.items())
        self.part.write()


def files(cuda: bool) -> list[str]:
    """The files that hold tests to be run: to import all others takes long, and one may fail for what is not CUDA's."""
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    if cuda:
        return [str(path) for path in tests if MARKED.search(path.read_text(encoding="utf-8"))]
    return [str(path) for path in tests if path.stem == "test_cuda"]


def run(part: Part) -> None:
    cuda = part.device.type == "cuda"
    outcomes = Outcomes(part, EVERY if part.quick and not cuda else 1)
    outcomes.row["what"] = f"pytest -m {'cuda' if cuda else repr('not cuda')}"
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # what else is installed has no say
    options = [
        *("-c", str(ROOT / "setup.cfg"), "--rootdir", str(ROOT), "-q", "--tb=short"),
        *("-m", "cuda" if cuda else "not cuda", "--continue-on-collection-errors"),
        *("-p", "no:cacheprovider", "-o", "filterwarnings=default", "--disable-warnings"),
    ]
    status = pytest.main([*options, *files(cuda)], plugins=[outcomes])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not part.failures:
        part.fail("pytest", f"ended with {pytest.ExitCode(status).name}")
    if not outcomes.counts["passed"] and not part.failures:
        reasons = sorted(set(outcomes.outcomes.values()))
        part.fail("pytest", f"no test ran: {'; '.join(reasons) or 'none was found'}")
    part.write()
