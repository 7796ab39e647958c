"""A stream's run: its samples are the slots that were recorded until now, and its set is a bit for each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..all_ranks import values_of_all
from ..base import distributed
from ..base.arrays import state_array, to_numpy
from ..base.states import state_int
from ..condense import CondensedSet
from ..em_step import Decision, choose
from ..history import CondensationHistory
from ..layout import Undo
from ..rules import Criteria
from ..sample_weights import refuse_weights
from ..sums import CheckedState as TrackerState
from ..tracker import KnowledgeValueTracker
from .filter import StreamFilter
from .told import ids_of

__all__ = ["SlotLayout"]

CROWDED = 0.5  # share of ids that share their slot, from which on a warning says so
InForce = tuple[int, npt.NDArray[np.uint8]]  # stage, and a bit for each slot: whether it is dropped


class SlotLayout:
    """See `kcd_core.layout.Layout`.

    Parameters
    ----------
    slots : StreamFilter
        Whose shared bits are the set in force.
    tracker : KnowledgeValueTracker
        By slot.
    key : str
        What the ids' key is called in a state.
    group : torch.distributed.ProcessGroup, optional
    """

    what = "stream"
    parts: tuple[str, ...] = ("stage", "dropped")
    call = "stream.record(student_logits, ids=...)"
    mixing = False
    why_unweighable = "a stream keeps none"

    def __init__(
        self, slots: StreamFilter, tracker: KnowledgeValueTracker, key: str, group: Any = None
    ) -> None:
        self.filter, self.tracker, self.key, self.group = slots, tracker, key, group
        self.stage = 0

    @property
    def sampler(self) -> SlotLayout:
        return self

    @property
    def rank(self) -> int:
        return distributed.rank(self.group)

    @property
    def ranks(self) -> int:
        return distributed.world_size(self.group)

    @property
    def num_samples(self) -> int:
        return self.filter.slots

    @property
    def num_kept(self) -> int:
        return self.filter.slots - int(np.unpackbits(self.filter.bits).sum())

    def rows(self, indices: Any) -> Any:
        return indices

    def identity(self) -> dict[str, Any]:
        return {"slots": self.filter.slots, "seed": self.filter.seed, "key": self.key}

    def in_force(self) -> dict[str, Any]:
        return {"stage": self.stage, "set": _digest(self.filter.bits)}

    def decide(self, criteria: Criteria, ended: int) -> Decision:
        """Over the slots recorded until now; the others are neither ranked nor dropped."""
        value, count = values_of_all(self.tracker, self.group)
        recorded = np.flatnonzero(count)
        value, count = value[recorded], count[recorded]
        in_force = np.flatnonzero(self.filter.passes(recorded))
        schedule, seed = criteria.schedule, self.filter.seed
        target = distributed.together(
            lambda: schedule.target_of(ended + 1, len(recorded), len(in_force)), self.group
        )
        chosen = choose(
            value, count, in_force, target, criteria, stage=self.stage + 1, seed=seed, group=self.group
        )
        refuse_weights(chosen.sample_weights, self.why_unweighable)
        by_slot = CondensedSet(
            kept=recorded[chosen.kept],
            num_samples=self.filter.slots,
            stage=chosen.stage,
            dropped=recorded[chosen.dropped],
            cut=chosen.cut,
        )
        ids = ids_of(len(recorded), self.filter.slots)
        crowded = (
            f"more than {CROWDED:.0%} of the {self.filter.slots} slots are taken, by about {ids:.0f} ids so far, so about as many "
            f"ids share a slot and its fate: give ten slots for each id, which is slots={10 * ids:.0f} for these"
        )
        dropped = np.zeros(self.filter.slots, bool)
        dropped[recorded] = True
        dropped[by_slot.kept] = False
        return Decision(
            by_slot,
            value,
            count,
            in_force=(chosen.stage, np.packbits(dropped, bitorder="little")),
            num_samples=len(recorded),
            previous=len(in_force),
            warning=crowded if len(recorded) > CROWDED * self.filter.slots else "",
        )

    def snapshot(self) -> Undo:
        before = self.stage, self.filter.bits.copy()
        return lambda: self._put(before)

    def install(self, chosen: InForce | None, epoch: int) -> None:
        if chosen is not None:
            self._put(chosen)

    def _put(self, in_force: InForce) -> None:
        self.stage, self.filter.bits[:] = in_force

    def state_dict(self) -> dict[str, Any]:
        return {"stage": self.stage, "dropped": state_array(self.filter.bits)}

    def check_state(
        self, state: Mapping[str, Any], history: CondensationHistory, rank: int, ranks: int
    ) -> tuple[TrackerState, InForce]:
        dropped, mine = to_numpy(state["dropped"]), self.filter.bits
        if dropped.dtype != mine.dtype or dropped.shape != mine.shape:
            raise ValueError(
                f"the stream state is damaged: dropped must be uint8 of shape {mine.shape}, got {dropped.dtype} "
                f"{dropped.shape}"
            )
        stage = state_int(state, "stage", 0, "stream")
        if len(history) != stage or not 1 <= history.num_samples <= self.filter.slots:
            raise ValueError(
                f"the stream state is damaged: stage {stage} with a history of {len(history)} stages and "
                f"{history.num_samples} samples"
            )
        return self.tracker.check_state(state["tracker"]), (stage, np.array(dropped))

    def moment(self, in_force: InForce) -> dict[str, str]:
        return {"set": _digest(in_force[1])}

    def joined(
        self, parts: Sequence[tuple[TrackerState, InForce]], within_epoch: bool
    ) -> tuple[TrackerState, InForce]:
        return self.tracker.joined([recorded for recorded, _ in parts], self.rank), parts[0][1]

    def apply(self, recorded: TrackerState, in_force: InForce) -> None:
        self.tracker.apply_state(recorded)
        self._put(in_force)


def _digest(bits: npt.NDArray[np.uint8]) -> str:
    return hashlib.sha256(bits.data).hexdigest()
