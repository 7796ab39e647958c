"""Arithmetic on rows of logits ``[B, C]`` whose result for a row depends on that row alone.

Not on how many rows are beside it, where it lies, how it is stored, or how many threads there are: else the
last bit of a value, and with it the set, would depend on the size of the batch. In host memory NumPy computes,
a chunk of rows at a time, in one thread. Elsewhere torch does, and there even a plain sum depends on the number
of rows: `TorchRows.sum` says how it is avoided.

Methods with a trailing underscore, and `dot`, may overwrite their first argument: it is not used afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import numpy as np

from .arrays import Array, backend, is_plain, to_numpy

HOST_CHUNK = 2**16  # numbers of a chunk in host memory: a cache holds what is made of them
DEVICE_CHUNK = 15 * 2**20  # bytes that may be made of a chunk on a device, where the logits are small
DEVICE_SHARE = 5  # and where they are large, one in so many of their bytes
MOST_NUMBERS = 2**30  # of a chunk: kernels that pool count in 32 bits
EINSUM_BUFFER = 8192  # numbers; a longer row is added in another order if it comes alone
WINDOW = 32  # numbers that one thread of a device adds
GRAIN = 2.0**40  # parts of 1 that numbers are rounded to before those of a group are added

#: What is computed of a chunk: ``f(rows, logits, *others) -> [B]``, ``rows`` being the back end.
RowFunction = Callable[..., Array]


class NumpyRows:
    """Rows in host memory."""

    # New arrays, whatever the name: in place, NumPy's exp might be another one, and a chunk is small.
    exp, exp_, log, div_, sub_ = np.exp, np.exp, np.log, np.divide, np.subtract

    @staticmethod
    def below_top(logits: Array) -> Array:
        """Every logit less the highest of its row, in float32 at least: at most 0."""
        top = logits.max(-1, keepdims=True)
        # One layout, whatever the caller's: a sum's order follows it.
        return np.subtract(logits, top.astype(np.float32) if top.itemsize == 2 else top, order="C")

    @staticmethod
    def sum(numbers: Array) -> Array:
        """The sum of each row."""
        if numbers.shape[1] > EINSUM_BUFFER:
            return numbers.sum(-1)
        return np.einsum("ij->i", numbers)  # in less than half the time

    @staticmethod
    def dot(a: Array, b: Array) -> Array:
        """The sum of the products of each row."""
        if a.shape[1] > EINSUM_BUFFER:
            return (a * b).sum(-1)
        return np.einsum("ij,ij->i", a, b)  # without the products in memory

    @staticmethod
    def second(numbers: Array) -> Array:
        """The second highest of each row."""
        return np.partition(numbers, -2, axis=-1)[:, -2]

    @staticmethod
    def pick(numbers: Array, column: Array) -> Array:
        """One number of each row."""
        return np.take_along_axis(numbers, column[:, None], -1)[:, 0]

    @staticmethod
    def nan_unless_finite(logits: Array) -> Array:
        """0 for each row, NaN for one with a logit that is not finite. Makes nothing of the logits' size."""
        return logits.max(-1) * 0 + logits.min(-1) * 0

    nan_if_low = nan_unless_finite


class TorchRows:
    """Rows on a device, or rows to differentiate.

    Parameters
    ----------
    in_place : bool
        Whether arrays may be overwritten: not those that autograd will look at.
    """

    def __init__(self, in_place: bool) -> None:
        self.torch = torch = sys.modules["torch"]
        self.exp, self.log, self.mul_ = torch.exp, torch.log, torch.mul
        self.exp_, self.div_, self.sub_ = torch.exp, torch.div, torch.sub
        if in_place:
            tensor = torch.Tensor
            self.exp_, self.div_, self.sub_, self.mul_ = tensor.exp_, tensor.div_, tensor.sub_, tensor.mul_

    def below_top(self, logits: Array) -> Array:
        """Every logit less the highest of its row, in float32 at least: at most 0."""
        top = logits.amax(-1, keepdim=True)
        below = logits - (top.float() if top.dtype.itemsize == 2 else top)
        if below.is_contiguous():
            return below
        # One layout, whatever the caller's: pooling would copy another one at each sum.
        return below.clone(memory_format=self.torch.contiguous_format)

    def sum(self, numbers: Array) -> Array:
        """The sum of each row: of windows of 32 first, then of their sums.

        ``torch.sum`` cuts a row into as many parts as the number of rows leaves threads for, and so does the
        softmax's kernel by where the row begins in memory. A pooled window is added by one thread, in order.
        """
        numbers = numbers.reshape(len(numbers), 1, 1, numbers.shape[-1])
        while numbers.shape[-1] > 1:
            numbers = self.torch.nn.functional.avg_pool2d(
                numbers, (1, WINDOW), ceil_mode=True, divisor_override=1
            )
        return numbers.reshape(-1)

    def dot(self, a: Array, b: Array) -> Array:
        """The sum of the products of each row."""
        return self.sum(self.mul_(a, b))

    @staticmethod
    def second(numbers: Array) -> Array:
        """The second highest of each row."""
        return numbers.topk(2, -1).values.select(-1, 1)

    @staticmethod
    def pick(numbers: Array, column: Array) -> Array:
        """One number of each row; NaN where there is no such column, where gather() would end the process."""
        inside = (column >= 0) & (column < numbers.shape[-1])
        picked = numbers.gather(-1, column.where(inside, 0).unsqueeze(-1)).squeeze(-1)
        return picked.where(inside, float("nan"))

    @staticmethod
    def nan_unless_finite(logits: Array) -> Array:
        """0 for each row, NaN for one with a logit that is not finite. Makes nothing of the logits' size."""
        logits = logits.detach()
        return logits.amax(-1) * 0 + logits.amin(-1) * 0

    @staticmethod
    def nan_if_low(logits: Array) -> Array:
        """0 for each row, NaN for one with a logit of -inf. One of NaN or +inf shows in `below_top`."""
        low = logits.detach().amin(-1)
        return low - low


