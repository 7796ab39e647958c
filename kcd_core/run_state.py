"""What a run is, and how it is saved: its settings, what was recorded, which set is in force, which epoch it is."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from .account import Account
from .agreement import Agreement, numbered
from .base.users_line import warn
from .condense import check_settings
from .history import CondensationHistory
from .layout import Layout
from .progress import EpochProgress
from .recipes import NOT_ADOPTED, Mixing, adopted_mixing
from .rules import Criteria, Select, SelectName, check_rule, resolve_select, schedule_of
from .saved import Saved, checked, gathered
from .schedule import CondensationSchedule
from .tracker import KnowledgeValueTracker

__all__ = ["RunState"]

STATE_VERSION = 2


class RunState:
    """The state of a `Run`, which alone changes it besides loading.

    Parameters
    ----------
    layout, schedule, alpha, min_weight, select, what, own, alike, also
        See `Run`.

    Attributes
    ----------
    layout : Layout
    agreement : Agreement
    epoch : int
        From 1; moved on by `end_epoch` alone.
    history : CondensationHistory
    progress : EpochProgress
        What was recorded in the epoch.
    account : Account
        What the epochs cost.
    """

    def __init__(
        self,
        layout: Layout,
        schedule: CondensationSchedule | None,
        *,
        alpha: float,
        min_weight: float,
        select: SelectName | Select | None,
        what: str,
        own: Mapping[str, Any] | None,
        alike: Mapping[str, Any] | None,
        also: Mapping[str, Any] | None = None,
    ) -> None:
        self.rule = resolve_select(select)
        wanted = schedule_of(self.rule, schedule)
        if not isinstance(wanted, CondensationSchedule):
            raise TypeError(
                f"schedule must be a CondensationSchedule, got {type(wanted).__name__}; None goes with a select that has a "
                "schedule of its own"
            )
        self.layout = layout
        self.schedule = wanted
        self.alpha, self.min_weight = check_settings(alpha, min_weight)
        check_rule(self.rule, wanted, self.sampler)
        self._own, self._also = dict(own or {}), dict(also or {})
        self.agreement = Agreement(layout, numbered(what, layout.num_samples) if what else "", alike or {})
        self.history = CondensationHistory(layout.num_samples, wanted)
        self.account = self.history.account = Account()
        self.history.settings = self.settings()
        self.epoch = 1
        self.progress = EpochProgress(layout.tracker.batches)
        self._warned: set[str] = set()

    @property
    def sampler(self) -> Any:
        """Where each stage's set is installed."""
        return self.layout.sampler

    @property
    def criteria(self) -> Criteria:
        """By what a stage's set is chosen."""
        return Criteria(self.schedule, self.alpha, self.min_weight, self.rule)

    @property
    def tracker(self) -> KnowledgeValueTracker:
        """V and F."""
        return self.layout.tracker

    @property
    def group(self) -> Any:
        """The process group of the ranks that train this student; None means all."""
        return self.layout.group

    @property
    def mixing(self) -> Mixing:
        """How what a stage drops is mixed into what it keeps; None also where no stage will drop or mix anything."""
        mixing: Mixing = getattr(self.sampler, "mixing", None)
        mixes = self.rule is None or self.rule.mixes
        return mixing if mixes and self.schedule.drops(self.layout.num_samples) else None

    @property
    def seen(self) -> bool:
        """Whether anything was recorded in this epoch."""
        return self.progress.seen_before or self.tracker.batches > self.progress.batches

    def why_plain(self, epochs: int) -> str:
        """Why a run drops nothing that ends with epoch ``epochs``; empty if it drops something, or has ended
        already."""
        return (
            ""
            if len(self.history)
            else self.schedule.why_plain(self.layout.num_samples, epochs, epoch=self.epoch)
        )

    def warn_once(self, kind: str, text: str) -> None:
        """Warn once in a run for each ``kind``; an empty text gives no warning."""
        if text and kind not in self._warned:
            self._warned.add(kind)
            warn(text)

    # -- state -------------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """What can't change during a run."""
        return {
            "version": STATE_VERSION,
            **self.layout.identity(),
            **copy.deepcopy(self._own),
            **self.criteria.alike,
        }

    def settings(self) -> dict[str, Any]:
        """What the history says that the run was given, in the names that the files of ``kcd run`` have, too."""
        kind = type(self.schedule)
        schedule = self.schedule.state_dict()
        if schedule and kind is not CondensationSchedule:
            schedule["schedule"] = kind.__qualname__
        return {
            **schedule,
            "alpha": self.alpha,
            "min_weight": self.min_weight,
            "mixing": self.mixing or "none",
            "value": self.tracker.value_name,
            "statistic": self.tracker.statistic,
            "select": self.rule.name if self.rule else None,
            **self._also,
        }

    def state_beside_recordings(self) -> dict[str, Any]:
        """What `state_dict` returns but for the recordings: where another's state holds these."""
        return {
            **self.identity(),
            "num_replicas": self.layout.ranks,
            "rank": self.layout.rank,
            "epoch": self.epoch,
            "seen": self.seen,
            **self.layout.state_dict(),
            "history": self.history.state_dict(),
        }

    def state_dict(self) -> dict[str, Any]:
        """A copy of recordings, set in force, history, epoch and account, as plain numbers and tensors.

        Under a process group every rank saves its own. ``torch.load(weights_only=True)`` reads it. Everything except
        ``"account"`` is a function of what was drawn and recorded.
        """
        return {
            **self.state_beside_recordings(),
            "tracker": self.tracker.state_dict(),
            "account": self.account.state_dict(),
        }

    def gather_state_dict(self) -> list[dict[str, Any]]:
        """The `state_dict` of every rank, in rank order, on each of them: for trainers that save on one rank.

        `load_state_dict` takes the list on any number of ranks. Every rank must call this, and needs memory for all
        states. Under NCCL they pass through the device that ``torch.cuda.set_device`` has set.

        Returns
        -------
        list of dict
            It has one state if there is no process group, or if all ranks draw the same.

        Raises
        ------
        RuntimeError
            If another rank has not called this within five minutes. (With a torch that has no
            ``ProcessGroup.get_group_store``, it waits until the process group's own timeout.)
        """
        return gathered(self.state_dict, self.group)

    def load_state_dict(self, state: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Resume where a state was saved.

        The ranks of a process group compare where they resume when the first batch is drawn or recorded. Each rank
        that loaded waits up to five minutes for the others, and a RuntimeError says which of them has not loaded, or
        resumes from another moment. (With a torch that has no ``ProcessGroup.get_group_store``, this is compared when
        a stage ends.)

        Parameters
        ----------
        state : mapping, or list of mappings
            What this rank saved; or, on any number of ranks, what all ranks of a run saved at one step, in any
            order. Rank 0 then takes over the sum of what was recorded.

        Raises
        ------
        ValueError
            If it was saved with other settings, by another rank or version, or is no run's state; of a list,
            also if a rank is missing or there twice, or if they were not saved at one step. Nothing is changed
            then.
        """
        self.apply(self.check_state(state))

    def check_state(
        self,
        state: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        needs: tuple[str, ...] = (),
        within: str = "",
    ) -> Saved:
        """What `load_state_dict` would load; raises as it does.

        ``needs`` names further whole numbers in the state; the one called ``within`` is 0 between epochs.
        """
        mine, hints = self.identity(), dict[str, str]()
        if getattr(self.sampler, "adopts_seed", False):  # the sampler's own state brings it
            del mine["seed"]
        if getattr(self.sampler, "adopts_mixing", False):
            first = next(iter(state), None) if isinstance(state, (list, tuple)) else state
            mine["mixing"] = adopted_mixing(first, mine["mixing"])
            hints = {"mixing": NOT_ADOPTED}
        return checked(state, self.layout, mine, needs=needs, within=within, hints=hints)

    def apply(self, saved: Saved) -> None:
        """Load a checked state."""
        self.layout.apply(saved.recorded, saved.in_force)
        self.history, self.epoch = saved.history, saved.epoch
        self.history.schedule = self.schedule
        account = Account(saved.epoch) if saved.account is None else saved.account  # an empty one is false
        self.account = self.history.account = account
        self.history.settings = self.settings()
        self.progress = EpochProgress(self.tracker.batches, seen_before=saved.seen)
        self.agreement.loaded(saved.moment)

    def restore(
        self,
        *,
        epoch: int,
        seen: bool,
        tracker: Any,
        sampler: Any,
        history: Any,
        account: Any = None,
        summed: bool = False,
    ) -> None:
        """Resume from parts that were saved within another state: those of `tracker`, `sampler`, `history` and
        `account`.

        ``summed``: the recordings are those of all ranks, which the first takes over.

        Raises
        ------
        ValueError
            If one of them is not such a part, or of other settings. Nothing is changed then.
        """
        layout = self.layout
        done = CondensationHistory.from_state(history)
        parts = {"tracker": tracker, "sampler": sampler}
        recorded, in_force = layout.check_state(parts, done, layout.rank, layout.ranks)
        if summed:
            recorded = layout.tracker.joined([recorded], layout.rank)
        spent = None if account is None else Account.from_state(account)
        self.apply(Saved(epoch, seen, recorded, in_force, done, also={}, account=spent))

    def __getstate__(self) -> dict[str, Any]:
        if self.group is not None:
            raise TypeError(
                "a run that was given group= can't be pickled or copied, since a process group can't: save its "
                "state_dict(), and load it into a new one"
            )
        return self.__dict__

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(kept={self.layout.num_kept} of {self.layout.num_samples}, epoch={self.epoch}, "
            f"stages={len(self.history)}, next stage {self.schedule.next_stage(self.epoch)})"
        )
