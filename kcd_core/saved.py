"""What a run has saved, checked as a whole before any of it is taken over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .account import Account, joined
from .base import distributed
from .base.dataset_identity import told_apart
from .base.resumption import await_all
from .base.states import check_rank, check_same, check_together, differ, state_bool, state_int
from .history import CondensationHistory
from .layout import Layout
from .schedule import CondensationSchedule
from .sums import CheckedState

__all__ = ["Saved", "checked", "gathered"]

HINTS = {
    "dataset": ". Go on with the data set and the split of then, in their order (random_split needs a seeded generator). "
    "If sample i is the same sample, and what differs is known to be right (labels that were corrected), set "
    "state['dataset'] = state_dict()['dataset'] of this run before it is loaded"
}


class Saved(NamedTuple):
    """A run's state, checked and ready to be taken over.

    Attributes
    ----------
    epoch : int
    seen : bool
        Whether anything was recorded in that epoch.
    recorded
        V and F: see `KnowledgeValueTracker.check_state`.
    in_force
        The layout's own.
    history : CondensationHistory
    also : dict of int
        What else was asked for.
    moment : dict of str, optional
        What all ranks of a run have alike where it was saved.
    account : Account, optional
        None of a state that was saved without one.
    """

    epoch: int
    seen: bool
    recorded: CheckedState
    in_force: Any
    history: CondensationHistory
    also: dict[str, int]
    moment: dict[str, str] | None = None
    account: Account | None = None


def gathered(state_dict: Callable[[], dict[str, Any]], group: Any) -> list[dict[str, Any]]:
    """The states of all ranks at one step, on each of them; of ranks that draw alike, the first one's."""
    await_all("gathers", group)
    everyones = distributed.gather(state_dict, group)
    states = [*{(state["num_replicas"], state["rank"]): state for state in reversed(everyones)}.values()][
        ::-1
    ]
    if len({state["epoch"] for state in states}) == 1:
        # All have drawn the same batches: one that others have recorded was passed over on purpose.
        for name in {"position", "recorded"} & states[0].keys():
            furthest = max(state[name] for state in states)
            states = [{**state, name: furthest} for state in states]
    return states


def checked(
    state: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    layout: Layout,
    identity: Mapping[str, Any],
    *,
    needs: tuple[str, ...] = (),
    within: str = "",
    hints: Mapping[str, str] | None = None,
) -> Saved:
    """One rank's state, or what of all ranks' states is this rank's; a ValueError says why it is not taken over.

    Parameters
    ----------
    state : mapping, or list of mappings
    layout : Layout
    identity : mapping
        What the states must have alike with this run.
    needs : tuple of str
        Whole numbers that each state holds besides.
    within : str
        The one of them that is 0 between epochs.
    hints : mapping, optional
        What to do about a setting that differs: see `check_same`.
    """
    hints = {**HINTS, **(hints or {})}
    if not isinstance(state, (list, tuple)):
        saved, own = _one(state, layout, identity, needs, hints)
        check_rank(saved, (layout.rank, layout.ranks), layout.what)
        return own._replace(moment=_moment(own, layout, within))
    states = [_one(each, layout, identity, needs, hints) for each in state]
    check_together(
        [saved for saved, _ in states], [_moment(each, layout, *needs) for _, each in states], layout.what
    )
    ordered = [each for _, each in sorted(states, key=lambda pair: pair[0])]
    first, seen = ordered[0], any(each.seen for each in ordered)
    parts = [(each.recorded, each.in_force) for each in ordered]
    recorded, in_force = layout.joined(parts, bool(first.also.get(within)))
    moment = _moment(first, layout, within)
    account = joined([each.account for each in ordered], layout.rank, layout.ranks, first.epoch)
    return first._replace(seen=seen, recorded=recorded, in_force=in_force, moment=moment, account=account)


def _one(
    state: Any, layout: Layout, identity: Mapping[str, Any], needs: tuple[str, ...], hints: Mapping[str, str]
) -> tuple[tuple[int, int], Saved]:
    """One rank's state, and which rank's it is, of how many."""
    what = layout.what
    own = ("num_replicas", "rank", "epoch", "seen", "tracker", "history", *layout.parts)
    if isinstance(state, Mapping):
        state, identity = _comparable(state, identity, layout)
        hints = {**hints, "schedule": _longer(state, identity)}
    check_same(state, identity, what, needs=(*own, *needs), hints=hints)
    ranks = state_int(state, "rank", 0, what), state_int(state, "num_replicas", 1, what)
    history = CondensationHistory.from_state(state["history"])
    recorded, in_force = layout.check_state(state, history, *ranks)
    return ranks, Saved(
        epoch=state_int(state, "epoch", 1, what),
        seen=state_bool(state, "seen", what),
        recorded=recorded,
        in_force=in_force,
        history=history,
        also={name: state_int(state, name, 0, what) for name in needs},
        account=Account.from_state(state["account"]) if "account" in state else None,
    )


def _comparable(
    state: Mapping[str, Any], identity: Mapping[str, Any], layout: Layout
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both such that one error names all that differ, and nothing twice."""
    saved, here = dict(state), dict(identity)
    if "dataset" in saved and "dataset" in here:
        saved["dataset"], here["dataset"] = told_apart(saved["dataset"], here["dataset"])
        if differ(saved.get("num_samples"), here["num_samples"]):  # which says it all
            here.pop("dataset")
    recorded = saved["tracker"] if isinstance(saved.get("tracker"), Mapping) else {}
    for name, mine in (("value", layout.tracker.value_name), ("statistic", layout.tracker.statistic)):
        if name in recorded:  # the tracker refuses what lacks them
            saved[name], here[name] = recorded[name], mine
    return saved, here


def _longer(state: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """What to do about another schedule, where it may be that of the same run for more epochs."""
    kind = CondensationSchedule.__qualname__
    if identity["schedule_type"] != kind or differ(state.get("schedule_type"), kind):
        return ""
    try:
        saved = CondensationSchedule(**state["schedule"])
    except (LookupError, TypeError, ValueError):  # it is damaged
        return ""
    return f". To train for more epochs, keep the schedule, {saved!r}: for_epochs() of another number makes another one"


def _moment(saved: Saved, layout: Layout, *also: str) -> dict[str, str]:
    """What all ranks of a run have alike at one step."""
    return {
        "epoch": str(saved.epoch),
        **{name.replace("recorded", "recorded position"): str(saved.also[name]) for name in also if name},
        **layout.moment(saved.in_force),
        "history": str(saved.history.records),
    }
