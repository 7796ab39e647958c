"""States as a JSON text and arrays: what a checkpoint holds, and what is believed of one that somebody else wrote.

An array, a tensor or a NumPy number is described by ``{kind: [dtype, shape]}``; its bytes follow the text, in order.
A container is ``{type: content}``, with a dict's entries as pairs, and all else is as JSON has it.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter, OrderedDict
from typing import Any, BinaryIO

import numpy as np

from .arrays import is_tensor
from .collisions import collide

__all__ = ["MALFORMED", "TEXT", "RefusedError", "bytes_of", "described", "restored"]

PLAIN = (type(None), bool, int, float, str)
DICTS = {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter}
LISTS = {"list": list, "tuple": tuple}
CODES = "?" + np.typecodes["AllInteger"] + np.typecodes["AllFloat"]
NUMPY = {name: np.dtype(name) for name in {np.dtype(code).name for code in CODES}}
TEXT = 1 << 28  # bytes
DEPTH = 100  # levels of nesting, which Python's recursion limit leaves room for
BITS, DIGITS = 14284, 4300  # of an integer; as many digits as Python reads
DIMENSIONS = 64  # of an array, as many as NumPy's


class RefusedError(ValueError):
    """Why a file is not read."""


# What a description can lead to that was not written here.
MALFORMED = (AttributeError, LookupError, OverflowError, RuntimeError, TypeError, ValueError)


def described(state: Any) -> tuple[bytes, list[Any]]:
    """The text that describes ``state``, and the arrays whose bytes shall follow it."""
    arrays: list[Any] = []
    header = {"byteorder": sys.byteorder, "state": _encoded(state, "state", arrays)}
    # Not as ASCII: of escapes, two lone surrogates would be read as the one character that they make a pair for.
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    if len(text) > TEXT:
        raise ValueError(
            f"state can't be saved: without its arrays it takes {len(text)} bytes, and at most {TEXT} are read; "
            "hold long lists and dicts of numbers as arrays"
        )
    return text, arrays


def restored(text: bytes, file: BinaryIO) -> Any:
    """The state that `described` was given; the arrays' bytes come from ``file``."""
    # An object of JSON comes as a tuple of pairs, which nothing else does: no name in it can stand twice.
    header = json.loads(text.decode("utf-8", "surrogatepass"), object_pairs_hook=tuple, parse_int=_integer)
    (first, byteorder), (second, node) = header
    if (first, second) != ("byteorder", "state"):
        raise RefusedError("it has no description of a state")
    if byteorder != sys.byteorder:
        raise RefusedError(f"it was written on a machine of another byte order: {byteorder!a:.20}")
    state = _decoded(node, file)
    if file.read(1):
        raise RefusedError("it holds more than its description says")
    return state


def bytes_of(x: Any) -> memoryview:
    """The numbers of an array, in order; no copy of one that is contiguous in host memory."""
    if is_tensor(x):
        x = x.detach().cpu().resolve_conj().resolve_neg().contiguous()
        x = x.as_strided((x.numel(),), (1,))  # not reshape: of one element or none, torch keeps any stride
        return x.view(sys.modules["torch"].uint8).numpy().data  # type: ignore[no-any-return]
    return np.ascontiguousarray(x, x.dtype.newbyteorder("=")).reshape(-1).view(np.uint8).data


def _encoded(x: Any, where: str, arrays: list[Any], depth: int = 0) -> Any:
    """``x`` for JSON. Arrays are described, and appended to ``arrays``."""
    if depth > DEPTH:
        raise ValueError(
            f"{where} can't be saved: it is more than {DEPTH} levels deep; does a part hold itself?"
        )
    if _is_plain(x, where):
        return x
    name = type(x).__name__
    if DICTS.get(name) is type(x):
        for key in x:
            if not _is_plain(key, f"a key of {where}"):
                raise TypeError(f"{where} has a key that can't be saved: {key!r} ({type(key).__name__})")
        node = {
            name: [[key, _encoded(value, f"{where}[{key!r}]", arrays, depth + 1)] for key, value in x.items()]
        }
        if collide(x):
            raise ValueError(f"{where} can't be saved: the hashes of its {len(x)} keys collide")
        attributes = getattr(x, "__dict__", {})
        if not attributes:
            return node
        if list(attributes) != ["_metadata"]:
            raise TypeError(
                f"{where} can't be saved: this {name} has the attributes {list(attributes)}; only _metadata is kept"
            )
        return {"metadata": [node, _encoded(x._metadata, f"{where}._metadata", arrays, depth + 1)]}
    if LISTS.get(name) is type(x):
        return {
            name: [_encoded(value, f"{where}[{place}]", arrays, depth + 1) for place, value in enumerate(x)]
        }
    if (type(x) is np.ndarray or isinstance(x, np.generic)) and x.dtype.name in NUMPY:
        kind, dtype = ("array" if type(x) is np.ndarray else "scalar"), x.dtype.name
    elif is_tensor(x) and _is_dense(x):
        kind, dtype = "tensor", str(x.dtype).removeprefix("torch.")
    else:
        raise TypeError(
            f"{where} can't be saved: it is a {type(x).__module__}.{type(x).__qualname__}; a checkpoint holds dicts, "
            "lists, tuples, numbers, strings, booleans, None, NumPy arrays of numbers and dense torch tensors"
        )
    if x.ndim > DIMENSIONS:
        raise ValueError(
            f"{where} can't be saved: an array of {x.ndim} dimensions; at most {DIMENSIONS} are read"
        )
    arrays.append(x)
    return {kind: [dtype, list(x.shape)]}


