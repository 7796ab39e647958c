"""What the modules that work with and without torch need to know about arrays.

Torch is never imported here: if the caller holds a tensor, torch is loaded already.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

#: An array of a back end kcd works on: ``numpy.ndarray`` or ``torch.Tensor``.
Array = Any


def is_tensor(x: object) -> bool:
    """Whether ``x`` is a torch tensor (False, without importing it, where torch is not loaded)."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


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


def to_numpy(x: Any) -> npt.NDArray[Any]:
    """``x`` in host memory as a NumPy array. Waits for the device where ``x`` lies on one."""
    if is_tensor(x):
        x = x.detach().cpu()
        x = (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()
    array: npt.NDArray[Any] = np.asarray(as_array(x))
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
