"""Teachers and students: built-in ones, torchvision's, and the user's own."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kcd_adapters.demo.models import ResNet, build


class Unusable(ValueError):  # noqa: N818
    """A model that was asked for can't be measured, and why."""


@dataclass(frozen=True)
class Pair:
    """A teacher and a student, and what they are given.

    Attributes
    ----------
    teacher, student : callable
        Each call makes a new model.
    batch : int
    shape : tuple of int
        Of one sample.
    classes : int
        Logits per sample.
    short : bool
        A step takes milliseconds, so that ten times as many can be measured.
    """

    name: str
    teacher: Callable[[], nn.Module]
    student: Callable[[], nn.Module]
    batch: int = 64
    shape: tuple[int, ...] = (3, 32, 32)
    classes: int = 100
    short: bool = False


# The published pair, and two whose steps are short.
PAIRS = {
    pair.name: pair
    for pair in (
        Pair("resnet32x4-resnet8x4", lambda: ResNet(5, 64, 100), lambda: ResNet(1, 64, 100)),
        Pair("small", lambda: ResNet(2, 16, 100), lambda: ResNet(1, 8, 100), shape=(3, 12, 12), short=True),
        Pair("tiny", lambda: ResNet(2, 8, 100), lambda: ResNet(1, 4, 100), shape=(3, 8, 8), short=True),
    )
}


def maker(option: str, given: str, classes: int) -> Callable[[], nn.Module]:
    """What makes the model that ``--teacher`` or ``--student`` names: ``module:function``, or a torchvision model.

    Raises
    ------
    Unusable
        If there is none of that name.
    """
    if ":" in given:
        function = _own(option, given)
        return lambda: _called(option, given, function, classes)
    try:
        models = importlib.import_module("torchvision.models")
    except ImportError:
        raise Unusable(
            f"{option} {given}: a name without a colon is a torchvision model, and torchvision is not installed; "
            "your own is given as module:function"
        ) from None
    if given not in models.list_models(module=models):
        raise Unusable(
            f"{option}: {given} is no classifier of torchvision; your own is given as module:function"
        )
    return lambda: models.get_model(given, num_classes=classes)


def _own(option: str, given: str) -> Callable[..., Any]:
    module_name, _, path = given.partition(":")
    accepted = f"{option} takes module:function, a function that returns an nn.Module"
    if not module_name or not path:
        raise Unusable(f"{accepted}; got {given}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise Unusable(
            f"{accepted}; got {given}, and importing {module_name} (from {os.getcwd()} or what is installed) raised "
            f"{type(error).__name__}: {error}"
        ) from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise Unusable(f"{accepted}; got {given}, and {module_name} has no {path}")
        found = getattr(found, name)
    if not callable(found):
        raise Unusable(f"{accepted}; got {given}, which is {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def _called(option: str, given: str, function: Callable[..., Any], classes: int) -> nn.Module:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # not every class or function in C has one
        parameters = ()  # type: ignore[assignment]
    takes = any(p.name == "num_classes" or p.kind is p.VAR_KEYWORD for p in parameters)
    try:
        model = function(**({"num_classes": classes} if takes else {}))
    except Exception as error:
        call = f"{given}({f'num_classes={classes}' if takes else ''})"
        raise Unusable(
            f"{option} takes a function that can be called without arguments, or with num_classes alone; "
            f"{call} raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise Unusable(
            f"{option} takes a function that returns an nn.Module; {given} returned {type(model).__name__}"
        )
    return model


def check(pair: Pair, device: torch.device, amp: torch.dtype | None) -> None:
    """Ask both models for the logits of one batch.

    Raises
    ------
    Unusable
        If that fails, or they are no logits, or the student has nothing to train.
    """
    images = torch.randn(pair.batch, *pair.shape).to(device)
    for option, make in (("--teacher", pair.teacher), ("--student", pair.student)):
        model = build(lambda _, make=make: make(), pair.classes, 0).to(device)
        if option == "--student" and not any(p.requires_grad for p in model.parameters()):
            raise Unusable("--student takes a model with parameters to train; this one has none")
        try:
            with torch.no_grad(), autocast(device, amp):
                logits = model.train(option == "--student")(images)
        except Exception as error:
            raise Unusable(
                f"{option} takes a model for a batch of shape {list(images.shape)} (--batch-size and --input); "
                f"on one it raised {type(error).__name__}: {error}"
            ) from error
        wanted, got = [pair.batch, pair.classes], getattr(logits, "shape", None)
        if got is None or list(got) != wanted:
            returned = type(logits).__name__ if got is None else f"a tensor of shape {list(got)}"
            raise Unusable(
                f"{option} takes a model that returns logits, a tensor of shape {wanted} (--batch-size and "
                f"--classes); it returned {returned}"
            )


def autocast(device: torch.device, amp: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if amp is None else torch.autocast(device.type, dtype=amp)
