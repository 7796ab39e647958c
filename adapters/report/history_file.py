"""Reading what a run recorded, and trusting none of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from kcd_core import CondensationHistory, Cost

from .demo_results import as_run

__all__ = ["ClassShares", "Recorded", "Segment", "parse", "read"]

MOST_BYTES = 64 << 20  # a stage takes about 2 kB
MOST_CLASSES = 1000
MOST_SHOWN = 200  # stages whose classes are shown


@dataclass(frozen=True)
class Segment:
    """Epochs ``first`` to ``last``, both included, in each of which ``size`` samples are drawn."""

    first: int
    last: int
    size: int

    @property
    def drawn(self) -> int:
        return self.size * (self.last - self.first + 1)


@dataclass(frozen=True)
class ClassShares:
    """What share of each class stage ``stage`` kept; None for a class of which nothing is known."""

    stage: int
    shares: tuple[float | None, ...]


@dataclass(frozen=True)
class Recorded:
    """A run.

    Attributes
    ----------
    history : CondensationHistory
        Of one epoch at least. No stage has ended in a run that drops nothing.
    epochs : int
        Of the whole run where the file says so, else up to the last stage recorded. At least 1.
    tables : dict
        Whatever else the file holds, such as ``settings`` and ``summary``: shown, not interpreted.
    classes : tuple of ClassShares
        By stage; empty where labels were not known.
    account : (int, int), optional
        Samples that were not drawn, and those that would have been without condensation, where the run counted them:
        ``drop_last`` leaves out some that the sets have.
    cost : Cost, optional
        What one process counted: of the first, where there were several.
    flops : (float, float), optional
        Floating-point operations of the run, and of plain distillation.
    """

    history: CondensationHistory
    epochs: int
    tables: dict[str, dict[str, Any]]
    classes: tuple[ClassShares, ...] = ()
    account: tuple[int, int] | None = None
    cost: Cost | None = None
    flops: tuple[float, float] | None = None

    @property
    def num_samples(self) -> int:
        """N, all samples."""
        return self.history.num_samples

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The records of the history."""
        return self.history.records

    def segments(self) -> list[Segment]:
        """How many samples each epoch draws: all of them until the end of the first stage, then what it kept."""
        ends = [stage["epoch"] for stage in self.stages]
        sizes = [self.num_samples, *(stage["kept"] for stage in self.stages)]
        firsts, lasts = [1, *(end + 1 for end in ends)], [*ends, self.epochs]
        return [Segment(*s) for s in zip(firsts, lasts, sizes, strict=True) if s[0] <= s[1]]

    @property
    def drawn(self) -> int:
        """Samples drawn in all."""
        return self.full - self.saved

    @property
    def full(self) -> int:
        """What the same epochs draw without condensation."""
        return self.num_samples * self.epochs if self.account is None else self.account[1]

    @property
    def saved(self) -> int:
        """Samples that were not drawn, and would have been without condensation."""
        return self.full - sum(s.drawn for s in self.segments()) if self.account is None else self.account[0]

    def told(self, table: str, name: str) -> str:
        """A value of a table, if it is text or a number that is there; else nothing."""
        value = self.tables.get(table, {}).get(name)
        return str(value) if isinstance(value, str) or type(value) in (int, float) else ""

    @property
    def title(self) -> str:
        """Repository, method and ratio, as far as they are known."""
        ratio = self.told("settings", "ratio")
        parts = (self.told("run", "repository"), self.told("run", "method"), f"ratio {ratio}" * bool(ratio))
        return ", ".join(part for part in parts if part) if parts[0] else ""


def read(path: Path) -> Recorded:
    """Read a history from a file.

    Raises
    ------
    ValueError
        If it can't be read, or is not a history.
    """
    try:
        if not path.is_file():
            raise ValueError(f"{path} is not a file")
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    if len(data) > MOST_BYTES:
        raise ValueError(f"{path} has more than {MOST_BYTES >> 20} MiB, a history has about 2 kB a stage")
    try:
        return parse(data.decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} can't be shown: {error}") from None


