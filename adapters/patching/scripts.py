"""The scripts of a repository: found, read, and changed whole or not at all."""

from __future__ import annotations

import difflib
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kcd_core.base.files import write_whole

from ..profiles import at, profiles
from . import marked_block

__all__ = [
    "EDITED",
    "NOT_PATCHED",
    "PATCHED",
    "Change",
    "block_in",
    "patched_in",
    "read_script",
    "regular_files",
    "show_diffs",
    "target",
]

PATCHED, NOT_PATCHED, EDITED = 0, 1, 3  # of a script; also the exit statuses of kcd patch --check


@dataclass(frozen=True)
class Change:
    """What is to become of one script.

    Attributes
    ----------
    path : Path
        The file itself, links resolved.
    name : str
        Its path inside the repository.
    before, after : bytes
        Equal if nothing is to be done.
    state : int
        `PATCHED`, `NOT_PATCHED` or `EDITED`, before the change.
    """

    path: Path
    name: str
    before: bytes
    after: bytes
    state: int

    def diff(self) -> str:
        """The change in unified format; bytes that are no UTF-8 and carriage returns are shown escaped."""
        old, new = (_shown(text) for text in (self.before, self.after))
        return "".join(difflib.unified_diff(old, new, f"a/{self.name}", f"b/{self.name}"))

    def write(self) -> None:
        """Carry it out, whole or not at all.

        Raises
        ------
        ValueError
            If it can't be written, or was changed since it was read.
        """
        if self.before != self.after:
            try:
                write_whole(self.path, self.after, expected=self.before)
            except OSError as error:
                raise ValueError(f"{self.name} can't be written: {error.strerror or error}") from None


def target(given: str) -> tuple[Path, str | None]:
    """The root folder of the repository that a command line names, and the script in it, where it names one.

    Raises
    ------
    ValueError
        If there is neither.
    """
    path = Path(given)
    if path.is_dir():
        return path.resolve(), None
    if not path.is_file():
        raise ValueError(f"{given} is neither a repository's folder nor a script")
    script = path.parent.resolve() / path.name  # a link stays one
    found = at(script, profiles())
    roots = [found.root] if found is not None and script.is_relative_to(found.root) else []
    roots += [folder for folder in script.parents if (folder / ".git").exists()]
    root = roots[0] if roots else script.parent
    return root, script.relative_to(root).as_posix()


def read_script(root: Path, name: str) -> tuple[Path, bytes]:
    """A script's real path and bytes; ValueError where it must not or can't be changed."""
    try:
        path = (root / name).resolve(strict=True)
        status = path.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        reason = "it does not exist" if isinstance(error, FileNotFoundError) else str(error)
        raise ValueError(f"{name} can't be patched: {reason}") from None
    reason = ""
    if not path.is_relative_to(root):
        reason = f"it is a link to {path}, outside the repository"
    elif not stat.S_ISREG(status.st_mode):
        reason = "it is not a regular file"
    elif not (status.st_mode & 0o222 and os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        reason = "it, or its folder, is read-only"
    elif hasattr(os, "geteuid") and os.geteuid() not in (0, status.st_uid):
        reason = "it belongs to another user"  # to whom the file that replaces it would not
    if reason:
        raise ValueError(f"{name} can't be patched: {reason}")
    try:
        return path, path.read_bytes()
    except OSError as error:
        raise ValueError(f"{name} can't be read: {error.strerror}") from None


def block_in(source: bytes, name: str) -> marked_block.Block | None:
    """The block in a script, an error about which names the script."""
    try:
        return marked_block.find(source)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def regular_files(root: Path) -> Iterator[str]:
    """Every regular file inside the repository, hidden folders left out, no link followed."""
    for folder, inner, files in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(files):
            path = Path(folder, name)
            if stat.S_ISREG(path.lstat().st_mode):
                yield path.relative_to(root).as_posix()


def patched_in(root: Path) -> dict[str, marked_block.Block]:
    """The scripts of a repository that have a block, whichever profile put it there."""
    found = {}
    for name in regular_files(root):
        if name.endswith(".py"):
            try:
                block = block_in((root / name).read_bytes(), name)
            except OSError:
                continue  # unreadable, so none of ours
            if block is not None:
                found[name] = block
    return found


def show_diffs(changes: list[Change]) -> None:
    """Print what would change, or did."""
    encoding = sys.stdout.encoding or "ascii"
    for change in changes:
        print(change.diff().encode(encoding, "backslashreplace").decode(encoding), end="")


def _shown(source: bytes) -> list[str]:
    text = source.decode("utf-8-sig", "backslashreplace").replace("\r\n", "\n").replace("\r", "\n")
    if not text.endswith("\n"):
        text += "\n\\ No newline at end of file\n"
    return text.splitlines(keepends=True)
