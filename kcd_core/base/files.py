"""Files that are written whole or not at all, and read only if they are regular ones."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

__all__ = ["check_writable", "open_regular", "remove_leftover", "write_whole"]

LEFTOVER = re.compile(r"\..+\.kcd-[a-z0-9_]{8}\.tmp", re.DOTALL)


def write_whole(
    path: str | os.PathLike[str],
    content: bytes | Callable[[BinaryIO], object],
    *,
    expected: bytes | None = None,
    follow_links: bool = False,
) -> None:
    """Write a file such that whoever looks, at any time, even after a crash, sees all of the old or the new.

    Parameters
    ----------
    path : str or path
        The file, in a folder that exists. A file that is there leaves its permissions, and where that is allowed
        its owner, to the new one.
    content : bytes or callable
        What the file shall hold, or what writes it to a file open for writing.
    expected : bytes, optional
        What the file must hold just before it is replaced.
    follow_links : bool
        Whether a link stays, and the file that it leads to is written; otherwise the link is replaced.

    Raises
    ------
    ValueError
        If the file does not hold what was expected.
    OSError
        If the file can't be written, or ``path`` is, or leads to, something else than a regular file, such as a
        folder, a pipe or a device. What was there is left.

    Notes
    -----
    The content is written to ``.NAME.kcd-*.tmp`` beside the file, flushed to the disk, and renamed. A process
    that is killed meanwhile leaves that behind, and the next write of the same file removes it. A lock tells
    what was left behind from what another process is writing; where the file system has no locks, nothing is
    removed.
    """
    path = Path(os.path.realpath(path) if follow_links else path)
    old = _status(path)
    prefix = _prefix(path.name)
    with contextlib.suppress(PermissionError), os.scandir(path.parent) as entries:  # which may not be listed
        for entry in entries:
            if entry.name.startswith(prefix):
                remove_leftover(path.parent / entry.name)
    file, temporary = _begun(path.parent, prefix, 0o666 if old is None else 0o600)
    try:
        with file:
            if old is not None:
                _take_over(old, temporary)
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if expected is not None and path.read_bytes() != expected:
                raise ValueError(f"{path} was changed by somebody else just now; nothing was written to it")
            if sys.platform == "win32":  # no open file is renamed there; elsewhere, closing it ends the lock
                file.close()
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def check_writable(path: Path, name: str) -> None:
    """See now whether `write_whole` could write ``path`` later; a ValueError that names the setting if not."""
    try:
        _status(path)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(
            f"{name} {path}: {error.strerror or error}; give a file in a folder that exists"
        ) from None


def remove_leftover(path: Path) -> bool:
    """Remove what a killed `write_whole` left behind; False if ``path`` is none, or is being written."""
    if LEFTOVER.fullmatch(path.name) is None:
        return False
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        if sys.platform == "win32":  # no open file is removed there
            path.unlink()
            return True
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(handle)
    except OSError:  # it is locked, somebody else's, or gone
        return False
    return True


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file to read it; an OSError, and no waiting for a writer, if it is something else than a regular one."""
    flag = getattr(os, "O_NONBLOCK", 0)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | flag))  # noqa: SIM115
    try:
        # Of what was opened: by now the name may lead elsewhere.
        _check_regular(os.fstat(file.fileno()), path)
    except BaseException:
        file.close()
        raise
    return file


def _status(path: Path) -> os.stat_result | None:
    """The status of the file that is to be replaced; None if there is none, or a link in its place."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    _check_regular(status, path)
    return None if path.is_symlink() else status


def _check_regular(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    if not stat.S_ISREG(status.st_mode):
        number = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
        raise OSError(number, "not a regular file", os.fspath(path))


def _prefix(name: str) -> str:
    """How the temporary files of one target begin. Names have a limit, and two long ones may begin alike."""
    encoded = os.fsencode(name)
    if len(encoded) > 100:
        name = f"{name[:20]}-{hashlib.sha256(encoded).hexdigest()[:16]}"
    return f".{name}.kcd-"


def _begun(folder: Path, prefix: str, mode: int) -> tuple[BinaryIO, Path]:
    """A new temporary file, which is locked for as long as it is open."""
    while True:
        path = folder / f"{prefix}{secrets.token_hex(4)}.tmp"
        file = open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115
        if sys.platform == "win32":
            return file, path
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file, path
        file.close()  # taken for a leftover before it was locked


def _take_over(old: os.stat_result, temporary: Path) -> None:
    if hasattr(os, "chown"):
        with contextlib.suppress(PermissionError):  # only root may give a file away
            os.chown(temporary, old.st_uid, old.st_gid)
    temporary.chmod(stat.S_IMODE(old.st_mode))


def _sync_folder(folder: Path) -> None:
    """So that the new name itself survives a power cut; a folder can't be opened everywhere (Windows)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
