"""Training states on disk: written whole or not at all, read back only if nothing was changed.

A file is 64 bytes (magic, version, two lengths, SHA-256 of all the rest), a JSON text, which holds the
state with a description in place of each array, and the arrays' bytes, in order. Nothing in it is ever run.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import struct
import sys
from collections import Counter, OrderedDict
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from ._arrays import is_tensor

__all__ = ["load_checkpoint", "save_checkpoint"]

MAGIC, VERSION = b"\x93KCDCKPT", 1
PREAMBLE = struct.Struct("<8sQQQ32s")  # magic, version, length of the text, length of the arrays, checksum
PLAIN = (type(None), bool, int, float, str)
DICTS = {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter}
LISTS = {"list": list, "tuple": tuple}
NUMBERS = "biufc"  # kinds of NumPy's dtypes
BLOCK = 1 << 20  # bytes


def save_checkpoint(path: str | os.PathLike[str], state: Any) -> None:
    """Write ``state`` to ``path``, atomically: whatever happens, ``path`` holds the old file or the new.

    Parameters
    ----------
    path : str or path
        Under DDP, one for each rank.
    state : nested dicts, lists and tuples
        Of numbers, strings, booleans, None, NumPy arrays and torch tensors: what the ``state_dict`` of
        loaders, models, optimizers, schedulers and scalers, and the getters of random states return.
        Tensors are written from the device they are on, and need no ``detach()``.

    Raises
    ------
    TypeError
        If something in ``state`` is of another type; the error says where it is. Nothing is written then.
    OSError
        If the file can't be written, as on a full disk. The old one is left.

    Notes
    -----
    Written beside ``path`` as ``NAME.*.tmp``, flushed to the disk and renamed. A process that is killed
    while it writes leaves that file behind; it can be deleted.

    Examples
    --------
    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "run.ckpt")
    >>> save_checkpoint(path, {"epoch": 3, "best": (0.5, None), "seen": np.arange(3)})
    >>> load_checkpoint(path)
    {'epoch': 3, 'best': (0.5, None), 'seen': array([0, 1, 2])}
    """
    arrays: list[Any] = []
    tree = _encoded(state, "state", arrays)
    text = json.dumps({"byteorder": sys.byteorder, "state": tree}, separators=(",", ":")).encode()
    path = Path(os.path.realpath(path))  # a link stays one
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(bytes(PREAMBLE.size))
            file.write(text)
            checksum, length = hashlib.sha256(text), 0
            for array in arrays:
                data = _bytes_of(array)
                file.write(data)
                checksum.update(data)
                length += len(data)
            fields = (MAGIC, VERSION, len(text), length)
            checksum.update(PREAMBLE.pack(*fields, b""))
            file.seek(0)
            file.write(PREAMBLE.pack(*fields, checksum.digest()))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # the rename, too, has to reach the disk
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load_checkpoint(path: str | os.PathLike[str]) -> Any:
    """Read what `save_checkpoint` wrote. Tensors are on the CPU (NumPy arrays where torch is not installed).

    Raises
    ------
    ValueError
        If the file is not one of `save_checkpoint`'s, of another version, truncated, or changed in any bit.
    OSError
        If it can't be read.

    Notes
    -----
    Nothing is unpickled or run, whoever wrote the file; but a checksum is no signature, and whoever can
    write the file can put other numbers in it.
    """
    with open(path, "rb") as file:
        try:
            text_length = _checked(file)
            header = json.loads(file.read(text_length))
            if header["byteorder"] != sys.byteorder:
                raise _RefusedError(f"it was written on a {header['byteorder']}-endian machine")
            state = _decoded(header["state"], file)
            if file.read(1):
                raise _RefusedError("it holds more than its description says")
        except _MALFORMED as error:
            why = error if isinstance(error, _RefusedError) else f"its description makes no sense ({error!r})"
            raise ValueError(f"can't load the checkpoint {os.fspath(path)!r}: {why}") from None
    return state


class _RefusedError(ValueError):
    """Why a file is not read."""


# What a description can lead to that was not written here.
_MALFORMED = (AttributeError, LookupError, OverflowError, RuntimeError, TypeError, ValueError)


def _checked(file: BufferedReader) -> int:
    """The length of the text, which comes next, once the whole file is known to be as it was written."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(PREAMBLE.size)
    if not start.startswith(MAGIC):
        raise _RefusedError("it is not a kcd checkpoint")
    if len(start) < PREAMBLE.size:
        raise _RefusedError(f"it is truncated, at {size} bytes")
    magic, version, text_length, array_length, digest = PREAMBLE.unpack(start)
    if version != VERSION:
        raise _RefusedError(f"it is of version {version}, and this kcd_core reads version {VERSION}")
    expected = PREAMBLE.size + text_length + array_length
    if size != expected:
        raise _RefusedError(
            f"it is {'truncated' if size < expected else 'too long'}: {size} bytes of {expected}"
        )
    checksum = hashlib.sha256()
    while block := file.read(BLOCK):
        checksum.update(block)
    checksum.update(PREAMBLE.pack(magic, version, text_length, array_length, b""))
    if checksum.digest() != digest:
        raise _RefusedError("it is damaged: the checksum does not match")
    file.seek(PREAMBLE.size)
    return int(text_length)


