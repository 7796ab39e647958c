"""A run for a loop that owns its index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .base import distributed
from .base.arguments import check_kind
from .base.dataset_identity import dataset_identity
from .base.same_samples import SameSamples
from .condense import check_settings
from .em_step import Condensable, Decision, check_sampler, check_share
from .layout import WholeLayout
from .rules import Select, SelectName
from .run import Run
from .schedule import CondensationSchedule
from .skipped import OnNonfinite
from .statistics import StatisticName, check_wanted, wanted
from .tracker import KnowledgeValueTracker
from .unused import check_used
from .values import Value, ValueName

__all__ = ["Condensation"]


class Condensation(Run):
    """A run of KCD for a loop with its own index: it records, ends epochs, and saves its state.

    `CondensedLoader` and `CondensedStream` combine such a run with a way to draw.

    Parameters
    ----------
    sampler : CondensedSampler, CondensedLoss, TeacherGate, or anything with ``num_samples``, ``kept`` and ``install``
        Where each stage's set is installed.
    schedule : CondensationSchedule or None
        None takes the schedule of ``select``, which must have one.
    value, on_nonfinite
        See `KnowledgeValueTracker`.
    statistic : {"mean", "stage_mean", "last", "variance"}, optional
        See `KnowledgeValueTracker`. Default: ``select.statistic``, if it has one; else "mean".
    alpha, min_weight, select
        See `condense` and `condense_step`.
    device : torch device, optional
        Where values are kept. Default: on the CUDA device of the first recorded logits, else in host memory.
    tracker : KnowledgeValueTracker, optional
        An existing tracker, instead of ``value``, ``statistic``, ``on_nonfinite`` and ``device``. Default: the
        sampler's own, such as that of a `CondensedLoss`.
    dataset : optional
        The data set that the indices refer to. Whatever identifies its samples, such as its labels, is then part of
        the run's state and compared between ranks: see `dataset_identity`. At the end of a stage, a data set that was
        reordered is an error.
    group : torch.distributed.ProcessGroup, optional
        The ranks that train this student. Default: all.

    Attributes
    ----------
    sampler
    tracker : KnowledgeValueTracker
    schedule : CondensationSchedule
    history : CondensationHistory
    epoch : int
        The current epoch, from 1. Only `end_epoch` advances it.

    Raises
    ------
    TypeError
        If ``schedule`` is not a CondensationSchedule and ``select`` has none, ``sampler`` lacks one of the three
        attributes, ``select`` can't be called as `condense_step` calls it, or ``group`` is not a process group.
    ValueError
        If a setting is outside its range, or ``select`` does not use it; if ``tracker`` has another number of samples,
        or another statistic than ``select`` wants, or ``value``, ``statistic``, ``on_nonfinite`` or ``device`` is given
        beside it; or if this process is not in ``group``.
    RuntimeError
        If the sampler draws for another number of ranks than there are, or was made before the process group and
        draws everything on each of several ranks.

    Examples
    --------
    >>> import numpy as np
    >>> from kcd_core import CondensationSchedule, CondensedSampler
    >>> schedule = CondensationSchedule(ratio=0.5, stages=1, period=1)
    >>> run = Condensation(CondensedSampler(4, shuffle=False), schedule=schedule)
    >>> student_logits = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 9.0], [0.0, 5.0]])
    >>> run.record(student_logits, indices=[0, 1, 2, 3])
    4
    >>> run.end_epoch().kept, list(run.sampler), run.epoch
    (array([0, 1]), [0, 1], 2)
    """

    def __init__(
        self,
        sampler: Condensable,
        *,
        schedule: CondensationSchedule | None,
        value: ValueName | Value | None = None,
        statistic: StatisticName | None = None,
        alpha: float = 0.03,
        min_weight: float = 0.7,
        select: SelectName | Select | None = None,
        on_nonfinite: OnNonfinite | None = None,
        device: Any = None,
        tracker: KnowledgeValueTracker | None = None,
        dataset: Any = None,
        group: Any = None,
    ) -> None:
        check_sampler(sampler)
        alpha, min_weight = check_settings(alpha, min_weight)
        check_used({"select": select, "alpha": alpha, "min_weight": min_weight})
        if tracker is not None:
            check_kind(tracker, "tracker", KnowledgeValueTracker)
        if tracker is None:
            tracker = getattr(sampler, "tracker", None)
        recording: dict[str, Any] = {
            "value": value,
            "statistic": statistic,
            "on_nonfinite": on_nonfinite,
            "device": device,
        }
        given = {name: setting for name, setting in recording.items() if setting is not None}
        if tracker is None:
            given["statistic"] = wanted(statistic, select)
            tracker = KnowledgeValueTracker(sampler.num_samples, **given)
        elif given:
            raise ValueError(
                f"{', '.join(given)} must be given to the tracker that is there already, {tracker!r}, and not beside it"
            )
        elif tracker.num_samples != sampler.num_samples:
            raise ValueError(
                f"tracker and sampler must be of one size, got num_samples = {tracker.num_samples} and "
                f"{sampler.num_samples}"
            )
        check_wanted(tracker.statistic, None if "statistic" in given else select)
        check_share(sampler, distributed.check_group(group))
        layout = WholeLayout(sampler, tracker, group)
        super().__init__(
            layout,
            schedule,
            alpha=alpha,
            min_weight=min_weight,
            select=select,
            what="run",
            own={"dataset": None if dataset is None else dataset_identity(dataset)},
            tell=self._shared_out_twice,
            samples=SameSamples(dataset),
        )
        layout.install(None, self.epoch)
        self.warn_once("drops nothing", self.schedule.why_idle(sampler.num_samples))

    def _shared_out_twice(self, epoch: int, decision: Decision | None) -> Mapping[str, str]:
        """A trainer that shares out a sampler's share again leaves this rank a part of it: to a batch, that of one rank."""
        ranks, length = getattr(self.sampler, "num_replicas", 1), getattr(self.sampler, "length", None)
        share = length(self.sampler.num_kept) if length else 0
        why = self.progress.why_shared_out_twice(epoch, share, ranks)
        return {"shared out twice": why} if why else {}