def parse(text: str) -> Recorded:
    """Check a JSON text: `CondensationHistory.to_json`, bare or as ``history`` in an object with more, or a demo's results.

    Beside ``history``, objects such as ``settings`` and ``summary`` are taken for tables, and a number of
    ``epochs`` in any of them for the length of the run.

    Raises
    ------
    ValueError
        What is wrong, and where.
    """
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            raise ValueError(
                "it holds several JSON texts, as --log writes them: give the file of --history"
            ) from None
        raise ValueError(
            f"it is not JSON ({error}). Give the file of --history, the output of history.to_json(), or the results.json of "
            "kcd demo"
        ) from None
    tables: dict[str, dict[str, Any]] = {}
    if isinstance(content, dict) and "arms" in content and "history" not in content:
        content = as_run(content)
    history: Any = content
    classes: tuple[ClassShares, ...] = ()
    if isinstance(content, dict) and "history" in content:
        history = content["history"]
        loose = {}
        for name, value in content.items():
            if name == "history":
                continue
            if name == "classes" and isinstance(value, list):
                classes = _class_shares(value)
                continue
            if isinstance(value, dict):
                tables[name] = value
            else:
                loose[name] = value
        if loose:
            tables["other"] = {**loose, **tables.get("other", {})}
    checked = CondensationHistory.from_state(history)
    if checked.settings:
        tables["settings"] = {**checked.settings, **tables.get("settings", {})}
    if tables.get("settings", {}).get("mixing", "unknown") in ("none", None):
        for stage in checked:
            stage["mixed"] = 0  # records of older versions count what could be mixed
    epochs = [t["epochs"] for t in tables.values() if type(t.get("epochs")) is int]
    spent = checked.account
    if spent is not None:
        epochs.append(spent.first + len(spent.epochs) - 1)
    last = max([0, *(stage["epoch"] for stage in checked), *(e for e in epochs if e < 1 << 31)])
    if not last:
        raise ValueError(
            "it holds neither a stage nor what an epoch took: the run ended before its first epoch did"
        )
    summary = tables.get("summary", {})
    saved, full = (summary.get(name) for name in ("saved", "full"))
    if spent and spent.first == 1 and spent.total.plain:
        saved, full = spent.total.plain - spent.total.drawn, spent.total.plain
    account = None
    if type(saved) is int and type(full) is int and 0 <= saved < full <= last * checked.num_samples:
        account = (saved, full)
    cost = spent.total if spent else _cost(summary, tables.get("settings", {}))
    return Recorded(checked, last, tables, classes, account, cost, _flops(summary))


def _cost(summary: dict[str, Any], settings: dict[str, Any]) -> Cost | None:
    """What ``kcd run`` counted; nothing, where that is not what is there."""
    names = ("drawn", "full", "processes")
    drawn, full, processes = (x if type(x) is int and x > 0 else 0 for x in map(summary.get, names))
    asked = summary.get("asked", drawn if settings.get("ask") is None else None)
    seconds = summary.get("seconds", 0.0)
    if not (drawn and processes) or type(asked) is not int or not 0 <= asked < 1 << 62:
        return None
    whole = type(seconds) in (int, float) and 0 <= seconds < 1e15
    return Cost(drawn, asked, full // processes, float(seconds) if whole else 0.0)


def _flops(summary: dict[str, Any]) -> tuple[float, float] | None:
    told: list[Any] = [summary.get(name) for name in ("flops", "flops of plain distillation")]
    found = [float(x) for x in told if type(x) in (int, float) and 0 < x < 1e300]
    return (found[0], found[1]) if len(found) == 2 else None


def _class_shares(given: list[Any]) -> tuple[ClassShares, ...]:
    """Check what is said of classes."""
    found = []
    for place, one in enumerate(given[:MOST_SHOWN]):
        stage, shares = (one.get(name) if isinstance(one, dict) else None for name in ("stage", "shares"))
        if type(stage) is not int or not isinstance(shares, list) or not 1 <= len(shares) <= MOST_CLASSES:
            raise ValueError(
                f"classes[{place}] must be an object with a stage and 1 to {MOST_CLASSES} shares"
            )
        if not all(x is None or (type(x) in (int, float) and 0 <= x <= 1) for x in shares):
            raise ValueError(f"classes[{place}].shares must be numbers from 0 to 1")
        found.append(ClassShares(stage, tuple(shares)))
    return tuple(found)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON, and no value of a history")
