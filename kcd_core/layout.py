"""How samples, their values and the set in force are laid out over the ranks.

Every rank has all of them (`WholeLayout`), a slice of them (`kcd_core.sharded.layout`), or the slots of a stream
(`kcd_core.streaming.layout`). The owner of a run's state, `kcd_core.run`, is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from .base import distributed
from .em_step import Condensable, Decision, decide, fingerprint_of, size_of
from .history import CondensationHistory
from .rules import Criteria
from .sums import CheckedState as TrackerState
from .tracker import KnowledgeValueTracker

__all__ = [
    "Layout",
    "WholeLayout",
    "check_same_size",
    "install",
    "snapshot",
]

Undo = Callable[[], None]


class Layout(Protocol):
    """What of a run's state lies on this rank, and how the ranks decide together.

    Attributes
    ----------
    what : str
        Whose states errors speak of.
    parts : tuple of str
        The keys of `state_dict`.
    call : str
        How values are recorded, for the warning that none were; without one, nobody is warned.
    tracker : KnowledgeValueTracker
    group : torch.distributed.ProcessGroup or None
        Of the ranks of this run; None is all.
    rank, ranks : int
    sampler
        What a stage's set is installed in; a stream's layout itself.
    mixing : bool
        Whether what is dropped is mixed into what is barely kept.
    num_samples : int
    num_kept : int
        Over all ranks.
    """

    what: str
    parts: tuple[str, ...]
    call: str
    tracker: KnowledgeValueTracker
    group: Any

    @property
    def sampler(self) -> Any: ...

    @property
    def rank(self) -> int: ...

    @property
    def ranks(self) -> int: ...

    @property
    def mixing(self) -> bool: ...

    @property
    def num_samples(self) -> int: ...

    @property
    def num_kept(self) -> int: ...

    def rows(self, indices: Any) -> Any:
        """Indices of samples as those of the tracker."""

    def identity(self) -> dict[str, Any]:
        """What ranks have alike, and can't change in the course of a run."""

    def in_force(self) -> dict[str, Any]:
        """What ranks have alike now."""

    def decide(self, criteria: Criteria, ended: int) -> Decision:
        """What the end of a stage decides, after ``ended`` ones. Changes nothing."""

    def snapshot(self) -> Undo:
        """What puts back the set and the epoch that are in force now."""

    def install(self, chosen: Any | None, epoch: int) -> None:
        """Put a set in force, if there is a new one, and the epoch."""

    def state_dict(self) -> dict[str, Any]:
        """The set in force."""

    def check_state(
        self, state: Mapping[str, Any], history: CondensationHistory, rank: int, ranks: int
    ) -> tuple[TrackerState, Any]:
        """What one rank of ``ranks`` saved beside its history, checked: its recordings, and its set."""

    def moment(self, in_force: Any) -> dict[str, str]:
        """Of a checked set: what all ranks of a run have alike at one step."""

    def joined(
        self, parts: Sequence[tuple[TrackerState, Any]], within_epoch: bool
    ) -> tuple[TrackerState, Any]:
        """This rank's share of what all ranks of a run saved, in their order; within an epoch, or between two."""

    def apply(self, recorded: TrackerState, in_force: Any) -> None:
        """Take over what was checked."""


class WholeLayout:
    """Every rank may record all samples and knows the whole set; the ranks' recordings are summed."""

    what = "run"
    parts: tuple[str, ...] = ("sampler",)
    call = "run.record(student_logits, indices=...)"

    def __init__(self, sampler: Condensable, tracker: KnowledgeValueTracker, group: Any = None) -> None:
        self.sampler: Any = sampler
        self.tracker = tracker
        self.group = group

    @property
    def rank(self) -> int:
        return int(getattr(self.sampler, "rank", distributed.rank(self.group)))

    @property
    def ranks(self) -> int:
        return int(getattr(self.sampler, "num_replicas", distributed.world_size(self.group)))

    @property
    def mixing(self) -> bool:
        return getattr(self.sampler, "mixing", None) is not None

    @property
    def num_samples(self) -> int:
        return int(self.sampler.num_samples)

    @property
    def num_kept(self) -> int:
        return size_of(self.sampler)

    def rows(self, indices: Any) -> Any:
        return indices

    def identity(self) -> dict[str, Any]:
        names = ("seed", "shuffle", "mixing")
        own = {name: getattr(self.sampler, name) for name in names if hasattr(self.sampler, name)}
        return {"num_samples": self.num_samples, **own, "sharded": False}

    def in_force(self) -> dict[str, Any]:
        return {
            "drop_last": getattr(self.sampler, "drop_last", None),
            "num_replicas": self.ranks,
            "set": fingerprint_of(self.sampler),
        }

    def decide(self, criteria: Criteria, ended: int) -> Decision:
        return decide(self.tracker, self.sampler, criteria, ended=ended, group=self.group)

    def snapshot(self) -> Undo:
        return snapshot(self.sampler)

    def install(self, chosen: Any | None, epoch: int) -> None:
        install(self.sampler, chosen, epoch)

    def state_dict(self) -> dict[str, Any]:
        if _keeps_its_state(self.sampler):
            return {"sampler": {"set": fingerprint_of(self.sampler)}}
        return {"sampler": self.sampler.state_dict()}

    def check_state(
        self, state: Mapping[str, Any], history: CondensationHistory, rank: int, ranks: int
    ) -> tuple[TrackerState, Any]:
        check_same_size(self, history)
        recorded = self.tracker.check_state(state["tracker"])
        if not _keeps_its_state(self.sampler):
            return recorded, self.sampler.check_state(state["sampler"])
        here = fingerprint_of(self.sampler)
        if not isinstance(state["sampler"], Mapping) or state["sampler"].get("set") != here:
            raise ValueError(
                f"the set in force in this {type(self.sampler).__name__} is not the one that the state was saved "
                "with: load its own state first (load_state_dict() of the module that holds it)"
            )
        return recorded, here

    def moment(self, in_force: Any) -> dict[str, str]:
        if isinstance(in_force, str):
            return {"set": in_force}
        adopted = {name: str(getattr(in_force, name, None)) for name in ("seed", "mixing")}
        return {"set": self.sampler.fingerprint(in_force), **adopted}

    def joined(
        self, parts: Sequence[tuple[TrackerState, Any]], within_epoch: bool
    ) -> tuple[TrackerState, Any]:
        return self.tracker.joined([recorded for recorded, _ in parts], self.rank), parts[0][1]

    def apply(self, recorded: TrackerState, in_force: Any) -> None:
        self.tracker.apply_state(recorded)
        if not isinstance(in_force, str):
            self.sampler.in_force = in_force


def check_same_size(layout: Layout, history: CondensationHistory) -> None:
    """Refuse the history of another number of samples."""
    if history.num_samples != layout.num_samples:
        raise ValueError(
            f"the {layout.what} state is damaged: its history is of {history.num_samples} samples"
        )


def _keeps_its_state(sampler: Any) -> bool:
    """Whether a sampler's state is saved elsewhere: a loss's, with the module that holds it."""
    return not hasattr(sampler, "check_state")


def snapshot(sampler: Any) -> Undo:
    """What puts back the set and the epoch of a sampler, if it can be: if it has ``in_force``."""
    if not hasattr(sampler, "in_force"):
        return lambda: None
    before = sampler.in_force

    def undo() -> None:
        sampler.in_force = before

    return undo


def install(sampler: Any, chosen: Any | None, epoch: int) -> None:
    """Install a set in a sampler, if there is one, and set its epoch if it has one."""
    if chosen is not None:
        sampler.install(chosen)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)
