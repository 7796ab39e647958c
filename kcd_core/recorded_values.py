"""What a tracker has recorded, however it came in: read, divided into windows, and saved."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from .base import distributed
from .base.arguments import checked_choice
from .base.arrays import Array, checked_int, to_numpy
from .base.states import check_same
from .recordings import Recordings
from .skipped import OnNonfinite, SkipReport
from .statistics import KINDS, WINDOWS, Settled, StatisticName, WindowSums, settled
from .sums import CheckedState, Sums, mean
from .value_function import ValueFunction
from .values import Value

__all__ = ["RecordedValues"]

STATE_VERSION = 1
Tracker = TypeVar("Tracker", bound="RecordedValues")


class RecordedValues:
    """V and F of N samples, for a `KnowledgeValueTracker` to add to.

    Parameters
    ----------
    num_samples, statistic, on_nonfinite
        See `KnowledgeValueTracker`.
    function : ValueFunction
    """

    def __init__(
        self, num_samples: int, function: ValueFunction, statistic: StatisticName, on_nonfinite: OnNonfinite
    ) -> None:
        self._num_samples, self.value_function = checked_int(num_samples, "num_samples", 1), function
        self._statistic: StatisticName = checked_choice(statistic, "statistic", tuple(KINDS))
        kind = KINDS[self._statistic]
        self.skips = SkipReport(on_nonfinite, function.built_in, kind.largest)
        self.recordings = Recordings(self._num_samples, kind, self.skips)

    # -- reading -----------------------------------------------------------------------------------

    @property
    def num_samples(self) -> int:
        """N."""
        return self._num_samples

    @property
    def device(self) -> Any:
        """The torch device of V and F, or None for NumPy."""
        return self.recordings.device

    @property
    def batches(self) -> int:
        """How many batches this object has recorded so far."""
        return self.recordings.steps

    @property
    def function(self) -> Value:
        """The value function: ``f(student_logits, *, teacher_logits, targets) -> [B]``."""
        return self.value_function.function

    @property
    def value_name(self) -> str:
        """The name of the value function in a state, and in comparisons between ranks."""
        return self.value_function.name

    @property
    def statistic(self) -> StatisticName:
        """How V summarises a sample's recordings."""
        return self._statistic

    @property
    def alike(self) -> dict[str, Any]:
        """What must be the same for the trackers of all ranks."""
        mine: dict[str, Any] = {"value": self.value_name, "statistic": self._statistic}
        sums = self.recordings.sums
        return {**mine, "held values": sums.digest()} if isinstance(sums, WindowSums) else mine

    @property
    def value(self) -> Array:
        """V, by default the mean recorded value: float64 [N], NaN where never recorded. A new array each time."""
        with self.recordings.read() as sums:
            return sums.value()

    @property
    def count(self) -> Array:
        """F, how many times each sample was recorded: int32 [N]. A new array each time.

        With a statistic of windows, it includes what all ranks recorded in the windows that have ended.
        """
        with self.recordings.read() as sums:
            return sums.recorded()

    @property
    def skipped(self) -> dict[str, int]:
        """How many recordings were left out: ``{"nonfinite": ..., "out_of_range": ...}``.

        ``nonfinite`` includes values that are too large (see ``on_nonfinite``), and those of a sample whose sum is full
        (its values add up to more than 2**22).
        """
        with self.recordings.added() as sums:
            nonfinite, out_of_range = to_numpy(sums.skipped).tolist()
        return {"nonfinite": nonfinite, "out_of_range": out_of_range}

    def sums(self, part: slice = slice(None)) -> Sums:
        """What is stored, copied to host memory: int64 sums of ``round(value * 2**40)``, int32 counts.

        ``part`` selects samples; all by default.

        The sums of several trackers add up to those of one tracker that recorded everything. With statistic
        "variance", the third item is the sums of squares. With a statistic of windows, sums and counts are those of
        the window that has not ended.
        """
        with self.recordings.read() as sums:
            return sums.part(part)

    def of_sums(self, sums: Sums, part: slice = slice(None)) -> tuple[Any, Any]:
        """V and F of some samples, as NumPy arrays, from the result of `sums` for them, or its sum over several
        trackers."""
        return self.recordings.sums.of_sums(sums, part)

    mean = staticmethod(mean)

    # -- windows -----------------------------------------------------------------------------------

    @property
    def window(self) -> str | None:
        """What ends a window of recordings: "stage" or "epoch"; None if V is of all recordings."""
        return WINDOWS.get(self._statistic)

    def window_ends(self, stage: bool) -> bool:
        """Whether a window ends with an epoch, which ends a ``stage`` or not."""
        return self.window == "epoch" or (stage and self.window == "stage")

    def settled(self, group: Any = None) -> Settled:
        """What the end of a window will change, for `settle`. Changes nothing; all ranks of the group meet in it."""

        def copied() -> WindowSums:
            with self.recordings.read() as sums:
                return sums.to(sums.device)  # type: ignore[return-value]

        return settled(copied, group)

    def settle(self, ended: Settled) -> None:
        """End a window: from now on its means are held, and a new one begins."""
        self.recordings.change(ended.apply)

    def snapshot(self) -> Callable[[], None]:
        """What undoes `settle`."""
        recordings, sums = self.recordings, self.recordings.sums

        def undo() -> None:
            recordings.sums = sums

        return undo

    @property
    def open(self) -> bool:
        """Whether something was recorded in the window that has not ended."""
        with self.recordings.added() as sums:
            return bool(sums.count.any())

    def end_epoch(self, group: Any = None) -> None:
        """Say that an epoch has ended, in a loop without a run. With statistic "last", V is that of the epoch that
        ends now.

        With another statistic this does nothing, so a loop may always call it. With a run, a loader or a stream, call
        its ``end_epoch`` instead, which includes this.

        Parameters
        ----------
        group : torch.distributed.ProcessGroup, optional
            The ranks whose recordings are summed. Default: all. Every rank must call this.

        Raises
        ------
        RuntimeError
            If ranks hold different values, because they resumed from different states.
        """
        distributed.check_group(group)
        if self.window == "epoch":
            distributed.check_agreement(self.alike, shard=0, shards=1, group=group)
            self.settle(self.settled(group))

    def report(self) -> None:
        """Warn of what was skipped since the last report, as reading does. Two numbers are copied from a device.

        Warns
        -----
        RuntimeWarning
            Once, if values were not finite; and once, if indices on a device were out of range.

        Raises
        ------
        ValueError, IndexError
            With ``on_nonfinite="raise"``, in place of the warnings, and not only once.
        """
        with self.recordings.read():
            pass

    def to(self: Tracker, device: Any) -> Tracker:
        """Move V and F to a torch device, or to NumPy with None. Returns self."""
        if device is None and self.device is None:
            return self
        self.recordings.move(device)
        return self

    def __repr__(self) -> str:
        where = "numpy" if self.device is None else str(self.device)
        also = "" if self._statistic == "mean" else f"statistic={self._statistic!r}, "
        return (
            f"KnowledgeValueTracker({self._num_samples}, value={self.value_name!r}, {also}device={where!r})"
        )

    def __copy__(self: Tracker) -> Tracker:
        """One that records by itself from now on: the sums are copied, too."""
        made = object.__new__(type(self))
        made.__dict__.update(
            self.__dict__, recordings=copy.copy(self.recordings), skips=copy.copy(self.skips)
        )
        made.recordings.skips = made.skips
        return made

    # -- state -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """A copy, as plain numbers and tensors (NumPy arrays if torch is not installed)."""
        with self.recordings.added() as sums:
            return {**self._settings(), **sums.state()}

    def load_state_dict(self, state: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Load a state, or the sum of a list of states. The device stays as it is.

        Raises
        ------
        ValueError
            If one is of another version, N, statistic or value function, or not a tracker's state, or if a sample's
            values are too large to be summed. Nothing is changed then.
        """
        states = state if isinstance(state, (list, tuple)) else [state]
        self.apply_state(self.joined([self.check_state(s) for s in states]))

    def check_state(self, state: Any) -> CheckedState:
        """What a state of this tracker holds, for `apply_state`. Changes nothing.

        Raises
        ------
        ValueError
            If it is of another version, N, statistic or value function, or not a tracker's state.
        """
        if isinstance(state, Mapping):
            state = {
                "statistic": "mean",
                **state,
            }  # which those have that were saved before there were others
        kind = KINDS[self._statistic]
        check_same(state, self._settings(), "tracker")
        check_same(state, {}, "tracker", needs=kind.keys)
        return kind.checked(state, self._num_samples)

    def joined(self, recorded: Sequence[CheckedState], rank: int = 0) -> CheckedState:
        """This rank's part of what all ranks recorded: on the first rank the sum, on the others only what all ranks
        share.

        Raises
        ------
        ValueError
            If a sample's values are too large to be summed, or the ranks do not hold the same.
        """
        return KINDS[self._statistic].joined(recorded, rank)

    def apply_state(self, checked: CheckedState) -> None:
        """Load what `check_state` or `joined` gave. Recordings that are still waiting are discarded."""
        self.recordings.replace(checked)

    def _settings(self) -> dict[str, Any]:
        return {
            "version": STATE_VERSION,
            "num_samples": self._num_samples,
            "value": self.value_name,
            "statistic": self._statistic,
        }
