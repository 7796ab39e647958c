"""Rows of an array in a file in memory, which other processes of the machine find by a path.

It needs no name where memory can have none (Linux), so that nothing is left behind by a process that is killed, and takes
nothing of ``/dev/shm``. Elsewhere it is a temporary file.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from contextlib import suppress
from multiprocessing import util
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ..base.arrays import is_tensor

__all__ = ["ArrayFile", "ArrayPlace", "opened", "row_bytes"]


class ArrayPlace(NamedTuple):
    """Where the rows lie, for any process that may read the one that wrote them.

    Attributes
    ----------
    path : str
    file : (int, int)
        Which file that has to be: device and inode.
    rows : int
        How many.
    shape : tuple of int
        Of a row.
    dtype : numpy dtype or torch dtype
    """

    path: str
    file: tuple[int, int]
    rows: int
    shape: tuple[int, ...]
    dtype: Any


class ArrayFile:
    """Rows that are appended, and then read by whoever has their place. The memory is freed with this and its readers.

    Parameters
    ----------
    shape : tuple of int
        Of a row.
    dtype : numpy dtype or torch dtype
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self._shape, self._dtype = shape, dtype
        self._fd, self._path, name = _new_file()
        self._close = weakref.finalize(self, _discard, self._fd, name, os.getpid())
        # A forked worker has a descriptor of its own, which would keep the memory for as long as it lives.
        util.register_after_fork(self, ArrayFile._leave)

    def _leave(self) -> None:
        self._close()

    def append(self, rows: Any) -> None:
        """Write some rows; OSError where there is no memory, which a mapping would be killed for."""
        rest = _bytes(rows).data
        while rest:  # a write may be one in part
            rest = rest[os.write(self._fd, rest) :]

    def place(self) -> ArrayPlace:
        """Where the rows are that were written whole."""
        about = os.fstat(self._fd)
        rows = about.st_size // _size(self._shape, self._dtype)
        return ArrayPlace(self._path, (about.st_dev, about.st_ino), rows, self._shape, self._dtype)


def opened(place: ArrayPlace) -> Any:
    """The rows, as one array or tensor of this process's own, of which no page is copied before it is written to."""
    try:
        with open(place.path, "rb") as file:
            about = os.fstat(file.fileno())
            if (about.st_dev, about.st_ino) != place.file:
                raise OSError("they are gone, and another file is in their place")
            size = _size(place.shape, place.dtype) * place.rows
            memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise RuntimeError(
            "mixing_cache: this process can't open the mixed images that the one that trains has made "
            f"({error}); use mixing_cache=0"
        ) from error
    if isinstance(place.dtype, torch.dtype):
        return torch.frombuffer(memory, dtype=place.dtype).view(place.rows, *place.shape)
    return np.frombuffer(memory, place.dtype).reshape(place.rows, *place.shape)


def _new_file() -> tuple[int, str, str | None]:
    """Its descriptor, the path under which other processes find it, and the name to remove, if it has one."""
    if hasattr(os, "memfd_create"):  # Linux: neither /dev/shm's size nor a killed process matters
        with suppress(OSError):
            fd = os.memfd_create("kcd_core")
            path = f"/proc/{os.getpid()}/fd/{fd}"
            if os.path.exists(path):
                return fd, path, None
            os.close(fd)
    fd, path = tempfile.mkstemp(prefix="kcd_core-")
    return fd, path, path


def _discard(fd: int, name: str | None, pid: int) -> None:
    os.close(fd)
    if name is not None and os.getpid() == pid:
        with suppress(OSError):  # Windows, while a worker reads it
            os.unlink(name)


def _bytes(rows: Any) -> npt.NDArray[np.uint8]:
    if is_tensor(rows):
        return rows.contiguous().view(torch.uint8).numpy().reshape(-1)  # type: ignore[no-any-return]
    return np.ascontiguousarray(rows).reshape(-1).view(np.uint8)


def row_bytes(data: Any) -> int:
    """Of one row of an array or tensor."""
    return _size(data.shape[1:], data.dtype)


def _size(shape: Any, dtype: Any) -> int:
    return max(1, int(np.prod(shape)) * int(dtype.itemsize))
