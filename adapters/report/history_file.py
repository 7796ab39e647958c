"""Reading what a run recorded, and trusting none of it."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["Recorded", "Segment", "Stage", "parse", "read"]

MOST_BYTES = 64 << 20  # a stage takes about 2 kB
MOST_STAGES = 2000
MOST_BINS = 1000
LARGEST = 1e12  # of any score; recorded values are below 2**20


@dataclass(frozen=True)
class Stage:
    """One record of a `kcd_core.CondensationHistory`, checked."""

    stage: int
    epoch: int
    kept: int
    dropped: int
    mixed: int
    unseen: int
    cut: float | None
    quantiles: tuple[float, ...]
    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Segment:
    """Epochs ``first`` to ``last``, both included, in each of which ``size`` points are drawn."""

    first: int
    last: int
    size: int

    @property
    def drawn(self) -> int:
        return self.size * (self.last - self.first + 1)


@dataclass(frozen=True)
class Recorded:
    """A run.

    Attributes
    ----------
    num_samples : int
        N.
    stages : tuple of Stage
        At least one, by epoch.
    epochs : int
        Of the whole run where the file says so, else up to the last stage recorded.
    tables : dict
        Whatever else the file holds, such as ``settings`` and ``summary``: shown, not interpreted.
    """

    num_samples: int
    stages: tuple[Stage, ...]
    epochs: int
    tables: dict[str, dict[str, Any]]

    def segments(self) -> list[Segment]:
        """How many points each epoch draws: all of them until the end of the first stage, then what it kept."""
        ends = [stage.epoch for stage in self.stages]
        sizes = [self.num_samples, *(stage.kept for stage in self.stages)]
        firsts, lasts = [1, *(end + 1 for end in ends)], [*ends, self.epochs]
        return [Segment(*s) for s in zip(firsts, lasts, sizes, strict=True) if s[0] <= s[1]]

    @property
    def drawn(self) -> int:
        """Samples drawn in all."""
        return sum(segment.drawn for segment in self.segments())

    @property
    def full(self) -> int:
        """What the same epochs draw without condensation."""
        return self.num_samples * self.epochs


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
        raise ValueError(f"{path} is not a history: {error}") from None


def parse(text: str) -> Recorded:
    """Check a JSON text: `CondensationHistory.to_json`, bare or as ``history`` in an object with more.

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
    tables: dict[str, dict[str, Any]] = {}
    history = content
    if isinstance(content, dict) and "history" in content:
        history = content["history"]
        loose = {}
        for name, value in content.items():
            if name == "history":
                continue
            if isinstance(value, dict):
                tables[name] = value
            else:
                loose[name] = value
        if loose:
            tables["other"] = {**loose, **tables.get("other", {})}
    if not isinstance(history, dict) or not {"num_samples", "records"}.issubset(history):
        raise ValueError('an object with "num_samples" and "records" is expected, bare or as "history"')
    num_samples = _whole(history, "num_samples", 1, 1 << 53)
    records = history["records"]
    if not isinstance(records, list):
        _wrong("records", "a list", records)
    if not records:
        raise ValueError("it holds no stage: the run ended before the first one did")
    if len(records) > MOST_STAGES:
        raise ValueError(f"it holds {len(records)} stages, at most {MOST_STAGES} can be shown")
    stages = tuple(_stage(record, place, num_samples) for place, record in enumerate(records))
    if tables.get("settings", {}).get("mixing", "unknown") in ("none", None):
        stages = tuple(replace(stage, mixed=0) for stage in stages)  # a record counts what could be mixed
    for place in range(1, len(stages)):
        if stages[place].epoch <= stages[place - 1].epoch:
            raise ValueError(f"records[{place}].epoch must be later than the one before")
    last = stages[-1].epoch
    epochs = [t["epochs"] for t in tables.values() if type(t.get("epochs")) is int]
    return Recorded(num_samples, stages, max([last, *(e for e in epochs if e < 1 << 31)]), tables)


def _stage(record: Any, place: int, num_samples: int) -> Stage:
    where = f"records[{place}]"
    if not isinstance(record, dict):
        _wrong(where, "an object", record)
    sizes = {
        name: _whole(record, name, low, num_samples, where)
        for name, low in (("kept", 0), ("dropped", 0), ("mixed", 0), ("unseen", 0))
    }
    if sizes["kept"] + sizes["dropped"] > num_samples:
        raise ValueError(
            f"{where} keeps {sizes['kept']} and drops {sizes['dropped']} of {num_samples} points, more than there are"
        )
    edges = _numbers(record, "edges", MOST_BINS + 1, where)
    counts = _numbers(record, "counts", MOST_BINS, where)
    if len(edges) < 2 or len(edges) != len(counts) + 1 or any(a >= b for a, b in pairwise(edges)):
        raise ValueError(f"{where}.edges must rise, and be one more than the {len(counts)} counts")
    if any(c < 0 or c != int(c) for c in counts):
        raise ValueError(f"{where}.counts must be whole numbers from 0 on")
    cut = record.get("cut")
    return Stage(
        stage=_whole(record, "stage", 0, 1 << 31, where),
        epoch=_whole(record, "epoch", 1, 1 << 31, where),
        cut=None if cut is None else _number(cut, f"{where}.cut"),
        quantiles=_numbers(record, "quantiles", 100, where),
        edges=edges,
        counts=tuple(int(c) for c in counts),
        **sizes,
    )


def _whole(holder: Mapping[str, Any], name: str, low: int, high: int, where: str = "") -> int:
    value = holder.get(name)
    label = f"{where}.{name}" if where else name
    if type(value) is not int or not low <= value <= high:
        _wrong(label, f"a whole number from {low} to {high}", value)
    return value


def _number(value: Any, label: str) -> float:
    if type(value) not in (int, float) or not abs(value) <= LARGEST or not math.isfinite(value):
        _wrong(label, f"a number of size at most {LARGEST:g}", value)
    return float(value)


def _numbers(holder: Mapping[str, Any], name: str, most: int, where: str) -> tuple[float, ...]:
    value = holder.get(name)
    if not isinstance(value, list) or len(value) > most:
        _wrong(f"{where}.{name}", f"a list of at most {most} numbers", value)
    return tuple(_number(x, f"{where}.{name}[{i}]") for i, x in enumerate(value))


def _wrong(label: str, accepted: str, value: Any) -> NoReturn:
    raise ValueError(f"{label} must be {accepted}, got {reprlib.repr(value)}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON, and no value of a history")
