"""What the modules that work with and without torch need to know about arrays.

Torch is never imported here: if the caller holds a tensor, torch is loaded already.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, wraps
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

#: An array of a back end kcd works on: ``numpy.ndarray`` or ``torch.Tensor``.
Array = Any

Method = TypeVar("Method", bound=Callable[..., Any])


class NumPy:
    """What is done with NumPy arrays, where torch does it in other words."""

    join = staticmethod(np.concatenate)

    @staticmethod
    def split(x: Array, length: int) -> Sequence[Array]:
        """Views of ``length`` rows each, the last of what remains."""
        return [x[start : start + length] for start in range(0, len(x), length)]

    @staticmethod
    def copy(x: Array) -> Array:
        """A copy that nobody else holds, and that is part of no graph."""
        return x.copy()

    @staticmethod
    def own(x: Array) -> Array:
        """An array of either back end as one of this: over the same memory, where that is possible."""
        return to_numpy(x)

    @staticmethod
    def beside(x: Array, other: Array) -> Array:
        """``x`` on the device that ``other`` is on."""
        return x

    @staticmethod
    def on_host(x: Array) -> bool:
        """Whether ``x`` lies in host memory."""
        return True

    @staticmethod
    def to_float64(x: Array) -> Array:
        """``x`` in double precision; ``x`` itself, if it is."""
        return x.astype(np.float64, copy=False)

    @staticmethod
    def to_int64(x: Array) -> Array:
        """``x`` as int64; ``x`` itself, if it is."""
        return x.astype(np.int64, copy=False)

    @staticmethod
    def arange(stop: int, beside: Array) -> Array:
        """0 .. stop-1, int64, on the device that ``beside`` is on."""
        return np.arange(stop)

    @staticmethod
    def add_up(numbers: Array, place: Array, length: int) -> Array:
        """[length]: the sums of the ``numbers`` that have one ``place``, ``0 .. length-1``; at ``length`` they are left out."""
        sums = np.zeros(length + 1, numbers.dtype)
        np.add.at(sums, place, numbers)
        return sums[:length]

    @staticmethod
    def no_grad() -> AbstractContextManager[Any]:
        """A context in which no graph is recorded."""
        return nullcontext()


class Torch:
    """What `NumPy` does, for torch tensors. No method waits for a device."""

    def __init__(self) -> None:
        self.torch = sys.modules["torch"]

    def join(self, arrays: Sequence[Array]) -> Array:
        return self.torch.cat(arrays)

    @staticmethod
    def split(x: Array, length: int) -> Sequence[Array]:
        return x.split(length)  # type: ignore[no-any-return]

    @staticmethod
    def copy(x: Array) -> Array:
        return x.detach().clone()

    def own(self, x: Array) -> Array:
        # Torch has no read-only tensors and no negative strides.
        return x if is_tensor(x) else self.torch.from_numpy(np.require(x, requirements=["C", "W"]))

    @staticmethod
    def beside(x: Array, other: Array) -> Array:
        return x.to(other.device, non_blocking=True)

    @staticmethod
    def on_host(x: Array) -> bool:
        return x.is_cpu  # type: ignore[no-any-return]

    @staticmethod
    def to_float64(x: Array) -> Array:
        return x.double()

    @staticmethod
    def to_int64(x: Array) -> Array:
        return x.long()

    def arange(self, stop: int, beside: Array) -> Array:
        return self.torch.arange(stop, device=beside.device)

    @staticmethod
    def add_up(numbers: Array, place: Array, length: int) -> Array:
        return numbers.new_zeros(length + 1).index_add_(0, place, numbers).narrow(0, 0, length)

    def no_grad(self) -> AbstractContextManager[Any]:
        return self.torch.no_grad()  # type: ignore[no-any-return]


NUMPY = NumPy()
torch_backend = cache(Torch)


def backend(x: Array) -> NumPy | Torch:
    """What to do with ``x``, an array that `as_array` gave."""
    return NUMPY if isinstance(x, np.ndarray) else torch_backend()


def is_tensor(x: object) -> bool:
    """Whether ``x`` is a torch tensor (False, without importing it, where torch is not loaded)."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def is_plain(x: Array) -> bool:
    """Whether a tensor's class is torch's own: another one may wrap tensors, and only look like them."""
    torch = sys.modules["torch"]
    return type(x) is torch.Tensor or type(x) is torch.nn.Parameter


def outside_of_graphs(method: Method) -> Method:
    """``method``, which ``torch.compile`` calls where a compiled function does, and never traces."""

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is not None:
            is_compiling = getattr(torch.compiler, "is_compiling", None)  # torch 2.2 has none
            if is_compiling is not None and is_compiling():
                return torch.compiler.disable(method)(*args, **kwargs)
        return method(*args, **kwargs)

    return call  # type: ignore[return-value]


