"""Online global recording: the mean value V of every sample so far, and its recording count F."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base.arrays import (
    Array,
    checked_int,
    detached,
    dtype_name,
    in_memory,
    is_real,
    outside_of_graphs,
)
from .base.cuda_streams import refuse_capture
from .logits import check_logits
from .recorded_values import RecordedValues
from .skipped import OnNonfinite
from .statistics import StatisticName
from .value_function import ValueFunction
from .values import Value, ValueName, entropy, host_entropy
from .waiting import may_wait

__all__ = ["KnowledgeValueTracker"]


class KnowledgeValueTracker(RecordedValues):
    """Records each sample's value as the student trains (OGVE, part a): no extra forward pass, 12 bytes a sample.

    Parameters
    ----------
    num_samples : int, at least 1
        N. Samples are known by their index, 0 .. N-1.
    value : str or callable
        ``"entropy"`` (the paper's), ``"cross_entropy"``, ``"kd_divergence"``, ``"margin"``, ``"reducible_loss"``, or
        ``"sequence_entropy"`` for language models, which takes logits [B, T, C] and their labels as ``targets`` [B,
        T]. Or ``f(student_logits, *, teacher_logits, targets) -> [B]``, which gets by keyword only what is passed to
        `update`. If it has a parameter named ``indices``, it also gets the batch's indices: int64 [B], of the logits'
        kind and on their device; without padding in host memory, with -1 for padding on a device. See
        `kcd_core.values`.
    statistic : {"mean", "stage_mean", "last", "variance"}
        How V summarises a sample's values: the mean of all of them (the paper's); the mean of those since the last
        stage ended, or of those in the last epoch in which it was recorded; or their population variance, which is 0
        for a single value. A sample that was not recorded in the last stage, or epoch, keeps its value.
    device : torch device or str, optional
        Where V and F live. None keeps them in NumPy arrays, which also take tensors in host memory;
        recording CUDA logits needs a CUDA device here, so that no step waits for the GPU.
    on_nonfinite : {"skip", "raise"}
        What to do with a value that is not finite, or larger than 2**20 in magnitude (2**10 with statistic
        "variance"): do not record it (it is counted in `skipped`, with one warning), or raise ValueError. On a
        device, where checking would stall the step, both happen when `value`, `count` or `sums` is read, and at each
        `report`, as in a run's ``end_epoch``.
    first : int, at least 0
        For the tracker of a slice, the index in the data set of its sample 0. It is only added to the indices that a
        value function gets.

    Raises
    ------
    ValueError
        If ``num_samples`` < 1, or ``value``, ``statistic`` or ``on_nonfinite`` is not one of those named.
    TypeError
        If ``num_samples`` is not an integer.

    Notes
    -----
    The 12 bytes are those of V and F at rest. A run takes more: 16 bytes a sample with a set in force, and 32 while a
    stage ends without mixing, or while a state is saved or loaded, since the state exists beside the run
    (``benchmarks/memory.py``).

    The variance takes 8 more bytes a sample. Each of the two means of a window takes 12 more, and another 24 while a
    window ends. With "last", the ranks of a process group meet at the end of every epoch.

    V is kept as an int64 sum of ``round(value * 2**40)``. Once a sample's values would add up to more than 2**22, which
    no entropy reaches, further ones are counted in `skipped` instead of recorded. For the variance, the same holds for
    their squares; it is right to 2**-40 times the values' size. With ``device``, the values that wait for one sample are
    refused together if they would carry its sum beyond 1.5 * 2**22.

    The values of up to 32 steps wait and are added together; any read adds them first. If adding fails or is
    interrupted, they keep waiting. For the entropy, small logits wait as a copy, since reducing them together is
    cheaper: fewer than 2**13 numbers a step in host memory, fewer than 2**17 with ``device``. This takes at most 16 MB in
    float32, and 13 MB more while they are reduced; twice that in float64. Larger logits do not wait. See
    `kcd_core.values` for what is made of them.

    Several threads may record, read, and save or load a state. A value function that is the user's own may run
    in several of them at once.

    In a function that ``torch.compile`` compiles, recording is left out of the graph and runs as it is.

    On CUDA a step makes no synchronisation and no copy to the host. It may be recorded on any stream, but not
    while a graph is being captured: its replays would record nothing.

    Examples
    --------
    >>> import numpy as np
    >>> tracker = KnowledgeValueTracker(4)
    >>> tracker.update([2, 0], np.array([[0.0, 0.0], [50.0, -60.0]]))
    2
    >>> tracker.value.round(4), tracker.count
    (array([0.    ,    nan, 0.6931,    nan]), array([1, 0, 1, 0], dtype=int32))
    """

    def __init__(
        self,
        num_samples: int,
        *,
        value: ValueName | Value = "entropy",
        statistic: StatisticName = "mean",
        device: Any = None,
        on_nonfinite: OnNonfinite = "skip",
        first: int = 0,
    ) -> None:
        function = ValueFunction(value, checked_int(first, "first", 0))
        super().__init__(num_samples, function, statistic, on_nonfinite)
        self.to(device)

    # -- recording ---------------------------------------------------------------------------------

    @outside_of_graphs
    def update(
        self, indices: Any, student_logits: Any, *, teacher_logits: Any = None, targets: Any = None
    ) -> int:
        """Record the values of one batch, computed from the student's logits.

        Parameters
        ----------
        indices : integer array [B]
            A sample may occur more than once; each counts. -1 is padding: its row is not recorded.
        student_logits : floating array [B, C], C >= 2; with value "sequence_entropy", [B, T, C]
            float16 and bfloat16 (AMP) are reduced in float32. Needs no ``detach()``.
        teacher_logits : floating array [B, C], optional
        targets : integer array [B], optional; with value "sequence_entropy", [B, T]
            For values that use them.

        Returns
        -------
        int
            How many rows were samples and not padding; indices on a device are not checked for padding.

        Raises
        ------
        ValueError
            If shapes disagree, the value function does not return ``[B]`` (of any kind of array), or, in
            host memory with ``on_nonfinite="raise"``, a value is not finite. Nothing of the batch is recorded.
        TypeError
            If indices are not integers, logits not floating-point, or values not real numbers; if one of them
            is sparse, or a wrapper of other tensors (a DTensor); or if the logits or indices are on a device
            and this tracker is in host memory.
        IndexError
            If an index lies outside ``0 .. N-1``, and is not -1. An index on a device is masked and counted instead,
            and reported when the values are read.

        Warns
        -----
        UserWarning
            If the first batch holds probabilities, where the value is one of `kcd_core.values`; on a device,
            at the next `report`.
        """
        logits = check_logits(student_logits, "student_logits", sequences=self.value_function.of_sequences)
        indices, *rows = self.recordings.samples(indices, logits, teacher_logits, targets)
        if self.value_function.takes_indices:
            indices = self.recordings.sums.place_indices(indices)
        values = self._values(indices, *rows)
        if self.skips.looks:
            self.skips.look(detached(rows[0]))
        return self._append(indices, values)

    def _values(self, indices: Array, logits: Array, teacher_logits: Any, targets: Any) -> Array:
        """Values [B], or logits [B, C] to be reduced later, that nobody else holds."""
        device = self.device
        if device is not None:
            refuse_capture(device)
        if self.function is entropy:
            if may_wait(logits, device) and not (device is None and self.skips.raises):
                return self.recordings.placed_copy(logits)
            return self.recordings.sums.place(host_entropy(detached(logits)))
        return self.recordings.sums.place(self.value_function(indices, logits, teacher_logits, targets))

    @outside_of_graphs
    def record(self, indices: Any, values: Any) -> int:
        """Record values computed elsewhere.

        Parameters
        ----------
        indices : integer array [B]
            -1 is padding.
        values : real array [B]

        Returns
        -------
        int
            As `update` does.

        Raises
        ------
        ValueError, TypeError, IndexError
            As `update` does.
        """
        values = in_memory(values, "values")
        if values.ndim != 1:
            raise ValueError(f"values must be [B], one per index, got shape {tuple(values.shape)}")
        if not is_real(values):
            raise TypeError(f"values must be real numbers, got dtype {dtype_name(values)}")
        refuse_capture(self.device)
        indices, values = self.recordings.samples(indices, values)
        return self._append(indices, self.recordings.placed_copy(values))

    def _append(self, indices: Array, values: Array) -> int:
        """Let checked indices wait with ``values`` [B], or logits [B, C], where they are to be added."""
        if self.skips.raises and self.device is None:
            self.skips.refuse(self.recordings.sums.powers(values.astype(np.float64, copy=False))[-1])
        self.recordings.append(indices, values)
        return len(indices)
