"""``kcd unpatch``: takes out what ``kcd patch`` put in."""

from __future__ import annotations

import argparse

from .patch import run_unpatch as run

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = (
        "exit status: 0 every byte is as it was before; 1 a script was edited since it was patched: only the "
        "block was removed, the edits are kept; 2 refused, and nothing was written."
    )
    parser.add_argument("repo", metavar="REPO", help="the repository's root folder")
    parser.add_argument("--diff", action="store_true", help="show the change, make none")
