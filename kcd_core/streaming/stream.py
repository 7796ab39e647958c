"""Condensation of streams, where there is no index space: tar shards, iterable-style data sets.

A sample is known by an id, its id by a hash, and a hash by its slot in a table of fixed size. Slots are
an index space: V, F, their sum over ranks, the exact selection and resuming are those of any data set.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..base import distributed
from ..base.arguments import checked_length
from ..base.arrays import checked_int, to_numpy
from ..base.states import value_name
from ..condense import CondensedSet, check_settings
from ..em_step import Decision
from ..logits import refuse_output
from ..rules import Select, SelectName
from ..run import Run, end_together
from ..run_owner import RunOwner
from ..schedule import CondensationSchedule
from ..skipped import OnNonfinite
from ..statistics import check_wanted
from ..tracker import KnowledgeValueTracker
from ..unused import check_used
from ..value_function import ValueFunction
from ..values import Value, ValueName
from .filter import Key, StreamFilter
from .layout import SlotLayout
from .told import Drawn, why_never_again, why_repeated

__all__ = ["CondensedStream"]


class CondensedStream(RunOwner, StreamFilter):
    """A stream without the dropped samples, recorded by id. For data sets with indices, see `wrap_loader`.

    Use it in any DataLoader as an iterable-style data set, or as ``.select(stream.keep)`` in a webdataset pipeline
    before its decoder. Nothing is mixed, since the dropped samples are not available.

    Parameters
    ----------
    dataset : iterable of samples, optional
        Iterated anew in each epoch. It must distribute its samples among workers and ranks itself, so that each
        sample passes one of them. None if only `keep` is used.
    key : str, int or callable
        Where a sample has its id: the field of a dict, the place in a tuple, or ``key(sample)`` (a function at module
        level, if workers are spawned). The id is a str, bytes or integer that is unique to the sample across shards,
        and the same in every epoch.
    slots : int
        Size of the table, which does not grow: 12 bytes a slot, and one bit that all processes of a rank share. Ids
        in the same slot share their mean, and are kept or dropped together. About ``1 - exp(-n / slots)`` of n ids
        share a slot: 10 % at ten slots an id.
    schedule : CondensationSchedule
        Its sizes are shares of the slots recorded so far.
    alpha, select
        See `condense` and `condense_step`. ``select`` gets only the recorded slots.
    value, on_nonfinite
        See `KnowledgeValueTracker`. A function can't have a parameter named ``indices``.
    device : torch device, optional
        Where values are kept. Default: on the CUDA device of the first recorded logits, else in host memory.
    seed : int
        Of the hash.
    group : torch.distributed.ProcessGroup, optional
        The ranks that train this student. Default: all.

    Raises
    ------
    TypeError
        If ``dataset`` can't be iterated, or is a generator, which can be iterated only once; or if another
        argument is of the wrong type.
    ValueError
        If a number is outside its range, or ``select`` does not use ``alpha``.

    Notes
    -----
    What worker processes are sent is the filter, not the values, and the set in force is shared memory:
    the first sample that is read after `end_epoch` meets the new one, also in persistent workers. A copy
    by pickle or ``deepcopy`` is such a filter, too, and doesn't record.

    An id that was never recorded passes, unless it falls into the slot of one that was dropped.

    Examples
    --------
    >>> import torch
    >>> from kcd_core import CondensationSchedule
    >>> samples = [{"name": f"cat{i}", "x": i} for i in range(4)]
    >>> schedule = CondensationSchedule(ratio=0.5, stages=1, period=1)
    >>> stream = CondensedStream(samples, key="name", slots=1000, schedule=schedule)
    >>> logits = torch.tensor([[0.0, 9.0], [0.0, 1.0], [0.0, 0.0], [0.0, 5.0]])
    >>> stream.record(logits, ids=[sample["name"] for sample in stream])
    >>> chosen = stream.end_epoch()
    >>> [sample["name"] for sample in stream]
    ['cat1', 'cat2']
    """

    def __init__(
        self,
        dataset: Iterable[Any] | None = None,
        *,
        key: str | int | Key,
        slots: int,
        schedule: CondensationSchedule | None,
        value: ValueName | Value = "entropy",
        alpha: float = 0.03,
        select: SelectName | Select | None = None,
        on_nonfinite: OnNonfinite = "skip",
        device: Any = None,
        seed: int = 0,
        group: Any = None,
    ) -> None:
        if dataset is not None and (not hasattr(dataset, "__iter__") or isinstance(dataset, Generator)):
            raise TypeError(
                f"dataset must be something that can be iterated anew each epoch, got {type(dataset).__name__}; "
                "for a data set with indices, use wrap_loader"
            )
        if not callable(key) and (isinstance(key, bool) or not isinstance(key, (str, int))):
            raise TypeError(f"key must be a field's name, a place in a tuple or a function, got {key!r}")
        slots = checked_int(slots, "slots", 1)
        super().__init__(
            dataset,
            key if callable(key) else itemgetter(key),
            slots,
            checked_int(seed, "seed", 0),
            _shared(-(-slots // 8), torch.uint8),
            _shared(3, torch.int64),
        )
        if ValueFunction(value).takes_indices:
            raise ValueError(
                "value has a parameter named indices, and what a stream yields has ids alone: record such values "
                "yourself, with stream.tracker.record(stream.slots_of(ids), values)"
            )
        alpha, _ = check_settings(alpha, 1.0)
        check_used({"select": select, "alpha": alpha})
        check_wanted("mean", select)  # the only one of a stream
        tracker = KnowledgeValueTracker(slots, value=value, on_nonfinite=on_nonfinite, device=device)
        named = repr(self.key) if isinstance(self.key, itemgetter) else value_name(self.key)
        self._layout = SlotLayout(self, tracker, named, distributed.check_group(group))
        self._run = Run(
            self._layout,
            schedule,
            alpha=alpha,
            min_weight=1.0,
            select=select,
            what="stream",
            tell=self._tell,
        )
        self._drawn = Drawn()

    @property
    def stage(self) -> int:
        """Number of stages ended."""
        return self._layout.stage

    def record(
        self, student_logits: Any, *, ids: Any, teacher_logits: Any = None, targets: Any = None
    ) -> None:
        """E-step: record the values of one batch.

        Parameters
        ----------
        student_logits : floating tensor [B, C]; with value "sequence_entropy", [B, T, C]
            No ``detach()`` needed.
        ids : list of str, bytes or int, or integer array [B]
            The ids of these samples, as ``key`` gives them; ``batch["__key__"]`` after torch's own collate function.
        teacher_logits, targets : optional
            For values that use them; others ignore them.

        Raises
        ------
        ValueError, TypeError
            As `slots_of` and `KnowledgeValueTracker.update` do. Nothing is recorded then.
        """
        slots = self.slots_of(ids)
        refuse_output(student_logits, "student_logits")
        rows = checked_length(student_logits, "student_logits")
        if len(slots) != rows:
            raise ValueError(f"student_logits has {rows} rows for {len(slots)} ids")
        self._run.record(student_logits, indices=slots, teacher_logits=teacher_logits, targets=targets)
        if self.stage:
            self._drawn = self._drawn.during(self.epoch)
            self._drawn.note(self.passes(slots))

    def end_epoch(self) -> CondensedSet | None:
        """End the epoch: condense if the schedule says a stage ends, and move on to the next.

        Under a process group every rank must call it. Recordings are summed over the ranks, and each gets the same
        set.

        Returns
        -------
        CondensedSet or None
            In terms of slots: ``kept`` and ``dropped`` are recorded ones. None if no stage is due.

        Raises
        ------
        RuntimeError
            If a stage is due and nothing was ever recorded; or if ranks disagree in their settings.
            Nothing is changed then, nor by an interrupt.

        Warns
        -----
        UserWarning
            Each once: if nothing was recorded in an epoch; if more than half the ids share a slot; if ids were recorded
            more than 2.5 times on average for each pass over the data set (at the end of the first epoch, and over
            all ranks at that of the first stage), as ids that begin anew in every shard are, or more than 1.5 times
            where two workers began with the same sample; if a stage ends after several passes in which nearly no id
            came twice; and if dropped samples are still recorded, two epochs in a row.
        """
        return end_together(self._run)[0]  # type: ignore[no-any-return]

    def _tell(self, epoch: int, decision: Decision | None) -> dict[str, str]:
        """What the end of an epoch warns of."""
        self._drawn = self._drawn.during(epoch)
        told = {"unfiltered": self._drawn.why_unfiltered(1 - self.share)}
        if not self.stage and (epoch == 1 or decision is not None):
            count = to_numpy(self.tracker.count) if decision is None else decision.count
            told["repeated"] = why_repeated(count, self.slots, epoch, self.passes_begun, shared=self.shared)
        if decision is not None:
            before = self.history.num_samples if self.stage else 0
            told["never again"] = why_never_again(
                decision.count, self.slots, before, epoch, self.passes_begun
            )
        return {kind: text for kind, text in told.items() if text}

    def is_kept(self, ids: Any) -> npt.NDArray[np.bool_]:
        """Which of these ids are kept: bool [B]. Raises as `slots_of` does."""
        return self.passes(self.slots_of(ids))

    @property
    def share(self) -> float:
        """Share of what was recorded up to the last stage that is still drawn: 1.0 before the first."""
        return float(self.history[-1]["kept"] / self.history.num_samples) if self.stage else 1.0

    # -- state -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """A copy of the recordings, the set in force and the epoch, as plain numbers and tensors.

        The place within the epoch is the reader's, and not included: save between epochs, or resume the reader, too.
        Under a process group every rank saves its own. ``torch.load(weights_only=True)`` reads it.
        """
        return self._run.state_dict()

    def gather_state_dict(self) -> list[dict[str, Any]]:
        """What `state_dict` returns on every rank, on each of them: see `Condensation.gather_state_dict`."""
        return self._run.gather_state_dict()

    def load_state_dict(self, state: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Resume from a saved state. Worker processes see its set, too.

        Parameters
        ----------
        state : mapping, or list of mappings
            What this rank saved; or, on any number of ranks, what all ranks of a run saved in one epoch, in
            any order. Rank 0 takes over the sum of what was recorded.

        Raises
        ------
        ValueError
            If it was saved with another table, seed, key, schedule, setting, rank or version, or is no
            stream's state; of a list, also if a rank is missing or there twice, or if they differ in the epoch
            or the set in force. Nothing is changed then.
        """
        self._run.load_state_dict(state)

    def __repr__(self) -> str:
        return (
            f"CondensedStream({type(self.dataset).__name__}, slots={self.slots}, share={self.share:.1%}, "
            f"epoch={self.epoch}, stage={self.stage}, next stage {self.schedule.next_stage(self.epoch)})"
        )


def _shared(shape: Any, dtype: torch.dtype) -> torch.Tensor:
    shared: torch.Tensor = torch.zeros(shape, dtype=dtype).share_memory_()  # type: ignore[no-untyped-call]
    return shared
