"""``kcd patch``: a small, marked, reversible change to a repository's training script.

One block before the script's first import, and nothing else: it installs the very engine that ``kcd run``
installs, also in processes that the script spawns, since those execute its top level again. The settings
are in the block, so that there is one file to read, to edit, to commit and to restore.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import block
from .files import is_leftover, write_whole
from .profiles import find, profiles
from .settings import Settings

__all__ = ["Change", "configure", "plan_patch", "plan_unpatch", "read_script", "run", "run_unpatch"]

PATCHED, NOT_PATCHED, EDITED = 0, 1, 3  # the exit statuses of --check; 2 is every command's "can't"

_STATES = {
    PATCHED: "patched",
    NOT_PATCHED: "not patched",
    EDITED: "patched, and edited since outside the block (unpatch would keep those edits)",
}


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


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = (
        "exit status: 0 patched (before or now); 2 refused, and nothing was written. "
        "With --check: 0 patched, 1 not patched (or not all scripts), 3 patched and edited since, 2 can't tell."
    )
    parser.add_argument("repo", metavar="REPO", help="the repository's root folder")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--check", action="store_true", help="say whether it is patched, change nothing")
    only.add_argument("--diff", action="store_true", help="show the change, make none")
    Settings.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """``kcd patch``."""
    root = _root(args.repo)
    if args.check:
        return _check(root, args.profile)
    settings = Settings.from_args(args)
    changes = plan_patch(root, settings, replace=args.diff)
    _show(changes)
    if not args.diff:
        for change in changes:
            change.write()
            print(f"{change.name}: {'already patched' if change.state != NOT_PATCHED else 'patched'}")
    return 0


def run_unpatch(args: argparse.Namespace) -> int:
    """``kcd unpatch``: 0 restored, 1 something edited since was kept, 2 refused."""
    root = _root(args.repo)
    changes = plan_unpatch(root)
    _show(changes)
    if args.diff:
        return 0
    for change in changes:
        change.write()
        if change.state == EDITED:
            print(
                f"{change.name}: block removed; the file was edited since it was patched, the edits are kept"
            )
        else:
            print(f"{change.name}: restored to the byte")
    for name in filter(lambda name: is_leftover(name.rpartition("/")[2]), _files(root)):
        (root / name).unlink(missing_ok=True)
        print(f"{name}: removed, left behind by a kcd that was killed")
    if not changes:
        print(f"{args.repo}: nothing is patched")
    return int(any(change.state == EDITED for change in changes))


def plan_patch(root: Path, settings: Settings, *, replace: bool = False) -> list[Change]:
    """What patching would do, one change for each training script; everything is checked, nothing written.

    ``replace``: exchange a block that has other settings, rather than refuse.

    Raises
    ------
    ValueError
        If the repository is unknown, or a script is not as expected: which one, and why.
    """
    profile, names = recognise(root, settings.profile)
    given = dataclasses.asdict(dataclasses.replace(settings, profile=profile))
    lines = block.call({name: value for name, value in given.items() if value not in (None, ())})
    changes = []
    for name in names:
        path, before = read_script(root, name)
        found = _found(before, name)
        if found is None:
            try:
                after = block.insert(before, lines)
            except ValueError as error:
                raise ValueError(f"{name} can't be patched: {error}") from None
            changes.append(Change(path, name, before, after, NOT_PATCHED))
            continue
        if found.format != block.FORMAT:
            raise ValueError(
                f"{name} was patched by another version of kcd (block format {found.format}, this one writes "
                f"{block.FORMAT}): unpatch it first"
            )
        if found.call != lines and replace:
            changes.append(Change(path, name, before, block.insert(found.rest, lines), PATCHED))
            continue
        if found.call != lines:
            raise ValueError(
                f"{name} is patched already, with other settings: edit them there, or unpatch it first"
            )
        changes.append(Change(path, name, before, before, PATCHED if found.as_left else EDITED))
    return changes


def plan_unpatch(root: Path) -> list[Change]:
    """What unpatching would do: every script that has a block loses it, whichever profile put it there.

    Raises
    ------
    ValueError
        If a block is damaged, or of another format and not known to be restored exactly.
    """
    changes = []
    for name in _files(root):
        if not name.endswith(".py"):
            continue
        try:
            source = (root / name).read_bytes()
        except OSError:
            continue  # unreadable, so none of ours
        if _found(source, name) is None:
            continue
        path, before = read_script(root, name)
        found = _found(before, name)
        if found is None:  # changed just now
            continue
        if found.format != block.FORMAT and not found.as_left:
            raise ValueError(
                f"{name} was patched by another version of kcd (block format {found.format}) and edited "
                "since: unpatch it with that version, or remove the block's lines with an editor"
            )
        changes.append(Change(path, name, before, found.rest, PATCHED if found.as_left else EDITED))
    return changes


def recognise(root: Path, name: str | None) -> tuple[str, tuple[str, ...]]:
    """The name of the profile for a repository, and the scripts to patch in it.

    Raises
    ------
    ValueError
        If no profile knows it.
    """
    if name is not None:
        profile = find(root, name)
        return (name if name.endswith(".py") else profile.name), (profile.script,)
    known = list(profiles())
    for profile in known:
        if profile.knows(root):
            return profile.name, (profile.script,)
    for profile in known:
        if all((root / mark).is_file() for mark in profile.marks):
            raise ValueError(f"{root} looks like {profile.title}, but has no {profile.script} to patch")
    raise ValueError(
        f"no profile knows the repository {root}. Known are {', '.join(p.title for p in known)}; one that was "
        "changed can be named with --profile. To add a profile is to write a module of a few dozen lines "
        "(docs/adapters.md); for a training loop of your own, three lines with kcd_core.wrap_loader do (README.md)"
    )


def _check(root: Path, profile: str | None) -> int:
    states = []
    for name in recognise(root, profile)[1]:
        found = _found(read_script(root, name)[1], name)
        states.append(NOT_PATCHED if found is None else PATCHED if found.as_left else EDITED)
        print(f"{name}: {_STATES[states[-1]]}")
    return NOT_PATCHED if NOT_PATCHED in states else max(states)


def _found(source: bytes, name: str) -> block.Block | None:
    try:
        return block.find(source)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _root(repo: str) -> Path:
    root = Path(repo)
    if root.is_file():
        raise ValueError(f"{repo} is a file: give the repository's root folder")
    if not root.is_dir():
        raise ValueError(f"{repo} is not a folder")
    return root.resolve()


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


def _files(root: Path) -> Iterator[str]:
    """Every regular file inside the repository, hidden folders left out, no link followed."""
    for folder, inner, files in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(files):
            path = Path(folder, name)
            if stat.S_ISREG(path.lstat().st_mode):
                yield path.relative_to(root).as_posix()


def _shown(source: bytes) -> list[str]:
    text = source.decode("utf-8-sig", "backslashreplace").replace("\r\n", "\n").replace("\r", "\n")
    if not text.endswith("\n"):
        text += "\n\\ No newline at end of file\n"
    return text.splitlines(keepends=True)


def _show(changes: list[Change]) -> None:
    encoding = sys.stdout.encoding or "ascii"
    for change in changes:
        print(change.diff().encode(encoding, "backslashreplace").decode(encoding), end="")