def _is_plain(x: Any, where: str) -> bool:
    """Whether JSON holds ``x`` as it is."""
    if type(x) is int and x.bit_length() > BITS:
        raise ValueError(
            f"{where} can't be saved: an integer of {x.bit_length()} bits; at most {BITS} are read"
        )
    return type(x) in PLAIN


def _is_dense(x: Any) -> bool:
    torch = sys.modules["torch"]
    plain = type(x.detach()) is torch.Tensor and x.layout is torch.strided and x.device.type != "meta"
    return bool(plain and not x.is_quantized and not x.is_nested)


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > DIGITS:
        raise RefusedError(f"it describes an integer of more than {DIGITS} digits")
    return int(digits)


def _decoded(node: Any, file: BinaryIO, depth: int = 0) -> Any:
    if depth > DEPTH:
        raise RefusedError(f"it is nested more than {DEPTH} levels deep")
    if type(node) in PLAIN:
        return node
    ((name, content),) = node
    if type(node) is not tuple or type(content) is not list:
        raise RefusedError("its description makes no sense")
    if name in DICTS:
        keys = [key for key, _ in content]
        if any(type(key) not in PLAIN for key in keys) or collide(keys):
            raise RefusedError(
                "it describes a dict of keys that are no plain values, or whose hashes collide"
            )
        entries = {key: _decoded(value, file, depth + 1) for key, value in content}
        if len(entries) < len(keys):
            raise RefusedError("it describes a dict that has a key twice")
        return DICTS[name](entries)
    if name in LISTS:
        return LISTS[name](_decoded(value, file, depth + 1) for value in content)
    if name == "metadata":
        state, metadata = (_decoded(part, file, depth + 1) for part in content)
        if type(state) not in DICTS.values():
            raise RefusedError("it describes metadata of something else than a dict")
        state._metadata = metadata
        return state
    dtype, shape = content
    return _array(name, dtype, shape, file)


def _array(kind: str, dtype: str, shape: list[int], file: BinaryIO) -> Any:
    torch = _torch() if kind == "tensor" else None
    if torch is None:
        wanted = NUMPY.get(dtype)
    else:
        wanted = vars(torch).get(dtype)  # getattr would import whatever part of torch is named
        if not isinstance(wanted, torch.dtype) or dtype.startswith("q"):  # those are quantized
            wanted = None
    if kind not in ("tensor", "array", "scalar") or wanted is None:
        raise RefusedError(f"it describes a {kind!a:.40} of {dtype!a:.40}")
    if type(shape) is not list or len(shape) > (0 if kind == "scalar" else DIMENSIONS):
        raise RefusedError(f"it describes a {kind} that has too many dimensions")
    if any(type(n) is not int or n < 0 for n in shape):
        raise RefusedError(f"it describes an array of shape {shape!a:.40}")
    if math.prod(shape) * wanted.itemsize > os.fstat(file.fileno()).st_size - file.tell():
        raise RefusedError("it describes more than it holds")
    # Sizes beside a zero may still overflow; NumPy and torch refuse them.
    array = np.empty(shape, wanted) if torch is None else torch.empty(shape, dtype=wanted, device="cpu")
    data = bytes_of(array)
    if file.readinto(data) != len(data):  # type: ignore[attr-defined]
        raise RefusedError("it was changed while it was read")
    return array[()] if kind == "scalar" else array


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        return None
    return torch
