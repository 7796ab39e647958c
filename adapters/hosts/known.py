"""``kcd profiles``: the repositories that `kcd run` knows, and where it watches each."""

from __future__ import annotations

import argparse

from ..profiles import profiles

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments: none."""
    parser.epilog = (
        "Of a family, any script that trains in its way is known, in whatever repository. For any other script: kcd run --auto "
        "SCRIPT, or --profile NAME; docs/profiles.md says how to write a profile."
    )


def run(args: argparse.Namespace) -> None:
    """Print a few lines for each profile."""
    for profile in profiles():
        shims = [shim if isinstance(shim, str) else shim.__name__ for shim in profile.shims]
        script = f"any that {profile.family.trains}" if profile.family else profile.script
        print(f"{profile.name}: {profile.title}{' and its family' if profile.family else ''}")
        print(f"    covers    {profile.covers}")
        print(f"    script    {script}")
        print(f"    known by  {', '.join(name for name in (profile.script, *profile.marks) if name)}")
        print(f"    watches   {profile.observed_at}")
        print(f"    shims     {', '.join(shims) or 'none'}")
        print(f"    resumes   {'yes' if profile.checkpoint else 'no'}")
