"""Which profile a training script is meant for, and which scripts of a repository train a student."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .profile import Kin, Profile
from .sources import parsed

__all__ = ["Found", "at", "scripts_in"]


@dataclass(frozen=True)
class Found:
    """A script that trains a student.

    Attributes
    ----------
    profile : Profile
        As it is for this script.
    root : Path
        The repository's.
    script : str
        Its path inside the repository.
    why : str
        What makes it such a script, for people to read.
    """

    profile: Profile
    root: Path
    script: str
    why: str


def at(script: Path, profiles: Iterable[Profile]) -> Found | None:
    """The first of these profiles that knows a script, which lies in a repository's root or a folder of it."""
    script = script.resolve()
    for profile in profiles:
        for root in script.parents[:2]:
            found = _in(profile, root, script) if profile.knows(root) else None
            if found is not None:
                return found
    return None


def scripts_in(root: Path, profiles: Iterable[Profile]) -> list[Found]:
    """The scripts of a repository that train a student, by the first of these profiles that knows any."""
    return next(filter(None, (_scripts(root, profile) for profile in profiles)), [])


def _scripts(root: Path, profile: Profile) -> list[Found]:
    if not profile.knows(root):
        return []
    if profile.family is None:
        paths = [root / profile.script] if profile.script else []
    else:
        paths = [path for pattern in ("*.py", "[!.]*/*.py") for path in sorted(root.glob(pattern))]
    return [found for path in paths if path.is_file() and (found := _in(profile, root, path)) is not None]


def _in(profile: Profile, root: Path, script: Path) -> Found | None:
    if profile.family is None:
        mine = bool(profile.script) and script.resolve() == (root / profile.script).resolve()
        return Found(profile, root, profile.script, f"it is {profile.title}'s") if mine else None
    try:
        tree: ast.Module = parsed(script)
        kin: Kin | None = profile.family.kin(root, tree)
    except ValueError:  # what is no Python trains nothing
        return None
    if kin is None:
        return None
    title = _title(profile, root)
    own = dataclasses.replace(profile, title=title, **kin.changes)
    return Found(own, root, script.relative_to(root).as_posix(), kin.why)


def _title(profile: Profile, root: Path) -> str:
    """A repository goes by its folder's name, which is its own where git made it."""
    name = re.sub("-(main|master)$", "", root.name)
    own = name.lower() in ("", profile.title.lower())
    return profile.title if own else f"{profile.title} family: '{name}'"
