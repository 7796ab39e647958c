"""Online global recording: the mean value V of every sample so far, and its recording count F."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from .base.arrays import (
    Array,
    as_array,
    checked_int,
    dtype_name,
    is_floating,
    is_integer,
    is_tensor,
    state_array,
    to_numpy,
)
from .base.rows import nan_unless_finite
from .base.states import check_same, value_name
from .values import Value, check_logits, entropy, host_entropy, is_built_in, resolve

__all__ = ["KnowledgeValueTracker"]

STATE_VERSION = 1
# Sums are integers, so that adding is associative: the set then depends on what was recorded, not on
# the order of batches, the number of ranks, or CUDA's atomics. 2**-40 is finer than float32 values.
SCALE = 2.0**40
MAX_VALUE = 2.0**20  # a larger value is not recorded
MAX_TOTAL = 2**62  # nor is anything for a sample whose sum is beyond this: int64 would wrap
MAX_REACH = MAX_TOTAL + MAX_TOTAL // 2  # what is added to a sum within MAX_TOTAL carries it no further
MAX_PENDING = 32  # steps whose values wait to be added together
# A step's logits of fewer numbers wait, too, as a copy. In host memory a copy of more takes longer than is saved
# by reducing them together; on a device, where a step is bound by launches, it bounds what waits to 16 MB in float32.
SMALL = 2**13
SMALL_ON_DEVICE = 2**17

Sums = tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]
CheckedState = tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.int64]]


class KnowledgeValueTracker:
    """Records values as the student trains (OGVE, part a): no extra forward pass, 12 bytes a sample.

    Parameters
    ----------
    num_samples : int, at least 1
        N. Samples are known by their index, 0 .. N-1.
    value : str or callable
        ``"entropy"`` (the paper's), ``"cross_entropy"``, ``"kd_divergence"``, ``"margin"``, or
        ``f(student_logits, *, teacher_logits, targets) -> [B]``, which is given by keyword what is
        passed to `update`, and nothing else. See `kcd_core.values`.
    device : torch device or str, optional
        Where V and F live. None keeps them in NumPy arrays, which also take tensors in host memory;
        recording CUDA logits needs a CUDA device here, so that no step waits for the GPU.
    on_nonfinite : {"skip", "raise"}
        What to do with a value that is not finite, or larger than 2**20 in size: do not record it
        (counted in `skipped`, warned of once), or raise ValueError. On a device, where looking would
        stall the step, both come when `value`, `count` or `sums` is read.

    Raises
    ------
    ValueError
        If ``num_samples`` < 1, or ``value`` or ``on_nonfinite`` is not one of those named.
    TypeError
        If ``num_samples`` is not an integer.

    Notes
    -----
    V is kept as an int64 sum of ``round(value * 2**40)``: a sample whose values add up to more than 2**22
    is not recorded any further (counted in `skipped`), which no entropy reaches. Values of up to 32 steps
    wait before they are added; of an entropy, a copy of the logits waits instead where it is small, since
    reducing them together is cheaper: fewer than 2**13 numbers a step in host memory, fewer than 2**17 with
    ``device`` (at most 16 MB in float32, and as much again while they are reduced). Everything that reads adds them first. With ``device``, where all of
    them are added at once, those waiting for one sample are refused together if they would carry its sum
    beyond 1.5 * 2**22. On CUDA a step makes no synchronisation and no copy to the host, and may be recorded on
    any stream, but not inside a graph that is being captured: its replays would record nothing.

    Examples
    --------
    >>> import numpy as np
    >>> tracker = KnowledgeValueTracker(4)
    >>> tracker.update([2, 0], np.array([[0.0, 0.0], [50.0, -60.0]]))
    >>> tracker.value.round(4), tracker.count
    (array([0.    ,    nan, 0.6931,    nan]), array([1, 0, 1, 0], dtype=int32))
    """

    def __init__(
        self,
        num_samples: int,
        *,
        value: str | Value = "entropy",
        device: Any = None,
        on_nonfinite: str = "skip",
    ) -> None:
        self._num_samples = checked_int(num_samples, "num_samples", 1)
        self._function = resolve(value)
        self._trusted = is_built_in(self._function)
        if on_nonfinite not in ("skip", "raise"):
            raise ValueError(f"on_nonfinite must be 'skip' or 'raise', got {on_nonfinite!r}")
        self._on_nonfinite = on_nonfinite
        self._pending: list[tuple[Array, Array]] = []
        self._reported = np.zeros(2, np.int64)
        self._device: Any = None
        self._stream: Any = None  # the CUDA stream of what was recorded last
        self._total: Array = np.zeros(self._num_samples, np.int64)
        self._count: Array = np.zeros(self._num_samples, np.int32)
        self._skipped: Array = np.zeros(2, np.int64)  # values not recordable, indices out of range
        self.to(device)

    # -- recording ---------------------------------------------------------------------------------

    def update(
        self, indices: Any, student_logits: Any, *, teacher_logits: Any = None, targets: Any = None
    ) -> None:
        """Record the values of one batch, computed from the student's logits.

        Parameters
        ----------
        indices : integer array [B]
            A sample may occur more than once; each counts.
        student_logits : floating array [B, C], C >= 2
            float16 and bfloat16 (AMP) are reduced in float32. Needs no ``detach()``.
        teacher_logits : floating array [B, C], optional
        targets : integer array [B], optional
            For values that use them.

        Raises
        ------
        ValueError
            If shapes disagree, the value function does not return ``[B]`` (of any kind of array), or (in host memory, with
            ``on_nonfinite="raise"``) a value is not finite. Nothing of the batch is recorded then.
        TypeError
            If indices are not integers, logits not floating-point, values not real numbers, or the logits
            are on a device and this tracker is in host memory.
        IndexError
            If an index lies outside ``0 .. N-1``. An index on a device is masked and counted instead,
            and reported when the values are read.
        """
        self._append(self._checked_indices(indices), self._values(student_logits, teacher_logits, targets))

    def update_drawn(
        self,
        indices: npt.NDArray[np.int64],
        student_logits: Any,
        *,
        teacher_logits: Any = None,
        targets: Any = None,
    ) -> None:
        """`update` for indices that a sampler of this package drew, and nobody will write to.

        They are neither checked nor copied.

        Parameters
        ----------
        indices : int64 array [B] in host memory, in 0 .. N-1
        student_logits, teacher_logits, targets
            As in `update`.
        """
        self._append(indices, self._values(student_logits, teacher_logits, targets))

    _update_drawn = update_drawn

    def _values(self, student_logits: Any, teacher_logits: Any, targets: Any) -> Array:
        """Values [B], or logits [B, C] to be reduced later, that no one else holds."""
        self._join_stream()
        logits = _detached(student_logits)
        given: dict[str, Any] = {}
        if teacher_logits is not None:
            given["teacher_logits"] = _detached(teacher_logits)
        if targets is not None:
            given["targets"] = targets
        if self._function is entropy:
            logits = check_logits(logits, "student_logits")
            on_host = self._device is None
            small = 0 < logits.shape[0] * logits.shape[1] < (SMALL if on_host else SMALL_ON_DEVICE)
            if small and not (on_host and self._on_nonfinite == "raise"):
                return _copied(logits)
            return host_entropy(logits)
        if self._trusted:
            return self._function(logits, **given)
        logits = check_logits(logits, "student_logits")
        with sys.modules["torch"].no_grad() if is_tensor(logits) else nullcontext():
            values = as_array(self._function(logits, **given))
            if values.shape != logits.shape[:1]:
                raise ValueError(
                    f"the value function must return one value per sample, shape {tuple(logits.shape[:1])}, "
                    f"got {tuple(values.shape)}"
                )
            values = _as_values(values, logits)
            return values + nan_unless_finite(logits)  # a new array: the function may have returned a view

    def record(self, indices: Any, values: Any) -> None:
        """Record values computed elsewhere.

        Parameters
        ----------
        indices : integer array [B]
        values : real array [B]

        Raises
        ------
        ValueError, TypeError, IndexError
            As `update` does.
        """
        values = as_array(values)
        if values.ndim != 1:
            raise ValueError(f"values must be [B], one per index, got shape {tuple(values.shape)}")
        if not is_floating(values) and not is_integer(values):
            raise TypeError(f"values must be real numbers, got dtype {dtype_name(values)}")
        self._join_stream()
        # A copy: the caller may reuse the buffer.
        values = values.detach().clone() if is_tensor(values) else np.array(values, np.float64)
        self._append(self._checked_indices(indices), values)

    def _append(self, indices: Array, values: Array) -> None:
        """Keep checked indices and ``values`` [B], or logits [B, C], which no one else holds, until they are added."""
        if len(indices) != len(values):
            raise ValueError(
                f"indices and the batch must have one length, got {len(indices)} indices for {len(values)} samples"
            )
        if self._device is None:
            if not isinstance(values, np.ndarray) and not values.is_cpu:
                kind = values.device.type
                raise TypeError(
                    f"the logits are on {values.device} but the tracker is in host memory, and copying them would "
                    f"stall every step: use KnowledgeValueTracker(..., device={kind!r}) or tracker.to({kind!r})"
                )
            if self._on_nonfinite == "raise":
                wrong = int((~(abs(values) <= MAX_VALUE)).sum())
                if wrong:
                    raise ValueError(_unrecordable(wrong))
        else:
            torch = sys.modules["torch"]
            if isinstance(values, np.ndarray):
                values = torch.from_numpy(values)
            values = values.to(self._device, non_blocking=True)
        pending = self._pending
        if pending and not (_alike(pending[0][0], indices) and _alike(pending[0][1], values)):
            self._flush()  # what waits together travels together
        self._pending.append((indices, values))
        if len(self._pending) >= MAX_PENDING:
            self._flush()

    def _checked_indices(self, indices: Any) -> Array:
        """A copy of ``indices``: int64 in host memory, or a tensor if it is on this tracker's device."""
        indices = as_array(indices)
        if not isinstance(indices, np.ndarray) and indices.is_cpu:
            indices = indices.numpy()
        if not is_integer(indices) and not (indices.ndim == 1 and len(indices) == 0):
            raise TypeError(f"indices must be integers, got dtype {dtype_name(indices)}")
        if indices.ndim != 1:
            raise ValueError(f"indices must be [B], got shape {tuple(indices.shape)}")
        if not isinstance(indices, np.ndarray):
            if self._device is None:
                raise TypeError(
                    f"indices are on {indices.device} but the tracker is in host memory: pass indices in host "
                    f"memory, or use tracker.to({indices.device.type!r})"
                )
            return indices.to(self._device, dtype=sys.modules["torch"].int64, copy=True)
        host = np.array(indices, np.int64)
        # Read as unsigned, a negative index is a huge one: one comparison finds both ends. (argmax takes
        # a third of the time of max on so few.)
        unsigned = host.view(np.uint64)
        if len(host) and unsigned.item(unsigned.argmax()) >= self._num_samples:
            wrong = host[(host < 0) | (host >= self._num_samples)]
            raise IndexError(
                f"indices must lie in 0 .. {self._num_samples - 1}, got {wrong[:5].tolist()}"
                f"{' and more' if len(wrong) > 5 else ''}; nothing of this batch was recorded"
            )
        return host

    # -- adding ------------------------------------------------------------------------------------

    def _join_stream(self) -> None:
        """Let the current CUDA stream wait for what was recorded on another one. The host waits for neither."""
        if self._device is None or self._device.type != "cuda":
            return
        cuda = sys.modules["torch"].cuda
        if not cuda.is_initialized():
            return
        if cuda.is_current_stream_capturing():
            raise RuntimeError(
                "a CUDA graph is being captured, and its replays would record nothing: capture the student alone, "
                "and record its output outside of the graph, after each replay"
            )
        stream = cuda.current_stream(self._device)
        if stream == self._stream:
            return
        if self._stream is not None:
            stream.wait_stream(self._stream)
            for x in (self._total, self._count, self._skipped, *(x for pair in self._pending for x in pair)):
                if is_tensor(x):
                    x.record_stream(stream)  # its memory is not given away before this stream has read it
        self._stream = stream

    def _flush(self) -> None:
        self._join_stream()
        if not self._pending:
            return
        # Each empties what waits when all that can fail is done: nothing is lost, nor added twice.
        indices, values = zip(*self._pending, strict=True)
        if self._device is None:
            joined = _joined(values)
            joined = to_numpy(host_entropy(joined) if joined.ndim == 2 else joined)
            host, joined = np.concatenate(indices), joined.astype(np.float64, copy=False)
            self._pending = []
            self._add_numpy(host, joined)
            self._report()
        else:
            self._add_torch(indices, values)

    def _add_numpy(self, indices: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> None:
        ok = np.abs(values) <= MAX_VALUE  # False for NaN
        ok &= np.abs(self._total[indices]) <= MAX_TOTAL
        if not ok.all():
            self._skipped[0] += len(ok) - np.count_nonzero(ok)
            indices, values = indices[ok], values[ok]
        if len(values) > 1 and np.abs(values).sum() > (MAX_REACH - MAX_TOTAL) / SCALE:
            # Recordings of one sample could wrap together: add less at a time.
            half = len(values) // 2
            self._add_numpy(indices[:half], values[:half])
            self._add_numpy(indices[half:], values[half:])
            return
        np.add.at(self._total, indices, np.rint(values * SCALE).astype(np.int64))
        np.add.at(self._count, indices, np.int32(1))

    def _add_torch(self, index_list: tuple[Array, ...], value_list: tuple[Array, ...]) -> None:
        torch = sys.modules["torch"]
        with torch.no_grad():
            if is_tensor(index_list[0]):
                indices = torch.cat(index_list)
                inside = (indices >= 0) & (indices < self._num_samples)
                indices = indices.where(inside, 0)
            else:  # checked when they came in
                indices = torch.from_numpy(np.concatenate(index_list))
                if self._device.type == "cuda" and torch.cuda.is_available():
                    indices = indices.pin_memory()  # only from pinned memory does a copy not wait
                indices = indices.to(self._device, non_blocking=True)
                inside = None
            values = _joined(value_list)
            values = (entropy(values) if values.ndim == 2 else values).double()
            ok = (values.abs() <= MAX_VALUE) & (self._total.index_select(0, indices).abs() <= MAX_TOTAL)
            recorded = ok if inside is None else ok & inside
            fixed = (values * SCALE).round().where(recorded, 0)
            # Where the sums would end, in float64, which does not wrap (and is far closer than the room
            # left above MAX_REACH). A sum that ends in range is right: int64 wraps back on the way.
            reach = self._total.index_select(0, indices).double() + _sums_by_index(indices, fixed)
            fits = reach.abs() <= MAX_REACH
            ok, recorded, fixed = ok & fits, (recorded & fits).int(), fixed.where(fits, 0).long()
            if inside is None:
                skipped = torch.stack([ok.logical_not().sum(), self._skipped.new_zeros(())])
            else:
                skipped = torch.stack([(inside > ok).sum(), inside.logical_not().sum()])
            self._pending = []
            self._total.index_add_(0, indices, fixed)
            self._count.index_add_(0, indices, recorded)
            self._skipped.add_(skipped)

    def _report(self) -> None:
        """Warn of (or raise for) what was skipped since the last report. Waits for a device."""
        skipped = to_numpy(self._skipped)
        if skipped.tolist() == self._reported.tolist():
            return
        new = skipped - self._reported
        first = self._reported == 0
        self._reported = skipped.copy()
        out_of_range = (
            f"{new[1]} recordings had an index outside 0 .. {self._num_samples - 1} and were not recorded"
        )
        if self._on_nonfinite == "raise":
            if new[1]:
                raise IndexError(out_of_range)
            raise ValueError(_unrecordable(int(new[0])))
        for number, is_first, text in zip(
            new, first, (_unrecordable(int(new[0])), out_of_range), strict=True
        ):
            if number and is_first:
                warnings.warn(
                    text + "; further ones are only counted (tracker.skipped)", RuntimeWarning, stacklevel=2
                )

    # -- reading -----------------------------------------------------------------------------------

    @property
    def num_samples(self) -> int:
        """N."""
        return self._num_samples

    @property
    def device(self) -> Any:
        """The torch device of V and F, or None for NumPy."""
        return self._device

    @property
    def function(self) -> Value:
        """The value function: ``f(student_logits, *, teacher_logits, targets) -> [B]``."""
        return self._function

    @property
    def value_name(self) -> str:
        """What the value function is called in a state, and where ranks compare their settings."""
        return value_name(self._function)

    @property
    def value(self) -> Array:
        """V, the mean recorded value: float64 [N], NaN where never recorded. A new array each time."""
        self._flush()
        self._report()
        if self._device is None:
            return self.mean(self._total, self._count)
        torch = sys.modules["torch"]
        mean = self._total.double() / SCALE / self._count
        return mean.where(self._count > 0, torch.nan)

    @property
    def count(self) -> Array:
        """F, how many times each sample was recorded: int32 [N]. A new array each time."""
        self._flush()
        self._report()
        return self._count.copy() if self._device is None else self._count.clone()

    @property
    def skipped(self) -> dict[str, int]:
        """How many recordings were not made: ``{"nonfinite": ..., "out_of_range": ...}``.

        ``nonfinite`` includes values larger than 2**20 in size, and those of a sample whose sum is full
        (its values add up to more than 2**22).
        """
        self._flush()
        nonfinite, out_of_range = to_numpy(self._skipped).tolist()
        return {"nonfinite": nonfinite, "out_of_range": out_of_range}

    def sums(self, part: slice = slice(None)) -> Sums:
        """What is stored, copied to host memory: int64 sums of ``round(value * 2**40)``, int32 counts.

        ``part``: of which samples, all by default.

        Sums of several trackers add up to that of one tracker that recorded everything.
        """
        self._flush()
        self._report()
        return to_numpy(self._total[part]).copy(), to_numpy(self._count[part]).copy()

    @staticmethod
    def mean(total: npt.NDArray[np.int64], count: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
        """V from `sums`: float64 [N], NaN where ``count`` is 0."""
        mean: npt.NDArray[np.float64] = total / SCALE
        np.divide(mean, count, out=mean, where=count > 0)
        mean[count == 0] = np.nan
        return mean

    def to(self, device: Any) -> KnowledgeValueTracker:
        """Move V and F to a torch device, or to NumPy with None. Returns self."""
        if device is None and self._device is None:
            return self
        self._flush()
        arrays = ("_total", "_count", "_skipped")
        if device is None:
            for name in arrays:
                setattr(self, name, to_numpy(getattr(self, name)).copy())
            self._device = self._stream = None
            return self
        import torch

        device = torch.device(device)
        with torch.inference_mode(False):  # else a tracker made in inference mode could not be added to
            for name in arrays:
                tensor = torch.as_tensor(getattr(self, name))
                # copy=True: a tensor over NumPy memory, or the same tensor, must not be shared
                setattr(self, name, tensor.to(device, copy=True))
        self._device, self._stream = device, None
        self._join_stream()
        return self

    def __repr__(self) -> str:
        where = "numpy" if self._device is None else str(self._device)
        return f"KnowledgeValueTracker({self._num_samples}, value={self.value_name!r}, device={where!r})"

    # -- state -------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stream": None}  # a stream is this process's

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and tensors (NumPy arrays where torch is not installed). Copies."""
        self._flush()
        return {
            "version": STATE_VERSION,
            "num_samples": self._num_samples,
            "value": self.value_name,
            "total": state_array(to_numpy(self._total)),
            "count": state_array(to_numpy(self._count)),
            "skipped": to_numpy(self._skipped).tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Take over a state, or, of a list, the sum of several; the device stays as it is.

        Raises
        ------
        ValueError
            If one is of another version, N or value function, or not a tracker's state, or if a sample's
            values are too large to be summed. Nothing is changed then.
        """
        states = state if isinstance(state, (list, tuple)) else [state]
        self.apply_state(summed([self.check_state(s) for s in states]))

    def check_state(self, state: Any) -> CheckedState:
        """What a state of this tracker holds, for `apply_state`. Changes nothing.

        Raises
        ------
        ValueError
            If it is of another version, N or value function, or not a tracker's state.
        """
        mine = {
            "version": STATE_VERSION,
            "num_samples": self._num_samples,
            "value": self.value_name,
        }
        check_same(state, mine, "tracker", needs=("total", "count", "skipped"))
        total, count = (to_numpy(state[key]) for key in ("total", "count"))
        shape = (self._num_samples,)
        if total.shape != shape or total.dtype != np.int64 or count.shape != shape or count.dtype != np.int32:
            raise ValueError(
                f"the tracker state is damaged: total and count must be int64 and int32 of shape {shape}, got "
                f"{total.dtype} {total.shape} and {count.dtype} {count.shape}"
            )
        if (count < 0).any() or total[count == 0].any():
            raise ValueError("the tracker state is damaged: counts and sums contradict each other")
        skipped = state["skipped"]
        if not isinstance(skipped, list) or [type(x) for x in skipped] != [int, int] or min(skipped) < 0:
            raise ValueError(f"the tracker state is damaged: skipped must be two counts, got {skipped!r}")
        return total, count, np.array(skipped, np.int64)

    def apply_state(self, checked: CheckedState) -> None:
        """Take over what `check_state` (or the sum of several) gave. What waits is forgotten."""
        device = self._device
        self._pending = []
        self._device = None
        self._total, self._count, self._skipped = (np.array(x) for x in checked)
        self._reported = self._skipped.copy()
        self.to(device)

    _checked_state, _apply_state = check_state, apply_state


def summed(states: Sequence[CheckedState]) -> CheckedState:
    """What one tracker would hold that had recorded everything."""
    if not states:
        raise ValueError("not a tracker state: an empty list")
    total, count, skipped = zip(*states, strict=True)
    if np.abs(sum(t.astype(np.float64) for t in total)).max() > MAX_REACH:
        raise ValueError("the recorded values are too large to be summed over the ranks: scale them down")
    return sum(total), sum(count), sum(skipped)


def _detached(x: Any) -> Any:
    return x.detach() if is_tensor(x) else x


def _as_values(values: Array, logits: Array) -> Array:
    """What a value function returned, in the logits' back end, or an error if it is not real numbers."""
    if not is_floating(values) and not is_integer(values):
        raise TypeError(f"the value function must return real numbers, got dtype {dtype_name(values)}")
    if is_tensor(logits) and not is_tensor(values):
        values = sys.modules["torch"].from_numpy(np.array(values)).to(logits.device, non_blocking=True)
    elif is_tensor(values) and not is_tensor(logits):
        values = to_numpy(values)
    if is_floating(values):
        return values
    return values.double() if is_tensor(values) else values.astype(np.float64)


def _copied(x: Array) -> Array:
    return x.clone() if is_tensor(x) else x.copy()


def _alike(a: Array, b: Array) -> bool:
    """Whether both can be joined without a change of type or precision."""
    return type(a) is type(b) and a.dtype == b.dtype and a.shape[1:] == b.shape[1:]


def _joined(arrays: tuple[Array, ...]) -> Array:
    return sys.modules["torch"].cat(arrays) if is_tensor(arrays[0]) else np.concatenate(arrays)


def _sums_by_index(indices: Array, values: Array) -> Array:
    """For each row, the sum of the values of all rows with its index. Waits for no device."""
    ordered, order = indices.sort()
    group = (ordered != ordered.roll(1)).cumsum(0)  # from 0, or from 1 where the first differs from the last
    sums = values.new_zeros(len(values) + 1).index_add_(0, group, values.index_select(0, order))
    return values.new_zeros(len(values)).scatter_(0, order, sums.index_select(0, group))


def _unrecordable(number: int) -> str:
    return (
        f"{number} values were not finite (a NaN or infinite logit?) or larger than 2**20 in size, or of a "
        "sample whose values add up to more than 2**22 already, and were not recorded"
    )
