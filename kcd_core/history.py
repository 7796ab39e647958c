"""What each stage did, as data, text and a picture."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Collection, Iterator, Mapping, Sized
from html import escape
from itertools import pairwise
from typing import Any, NoReturn, Protocol, runtime_checkable

import numpy as np

from .account import Account
from .algorithms.ranks import rank_scores
from .base.arguments import check_kind, checked_bool
from .base.arrays import checked_int
from .condense import check_settings, checked_values
from .history_plot import draw_ridges
from .schedule import CondensationSchedule

__all__ = ["MOST", "CondensationHistory", "StageSet"]

BINS = 60
MOST = 1 << 20  # samples that a histogram looks at; of more, every k-th
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)

# What a saved history may hold at most.
MOST_SAMPLES = 1 << 53
MOST_STAGES = 100_000
MOST_BINS = 1000
LAST_EPOCH = 1 << 31
LARGEST = 1e300  # of any score; more can't be drawn


@runtime_checkable
class StageSet(Protocol):
    """What a history asks of a set: a `CondensedSet`, or a rank's share of one."""

    @property
    def stage(self) -> int: ...

    @property
    def num_kept(self) -> int: ...

    @property
    def tail(self) -> Sized: ...

    @property
    def cut(self) -> float: ...


class CondensationHistory:
    """One record per stage, oldest first: a dict of plain numbers and lists, ready for JSON.

    Parameters
    ----------
    num_samples : int, at least 1
        N, all samples.
    schedule : CondensationSchedule, optional
        When stages end. The text gives it until the first stage has ended.

    Attributes
    ----------
    num_samples : int
    schedule : CondensationSchedule or None
    account : Account or None
        What the epochs cost, for the history of a run. It is in the text and the JSON, not in `state_dict`.
    settings : dict or None
        What the run was given, by the names of the arguments, for the history of a run. It is in the JSON alone, where
        ``kcd report`` compares it with other runs'.
    records : list of dict
        Each has ``stage``; ``epoch``, at whose end it was decided; ``kept``, ``dropped`` and ``mixed``, numbers
        of samples; ``cut``, the ranking score of the lowest-ranked kept sample, or None if that was never
        recorded or the set was not chosen by score; ``unseen``, the number of samples never recorded;
        ``quantiles`` of the ranking score (0, 5, 25, 50, 75, 95, 100 %; none if nothing was recorded); and the
        score's histogram, as ``edges`` and ``counts``.
    """

    def __init__(self, num_samples: int, schedule: CondensationSchedule | None = None) -> None:
        self.num_samples = checked_int(num_samples, "num_samples", 1)
        check_kind(schedule, "schedule", CondensationSchedule, type(None))
        self.schedule = schedule
        self.account: Account | None = None
        self.settings: dict[str, Any] | None = None
        self.records: list[dict[str, Any]] = []

    def append(
        self,
        condensed_set: StageSet,
        value: Any,
        count: Any,
        *,
        epoch: int,
        alpha: float = 0.03,
        mixing: bool = True,
        unseen: int | None = None,
    ) -> None:
        """Add the `entry` of one stage."""
        self.records.append(
            self.entry(condensed_set, value, count, epoch=epoch, alpha=alpha, mixing=mixing, unseen=unseen)
        )

    def entry(
        self,
        condensed_set: StageSet,
        value: Any,
        count: Any,
        *,
        epoch: int,
        alpha: float = 0.03,
        mixing: bool = True,
        unseen: int | None = None,
    ) -> dict[str, Any]:
        """The record that the next stage would have. Nothing is changed.

        Parameters
        ----------
        condensed_set
            What the stage decided.
        value, count : [N]
            The values and counts that it was decided from: ``tracker.value`` and ``tracker.count``.
        epoch : int
            The epoch at whose end it was decided.
        alpha : float
            The exponent of the ranking score.
        mixing : bool
            Whether the set's tail is mixed when it is drawn.
        unseen : int, optional
            How many samples were never recorded, if ``count`` only covers every k-th sample.

        Raises
        ------
        ValueError
            If the epoch is not later, or the stage earlier, than that of the last record.
        """
        check_kind(condensed_set, "condensed_set", StageSet)
        value, count = checked_values(value, count)
        alpha, _ = check_settings(alpha, 0)
        every = -(-len(value) // MOST)
        some_value, some_count = value[::every], count[::every]
        seen = some_count > 0
        score = rank_scores(some_value[seen], some_count[seen], alpha) if seen.any() else np.zeros(0)
        low, high = (float(score.min()), float(score.max())) if len(score) else (0.0, 1.0)
        if high - low <= 1e-9 * max(1.0, abs(low)):  # too narrow to be cut into bins
            low, high = low - 0.5, high + 0.5
        counts, edges = np.histogram(score, bins=BINS, range=(low, high))
        quantiles = np.quantile(score, QUANTILES) if len(score) else np.zeros(0)
        before = self.records[-1]["kept"] if self.records else self.num_samples
        record = {
            "stage": int(condensed_set.stage),
            "epoch": checked_int(epoch, "epoch", 1),
            "kept": int(condensed_set.num_kept),
            "dropped": max(0, before - int(condensed_set.num_kept)),
            "mixed": len(condensed_set.tail) if checked_bool(mixing, "mixing") else 0,
            "cut": float(condensed_set.cut) if np.isfinite(condensed_set.cut) else None,
            "unseen": int(np.count_nonzero(count == 0))
            if unseen is None
            else checked_int(unseen, "unseen", 0),
            "quantiles": quantiles.tolist(),
            "edges": edges.tolist(),
            "counts": counts.tolist(),
        }
        self._check_order(record, "the next record")
        return record

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.records)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.records[place]

    def __repr__(self) -> str:
        return f"CondensationHistory(num_samples={self.num_samples}, stages={len(self.records)})"

    def __str__(self) -> str:
        return f"{self._table()}\n{self.account}" if self.account else self._table()

    def _repr_html_(self) -> str:
        """The table in a notebook."""
        head, *lines = self._table().splitlines()
        if not lines:
            return f"<p>{escape(head)}</p>"
        rows = [f"<tr><th>{'</th><th>'.join(head.split())}</th></tr>"]
        rows += [f"<tr><td>{'</td><td>'.join(line.split())}</td></tr>" for line in lines]
        cost = f"<p>{escape(str(self.account))}</p>" if self.account else ""
        return f"<table>{''.join(rows)}</table>{cost}"

    def _table(self) -> str:
        if not self.records:
            first = "" if self.schedule is None else f"; the first is {self.schedule.next_stage(1)}"
            return f"no stage ended yet{first}"
        lines = ["stage  epoch     kept   share  dropped  mixed       cut"]
        for r in self.records:
            cut = "       -" if r["cut"] is None else f"{r['cut']:8.4f}"
            lines.append(
                f"{r['stage']:5d}  {r['epoch']:5d}  {r['kept']:7d}  {r['kept'] / self.num_samples:6.1%}  "
                f"{r['dropped']:7d}  {r['mixed']:5d}  {cut}"
            )
        return "\n".join(lines)

    def state_dict(self) -> dict[str, Any]:
        """A copy, as plain numbers and lists. The account and the settings are separate parts of a run's state."""
        return {"num_samples": self.num_samples, "records": [_copy(record) for record in self.records]}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> CondensationHistory:
        """The history that a state was saved from, in a checkpoint or a JSON file.

        Raises
        ------
        ValueError
            If it is not a history's state: something is missing, of another type or out of range, or stages are not
            in order. The error says what, and where.
        """
        try:
            if not isinstance(state, Mapping) or not {"num_samples", "records"}.issubset(state):
                _wrong("it", 'an object with "num_samples" and "records"', state)
            history = cls(_whole(state["num_samples"], "num_samples", 1, MOST_SAMPLES))
            records = state["records"]
            if not isinstance(records, list) or len(records) > MOST_STAGES:
                _wrong("records", f"a list of at most {MOST_STAGES} stages", records)
            for place, record in enumerate(records):
                checked = _checked_record(record, history.num_samples, f"records[{place}]")
                history._check_order(checked, f"records[{place}]")
                history.records.append(checked)
            if state.get("account") is not None:
                history.account = Account.from_state(state["account"])
            if (settings := state.get("settings")) is not None:
                if not isinstance(settings, Mapping):
                    _wrong("settings", "an object", settings)
                history.settings = dict(settings)
        except ValueError as error:
            raise ValueError(f"not a history state: {error}") from None
        return history

    def _check_order(self, record: Mapping[str, Any], name: str) -> None:
        """Refuse a record that can't come next."""
        before = self.records[-1] if self.records else {"epoch": 0, "stage": 0}
        if record["epoch"] <= before["epoch"] or record["stage"] < before["stage"]:
            raise ValueError(
                f"{name}: epochs must rise and stages must not fall, got stage {record['stage']} at epoch "
                f"{record['epoch']} after stage {before['stage']} at epoch {before['epoch']}"
            )

    def to_json(self) -> str:
        """The state as a JSON text, with the account and the settings if there are any."""
        account = {"account": self.account.state_dict()} if self.account else {}
        settings = {"settings": self.settings} if self.settings else {}
        return json.dumps({**self.state_dict(), **account, **settings})

    def plot(self, axes: Any = None) -> Any:
        """Draw the distribution of the ranking score stage by stage, divided at the cut.

        Parameters
        ----------
        axes : matplotlib Axes, optional
            Default: those of a new figure.

        Returns
        -------
        matplotlib Axes
            At most 20 stages are drawn, evenly spaced.

        Raises
        ------
        ImportError
            If matplotlib is not installed (``pip install '.[plot]'`` in a checkout).
        """
        return draw_ridges(self.records, self.num_samples, axes)