Rows = NumpyRows | TorchRows


def room(logits: Array) -> int:
    """The bytes that may be made of ``logits`` at a time on a device."""
    return max(DEVICE_CHUNK, int(logits.nbytes) // DEVICE_SHARE)


def by_rows(function: RowFunction, held: int, logits: Array, *others: Array, most: int = 0) -> Array:
    """``function`` of all rows, a chunk at a time: in NumPy where they lie in host memory, else in torch.

    Parameters
    ----------
    function : callable
        ``function(rows, logits, *others) -> [B]``.
    held : int
        How many arrays of a chunk's size, in the precision that is computed in, ``function`` holds at a time. On a
        device a chunk is as large as 15 MB of them allow, or a fifth of the logits' bytes if that is more, and
        one row at least.
    logits, *others : arrays [B, ...]
        Of one back end; those beside the logits may be ``[B]``.
    most : int
        Bytes, where the logits are a part of some that have more `room`.
    """
    arrays = (logits, *others)
    classes = logits.shape[1]
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        if all(map(_for_numpy, arrays)):
            in_numpy = partial(_in_numpy, function)
            return _chunked(in_numpy, HOST_CHUNK // classes, arrays)
        if sys.modules["torch"].is_grad_enabled() and any(x.requires_grad for x in arrays):
            # what is differentiated is kept whole in any case
            return function(TorchRows(in_place=False), *arrays)
        size = max(4, *(x.element_size() for x in arrays if x.ndim == 2))
        if not all(x.is_contiguous() for x in arrays):
            held = max(held, 2)  # what is made of them is copied into one layout
        row = held * classes + classes // 24 + 8  # with what sums need, and a row's own few numbers
        length = min((most or room(logits)) // (row * size), MOST_NUMBERS // classes)
        return _chunked(partial(function, TorchRows(in_place=True)), length, arrays)


def _chunked(function: Callable[..., Array], length: int, arrays: tuple[Array, ...]) -> Array:
    """``function`` of ``length`` rows at a time, of one at least."""
    length = max(1, length)
    if len(arrays[0]) <= length:
        return function(*arrays)
    chunks = zip(*(backend(x).split(x, length) for x in arrays), strict=True)
    parts = [function(*chunk) for chunk in chunks]
    return backend(parts[0]).join(parts)


def _in_numpy(function: RowFunction, *chunk: Array) -> Array:
    return function(NumpyRows(), *map(to_numpy, chunk))


def group_means(numbers: Array, group: Array, groups: int) -> Array:
    """The mean of each group's numbers, whatever their order, and whatever lies between them: sums are integers.

    Parameters
    ----------
    numbers : floating array [n]
        Smaller than 2**23 in size, all of a group together.
    group : int64 array [n]
        Of each number, in ``0 .. groups``; those of group ``groups`` are left out.
    groups : int

    Returns
    -------
    float64 array [groups]
        NaN for a group that has no number, or one that is not finite.
    """
    back = backend(numbers)
    with np.errstate(invalid="ignore", divide="ignore"):
        wide = back.to_float64(numbers)
        finite = abs(wide) < float("inf")
        total, whole, count = (
            back.add_up(back.to_int64(x), group, groups) for x in ((wide * GRAIN).round(), finite, group >= 0)
        )
        return back.to_float64(total) / GRAIN / count + 0 / (whole == count)


def _for_numpy(x: Array) -> bool:
    """Whether NumPy can compute with ``x``. A tensor of another class only looks like one in host memory."""
    if isinstance(x, np.ndarray):
        return True
    return is_plain(x) and x.is_cpu and not (x.requires_grad and sys.modules["torch"].is_grad_enabled())


def nan_unless_finite(logits: Array) -> Array:
    """[B], in the logits' back end: 0 for each row, NaN for one with a logit that is not finite."""
    rows = NumpyRows if isinstance(logits, np.ndarray) else TorchRows
    with np.errstate(invalid="ignore"):
        return rows.nan_unless_finite(logits)
