"""One profile per codebase: how to recognise it, and where its student is observed.

To add one, write a module beside this one (the smallest is `sskd`), and list it in `MODULES`; or a file
anywhere, for ``--profile FILE.py``. See docs/adapters.md.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Profile", "find", "option", "profiles"]

MODULES = ("simkd", "repdistiller", "sskd", "reviewkd", "reviewkd_imagenet", "mdistiller")

Arguments = Sequence[str]


def _nothing(_: Arguments) -> None:
    return None


def _whole(dataset: Any, _: npt.NDArray[np.int64]) -> Any:
    return dataset


def _second(batch: Any) -> Any:
    return batch[1]


def _first_two(prediction: Any = None, targets: Any = None, *_: Any, **named: Any) -> tuple[Any, Any]:
    """The first two arguments, by place or by the names that torch and others give them."""
    prediction = named.get("input", named.get("output")) if prediction is None else prediction
    return prediction, named.get("target") if targets is None else targets


@dataclass(frozen=True)
class Profile:
    """What the engine has to know of a codebase.

    Attributes
    ----------
    name, title : str
    script : str
        The script that trains a student, relative to the repository's root.
    marks : tuple of str
        Other files by which the repository is recognised, relative to its root.
    observe : str
        ``"module.function"``: called with the student's final prediction once for every training batch,
        and looked up in the module at call time, or bound from there by a script that is not running yet.
    method : callable
        ``method(arguments) -> str``: what the script's command line trains; for people to read.
    shims : tuple of str
        Names of `kcd_adapters.hosts.shims` that current versions of torch and others make necessary.
    prediction : callable
        ``prediction(*args, **kwargs) -> (logits [B, C], labels [B])``: which arguments of that function
        they are. Default: the first two, or those named ``input`` or ``output``, and ``target``. A call
        for which it returns anything else than two such tensors, the logits with a gradient, is passed over.
    refuse : callable
        ``refuse(arguments) -> str | None``: why this command line can't run with KCD.
    targets : callable
        ``targets(batch) -> tensor [B]``: the labels of a batch as the loader yields it.
    fields : tuple, optional
        Which fields of a sample (places of a tuple, keys of a dict) are images that can be mixed.
        Default: the first. Of no account where the data set keeps raw images in ``.data``.
    condensed : callable
        ``condensed(dataset, kept) -> dataset``: a view of the data set to draw from while ``kept`` is in
        force. The data set itself is not written to.
    checkpoint : tuple of str
        Functions ``(save(state, path), load(path))`` of the host's, if it resumes.
    """

    name: str
    title: str
    script: str
    marks: tuple[str, ...]
    observe: str
    method: Callable[[Arguments], str]
    shims: tuple[str, ...] = ()
    prediction: Callable[..., tuple[Any, Any]] = _first_two
    refuse: Callable[[Arguments], str | None] = _nothing
    targets: Callable[[Any], Any] = _second
    fields: tuple[Any, ...] | None = None
    condensed: Callable[[Any, npt.NDArray[np.int64]], Any] = _whole
    checkpoint: tuple[str, str] | None = None

    def knows(self, root: Path) -> bool:
        """Whether ``root`` is a checkout of this codebase."""
        return all((root / name).is_file() for name in (self.script, *self.marks))


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


def option(arguments: Arguments, *names: str, default: str = "") -> str:
    """The last value that ``arguments`` give to an option, as ``--name value`` or ``--name=value``."""
    found = default
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in names:
            found = value if equals else next(iter(arguments[place + 1 : place + 2]), default)
    return found
