"""What in a LightningModule's step is said of the student, and what is no student's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

__all__ = ["called_twice", "logits_of", "not_called", "returned", "submodule"]

RETURN = 'from training_step, {"loss": loss, "logits": logits}, and give KCDCallback outputs="logits"'


def submodule(module: Any, name: str) -> Any:
    """The LightningModule's submodule; ValueError if there is none of that name."""
    try:
        return module.get_submodule(name)
    except AttributeError:
        names = [child for child, _ in module.named_children()]
        raise ValueError(
            f"student={name!r} is no submodule of {type(module).__name__}, which has {names}"
        ) from None


def logits_of(output: Any, student: str | None) -> torch.Tensor:
    """What a student returned, if that says which are its logits."""
    if not isinstance(output, torch.Tensor):
        output = getattr(output, "logits", output)
    if not isinstance(output, torch.Tensor):
        raise TypeError(
            f"the student {student!r} returns a {type(output).__name__}, and not its logits: return them {RETURN}"
        )
    return output


def returned(outputs: Any, keys: Iterable[str]) -> Mapping[str, Any]:
    """What ``training_step`` returned; RuntimeError if that is no dict with these keys."""
    missing: set[str] = set()
    if not isinstance(outputs, Mapping) or (missing := set(keys) - outputs.keys()):
        told = sorted(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
        raise RuntimeError(
            f"training_step must return a dict with {sorted(missing or keys)}, as KCDCallback's outputs= says, got {told}"
        )
    return outputs


def called_twice(student: str | None) -> RuntimeError:
    """To be raised."""
    return RuntimeError(
        f"the student {student!r} was called twice in one training step, so that its output is not that of the batch for "
        f"certain (several views? activation checkpointing? LBFGS?): return the logits that count {RETURN}"
    )


def not_called(student: str | None) -> RuntimeError:
    """To be raised."""
    return RuntimeError(
        f"the student {student!r} was not called in training_step (is it one of its parts, or a method beside forward?): "
        'name what is called, or return the logits from training_step and give outputs="logits"'
    )
