"""``kcd unpatch``: takes out what ``kcd patch`` put in."""

from __future__ import annotations

import argparse
from pathlib import Path

from kcd_core.base.files import remove_leftover

from . import marked_block
from .scripts import EDITED, PATCHED, Change, block_in, read_script, regular_files, repository, show_diffs

__all__ = ["configure", "plan_unpatch", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = (
        "exit status: 0 every byte is as it was before; 1 a script was edited since it was patched: only the "
        "block was removed, the edits are kept; 2 refused, and nothing was written."
    )
    parser.add_argument("repo", metavar="REPO", help="the repository's root folder")
    parser.add_argument("--diff", action="store_true", help="show the change, make none")


def run(args: argparse.Namespace) -> int:
    """``kcd unpatch``: 0 restored, 1 something edited since was kept, 2 refused."""
    root = repository(args.repo)
    changes = plan_unpatch(root)
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
    for name in regular_files(root):
        if remove_leftover(root / name):
            print(f"{name}: removed, left behind by a kcd that was killed")
    if not changes:
        print(f"{args.repo}: nothing is patched")
    return int(any(change.state == EDITED for change in changes))


def plan_unpatch(root: Path) -> list[Change]:
    """What unpatching would do: every script that has a block loses it, whichever profile put it there.

    Raises
    ------
    ValueError
        If a block is damaged, or of another format and not known to be restored exactly.
    """
    changes = []
    for name in regular_files(root):
        if not name.endswith(".py"):
            continue
        try:
            source = (root / name).read_bytes()
        except OSError:
            continue  # unreadable, so none of ours
        if block_in(source, name) is None:
            continue
        path, before = read_script(root, name)
        found = block_in(before, name)
        if found is None:  # changed just now
            continue
        if found.format != marked_block.FORMAT and not found.as_left:
            raise ValueError(
                f"{name} was patched by another version of kcd (block format {found.format}) and edited "
                "since: unpatch it with that version, or remove the block's lines with an editor"
            )
        changes.append(Change(path, name, before, found.rest, PATCHED if found.as_left else EDITED))
    return changes
