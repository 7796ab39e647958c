"""Small bridges between old repositories and current versions of what they import.

Each is named, acts only where it is needed, says so when it is first used, and can be left out with
``--no-shim NAME``. None changes what is computed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from .import_hooks import when_imported

__all__ = ["SHIMS", "install"]

Say = Callable[[str], None]


def install(shims: Iterable[str | Callable[[Say], None]], without: Sequence[str], say: Say) -> None:
    """Install these shims, by name or as they are, but those in ``without`` ("all" means all)."""
    for shim in shims:
        name, act = (shim, SHIMS[shim]) if isinstance(shim, str) else (shim.__name__, shim)
        if name not in without and "all" not in without:
            act(_once(name, say))


def _once(name: str, say: Say) -> Say:
    said: set[str] = set()

    def note(text: str) -> None:
        if text not in said:
            said.add(text)
            say(f"shim {name}: {text}")

    return note


def _usable(name: str) -> bool:
    """Whether a module can be imported. It is, where it exists: some exist and fail."""
    try:
        if importlib.util.find_spec(name) is None:
            return False
        importlib.import_module(name)
    except Exception:
        return False
    return True


class _Stub(ModuleType):
    """A module that is made of the attributes given, and tells when the first is used."""

    def __init__(self, name: str, note: Callable[[], None], **attributes: Any) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self._kcd = (note, attributes)

    def __getattr__(self, name: str) -> Any:
        note, attributes = self.__dict__["_kcd"]
        if name not in attributes:
            raise AttributeError(f"kcd's stand-in for {self.__name__} has no {name}")
        note()
        return attributes[name]


class _Logger:
    """Takes what ``tensorboard_logger.Logger`` takes, and writes it with torch's own writer if there is one."""

    def __init__(self, logdir: str, flush_secs: int = 2, **_: Any) -> None:
        self._writer: Any = None
        if _usable("tensorboard"):
            self._writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(
                logdir, flush_secs=flush_secs
            )

    def log_value(self, name: str, value: Any, step: int | None = None) -> None:
        if self._writer is not None:
            self._writer.add_scalar(name, value, step)


def tensorboard_logger(note: Say) -> None:
    """Last released in 2018; does not import with current protobuf."""
    if not _usable("tensorboard_logger"):
        sys.modules["tensorboard_logger"] = _Stub(
            "tensorboard_logger",
            lambda: note("it can't be imported; torch.utils.tensorboard takes its place, or nothing"),
            Logger=_Logger,
        )


class _Run:
    summary: dict[str, Any] = {}  # noqa: RUF012


def wandb(note: Say) -> None:
    """Where it is missing, mdistiller tries to switch it off in a configuration that is frozen."""
    if not _usable("wandb"):
        sys.modules["wandb"] = _Stub(
            "wandb",
            lambda: note("it can't be imported; nothing is sent to it"),
            init=lambda *args, **kwargs: None,
            log=lambda *args, **kwargs: None,
            run=_Run,
        )


def dali(note: Say) -> None:
    """SimKD imports its DALI loader always, and that raises where DALI is not installed."""
    if not _usable("nvidia.dali"):

        def missing(*args: Any, **kwargs: Any) -> None:
            raise ImportError("DALI is not installed")

        sys.modules["dataset.imagenet_dali"] = _Stub(
            "dataset.imagenet_dali",
            lambda: note("DALI is not installed; its loader is left out"),
            get_dali_data_loader=missing,
        )


def torch_six(note: Say) -> None:
    """``torch._six`` was removed in torch 1.13."""

    def action(torch: Any) -> None:
        if not hasattr(torch, "_six"):
            stub = _Stub(
                "torch._six",
                lambda: note("torch._six was removed; string_classes is (str,)"),
                string_classes=(str,),
                int_classes=(int,),
            )
            sys.modules["torch._six"] = torch._six = stub

    when_imported("torch", action)


