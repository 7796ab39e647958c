"""Training states on disk: written whole or not at all, read back only if nothing was changed.

A file is 64 bytes (magic, version, two lengths, SHA-256 of all the rest), a JSON text, which holds the
state with a description in place of each array, and the arrays' bytes, in order. Nothing in it is ever run.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import stat
import struct
import sys
from collections import Counter, OrderedDict
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import is_tensor

__all__ = ["load_checkpoint", "save_checkpoint"]

MAGIC, VERSION = b"\x93KCDCKPT", 1
PREAMBLE = struct.Struct("<8sQQQ32s")  # magic, version, length of the text, length of the arrays, checksum
PLAIN = (type(None), bool, int, float, str)
DICTS = {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter}
LISTS = {"list": list, "tuple": tuple}
NUMBERS = "biufc"  # kinds of NumPy's dtypes
DEPTH = 100  # levels of nesting, which Python's recursion limit leaves room for
BITS = 14284  # of an integer: at most 4300 digits, which is what Python reads
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
        Tensors are written from the device they are on, and need no ``detach()``. The ``_metadata`` of a
        module's ``state_dict`` (its parts' versions) is written too.

    Raises
    ------
    TypeError
        If something in ``state`` is of another type, or a dict has other attributes than ``_metadata``.
    ValueError
        If ``state`` is nested more than 100 levels deep, as it is if it holds itself, or an integer has more
        than 14284 bits. These errors say where in ``state``; nothing is written then.
    OSError
        If the file can't be written, as on a full disk, or ``path`` is something else than a regular file, as
        a pipe or a device. What was there is left.

    Notes
    -----
    Written beside ``path`` as ``NAME.*.tmp`` (of a longer name, its first 30 characters), flushed to the disk
    and renamed; a file that was there leaves its permissions to the new one. A process that is killed while
    it writes leaves the ``.tmp`` behind; it can be deleted.

    Examples
    --------
    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "run.ckpt")
    >>> save_checkpoint(path, {"epoch": 3, "best": (0.5, None), "seen": np.arange(3)})
    >>> load_checkpoint(path)
    {'epoch': 3, 'best': (0.5, None), 'seen': array([0, 1, 2])}
    """
    arrays: list[Any] = []
    header = {"byteorder": sys.byteorder, "state": _encoded(state, "state", arrays)}
    # Not as ASCII: of escapes, two lone surrogates would be read as the one character that they make a pair for.
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    path = Path(os.path.realpath(path))  # a link stays one
    old = _permissions(path)
    mode = 0o666 if old is None else old
    temporary = path.with_name(f"{path.name[:30]}.{secrets.token_hex(6)}.tmp")  # names have a limit
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            if old is not None:
                os.chmod(temporary, old)  # what the umask took
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


def _permissions(path: Path) -> int | None:
    """Those of the file that is there, which has to be a regular one; None if there is none."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, "can't put a checkpoint in place of what is no regular file", os.fspath(path))
    return stat.S_IMODE(mode)


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
    if name == "metadata":
        state, metadata = (_decoded(part, file) for part in content)
        state._metadata = metadata
        return state
    dtype, shape = content
    return _array(name, dtype, shape, file)


def _array(kind: str, dtype: str, shape: list[int], file: BufferedReader) -> Any:
    torch = _torch() if kind == "tensor" else None
    if torch is None:
        wanted = np.dtype(dtype)
        known = kind in ("tensor", "array", "scalar") and wanted.kind in NUMBERS
    else:
        wanted = vars(torch).get(dtype)  # getattr would import whatever part of torch is named
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
