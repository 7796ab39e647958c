"""``kcd patch``: a small, marked, reversible change to a repository's training script.

One block before the script's first import, and nothing else: it installs the very engine that ``kcd run``
installs, also in processes that the script spawns, since those execute its top level again. The settings
are in the block, so that there is one file to read, to edit, to commit and to restore.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

from ..options import RECOMMENDED, add_arguments, settings_of
from ..profiles import find, listed, named, no_repository, profiles, scripts_in
from ..settings import Settings
from . import marked_block
from .scripts import (
    EDITED,
    NOT_PATCHED,
    PATCHED,
    Change,
    block_in,
    patched_in,
    read_script,
    show_diffs,
    target,
)

__all__ = ["Meant", "configure", "meant", "plan_patch", "run"]

_STATES = {
    PATCHED: "patched",
    NOT_PATCHED: "not patched",
    EDITED: "patched, and edited since outside the block (unpatch would keep those edits)",
}


class Meant(NamedTuple):
    """A script to patch.

    Attributes
    ----------
    script : str
        Its path inside the repository.
    profile : str
        A profile's name, or its file.
    title : str
        What the patched script will call itself.
    """

    script: str
    profile: str
    title: str


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        f"{parser.description}. Recommended: kcd patch REPO {RECOMMENDED} (docs/settings.md says why). Without options, the settings are the paper's, "
        "for runs of 240 epochs."
    )
    parser.epilog = (
        "exit status: 0 patched (before or now); 2 refused, and nothing was written. "
        "With --check: 0 patched, 1 not patched, 3 patched and edited since, 2 can't tell."
    )
    parser.add_argument(
        "target",
        metavar="REPO|SCRIPT",
        help="the repository's root folder; or the script, where several train a student",
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--check", action="store_true", help="say which scripts are patched, and how; change nothing"
    )
    only.add_argument("--diff", action="store_true", help="show the change, make none")
    add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """``kcd patch``."""
    root, script = target(args.target)
    settings = settings_of(args)
    if args.check:
        if unused := sorted(settings.to_dict().keys() - {"profile"}):
            raise ValueError(
                f"--check writes no settings, so {', '.join(unused)} would not be used: leave it out"
            )
        return _check(root, script, settings.profile)
    chosen = meant(root, script, settings.profile)
    changes = plan_patch(root, settings, chosen, replace=args.diff)
    show_diffs(changes)
    if args.diff:
        return 0
    for change, (name, _, title) in zip(changes, chosen, strict=True):
        change.write()
        print(f"{name}: {'already patched' if change.state != NOT_PATCHED else 'patched'}")
        print(
            f'The first line that {name} prints is "kcd: {title}, ...". If it is missing, another script is being run'
        )
    return 0


def meant(root: Path, script: str | None, name: str | None) -> list[Meant]:
    """The script that is meant: the one that is named, or patched already, or the only one that trains a student.

    Raises
    ------
    ValueError
        If there is none, or several could be meant: which.
    """
    if script is not None:
        own = name or _own_profile(block_in((root / script).read_bytes(), script))
        profile = find(Path(os.path.relpath(root / script)), own, "kcd patch")
        return [Meant(script, own or profile.name, profile.title)]
    patched = {script: name or _own_profile(block) for script, block in patched_in(root).items()}
    if patched:
        return [one for script, own in patched.items() for one in meant(root, script, own)]
    found = scripts_in(root, profiles() if name is None else [named(name)])
    if len(found) > 1:
        raise ValueError(
            f"several scripts train a student in {found[0].profile.title}, and none was patched. Name the one that you run:"
            f"{listed(found, 'kcd patch')}"
        )
    if found:
        return [Meant(found[0].script, name or found[0].profile.name, found[0].profile.title)]
    if name is None:
        raise ValueError(no_repository(root, list(profiles())))
    profile = named(name)
    if not profile.script:
        raise ValueError(
            f"profile {profile.name} does not say which script of {root} trains a student: name it, kcd patch --profile {name} SCRIPT"
        )
    return [Meant(profile.script, name, profile.title)]


def _own_profile(block: marked_block.Block | None) -> str | None:
    return None if block is None else block.settings.get("profile")


def plan_patch(root: Path, settings: Settings, chosen: list[Meant], *, replace: bool = False) -> list[Change]:
    """What patching would do, one change for each script; everything is checked, nothing written.

    ``replace``: exchange a block that has other settings, rather than refuse.

    Raises
    ------
    ValueError
        If a script is not as expected: which one, and why.
    """
    changes = []
    for name, profile, _ in chosen:
        given = dataclasses.asdict(dataclasses.replace(settings, profile=profile))
        lines = marked_block.call({key: value for key, value in given.items() if value not in (None, ())})
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
                f"{name} is patched already, with other settings: edit them in its marked block, or take it out first: "
                f"kcd unpatch {os.path.relpath(path)}"
            )
        changes.append(Change(path, name, before, before, PATCHED if found.as_left else EDITED))
    return changes


def _check(root: Path, script: str | None, name: str | None) -> int:
    """Say of each script that is patched, or trains a student, how it stands."""
    why = {one.script: one.why for one in scripts_in(root, profiles() if name is None else [named(name)])}
    names = sorted({*patched_in(root), *why}) if script is None else [script]
    states = []
    for one in names or [chosen.script for chosen in meant(root, None, name)]:
        block = block_in(read_script(root, one)[1], one)
        state = NOT_PATCHED if block is None else PATCHED if block.as_left else EDITED
        states.append(state)
        own = "" if block is None else f" (profile {_own_profile(block)})"
        trains = f"; it trains a student: {why[one]}" if one in why else ""
        print(f"{one}: {_STATES[state]}{own}{trains}")
    return max((state for state in states if state != NOT_PATCHED), default=NOT_PATCHED)