def train_data(note: Say) -> None:
    """torchvision's CIFAR once had train_data, train_labels, test_data and test_labels."""

    def alias(old: str, new: str) -> property:
        def read(dataset: Any) -> Any:
            note("torchvision's CIFAR reads train_data and its like from data and targets")
            return getattr(dataset, new)

        def write(dataset: Any, value: Any) -> None:
            setattr(dataset, new, value)

        return property(read, write, doc=f"{new}, by the name {old} it had in torchvision 0.2")

    def action(module: ModuleType) -> None:
        for part in ("train", "test"):
            for old, new in (("data", "data"), ("labels", "targets")):
                if not hasattr(module.CIFAR10, f"{part}_{old}"):
                    setattr(module.CIFAR10, f"{part}_{old}", alias(f"{part}_{old}", new))

    when_imported("torchvision.datasets.cifar", action)


def alias_cuda(note: Say) -> None:
    """CRD moves its alias table to CUDA whether there is one or not."""

    def action(module: ModuleType) -> None:
        import torch

        original = module.AliasMethod.cuda

        def cuda(table: Any) -> None:
            if torch.cuda.is_available():
                original(table)
            else:
                note("there is no CUDA; the alias table stays in host memory")

        module.AliasMethod.cuda = cuda

    when_imported("crd.memory", action)


class _TolerantNumPy:
    """NumPy, as one module sees it: ``asarray`` takes a list of arrays whose lengths differ."""

    def __init__(self, note: Say) -> None:
        self._note = note

    def asarray(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return np.asarray(x, *args, **kwargs)
        except ValueError:
            if not (isinstance(x, list) and not args and not kwargs and all(np.ndim(y) == 1 for y in x)):
                raise
            self._note("classes differ in size; their lists make an array of arrays")
            arrays = np.empty(len(x), object)
            for place, array in enumerate(x):
                arrays[place] = array
            return arrays

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def _ragged(module: str) -> Callable[[Say], None]:
    def shim(note: Say) -> None:
        when_imported(module, lambda host: setattr(host, "np", _TolerantNumPy(note)))

    return shim


def output_folders(note: Say) -> None:
    """ReviewKD writes to logs/ and checkpoints/, and does not make them."""
    for folder in ("logs", "checkpoints"):
        if not os.path.isdir(folder):
            os.makedirs(folder)
            note(f"made {folder}/, which the script writes to")


def accuracy_view(note: Say) -> None:
    """``correct[:k].view(-1)`` in functions that compute an accuracy: the tensor is not contiguous since torch 1.7.

    Nowhere else is it bridged: what a view's caller makes of it may depend on its being one.
    """

    def action(torch: Any) -> None:
        original = torch.Tensor.view

        @functools.wraps(original)
        def view(tensor: Any, *args: Any, **named: Any) -> Any:
            try:
                return original(tensor, *args, **named)
            except RuntimeError as error:
                frame = inspect.currentframe()
                frame = frame and frame.f_back
                while frame and frame.f_code.co_name.startswith("<"):  # a list comprehension's own
                    frame = frame.f_back
                caller = frame.f_code.co_name if frame else ""
                if "view size is not compatible" not in str(error) or "accuracy" not in caller:
                    raise
                note(f"{caller}() takes a view of a tensor that is not contiguous; a copy takes its place")
                return tensor.reshape(*args, **named)

        torch.Tensor.view = view

    when_imported("torch", action)


SHIMS: dict[str, Callable[[Say], None]] = {
    "tensorboard_logger": tensorboard_logger,
    "train_data": train_data,
    "alias_cuda": alias_cuda,
    "ragged_lists": _ragged("dataset.cifar100"),
    "mdistiller_ragged_lists": _ragged("mdistiller.dataset.cifar100"),
    "torch_six": torch_six,
    "dali": dali,
    "wandb": wandb,
    "output_folders": output_folders,
    "accuracy_view": accuracy_view,
}
