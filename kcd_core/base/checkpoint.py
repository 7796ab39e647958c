"""Training states on disk: written whole or not at all, read back only if nothing was changed.

A file is 64 bytes (magic, version, two lengths, SHA-256 of all the rest), a JSON text, which holds the
state with a description in place of each array, and the arrays' bytes, in order. Nothing in it is ever run.
"""

from __future__ import annotations

import hashlib
import os
import struct
from typing import Any, BinaryIO

from .description import MALFORMED, TEXT, RefusedError, bytes_of, described, restored
from .files import open_regular, write_whole

__all__ = ["load_checkpoint", "save_checkpoint"]

MAGIC, VERSION = b"\x93KCDCKPT", 1
PREAMBLE = struct.Struct("<8sQQQ32s")  # magic, version, length of the text, length of the arrays, checksum
BLOCK = 1 << 20  # bytes


def save_checkpoint(path: str | os.PathLike[str], state: Any) -> None:
    """Write ``state`` to ``path``, atomically: whatever happens, ``path`` holds the old file or the new.

    Parameters
    ----------
    path : str or path
        Under DDP, each rank needs its own. If it is a link, the file that it leads to is written.
    state : nested dicts, lists and tuples
        Of numbers, strings, booleans, None, NumPy arrays and torch tensors: what the ``state_dict`` of loaders,
        models, optimizers, schedulers and scalers, and the getters of random states return. Tensors may be on any
        device, and need no ``detach()``. The ``_metadata`` of a module's ``state_dict`` (its parts' versions) is
        written, too.

    Raises
    ------
    TypeError
        If something in ``state`` is of another type, or a dict has other attributes than ``_metadata``.
    ValueError
        If ``state`` is more than `load_checkpoint` reads: nested more than 100 levels deep, as a state that holds
        itself; an integer of more than 14284 bits; an array of more than 64 dimensions; keys whose hashes collide;
        256 MiB of all that is not in arrays. These errors say where in ``state``; nothing is written then.
    OSError
        If the file can't be written, as on a full disk, or ``path`` is not a regular file but, for example, a pipe or
        a device. An existing file is left as it was.

    Notes
    -----
    The file is written beside ``path`` as ``.NAME.kcd-*.tmp``, flushed to the disk and renamed. It takes the
    permissions of an existing file. A process that is killed while it writes leaves the ``.tmp`` behind; the next
    save to ``path`` removes it.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> path = os.path.join(tempfile.mkdtemp(), "run.ckpt")
    >>> save_checkpoint(path, {"epoch": 3, "best": (0.5, None), "seen": np.arange(3)})
    >>> load_checkpoint(path)
    {'epoch': 3, 'best': (0.5, None), 'seen': array([0, 1, 2])}
    """
    text, arrays = described(state)

    def write(file: BinaryIO) -> None:
        file.write(bytes(PREAMBLE.size))
        file.write(text)
        checksum, length = hashlib.sha256(text), 0
        for array in arrays:
            data = bytes_of(array)
            file.write(data)
            checksum.update(data)
            length += len(data)
        fields = (MAGIC, VERSION, len(text), length)
        checksum.update(PREAMBLE.pack(*fields, b""))
        file.seek(0)
        file.write(PREAMBLE.pack(*fields, checksum.digest()))

    write_whole(path, write, follow_links=True)


def load_checkpoint(path: str | os.PathLike[str]) -> Any:
    """Read what `save_checkpoint` wrote. Tensors are on the CPU (NumPy arrays where torch is not installed).

    Raises
    ------
    ValueError
        If the file is not one of `save_checkpoint`'s, of another version, truncated, or changed in any bit.
    OSError
        If it can't be read, or ``path`` is something else than a regular file, such as a pipe or a device.

    Notes
    -----
    Nothing is unpickled or run, whoever wrote the file, and no name in it is looked up but those of dtypes.
    A checksum is no signature: whoever can write the file can put other numbers in it. What such a file can
    cost is bounded: memory and time are proportional to its size. The arrays are no larger than what the
    file holds of them; the description is at most 256 MiB long and takes some forty times its length in
    memory; what is nested more than 100 levels deep, integers of more than 4300 digits, arrays of more than
    64 dimensions, and keys chosen so that their hashes collide are refused.
    """
    with open_regular(path) as file:
        try:
            return restored(_checked(file), file)
        except MALFORMED as error:
            sense = isinstance(error, RefusedError)
            why = error if sense else f"its description makes no sense ({error!a:.200})"
            raise ValueError(f"can't load the checkpoint {os.fspath(path)!r}: {why}") from None


def _checked(file: BinaryIO) -> bytes:
    """The text, once the whole file is known to be as it was written; the arrays come next in ``file``."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(PREAMBLE.size)
    if not start.startswith(MAGIC):
        raise RefusedError("it is not a kcd checkpoint")
    if len(start) < PREAMBLE.size:
        raise RefusedError(f"it is truncated, at {size} bytes")
    magic, version, text_length, array_length, digest = PREAMBLE.unpack(start)
    if version != VERSION:
        raise RefusedError(f"it is of version {version}, and this kcd_core reads version {VERSION}")
    expected = PREAMBLE.size + text_length + array_length
    if size != expected:
        raise RefusedError(
            f"it is {'truncated' if size < expected else 'too long'}: {size} bytes of {expected}"
        )
    if text_length > TEXT:
        raise RefusedError(f"its description is of {text_length} bytes; at most {TEXT} are read")
    text = file.read(text_length)
    checksum = hashlib.sha256(text)
    for start_of_block in range(0, array_length, BLOCK):
        checksum.update(file.read(min(BLOCK, array_length - start_of_block)))
    checksum.update(PREAMBLE.pack(magic, version, text_length, array_length, b""))
    if checksum.digest() != digest:
        raise RefusedError("it is damaged: the checksum does not match")
    file.seek(PREAMBLE.size + text_length)
    return text
