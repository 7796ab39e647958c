"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import tempfile
from pathlib import Path

__all__ = ["check_writable", "is_leftover", "write_whole"]


def write_whole(path: Path, content: bytes, *, expected: bytes | None = None) -> None:
    """Write a file such that whoever looks, at any time, even after a crash, sees all of the old or the new.

    The new file takes the old one's owner and permissions; a link of that name is replaced, never written
    through.

    Parameters
    ----------
    path : Path
        The file, in a directory that exists.
    content : bytes
        What it shall hold.
    expected : bytes, optional
        What it must hold just before it is replaced.

    Raises
    ------
    ValueError
        If it does not hold what was expected.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.kcd-", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _take_over(path, temporary)
        if expected is not None and path.read_bytes() != expected:
            raise ValueError(f"{path} was changed by somebody else just now; nothing was written to it")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def check_writable(path: Path, name: str) -> None:
    """See now whether `write_whole` could write ``path`` later; a ValueError that names the setting if not."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(
            f"{name} {path}: {error.strerror or error}; give a file in a folder that exists"
        ) from None


def is_leftover(name: str) -> bool:
    """Whether a file's name is that of a temporary file, which only a killed `write_whole` leaves behind."""
    return re.fullmatch(r"\..+\.kcd-[a-z0-9_]{8}\.tmp", name) is not None


def _take_over(path: Path, temporary: Path) -> None:
    try:
        old = path.lstat()
    except FileNotFoundError:
        old = None
    if old is None or not stat.S_ISREG(old.st_mode):
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        return
    if hasattr(os, "chown"):
        with contextlib.suppress(PermissionError):  # only root may give a file away
            os.chown(temporary, old.st_uid, old.st_gid)
    temporary.chmod(stat.S_IMODE(old.st_mode))


def _sync_directory(directory: Path) -> None:
    """So that the new name itself survives a power cut; a directory can't be opened everywhere (Windows)."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    with contextlib.suppress(OSError):
        os.fsync(handle)
    os.close(handle)