def in_memory(x: Any, name: str) -> Array:
    """`as_array`, or a TypeError if ``x`` is not one array in memory: if it is sparse, or wraps others (a DTensor)."""
    x = as_array(x)
    if not isinstance(x, np.ndarray):
        torch = sys.modules["torch"]
        if x.layout is not torch.strided or (not is_plain(x) and hasattr(type(x), "__tensor_flatten__")):
            raise TypeError(
                f"{name} must be a plain tensor, got a {type(x).__name__} of layout {x.layout}: pass the rows that "
                "this process holds (a DTensor's to_local()), or to_dense()"
            )
    return x


def as_array(x: Any) -> Array:
    """Take NumPy arrays and torch tensors as they are, everything else (JAX, lists) as NumPy.

    Arrays of other libraries come in through DLPack, without a copy where they lie in host memory.
    """
    if isinstance(x, np.ndarray) or is_tensor(x):
        return x
    if hasattr(x, "__dlpack__"):
        try:
            return np.from_dlpack(x)
        except (BufferError, RuntimeError, TypeError):  # another device, or a dtype NumPy lacks
            pass
    return np.asarray(x)


def detached(x: Any) -> Any:
    """``x``; a tensor, without its graph."""
    return x.detach() if is_tensor(x) else x


def to_numpy(x: Any) -> npt.NDArray[Any]:
    """``x`` in host memory as a NumPy array. Waits for the device where ``x`` lies on one."""
    array: npt.NDArray[Any]
    if is_tensor(x):
        array = (x.float() if x.dtype is sys.modules["torch"].bfloat16 else x).cpu().numpy(force=True)
    else:
        array = np.asarray(as_array(x))
    return array


def dtype_name(x: Array) -> str:
    """``float32`` for NumPy's and for torch's float32: one spelling for comparisons and messages."""
    return str(x.dtype).removeprefix("torch.")


def is_floating(x: Array) -> bool:
    """float16, bfloat16, float32 or float64."""
    if isinstance(x, np.ndarray):
        return bool(x.dtype.kind == "f" and x.dtype.itemsize <= 8)
    return bool(x.dtype.is_floating_point and x.dtype.itemsize >= 2)


def is_integer(x: Array) -> bool:
    """Whole numbers only: booleans are masks, not numbers."""
    if isinstance(x, np.ndarray):
        return x.dtype.kind in "iu"
    return dtype_name(x) in {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}


def is_real(x: Array) -> bool:
    """Real numbers of any precision kcd works in."""
    return is_floating(x) or is_integer(x)


def state_array(x: npt.NDArray[Any]) -> Array:
    """A copy of ``x`` for a state dict.

    A torch tensor where torch is installed, so that ``torch.load(weights_only=True)`` reads it
    back; a NumPy array elsewhere.
    """
    try:
        import torch
    except ImportError:
        return x.copy()
    return torch.from_numpy(x.copy())


def checked_int(value: Any, name: str, minimum: int) -> int:
    """``value`` as an ``int`` that is at least ``minimum``, or an error that names the argument."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r} ({type(value).__name__})")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return int(value)


def checked_float(value: Any, name: str, wanted: str) -> float:
    """``value`` as a ``float``, or a TypeError that names the argument: text and booleans are no numbers."""
    try:
        if isinstance(value, (str, bytes, bytearray, bool, np.bool_)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be {wanted}, got {value!r} ({type(value).__name__})") from None


def as_indices(x: Any, name: str) -> Array:
    """``x`` as an array of whole numbers: a tensor where it is one on a device, else a NumPy array.

    Parameters
    ----------
    x : integer array [B]
        An empty one may be of any dtype: an empty list has no integers.
    name : str
        What errors call it.

    Raises
    ------
    TypeError
        If ``x`` does not hold integers.
    ValueError
        If it is not one-dimensional.
    """
    if not isinstance(x, np.ndarray):
        x = in_memory(x, name)
        if not isinstance(x, np.ndarray) and x.is_cpu:
            x = to_numpy(x)
    if not is_integer(x) and not (x.ndim == 1 and len(x) == 0):
        raise TypeError(f"{name} must be integers, got dtype {dtype_name(x)}")
    if x.ndim != 1:
        raise ValueError(f"{name} must be [B], got shape {tuple(x.shape)}")
    return x


def checked_range(
    x: npt.NDArray[Any], name: str, upper: int, *, lower: int = 0, outcome: str = ""
) -> npt.NDArray[np.int64]:
    """A copy of ``x``, which `as_indices` gave and is in host memory, as int64: each in ``lower .. upper - 1``.

    ``outcome``: what the IndexError says last, of what became of the batch.
    """
    indices = np.array(x, np.int64)
    # Read as unsigned, an index below is a huge one: one comparison finds both ends. (argmax takes
    # a third of the time of max on so few.)
    unsigned = (indices - lower if lower else indices).view(np.uint64)
    if len(indices) and unsigned.item(unsigned.argmax()) >= upper - lower:
        wrong = indices[(indices < lower) | (indices >= upper)]
        more = " and more" if len(wrong) > 5 else ""
        raise IndexError(
            f"{name} must lie in {lower} .. {upper - 1}, got {wrong[:5].tolist()}{more}{outcome}"
        )
    return indices