def _copy(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, list) else value for name, value in record.items()}


def _checked_record(record: Any, num_samples: int, where: str) -> dict[str, Any]:
    """A copy of one record, of the fields that records have."""
    if not isinstance(record, Mapping):
        _wrong(where, "an object", record)

    def whole(name: str, low: int, high: int) -> int:
        return _whole(record.get(name), f"{where}.{name}", low, high)

    def numbers(name: str, lengths: Collection[int], accepted: str) -> list[Any]:
        found = record.get(name)
        if not isinstance(found, list) or len(found) not in lengths:
            _wrong(f"{where}.{name}", f"a list of {accepted} numbers", found)
        return found

    def finite(name: str, lengths: Collection[int], accepted: str) -> list[float]:
        found = numbers(name, lengths, accepted)
        return [_finite(x, f"{where}.{name}[{i}]") for i, x in enumerate(found)]

    edges = finite("edges", range(2, MOST_BINS + 2), f"2 to {MOST_BINS + 1}")
    bins = len(edges) - 1
    checked = {
        "stage": whole("stage", 1, LAST_EPOCH),
        "epoch": whole("epoch", 1, LAST_EPOCH),
        "kept": (kept := whole("kept", 1, num_samples)),
        "dropped": whole("dropped", 0, num_samples - kept),
        "mixed": whole("mixed", 0, kept),
        "cut": None if record.get("cut", "missing") is None else _finite(record.get("cut"), f"{where}.cut"),
        "unseen": whole("unseen", 0, num_samples),
        "quantiles": finite("quantiles", (0, len(QUANTILES)), f"0 or {len(QUANTILES)}"),
        "edges": edges,
        "counts": [
            _whole(x, f"{where}.counts[{i}]", 0, num_samples)
            for i, x in enumerate(numbers("counts", (bins,), f"{bins}"))
        ],
    }
    if any(a >= b for a, b in pairwise(edges)):
        raise ValueError(f"{where}.edges must rise")
    return checked


def _whole(value: Any, name: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        _wrong(name, f"a whole number from {low} to {high}", value)
    return value


def _finite(value: Any, name: str) -> float:
    if type(value) not in (int, float) or not abs(value) <= LARGEST:
        _wrong(name, f"a number of size at most {LARGEST:g}", value)
    return float(value)


def _wrong(name: str, accepted: str, value: Any) -> NoReturn:
    raise ValueError(f"{name} must be {accepted}, got {reprlib.repr(value)}")
