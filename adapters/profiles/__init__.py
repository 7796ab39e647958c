"""One profile per codebase: how to recognise it, and where its student is observed.

To add one, write a module beside this one (the smallest is `sskd`), and list it in `MODULES`; or a file
anywhere, for ``--profile FILE.py``. See docs/adapters.md.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from .profile import Profile, Running, option, whole

__all__ = ["Profile", "Running", "find", "option", "profiles", "whole"]

MODULES = ("simkd", "repdistiller", "sskd", "reviewkd", "reviewkd_imagenet", "mdistiller", "timm")


def profiles() -> Iterator[Profile]:
    """All profiles; where two know a repository, the earlier is meant. A broken one is warned of and left out."""
    yield from filter(None, map(_from_module, MODULES))


@functools.cache  # so as to warn once
def _from_module(module: str) -> Profile | None:
    try:
        profile: Profile = import_module(f".{module}", __package__).PROFILE
    except Exception as error:  # whatever somebody's own module raises: the others are none the worse
        print(f"kcd: WARNING: profile {module} is left out: {type(error).__name__}: {error}", file=sys.stderr)
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


def find(script: Path, name: str | None = None) -> Profile:
    """The profile for a training script, by the files around it, by its name, or from a file ``NAME.py``.

    Raises
    ------
    ValueError
        If there is none, or the file can't be imported or holds none.
    """
    if name is not None and name.endswith(".py"):
        return _from_file(Path(name))
    known = list(profiles())
    if name is not None:
        for profile in known:
            if profile.name == name:
                return profile
        raise ValueError(
            f"there is no profile {name!r}; there are {', '.join(p.name for p in known)}, or give a file, NAME.py"
        )
    script = script.resolve()
    near = [(profile, _root(script, profile)) for profile in known]
    near = [(profile, root) for profile, root in near if profile.knows(root)]
    for profile, root in near:
        if script == (root / profile.script).resolve():
            return profile
    if near:
        scripts = " or ".join(dict.fromkeys(profile.script for profile, _ in near))
        raise ValueError(
            f"{script.name} is not the script that trains a student in {near[0][0].title}: that is {scripts}"
        )
    raise ValueError(
        f"no profile knows the repository of {script}. Known are {', '.join(p.title for p in known)}. To add one is "
        "to write a module of a few dozen lines (docs/adapters.md); for a training loop of your own, three lines with "
        "kcd_core.wrap_loader do (README.md). If it is a known repository that was changed, name it with --profile"
    )


def _root(script: Path, profile: Profile) -> Path:
    """Where the repository's root would be, if ``script`` lay in it as the profile's does."""
    depth = profile.script.count("/")
    return script.parents[depth] if len(script.parents) > depth else script.parent
