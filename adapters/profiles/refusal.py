"""What to say of a script, or of a repository, that no profile is for: what is near, and what to type."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from .profile import Profile
from .recognition import Found, scripts_in
from .sources import imported, parsed

__all__ = ["listed", "no_profile", "no_repository", "not_the_script"]

#: Trainers that take KCD without a profile: (package, whether an import names a trainer, what to do).
TRAINERS = (
    ("trl", True, "kcd_adapters.trainers.trl.KCDTrainerMixin goes before the trainer's class"),
    (
        "sentence_transformers",
        True,
        "kcd_adapters.trainers.transformers.KCDTrainerMixin goes before the trainer's class",
    ),
    (
        "transformers",
        True,
        "kcd_adapters.trainers.transformers.KCDTrainerMixin goes before the trainer's class",
    ),
    ("lightning", False, "kcd_adapters.trainers.lightning.KCDCallback goes among the Trainer's callbacks"),
    (
        "pytorch_lightning",
        False,
        "kcd_adapters.trainers.lightning.KCDCallback goes among the Trainer's callbacks",
    ),
    (
        "accelerate",
        False,
        "kcd_adapters.trainers.accelerate.prepare takes the place of prepare for the loader",
    ),
)
PLUGIN = """\
it trains with torchdistill, which takes KCD as a plugin. Write into its YAML
    dependencies:
      - name: 'kcd_adapters.torchdistill'
  and name KCDDatasetWrapper, KCDBatchSampler and the kcd_ processes, as docs/adapters.md, section torchdistill, shows; then
  run the script with python"""


def not_the_script(script: Path, near: Profile, root: Path, command: str) -> str | None:
    """For a script in a repository that a profile knows, but that trains no student there; None if it is none such."""
    if not near.knows(root):
        return None
    try:
        parsed(script)
    except ValueError as error:
        return f"{script} can't be run: {error}"
    others = scripts_in(root, [near])
    trains = "" if near.family is None else f" In it, a script that trains one {near.family.trains}."
    title = others[0].profile.title if others else near.title
    these = f"There {'are' if len(others) > 1 else 'is'}{listed(others, command)}\n" if others else ""
    return (
        f"{script} is not known to train a student. The repository is known ({title}).{trains}\n{these}"
        f"If it trains one in a way of its own: {_typed(command, '--auto', script)}"
    )


def no_profile(script: Path, known: Sequence[Profile], command: str) -> str:
    """For a script in a repository that no profile knows."""
    try:
        modules = imported(parsed(script)) if script.is_file() else set()
    except ValueError as error:
        return f"{script} can't be run: {error}"
    text = f"no profile knows {script}, nor the repository around it."
    trainer = _trainer(modules)
    if trainer is not None:
        return f"{text}\nBut {trainer}."
    near = _nearest(script, modules, known)
    if near is not None:
        name, why = near
        text += f"\nThe nearest profile is {name}: {why}. If it is a fork: {_typed(command, f'--profile {name}', script)}"
    return (
        f"{text}\nWithout a profile: {_typed(command, '--auto', script)} finds the student while it trains. A profile of "
        "your own is one file (docs/profiles.md); a training loop of your own takes three lines with kcd_core.wrap_loader "
        "(README.md)"
    )


def no_repository(root: Path, known: Sequence[Profile]) -> str:
    """For a repository with no script that trains a student by any profile."""
    for profile in known:
        if profile.family is not None and profile.knows(root):
            return (
                f"{root} looks like {profile.title}, but no script in it, or in a folder of it, {profile.family.trains}. "
                f"Name yours: kcd patch --profile {profile.name} SCRIPT"
            )
        if (
            profile.family is None
            and profile.marks
            and all((root / mark).is_file() for mark in profile.marks)
        ):
            return f"{root} looks like {profile.title}, but has no {profile.script} to patch"
    return (
        f"no profile knows the repository {root}. Known are {', '.join(profile.title for profile in known)} (kcd profiles). "
        "A fork of one: kcd patch --profile NAME SCRIPT. Any other: kcd patch --auto SCRIPT. A profile of your own is one "
        "file (docs/profiles.md); a training loop of your own takes three lines with kcd_core.wrap_loader (README.md)"
    )


def listed(found: Iterable[Found], command: str) -> str:
    """What to type for each script, one a line, and what makes it one."""
    lines = [(_typed(command, "", os.path.relpath(one.root / one.script)), one.why) for one in found]
    width = max(len(line) for line, _ in lines)
    return "".join(f"\n    {line:{width}}   ({why})" for line, why in lines)


def _typed(command: str, option: str, script: Path | str) -> str:
    """A command line: what runs a script takes the script's own arguments, too."""
    rest = " ..." if command == "kcd run" else ""
    return " ".join(filter(None, (command, option, str(script)))) + rest


def _trainer(modules: set[str]) -> str | None:
    if _imports("torchdistill", modules):
        return PLUGIN
    for package, named, text in TRAINERS:
        names = [name for name in modules if name.startswith(f"{package}.")]
        if any("Trainer" in name for name in names) if named else _imports(package, modules):
            return f"it trains with {package}, and needs no profile: {text} (docs/trainers.md)"
    return None


def _imports(package: str, modules: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for name in modules)


def _nearest(script: Path, modules: set[str], known: Sequence[Profile]) -> tuple[str, str] | None:
    """The name of the profile, and why it is near, whose modules the script imports, or more than half of whose files are there."""
    imports = [(near, module) for near in known if (module := _common(near, modules))]
    if imports:  # of a family and a special case of it, the family
        near, module = min(imports, key=lambda one: len(one[0].marks))
        why = f"it imports {module}, but {near.marks[0]} is not near it"
    else:
        places = [(_share(near, root), near, root) for root in script.resolve().parents[:2] for near in known]
        share, near, root = max(places, key=lambda place: place[0])
        if share <= 0.5:
            return None
        here = [name for name in _files(near) if (root / name).is_file()]
        lacking = [name for name in _files(near) if name not in here]
        why = f"{', '.join(here)} are there, {', '.join(lacking)} not"
    return near.name, why


def _common(profile: Profile, modules: set[str]) -> str | None:
    """What a script imports of a family's own module, or of the package within a package that holds it."""
    if profile.family is None:
        return None
    module = profile.marks[0].removesuffix(".py").replace("/", ".")
    package = module.rpartition(".")[0]
    return module if module in modules else package if "." in package and package in modules else None


def _files(profile: Profile) -> list[str]:
    return [name for name in (profile.script, *profile.marks) if name]


def _share(profile: Profile, root: Path) -> float:
    names = _files(profile)
    here = sum((root / name).is_file() for name in names)
    return here / len(names) if here > 1 else 0
