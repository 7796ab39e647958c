"""``kcd patch``: a small, marked, reversible change to a repository's training script.

One block before the script's first import, and nothing else: it installs the very engine that ``kcd run``
installs, also in processes that the script spawns, since those execute its top level again. The settings
are in the block, so that there is one file to read, to edit, to commit and to restore.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from ..profiles import find, profiles
from ..settings import Settings
from . import marked_block
from .scripts import EDITED, NOT_PATCHED, PATCHED, Change, block_in, read_script, repository, show_diffs

__all__ = ["configure", "plan_patch", "recognise", "run"]

_STATES = {
    PATCHED: "patched",
    NOT_PATCHED: "not patched",
    EDITED: "patched, and edited since outside the block (unpatch would keep those edits)",
}


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
    root = repository(args.repo)
    if args.check:
        return _check(root, args.profile)
    settings = Settings.from_args(args)
    changes = plan_patch(root, settings, replace=args.diff)
    show_diffs(changes)
    if not args.diff:
        for change in changes:
            change.write()
            print(f"{change.name}: {'already patched' if change.state != NOT_PATCHED else 'patched'}")
    return 0


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
    lines = marked_block.call({name: value for name, value in given.items() if value not in (None, ())})
    changes = []
    for name in names:
        path, before = read_script(root, name)
        found = block_in(before, name)
        if found is None:
            try:
                after = marked_block.insert(before, lines)
            except ValueError as error:
                raise ValueError(f"{name} can't be patched: {error}") from None
            changes.append(Change(path, name, before, after, NOT_PATCHED))
            continue
        if found.format != marked_block.FORMAT:
            raise ValueError(
                f"{name} was patched by another version of kcd (block format {found.format}, this one writes "
                f"{marked_block.FORMAT}): unpatch it first"
            )
        if found.call != lines and replace:
            changes.append(Change(path, name, before, marked_block.insert(found.rest, lines), PATCHED))
            continue
        if found.call != lines:
            raise ValueError(
                f"{name} is patched already, with other settings: edit them there, or unpatch it first"
            )
        changes.append(Change(path, name, before, before, PATCHED if found.as_left else EDITED))
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
        found = block_in(read_script(root, name)[1], name)
        states.append(NOT_PATCHED if found is None else PATCHED if found.as_left else EDITED)
        print(f"{name}: {_STATES[states[-1]]}")
    return NOT_PATCHED if NOT_PATCHED in states else max(states)
