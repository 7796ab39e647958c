"""Reading data set files defensively: they come from the internet, whatever folder they lie in now."""

from __future__ import annotations

import gzip
import math
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["read_idx", "read_pickle"]

Bytes = npt.NDArray[np.uint8]

DEFLATE_RATIO = 1032  # the most that a byte can unzip to


def read_idx(path: Path, *, dimensions: int) -> Bytes:
    """Read an IDX file of unsigned bytes, gzipped or not.

    Parameters
    ----------
    path : Path
    dimensions : int
        How many the array must have.

    Raises
    ------
    ValueError
        If the file is damaged or is something else. Says what was found.
    """
    magic, header = bytes([0, 0, 8, dimensions]), 4 + 4 * dimensions
    with path.open("rb") as plain:
        zipped = plain.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if zipped else path.open("rb") as file:
            content = file.read(header)
            if content[:4] == magic and len(content) == header:
                # No further than the header says, and a byte to notice more: a small file can unzip to gigabytes.
                size = math.prod(np.frombuffer(content, ">u4", dimensions, offset=4).tolist())
                most = path.stat().st_size * (DEFLATE_RATIO if zipped else 1)
                content += file.read(min(size, most) + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is damaged, it can't be unzipped: {error}") from None
    if content[:4] != magic:
        raise ValueError(
            f"{path} is no IDX file of unsigned bytes in {dimensions} dimension(s): it must start with "
            f"{magic.hex(' ')}, got {content[:4].hex(' ') or 'an empty file'}"
        )
    if len(content) < header:
        raise ValueError(f"{path} is truncated: its header must have {header} bytes, got {len(content)}")
    # Python integers: the product of four-byte sizes can overflow NumPy's.
    shape = np.frombuffer(content, ">u4", dimensions, offset=4).tolist()
    size = math.prod(shape)
    if size == 0:
        raise ValueError(f"{path} is empty: its shape is {shape}")
    if len(content) - header != size:
        raise ValueError(
            f"{path} is truncated or damaged: its shape {shape} needs {size} bytes after the header, "
            f"got {len(content) - header}"
        )
    array: Bytes = np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()
    return array


def read_pickle(path: Path) -> dict[Any, Any]:
    """Read a pickled dict of plain containers, numbers, strings and byte arrays. Runs nothing in it.

    Takes what Python 2 wrote (its strings become str, as Latin-1) and what Python 3 writes.

    Raises
    ------
    ValueError
        If the file asks for anything else, is damaged, or holds no dict.
    """
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError(f"{path} can't be read as a data set's pickle: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a dict, got {type(content).__name__}")
    return {key: x.to_numpy(path) if isinstance(x, _Array) else x for key, x in content.items()}


class _Dtype:
    """Stands in for ``numpy.dtype``: a name. Of what follows it, bytes need nothing."""

    def __init__(self, name: Any = "", *rest: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """Stands in for ``numpy.ndarray``, whose own ``__setstate__`` believes the flags that a file claims.

    (With them, a file could have its bytes taken for pointers.)
    """

    def __init__(self, *args: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def to_numpy(self, path: Path) -> Bytes:
        try:
            _version, shape, dtype, is_fortran, content = self.state
            if dtype.name != "u1":
                raise ValueError(f"an array of {dtype.name!r}, where only bytes ('u1') are expected")
            if isinstance(content, str):  # Python 2
                content = content.encode("latin1")
            order: Any = "F" if is_fortran else "C"
            array: Bytes = np.frombuffer(content, np.uint8).reshape(shape, order=order)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds a damaged or unexpected array: {error}") from None
        return array


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """What NumPy writes with pickle protocol 5."""
    array = _Array()
    array.state = (1, shape, dtype, order == "F", content)
    return array


def _encode(text: str, encoding: str) -> bytes:
    """``bytes`` as Python 3 writes them with protocol 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"unexpected encoding {encoding!r}")
    return text.encode("latin1")


def _empty_bytes(*args: Any) -> bytes:
    if args:
        raise pickle.UnpicklingError("unexpected call of bytes()")
    return b""


# NumPy 2 has moved its internals; files of both kinds are around.
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _empty_bytes,
    ("builtins", "bytes"): _empty_bytes,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"refused to load {module}.{name}: only containers, numbers, strings and byte arrays are "
                "expected in it"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("refused to load a persistent id")
