"""mdistiller (megvii-research/mdistiller), fourteen kinds of distillers behind one trainer, and the many forks of it.

What they have in common is ``mdistiller/engine/trainer.py``: its ``accuracy`` gets the prediction that DataParallel
gathered, in the order of the batch. Their scripts have many names.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..contrast import restrict
from .profile import Family, Kin, Profile, option, whole
from .sources import calls, globals_of, imported, parsed, switches, taken
from .teacher import Loss, Pair, Teacher
from .yaml_file import read_yaml

__all__ = ["PROFILE"]

ENGINE = "mdistiller.engine"
LOGITS = (
    "KD",
    "DKD",
)  # distillers whose losses use the teacher's logits, sample by sample, and nothing else of it
CHECKPOINT = ("save_checkpoint", "load_checkpoint")


def method(arguments: Sequence[str], variants: Collection[str] = ()) -> str:
    """The distiller, its configuration, and the switches by which forks tell their variants apart."""
    config = Path(option(arguments, "--cfg", default="?"))
    folders = config.with_suffix("").parts
    known = folders.index("configs") + 1 if "configs" in folders[:-1] else max(0, len(folders) - 2)
    name = "/".join(folders[known:])
    kind = kind_of(arguments)
    given = [argument for argument in arguments if argument in variants]
    return " ".join([f"{kind} ({name})" if kind else name, *given])


def unaskable(arguments: Sequence[str]) -> str | None:
    """Why the teacher's logits are not all that a distiller uses of it; None if they are."""
    kind = kind_of(arguments)
    known = " and ".join(LOGITS)
    return (
        None
        if kind in LOGITS
        else f"of the distillers, {known} use nothing but its logits; this is {kind or 'not known'}"
    )


def _pair(distiller: Any, *_: Any, **__: Any) -> Pair:
    """Of DKD, whose divergence is another, no temperature is told: its labels have weight 1."""
    labels, kind = distiller.ce_loss_weight, type(distiller).__name__
    weighs = (distiller.kd_loss_weight, distiller.temperature) if kind == "KD" else (distiller.alpha, None)
    return Pair(distiller.student, distiller.teacher, Loss(labels, *weighs))


def kind_of(arguments: Sequence[str]) -> str:
    """The distiller: that of the YAML file, or what the command line has in its place."""
    distiller = read_yaml(option(arguments, "--cfg", default="?")).get("DISTILLER")
    given = str(distiller.get("TYPE", "")) if isinstance(distiller, dict) else ""
    return option(arguments, "DISTILLER.TYPE", default=given)


def kin(root: Path, script: ast.Module) -> Kin | None:
    """A script that uses a trainer of the engine, by whatever name it is exported, whose module calls ``accuracy``."""
    if not any(name.startswith(ENGINE) for name in imported(script)):
        return None
    folder = root / ENGINE.replace(".", "/")
    init = folder / "__init__.py"
    exports = globals_of(parsed(init)) if init.is_file() else {}
    for path in sorted(folder.glob("*.py"), key=lambda path: (path.stem != "trainer", path.stem)):
        if path == init:
            continue
        defined = globals_of(parsed(path))
        classes = {name for name, node in defined.items() if isinstance(node, ast.ClassDef)}
        if "accuracy" not in defined or not any(
            calls(defined[name], "accuracy") and calls(defined[name], "backward") for name in classes
        ):
            continue
        module = f"{ENGINE}.{path.stem}"
        used = taken(script, module, classes) | taken(script, ENGINE, _exported(exports, path.stem, classes))
        if used:
            checkpoint = tuple(f"{module}.{name}" for name in CHECKPOINT)
            resumes = defined.keys() >= {*CHECKPOINT}
            return Kin(
                f"uses {' and '.join(sorted(used))} of {ENGINE}",
                {
                    "observe": f"{module}.accuracy",
                    "method": partial(method, variants=switches(script) - {"--resume"}),
                    "checkpoint": checkpoint if resumes else None,
                },
            )
    return None


def _exported(exports: dict[str, ast.stmt], module: str, classes: set[str]) -> set[str]:
    """The names by which a package exports a module's classes, one by one or in a dictionary."""
    direct = set()
    for node in exports.values():
        if isinstance(node, ast.ImportFrom) and node.module in (module, f"{ENGINE}.{module}"):
            names = {alias.asname or alias.name for alias in node.names if alias.name in classes}
            direct |= classes if any(alias.name == "*" for alias in node.names) else names
    made = {
        name
        for name, node in exports.items()
        if isinstance(node, ast.Assign) and direct & {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    }
    return direct | made


def epochs(arguments: Sequence[str]) -> int | None:
    """Of the YAML file, or of what the command line has in its place."""
    solver = read_yaml(option(arguments, "--cfg")).get("SOLVER")
    given = solver.get("EPOCHS") if isinstance(solver, dict) else None
    return whole(arguments, "SOLVER.EPOCHS", default=given if type(given) is int else None)


PROFILE = Profile(
    name="mdistiller",
    title="mdistiller",
    covers="all its distillers, and its forks with others: MLLD, CAT-KD, RLD, DeepKD, CRLD, WKD, GDKD, SDD and others",
    marks=("mdistiller/engine/trainer.py",),
    family=Family("uses a trainer of mdistiller.engine", kin),
    observe=f"{ENGINE}.trainer.accuracy",
    method=method,
    shims=("wandb", "mdistiller_ragged_lists", "accuracy_view"),
    condensed=restrict,
    teacher=Teacher("mdistiller.distillers._base:Distiller.forward", _pair, unaskable, logits=(0,)),
    epochs=epochs,
    checkpoint=(f"{ENGINE}.trainer.save_checkpoint", f"{ENGINE}.trainer.load_checkpoint"),
)
