"""Of which samples the teacher is asked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .base.arguments import check_kind
from .base.arrays import as_indices, checked_int, checked_range, dtype_name, state_array, to_numpy
from .base.padding import PADDING
from .base.states import check_same, state_int
from .condense import CondensedSet
from .sample_weights import refuse_weights

__all__ = ["GateInForce", "TeacherGate"]

STATE_VERSION = 1
Mask = npt.NDArray[np.bool_]


class GateInForce(NamedTuple):
    """All of a `TeacherGate` that changes in the course of a run. Immutable.

    Attributes
    ----------
    stage : int
        How many sets were installed.
    chosen : bool array [N] or None
        Of which samples the teacher is asked; None is all.
    """

    stage: int = 0
    chosen: Mask | None = None


class TeacherGate:
    """Says for which samples of a batch the teacher is asked: those of the set in force, or all before the first
    stage.

    A set is installed in a gate as in a sampler: after `condense_step(tracker, gate, schedule)` the teacher is asked
    for the samples of highest value, and ``Condensation(gate, schedule=..., tracker=...)`` also saves the run. With
    ``CondensationSchedule(ratio, stages=1, period=1)`` the teacher is asked for all samples in the first epoch, and
    then for that share of all samples. They are ranked again at the end of each epoch, so a sample that was left out
    returns if it ranks high enough.

    Every sample is still drawn, learns from its label, and is recorded. `wrap_loader` with ``ask=`` makes a gate and
    does all of this; `gated_loss` is a loss for both kinds of rows.

    Parameters
    ----------
    num_samples : int, at least 1
        N, all samples of the data set.

    Attributes
    ----------
    in_force : GateInForce
        Stage and set. Putting an earlier one back undoes whatever was installed since.

    Raises
    ------
    ValueError
        If ``num_samples`` < 1.
    TypeError
        If ``num_samples`` is not an integer.

    Notes
    -----
    A gate takes one byte a sample. The teacher's cost falls to the share asked only if it is called on those rows
    alone.

    Examples
    --------
    >>> import numpy as np
    >>> from kcd_core import CondensationSchedule, KnowledgeValueTracker, condense_step
    >>> gate, tracker = TeacherGate(4), KnowledgeValueTracker(4)
    >>> tracker.record([0, 1, 2, 3], np.array([0.1, 0.9, 0.2, 0.8]))
    4
    >>> chosen = condense_step(tracker, gate, CondensationSchedule(ratio=0.5, stages=1, period=1))
    >>> gate.asked([3, 2, 1, -1])
    array([ True, False,  True, False])
    """

    in_force: GateInForce
    why_unweighable = "a gate says of which samples to ask, and weighs no loss"

    def __init__(self, num_samples: int) -> None:
        self._num_samples = checked_int(num_samples, "num_samples", 1)
        self.in_force = GateInForce()

    @property
    def num_samples(self) -> int:
        """N, all samples."""
        return self._num_samples

    @property
    def kept(self) -> npt.NDArray[np.int64]:
        """The samples that the teacher is asked for: int64, ascending. All before the first stage."""
        chosen = self.in_force.chosen
        return np.arange(self._num_samples) if chosen is None else np.flatnonzero(chosen)

    @property
    def num_kept(self) -> int:
        """How many samples the teacher is asked for."""
        chosen = self.in_force.chosen
        return self._num_samples if chosen is None else int(np.count_nonzero(chosen))

    @property
    def stage(self) -> int:
        """Number of sets installed."""
        return self.in_force.stage

    def install(self, condensed_set: CondensedSet) -> None:
        """Ask for the samples of ``condensed_set`` from now on. Its mixtures are ignored.

        Raises
        ------
        ValueError
            If it was made for another number of samples, or has weights. Nothing is changed then.
        TypeError
            If it is no `CondensedSet`.
        """
        check_kind(condensed_set, "condensed_set", CondensedSet)
        if condensed_set.num_samples != self._num_samples:
            raise ValueError(
                f"the set is of {condensed_set.num_samples} samples, this gate of {self._num_samples}"
            )
        refuse_weights(condensed_set.sample_weights, self.why_unweighable)
        self.in_force = GateInForce(self.stage + 1, self._mask(condensed_set.kept))

    def _mask(self, kept: npt.NDArray[Any]) -> Mask:
        chosen = np.zeros(self._num_samples, bool)
        chosen[kept] = True
        return chosen

    def asked(self, indices: Any, *, mixed: Any = None, multiple: int = 1) -> Mask:
        """For which rows of a batch the teacher is asked; ``numpy.flatnonzero`` of it gives the rows' numbers.

        Parameters
        ----------
        indices : integer array [B]
            In host memory. -1 is padding, for which the teacher is never asked.
        mixed : bool array [B], optional
            Rows that are mixed. The teacher is always asked for them, since their label is that of only one of the
            images in them: ``sampler.recipes.contains(indices)``.
        multiple : int, at least 1
            The number of rows asked is rounded up to a multiple of this, so that code that is compiled or tuned by
            shape meets few shapes. The first rows that were not asked fill it up. If a batch has too few of them, the
            teacher is asked for the whole batch without padding.

        Returns
        -------
        bool array [B]

        Raises
        ------
        TypeError
            If the indices are not integers, or on a device, ``mixed`` is not of booleans, or ``multiple`` is not an
            integer.
        ValueError
            If ``multiple`` < 1, or ``mixed`` is not ``[B]``.
        IndexError
            If an index lies outside ``0 .. N-1``, and is not -1.
        """
        multiple = checked_int(multiple, "multiple", 1)
        given = as_indices(indices, "indices")
        if not isinstance(given, np.ndarray):
            raise TypeError(
                f"indices must be in host memory, got a tensor on {given.device}: a gate that waited for a device would "
                "stall every step. loader.indices are in host memory"
            )
        places = checked_range(given, "indices", self._num_samples, lower=PADDING)
        chosen, sample = self.in_force.chosen, places != PADDING
        asked: Mask = sample.copy() if chosen is None else chosen[places] & sample
        if mixed is not None:
            asked |= self._checked_mixed(mixed, len(places)) & sample
        if lacking := -np.count_nonzero(asked) % multiple:
            asked[np.flatnonzero(sample & ~asked)[:lacking]] = True
        return asked

    @staticmethod
    def _checked_mixed(mixed: Any, length: int) -> Mask:
        mask = to_numpy(mixed)
        if mask.dtype != bool:
            raise TypeError(f"mixed must be booleans, got dtype {dtype_name(mask)}")
        if mask.shape != (length,):
            raise ValueError(f"mixed must be [{length}], one for each index, got shape {tuple(mask.shape)}")
        return mask

    def __repr__(self) -> str:
        return f"TeacherGate(asks for {self.num_kept} of {self._num_samples}, stage={self.stage})"

    # -- state -------------------------------------------------------------------------------------

    def fingerprint(self, in_force: GateInForce | None = None) -> str:
        """A short name of a set, by default the one in force. Two ranks have the same name if their sets are
        equal."""
        stage, chosen = in_force or self.in_force
        digest = hashlib.sha256(str(stage).encode())
        if chosen is not None:
            digest.update(np.packbits(chosen).data)
        return digest.hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """A copy of the set in force, as plain numbers and a tensor of bits."""
        stage, chosen = self.in_force
        bits = np.empty(0, np.uint8) if chosen is None else np.packbits(chosen)
        return {**self._identity(), "stage": stage, "asked": state_array(bits)}  # empty: all

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state.

        Raises
        ------
        ValueError
            If it is of another version or N, or not a gate's state. Nothing is changed then.
        """
        self.in_force = self.check_state(state)

    def check_state(self, state: Mapping[str, Any]) -> GateInForce:
        """What `load_state_dict` would put in force. Changes nothing, and raises as it does."""
        check_same(state, self._identity(), "gate", needs=("stage", "asked"))
        bits = to_numpy(state["asked"])
        if bits.dtype != np.uint8 or bits.ndim != 1 or len(bits) not in (0, -(-self._num_samples // 8)):
            raise ValueError(
                f"the gate state is damaged: asked must be bits of {self._num_samples} samples in uint8, got "
                f"{bits.dtype} {bits.shape}"
            )
        stage = state_int(state, "stage", 0, "gate")
        if not len(bits):
            return GateInForce(stage)
        chosen = np.unpackbits(bits, count=self._num_samples).astype(bool)
        if not chosen.any():
            raise ValueError("the gate state is damaged: its set is empty")
        return GateInForce(stage, chosen)

    def _identity(self) -> dict[str, Any]:
        return {"version": STATE_VERSION, "num_samples": self._num_samples}