def _encoded(x: Any, where: str, arrays: list[Any]) -> Any:
    """``x`` for JSON. Arrays are described, and appended to ``arrays``."""
    if type(x) in PLAIN:
        return x
    name = type(x).__name__
    if DICTS.get(name) is type(x):
        for key in x:
            if type(key) not in PLAIN:
                raise TypeError(f"{where} has a key that can't be saved: {key!r} ({type(key).__name__})")
        return {name: [[key, _encoded(value, f"{where}[{key!r}]", arrays)] for key, value in x.items()]}
    if LISTS.get(name) is type(x):
        return {name: [_encoded(value, f"{where}[{place}]", arrays) for place, value in enumerate(x)]}
    if (type(x) is np.ndarray or isinstance(x, np.generic)) and x.dtype.kind in NUMBERS:
        kind, dtype = ("array" if type(x) is np.ndarray else "scalar"), x.dtype.name
    elif is_tensor(x) and _is_dense(x):
        kind, dtype = "tensor", str(x.dtype).removeprefix("torch.")
    else:
        raise TypeError(
            f"{where} can't be saved: it is a {type(x).__module__}.{type(x).__qualname__}; a checkpoint holds dicts, "
            "lists, tuples, numbers, strings, booleans, None, NumPy arrays of numbers and dense torch tensors"
        )
    arrays.append(x)
    return {kind: [dtype, list(x.shape)]}


def _is_dense(x: Any) -> bool:
    torch = sys.modules["torch"]
    plain = type(x.detach()) is torch.Tensor and x.layout is torch.strided and x.device.type != "meta"
    return bool(plain and not x.is_quantized and not x.is_nested)


def _bytes_of(x: Any) -> memoryview:
    """The numbers of an array, in order; no copy of one that is contiguous in host memory."""
    if is_tensor(x):
        x = x.detach().cpu().resolve_conj().resolve_neg().contiguous()
        x = x.as_strided((x.numel(),), (1,))  # not reshape: of one element or none, torch keeps any stride
        return x.view(sys.modules["torch"].uint8).numpy().data  # type: ignore[no-any-return]
    return np.ascontiguousarray(x, x.dtype.newbyteorder("=")).reshape(-1).view(np.uint8).data


def _decoded(node: Any, file: BufferedReader) -> Any:
    """What `_encoded` was given; the arrays' bytes come from ``file``."""
    if type(node) in PLAIN:
        return node
    ((name, content),) = node.items()
    if name in DICTS:
        return DICTS[name]({key: _decoded(value, file) for key, value in content})
    if name in LISTS:
        return LISTS[name](_decoded(value, file) for value in content)
    dtype, shape = content
    return _array(name, dtype, shape, file)


def _array(kind: str, dtype: str, shape: list[int], file: BufferedReader) -> Any:
    torch = _torch() if kind == "tensor" else None
    if torch is None:
        wanted = np.dtype(dtype)
        known = kind in ("tensor", "array", "scalar") and wanted.kind in NUMBERS
    else:
        wanted = getattr(torch, dtype)
        known = isinstance(wanted, torch.dtype) and not dtype.startswith("q")  # those are quantized
    if not known:
        raise _RefusedError(f"it describes a {kind} of {dtype}")
    if any(type(n) is not int or n < 0 for n in shape):
        raise _RefusedError(f"it describes an array of shape {shape}")
    if math.prod(shape) * wanted.itemsize > os.fstat(file.fileno()).st_size - file.tell():
        raise _RefusedError("it describes more than it holds")
    array = np.empty(shape, wanted) if torch is None else torch.empty(shape, dtype=wanted, device="cpu")
    file.readinto(_bytes_of(array))
    return array[()] if kind == "scalar" else array


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        return None
    return torch
