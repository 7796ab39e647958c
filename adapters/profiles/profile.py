"""What a profile is, and what helps to write one."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from ..running import Running
from ..settings import SHIMS
from .teacher import Teacher

__all__ = ["Family", "Kin", "Profile", "Running", "option", "whole"]

Arguments = Sequence[str]
Prediction = Callable[..., tuple[Any, Any]]


def _nothing(_: Arguments) -> None:
    return None


def _unnamed(_: Arguments) -> str:
    return "a method of its own"


def _none(_: Arguments) -> int:
    return 0


def _epochs(arguments: Arguments) -> int | None:
    return whole(arguments, "--epochs")


class Kin(NamedTuple):
    """A script that belongs to a family.

    Attributes
    ----------
    why : str
        What it uses, for people to read.
    changes : mapping
        The fields of the profile that differ for this script, such as ``observe``.
    """

    why: str
    changes: Mapping[str, Any]


class Family(NamedTuple):
    """What related repositories have in common, whatever their scripts are called.

    Attributes
    ----------
    trains : str
        What a script that trains a student does, for people to read.
    kin : callable
        ``kin(root, syntax_tree) -> Kin | None``: whether a script of a repository does so. It is read, not executed.
    """

    trains: str
    kin: Callable[[Path, ast.Module], Kin | None]


def _unprepared(_: Running) -> None:
    return None


def _as_given(_: Any, checkpoint: Any, path: Any) -> Iterable[tuple[Any, Any]]:
    return ((checkpoint, path),)


def _as_returned(checkpoint: Any, path: Any) -> tuple[Any, Any]:
    return checkpoint, path


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
    """What KCD must know about a codebase.

    Attributes
    ----------
    name, title : str
    script : str
        The script that trains a student, relative to the repository's root. Only needed to find the script.
    marks : tuple of str
        Other files by which the repository is recognised, relative to its root.
    observe : str or tuple of str
        ``"module.function"``, or a method, ``"module:Class.method"``: called with the student's final prediction once
        for every training batch, and looked up in the module at call time, or imported from there by a script that is
        not running yet. Of several functions, the first that is called for a batch is recorded. The others are
        ignored, as is one that its module does not have. Empty if ``prepare`` records the predictions itself.
    method : callable
        ``method(arguments) -> str``: what the script's command line trains; for people to read.
    shims : tuple of str or callable
        Names in `kcd_adapters.hosts.shims` that current versions of torch and other libraries make necessary; or
        functions of your own, ``shim(say)``, called before the script runs. ``say(text)`` prints once what the shim
        does.
    prediction : callable, or dict of them
        ``prediction(*args, **kwargs) -> (logits [B, C], labels [B])``: which arguments of that function they are.
        Default: the first two, or those named ``input`` or ``output``, and ``target``. A call for which it does not
        return two such tensors, the logits with a gradient, is ignored. If several functions with different arguments
        are observed, give a dict with one for each name in ``observe``.
    returned : bool, or tuple of str
        Whether the prediction is in what that function returns, which ``prediction`` then gets first. If several
        functions are observed, the names of those for which it is.
    refuse : callable
        ``refuse(arguments) -> str | None``: why this command line can't run with KCD.
    targets : callable
        ``targets(batch) -> tensor [B]``: the labels of a batch as the loader yields it.
    fields : tuple, optional
        Which fields of a sample (places of a tuple, keys of a dict) are images that can be mixed. Default: the first.
        Ignored if the data set keeps raw images in ``.data``.
    condensed : callable
        ``condensed(dataset, kept) -> dataset``: a view of the data set to draw from while ``kept`` is in
        force. The data set itself is not written to.
    checkpoint : tuple of str
        The host's functions ``(save(state, path), load(path))``, if it resumes.
    saved, loaded : callable
        For functions with other arguments: ``saved(result, *args, **kwargs) -> [(state, path), ...]``, what a call of
        the first has saved, and ``loaded(result, *args, **kwargs) -> (state, path)``, what a call of the second has
        loaded.
    before : callable
        ``before(arguments) -> int``: for how many epochs something else is trained on the student's loader, with
        nothing observed, before the student is. The run stops after one more. Default: none.
    epochs : callable
        ``epochs(arguments) -> int | None``: how many epochs the student is trained; None if that is not known. Default:
        the script's ``--epochs``, where it is given.
    plans : bool
        Whether ``len(loader)``, read between two epochs, is the length of the next one. Default: it is that of the
        last one, for scripts that average over the epoch that they have done.
    paces : bool
        Whether ``prepare`` adapts a learning rate that is scheduled by the step to epochs that get shorter. Default: it
        does not, and kcd warns of such schedulers of torch's.
    teacher : Teacher, optional
        Where the teacher is. Without it, ``--ask`` is refused.
    family : Family, optional
        What identifies a script of another name, or in another repository, as one of this codebase. It replaces
        ``script``.
    covers : str
        Which parts of it were run, for people to read.
    prepare : callable
        ``prepare(running)``, called before the script runs: what else to watch. See `Running`.

    Raises
    ------
    ValueError
        If nothing is observed, a shim's name is not known, or ``prediction`` or ``returned`` name a function that is not
        observed.
    """

    name: str
    title: str
    script: str = ""
    marks: tuple[str, ...] = ()
    observe: str | tuple[str, ...] = ""
    method: Callable[[Arguments], str] = _unnamed
    shims: tuple[str | Callable[[Callable[[str], None]], None], ...] = ()
    prediction: Prediction | Mapping[str, Prediction] = _first_two
    refuse: Callable[[Arguments], str | None] = _nothing
    targets: Callable[[Any], Any] = _second
    fields: tuple[Any, ...] | None = None
    condensed: Callable[[Any, npt.NDArray[np.int64]], Any] = _whole
    checkpoint: tuple[str, str] | None = None
    returned: bool | tuple[str, ...] = False
    saved: Callable[..., Iterable[tuple[Any, Any]]] = _as_given
    loaded: Callable[..., tuple[Any, Any]] = _as_returned
    before: Callable[[Arguments], int] = _none
    epochs: Callable[[Arguments], int | None] = _epochs
    plans: bool = False
    paces: bool = False
    prepare: Callable[[Running], None] = _unprepared
    teacher: Teacher | None = None
    family: Family | None = None
    covers: str = ""

    def __post_init__(self) -> None:
        if not self.observe and self.prepare is _unprepared:
            raise ValueError(
                f"profile {self.name}: observe must name a function, as module.function, or prepare see to it"
            )
        for shim in self.shims:
            if not (callable(shim) or shim in SHIMS):
                raise ValueError(
                    f"profile {self.name}: there is no shim {shim!r}; there are {', '.join(SHIMS)}, or give a function, "
                    "shim(say)"
                )
        for field in ("prediction", "returned"):
            given = getattr(self, field)
            for name in given if isinstance(given, (Mapping, tuple)) else ():
                if name not in self.observes:
                    raise ValueError(
                        f"profile {self.name}: {field} names {name!r}, which is not observed; observed are "
                        f"{', '.join(self.observes)}"
                    )

    @property
    def observes(self) -> tuple[str, ...]:
        """All of ``observe``."""
        return (self.observe,) if isinstance(self.observe, str) else self.observe

    @property
    def observed_at(self) -> str:
        """The same, for people to read."""
        return " or ".join(self.observes) or "its output, once it is found"

    def why_not_ask(self, arguments: Arguments) -> str | None:
        """Why the teacher can't be asked for a part of the samples; None if it can."""
        if self.teacher is None:
            return (
                f"profile {self.name} does not say where the teacher is (`teacher`, docs/profiles.md); those of RepDistiller, "
                "mdistiller and timm do"
            )
        return self.teacher.refuse(arguments)

    def predicts(self, name: str) -> Prediction:
        """``prediction`` for one of ``observe``."""
        return (
            self.prediction.get(name, _first_two) if isinstance(self.prediction, Mapping) else self.prediction
        )

    def returns(self, name: str) -> bool:
        """``returned`` for one of ``observe``."""
        return name in self.returned if isinstance(self.returned, tuple) else self.returned

    def knows(self, root: Path) -> bool:
        """Whether ``root`` is a checkout of this codebase."""
        names = [name for name in (self.script, *self.marks) if name]
        return bool(names) and all((root / name).is_file() for name in names)


def option(arguments: Arguments, *names: str, default: str = "") -> str:
    """The last value that ``arguments`` give to an option, as ``--name value`` or ``--name=value``."""
    found = default
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in names:
            found = value if equals else next(iter(arguments[place + 1 : place + 2]), default)
    return found


@overload
def whole(arguments: Arguments, *names: str, default: int) -> int: ...
@overload
def whole(arguments: Arguments, *names: str, default: None = None) -> int | None: ...
def whole(arguments: Arguments, *names: str, default: int | None = None) -> int | None:
    """The same of a whole number; ``default`` where there is none (whatever else is given, the script refuses itself)."""
    given = option(arguments, *names)
    return int(given) if given.isdecimal() else default
