"""``kcd profiles``: the repositories that `kcd run` knows, and where it watches each."""

from __future__ import annotations

import argparse

from ..profiles import profiles

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments: none."""
    parser.epilog = (
        "A fork of one of these runs with --profile NAME; docs/adapters.md says how to write another."
    )


def run(args: argparse.Namespace) -> None:
    """Print a few lines for each profile."""
    for profile in profiles():
        shims = [shim if isinstance(shim, str) else shim.__name__ for shim in profile.shims]
        print(f"{profile.name}: {profile.title}")
        print(f"    script    {profile.script}")
        print(f"    known by  {', '.join((profile.script, *profile.marks))}")
        print(f"    watches   {profile.observed_at}")
        print(f"    shims     {', '.join(shims) or 'none'}")
        print(f"    resumes   {'yes' if profile.checkpoint else 'no'}")
