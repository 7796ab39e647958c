"""A run of which every rank has a slice: its recordings, its part of the set, and what all ranks know of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..em_step import Decision
from ..history import CondensationHistory
from ..layout import Undo, check_same_size, install, snapshot
from ..recipes import MixRecipes
from ..rules import Criteria
from ..sampler_state import fingerprint
from ..sums import CheckedState as TrackerState
from ..tracker import KnowledgeValueTracker
from .condense import choose_sharded, for_history
from .reslice import resliced
from .sampler import ShardedSampler
from .slices import within

__all__ = ["SliceLayout"]


class SliceLayout:
    """See `kcd_core.layout.Layout`. The tracker's samples are those of the slice."""

    what = "loader"
    parts: tuple[str, ...] = ("sampler",)
    call = "loader.record(student_logits)"

    def __init__(self, sampler: ShardedSampler, tracker: KnowledgeValueTracker, group: Any = None) -> None:
        self.sampler = sampler
        self.tracker = tracker
        self.group = group

    @property
    def rank(self) -> int:
        return self.sampler.rank

    @property
    def ranks(self) -> int:
        return self.sampler.num_replicas

    @property
    def mixing(self) -> bool:
        return self.sampler.mixing is not None

    @property
    def num_samples(self) -> int:
        return self.sampler.num_samples

    @property
    def num_kept(self) -> int:
        return self.sampler.num_kept

    def rows(self, indices: Any) -> Any:
        return within(indices, self.sampler.start, self.sampler.stop)

    def identity(self) -> dict[str, Any]:
        sampler = self.sampler
        own = {"seed": sampler.seed, "shuffle": sampler.shuffle, "mixing": sampler.mixing}
        return {"num_samples": sampler.num_samples, **own, "sharded": True}

    def in_force(self) -> dict[str, Any]:
        return {
            "drop_last": self.sampler.drop_last,
            "num_replicas": self.ranks,
            "set": self.sampler.fingerprint(),
        }

    def decide(self, criteria: Criteria, ended: int) -> Decision:
        run = self.tracker, self.sampler
        chosen = choose_sharded(*run, criteria, self.group)
        return Decision(chosen, **for_history(*run, self.group))

    def snapshot(self) -> Undo:
        return snapshot(self.sampler)

    def install(self, chosen: Any | None, epoch: int) -> None:
        install(self.sampler, chosen, epoch)

    def state_dict(self) -> dict[str, Any]:
        return {"sampler": self.sampler.state_dict()}

    def check_state(
        self, state: Mapping[str, Any], history: CondensationHistory, rank: int, ranks: int
    ) -> tuple[TrackerState, Any]:
        check_same_size(self, history)
        saver = ShardedSampler(
            self.num_samples,
            shuffle=self.sampler.shuffle,
            seed=self.sampler.seed,
            num_replicas=ranks,
            rank=rank,
            mixing=self.sampler.mixing,
        )
        saver.adopts_seed, saver.adopts_mixing = self.sampler.adopts_seed, self.sampler.adopts_mixing
        tracker = KnowledgeValueTracker(saver.stop - saver.start, value=self.tracker.function)
        return tracker.check_state(state["tracker"]), saver.check_state(state["sampler"])

    def moment(self, in_force: Any) -> dict[str, str]:
        # With fresh mixing, a rank has the recipes of its own samples alone.
        recipes = MixRecipes() if in_force.mixing == "fresh" else in_force.recipes
        adopted = {"seed": str(in_force.seed), "mixing": str(in_force.mixing)}
        return {"set": fingerprint(in_force.stage, in_force.sizes, recipes), **adopted}

    def joined(
        self, parts: Sequence[tuple[TrackerState, Any]], within_epoch: bool
    ) -> tuple[TrackerState, Any]:
        return resliced(parts, self.sampler, within_epoch)

    def apply(self, recorded: TrackerState, in_force: Any) -> None:
        self.tracker.apply_state(recorded)
        self.sampler.in_force = in_force
