"""``kcd unpatch``: takes out what ``kcd patch`` put in."""

from __future__ import annotations

import argparse
from pathlib import Path

from kcd_core.base.files import remove_leftover

from . import marked_block
from .scripts import (
    EDITED,
    PATCHED,
    Change,
    block_in,
    patched_in,
    read_script,
    regular_files,
    show_diffs,
    target,
)

__all__ = ["configure", "plan_unpatch", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = (
        "exit status: 0 every byte is as it was before; 1 a script was edited since it was patched: only the "
        "block was removed, the edits are kept; 2 refused, and nothing was written."
    )
    parser.add_argument(
        "target",
        metavar="REPO|SCRIPT",
        help="the repository's root folder, for all its scripts; or one script",
    )
    parser.add_argument("--diff", action="store_true", help="show the change, make none")


def run(args: argparse.Namespace) -> int:
    """``kcd unpatch``: 0 restored, 1 something edited since was kept, 2 refused."""
    root, script = target(args.target)
    changes = plan_unpatch(root, script)
    show_diffs(changes)
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
    for name in regular_files(root) if script is None else ():
        if remove_leftover(root / name):
            print(f"{name}: removed, left behind by a kcd that was killed")
    if not changes:
        print(f"{args.target}: nothing is patched")
    return int(any(change.state == EDITED for change in changes))


def plan_unpatch(root: Path, script: str | None = None) -> list[Change]:
    """What unpatching would do: every script that has a block loses it, or the one that is named.

    Raises
    ------
    ValueError
        If a block is damaged, or of another format and not known to be restored exactly.
    """
    changes = []
    for name in patched_in(root) if script is None else (script,):
        path, before = read_script(root, name)
        found = block_in(before, name)
        if found is None:  # the script that was named, or one that was changed just now
            continue
        if found.format != marked_block.FORMAT and not found.as_left:
            raise ValueError(
                f"{name} was patched by another version of kcd (block format {found.format}) and edited "
                "since: unpatch it with that version, or remove the block's lines with an editor"
            )
        changes.append(Change(path, name, before, found.rest, PATCHED if found.as_left else EDITED))
    return changes
