"""One profile per codebase: how to recognise it, and where its student is observed.

To add one, write a module beside this one (the smallest is `sskd`), and list it in `MODULES`; or a file
anywhere, for ``--profile FILE.py``. See docs/profiles.md.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterator
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from kcd_core.base.distributed import rank_announced

from ..telling import say
from .profile import Family, Kin, Profile, Running, option, whole
from .recognition import Found, at, scripts_in
from .refusal import listed, no_profile, no_repository, not_the_script
from .teacher import Loss, Pair, Teacher

__all__ = [
    "Family",
    "Found",
    "Kin",
    "Loss",
    "Pair",
    "Profile",
    "Running",
    "Teacher",
    "at",
    "find",
    "listed",
    "named",
    "no_repository",
    "option",
    "profiles",
    "scripts_in",
    "whole",
]

MODULES = ("simkd", "repdistiller", "sskd", "reviewkd", "reviewkd_imagenet", "mdistiller", "timm", "hunto")
AUTO = "auto"  # for whatever script it is named for; it recognises none


def profiles() -> Iterator[Profile]:
    """All profiles; where two know a script, the earlier is meant. A broken one is warned of and left out."""
    yield from filter(None, map(_from_module, MODULES))


@functools.cache  # so as to warn once
def _from_module(module: str) -> Profile | None:
    try:
        profile: Profile = import_module(f".{module}", __package__).PROFILE
    except Exception as error:  # whatever somebody's own module raises: the others are none the worse
        if rank_announced() == 0:
            say(f"profile {module} is left out: {type(error).__name__}: {error}", logging.WARNING)
        return None
    return profile


def _from_file(path: Path) -> Profile:
    spec = spec_from_file_location(f"kcd_profile_{path.stem}", path)
    assert spec is not None  # by the name's ending
    assert spec.loader is not None
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"--profile {path} can't be imported: {type(error).__name__}: {error}") from error
    profile = getattr(module, "PROFILE", None)
    if not isinstance(profile, Profile):
        raise ValueError(f"--profile {path} must define PROFILE, a kcd_adapters.profiles.Profile")
    return profile


def named(name: str) -> Profile:
    """The profile of a name, or from a file ``NAME.py``.

    Raises
    ------
    ValueError
        If there is none, or the file can't be imported or holds none.
    """
    if name.endswith(".py"):
        return _from_file(Path(name))
    known = list(profiles())
    for profile in (*known, *filter(None, [_from_module(AUTO)])):
        if profile.name == name:
            return profile
    raise ValueError(
        f"there is no profile {name!r}; there are {', '.join(p.name for p in known)}, {AUTO}, or give a file, NAME.py"
    )


def find(script: Path, name: str | None = None, command: str = "kcd run") -> Profile:
    """The profile for a training script, by what it uses and the files around it, by its name, or from a file ``NAME.py``.

    ``command`` is the one that an error tells to type.

    Raises
    ------
    ValueError
        If there is none: what is near, and what to type.
    """
    if name is not None:
        profile = named(name)
        if name == "auto":  # a script of which nothing is known goes by its folder's name and its own
            folder = script.resolve().parent.name
            title = f"'{folder}'" if folder else profile.title
            return dataclasses.replace(profile, title=title, method=lambda arguments: script.name)
        found = at(script, [profile])
        return profile if found is None else found.profile
    known = list(profiles())
    found = at(script, known)
    if found is not None:
        return found.profile
    near = (
        not_the_script(script, profile, root, command)
        for root in script.resolve().parents[:2]
        for profile in known
    )
    raise ValueError(next(filter(None, near), None) or no_profile(script, known, command))
