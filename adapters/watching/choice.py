"""Which of the models that were seen is the student."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .gradients import Model
from .step import Step
from .tensors import Path, named

if TYPE_CHECKING:
    import torch

__all__ = ["Candidate", "candidates", "names_of", "rival"]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model that may be the student.

    Attributes
    ----------
    module : callable
        A weak reference to it.
    path : Path
        Where its prediction is in what it returns.
    shape : (int, int)
    calls : int
        In a step.
    trainer : str
        What steps its parameters; empty if nothing does.
    inner : bool
        Whether it is part of a module that returned no prediction.
    used : bool
        Whether the loss depends on its prediction.
    compared : bool
        Whether a loss was given its prediction beside the batch's labels.
    unclear : list of Path
        Which of its outputs may be the prediction as well, where no loss tells.
    reached : list of tensor
        The parameters that its prediction's gradient reaches, and its own.
    """

    module: weakref.ref[torch.nn.Module]
    name: str
    names: tuple[str, ...]
    path: Path
    shape: tuple[int, int]
    calls: int
    trainer: str
    inner: bool
    used: bool
    compared: bool
    unclear: list[Path]
    reached: list[torch.Tensor]

    def __str__(self) -> str:
        rows, classes = self.shape
        where = f" (its output {named(self.path)})" if self.path else ""
        return f"{self.name}{where}, {rows} x {classes}"

    def several(self) -> str:
        """What is unclear about it."""
        rows, classes = self.shape
        outputs = " and ".join(map(named, self.unclear))
        return (
            f"{self.name} returns several tensors of {rows} x {classes}, {outputs}, and no loss is given one of them as it "
            "is beside the labels"
        )


def candidates(steps: Iterable[Step], stepped: Mapping[int, str], dataset: object) -> list[Candidate]:
    """The models whose output [B, C] came before a backward pass, in the order of their last calls."""
    found: dict[int, Candidate] = {}
    for step in steps:
        widths = widths_of(step, dataset)
        for key, output in step.outputs.items():
            path = output.prediction(widths, step.batch.source if step.batch is not None else "")
            if path is None or not output.final:
                continue
            found.pop(key, None)
            own = [one for one in output.module.parameters() if one.requires_grad]
            names = names_of(output.module)
            rows, classes = output.tensors[path].shape
            found[key] = Candidate(
                weakref.ref(output.module),
                " of ".join(names),
                names,
                path,
                (rows, classes),
                output.calls,
                next((stepped[id(one)] for one in own if id(one) in stepped), ""),
                output.inner,
                output.used,
                step.compared(output, path),
                output.unclear(widths),
                [*output.reached, *own],
            )
    return list(found.values())


def rival(chosen: Candidate, others: Iterable[Candidate]) -> Candidate | None:
    """A candidate that may be the student as well as the chosen one.

    That is one which has nothing in common with it, or one that learns the labels as the chosen one does: an
    auxiliary head is then not to be told from the student.
    """
    model = Model(chosen.reached)
    for one in others:
        alike = chosen.compared and one.compared and one is not chosen
        if one.trainer and (alike or not model.shares(one.reached)):
            return one
    return None


def widths_of(step: Step, dataset: object) -> set[int]:
    """What C may be: that of what the batch's labels were compared with, else the data set's, else what they allow."""
    sighting = step.sightings.get(step.batch.source) if step.batch is not None else None
    if sighting is not None and sighting.width is not None:
        return {sighting.width}
    if step.widths:
        return step.widths
    classes = classes_of(dataset)
    if classes:
        return {classes}
    if step.batch is None:
        return set()
    least = int(step.batch.labels.max()) + 1
    seen = {one.shape[1] for output in step.outputs.values() for one in output.tensors.values()}
    return {width for width in seen if width >= least}


def classes_of(dataset: object) -> int:
    """How many classes a data set names; 0 where it names none."""
    for one in (dataset, getattr(dataset, "dataset", None)):
        classes = getattr(one, "classes", None)
        if isinstance(classes, (list, tuple)):
            return len(classes)
    return 0


def names_of(module: torch.nn.Module) -> tuple[str, ...]:
    """Its class's name, and those of the modules that it does no more than wrap (``DataParallel``, a compiled one)."""
    return tuple(type(one).__name__ for one in _unwrapped(module))


def _unwrapped(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    yield module
    children = list(module.children())
    if len(children) == 1 and type(module).__module__.startswith("torch."):
        yield from _unwrapped(children[0])
