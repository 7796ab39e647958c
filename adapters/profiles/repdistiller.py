"""RepDistiller (HobbitLong/RepDistiller), 14 methods on CIFAR-100, and the many repositories made of it.

What they have in common is ``helper/loops.py``, whose functions train and call its global ``accuracy``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..contrast import restrict
from .profile import Family, Kin, Profile, option, whole
from .sources import calls, globals_of, imported, literal_default, parsed, taken
from .teacher import Loss, Pair, Teacher

__all__ = ["FAMILY", "PROFILE", "epochs", "method"]

TEACHERS = {"train_vanilla"}  # trains a model by itself: a teacher


def method(arguments: Sequence[str], default: str = "kd") -> str:
    name = option(arguments, "--distill", default=default)
    return f"crd ({option(arguments, '--mode', default='exact')})" if name == "crd" else name


def before(arguments: Sequence[str], default: int = 30) -> int:
    """A connector, a paraphraser or the student's features are trained first."""
    first = option(arguments, "--distill") in ("abound", "factor", "fsp")
    return whole(arguments, "--init_epochs", default=default) if first else 0


def epochs(arguments: Sequence[str], default: int | None = 240) -> int | None:
    return whole(arguments, "--epochs", default=default)


def unaskable(arguments: Sequence[str], default: str = "kd", unlike: str | None = None) -> str | None:
    """Why the teacher's logits are not all that a method uses of it, or the loop is ``unlike`` the known one; else None."""
    name = method(arguments, default)
    return (
        unlike
        if name == "kd" or unlike
        else f"--distill {name} uses the teacher's features; only kd uses nothing but its logits"
    )


#: What a loop has that trains one student by one teacher, with the loss of RepDistiller's.
LOOP = (
    "def train_distill(epoch, train_loader, module_list, criterion_list, optimizer, opt)",
    "model_t = module_list[-1]",
    "loss_div = criterion_div(logit_s, logit_t)",
    "loss = opt.gamma * loss_cls + opt.alpha * loss_div + opt.beta * loss_kd",
)


def _unlike(where: str, function: ast.AST) -> str | None:
    """Why a loop hasn't RepDistiller's modules and loss, or calls the teacher not in one place; None if it is like that."""
    text = ast.unparse(function)
    lacking = next((line for line in LOOP if line not in text), None)
    if lacking is not None:
        return f"{where} lacks the line `{lacking}`, which RepDistiller's has, so it is not known where its teacher is"
    called = text.count("model_t(")
    return None if called == 1 else f"{where} calls model_t in {called} places, and RepDistiller's in one"


def _unknown(_: Sequence[str]) -> str:
    return "the script uses no function of helper/loops.py that trains a student, so it is not known where the teacher is"


def _pair(epoch: Any, loader: Any, modules: Any, criteria: Any, optimizer: Any, opt: Any) -> Pair:
    return Pair(modules[0], modules[-1], Loss(opt.gamma, opt.alpha, criteria[1].T))


def kin(root: Path, script: ast.Module) -> Kin | None:
    """A script that uses a function of ``helper/loops.py``, or of loops beside it, that trains and calls ``accuracy``."""
    modules = sorted(
        {name for name in imported(script) if name.startswith("helper.") and name.count(".") == 1},
        key=lambda name: (name != "helper.loops", name),
    )
    for module in modules:
        path = root / f"{module.replace('.', '/')}.py"
        if not path.is_file():
            continue
        defined = globals_of(parsed(path))
        if "accuracy" not in defined:
            continue
        trains = {
            name
            for name, node in defined.items()
            if isinstance(node, ast.FunctionDef) and calls(node, "accuracy") and calls(node, "backward")
        }
        used = sorted(taken(script, module, trains - TEACHERS))
        if used:
            default = partial(_default, [script, *_beside(root, script)])
            changes: dict[str, Any] = {
                "observe": f"{module}.accuracy",
                "method": partial(method, default=default("--distill", "its only method")),
                "before": partial(before, default=default("--init_epochs", 0)),
                "epochs": partial(epochs, default=default("--epochs", None)),
            }
            unlike = (_unlike(f"{path.relative_to(root).as_posix()}:{name}", defined[name]) for name in used)
            refuse = partial(
                unaskable,
                default=default("--distill", "its only method"),
                unlike=next(filter(None, unlike), None),
            )
            changes["teacher"] = Teacher(f"{module}.{used[0]}", _pair, refuse, logits=(1,))
            if any(_judges_heads(defined[name]) for name in used):
                changes["prediction"] = _last
            if taken(script, module, {"update_dataset_strategy"}):
                changes["refuse"] = _authors_own
            return Kin(f"uses {' and '.join(used)} of {module}", changes)
    return None


def _beside(root: Path, script: ast.Module) -> Iterator[ast.Module]:
    """The modules beside a script that it imports: its options may be in one."""
    for name in sorted(imported(script)):
        path = root / f"{name}.py"
        if path.is_file():
            yield parsed(path)


def _default(parsers: Sequence[ast.Module], option: str, otherwise: Any) -> Any:
    """An option's default, by whichever of these declares it."""
    found = (literal_default(tree, option) for tree in parsers)
    return next((default for default in found if isinstance(default, str | int)), otherwise)


def _judges_heads(function: ast.AST) -> bool:
    """Whether ``accuracy`` is called for auxiliary heads, too: for those it is told no ``topk``."""
    called = [
        n for n in ast.walk(function) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "accuracy"
    ]
    return len({any(keyword.arg == "topk" for keyword in call.keywords) for call in called}) == 2


def _last(output: Any, target: Any, **named: Any) -> tuple[Any, Any]:
    return (output, target) if "topk" in named else (None, None)


def _authors_own(_: Sequence[str]) -> str:
    return "this is the code of KCD's authors, which condenses by itself: run it without kcd"


FAMILY = Family("uses a function of helper/loops.py that trains a student and calls accuracy", kin)

PROFILE = Profile(
    name="repdistiller",
    title="RepDistiller",
    covers="its 14 methods, and its descendants: ITRD, NORM, CA-MKD, AE-KD, CTKD, PEFD, Good-DA-in-KD, SRD and others",
    marks=("helper/loops.py",),
    family=FAMILY,
    observe="helper.loops.accuracy",
    method=method,
    shims=("tensorboard_logger", "train_data", "alias_cuda", "ragged_lists", "accuracy_view"),
    condensed=restrict,
    teacher=Teacher("helper.loops.train_distill", _pair, _unknown),
    before=before,
    epochs=epochs,
)
