"""One step of a training loop: what models returned for a batch, and which labels were seen."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .tensors import Path, labels_first

if TYPE_CHECKING:
    import torch

    from ..running import Batch

__all__ = ["Output", "Sighting", "Step"]

MOST_SIGHTINGS = 16  # of labels in a step; a host that is between two batches may go on for long
MOST_CALLS = 16  # of a model in a step, likewise


@dataclass(eq=False)
class Output:
    """What a model returned in a step, as a rule last: copies, so that no graph is kept, and nobody writes to them.

    Attributes
    ----------
    tensors : dict of Path to tensor
        Those that may be the prediction: [R, C], with a gradient.
    given : dict of Path to set of str
        Which of them losses were given as they are, beside labels from which sources.
    nodes : list
        Where they are in the graph of the step, if that was asked for.
    reached : list of tensor
        The parameters that its gradient reaches, likewise.
    calls : int
        How often it was called in the step.
    final : bool
        Whether a backward pass came after it: later outputs in the step do not count.
    earlier : list of Output
        What it returned before in the step, until it is known which of them is for the batch.
    inner : bool
        Whether it is part of a module that returned no prediction: a loss, say.
    used : bool
        Whether that was of a loss that depends on it, as far as ``nodes`` tell.
    """

    module: torch.nn.Module
    training: bool
    tensors: dict[Path, torch.Tensor]
    originals: dict[Path, weakref.ref[torch.Tensor]]
    nodes: list[Any] = field(default_factory=list)
    reached: list[torch.Tensor] = field(default_factory=list)
    calls: int = 1
    given: dict[Path, set[str]] = field(default_factory=dict)
    final: bool = False
    used: bool = False
    inner: bool = False
    earlier: list[Output] = field(default_factory=list)

    def forget(self) -> None:
        """Let go of the graph, and of what does not count."""
        self.nodes.clear()
        self.earlier.clear()

    def prediction(self, widths: set[int], source: str) -> Path | None:
        """Which one is the prediction, of those of these ``widths``.

        What a loss was given beside the batch's labels, which are those of ``source``; or else beside any; or else the last.
        """
        fit = self._fit(widths)
        given = [path for path in fit if path in self.given]
        beside = [path for path in given if source in self.given[path]]
        return next(iter((beside or given or fit)[::-1]), None)

    def unclear(self, widths: set[int]) -> list[Path]:
        """Those of these ``widths`` where there are several, and a loss was given none of them as it is."""
        fit = self._fit(widths)
        return [] if len(fit) == 1 or any(path in self.given for path in fit) else fit

    def _fit(self, widths: set[int]) -> list[Path]:
        return [path for path, one in self.tensors.items() if one.shape[1] in widths]


@dataclass(frozen=True, eq=False)
class Sighting:
    """Labels [R] that a function or a module was given, and beside what.

    ``beside`` is the tensor that they were compared with, if there was one, and ``width`` its C where it is [R, C].
    """

    labels: torch.Tensor
    beside: weakref.ref[torch.Tensor] | None = None
    width: int | None = None
    module: weakref.ref[torch.nn.Module] | None = None

    def beside_same(self, other: Sighting) -> bool:
        """Whether it was beside the same tensor as another, or both beside none."""
        if self.beside is None or other.beside is None:
            return self.beside is other.beside
        return self.beside() is other.beside() is not None


@dataclass(eq=False)
class Step:
    """What was seen since the loader was asked for a batch.

    Attributes
    ----------
    outputs : dict of int to Output
        By the module's id, in the order of their last calls.
    functions, arguments : dict of str to Sighting
        Labels that functions and modules were given, by source.
    widths : set of int
        C of all that cross-entropy was given.
    batch : Batch or None
        The one it is of, once that is known.
    views : (int, str) or None
        How many rows there are for each sample, if several, and whether they are "tiled" or "interleaved".
    """

    outputs: dict[int, Output] = field(default_factory=dict)
    functions: dict[str, Sighting] = field(default_factory=dict)
    arguments: dict[str, Sighting] = field(default_factory=dict)
    widths: set[int] = field(default_factory=set)
    batch: Batch | None = None
    views: tuple[int, str] | None = None

    @property
    def sightings(self) -> dict[str, Sighting]:
        """All labels that were seen, those of functions first."""
        return {**self.functions, **labels_first(self.arguments)}

    def returned(self, module: torch.nn.Module, found: dict[Path, torch.Tensor]) -> Output | None:
        """A module returned what may be predictions. None if it is not the first since a backward pass."""
        before = self.outputs.get(id(module))
        if self._is_later(module, before):
            return None
        if before is not None and before.training != module.training:
            self._forget()  # a validation came before, or this is one
            before = None
        self.outputs.pop(id(module), None)
        output = self.outputs[id(module)] = Output(
            module,
            module.training,
            {path: one.detach().clone() for path, one in found.items()},
            {path: weakref.ref(one) for path, one in found.items()},
            calls=1 if before is None else before.calls + 1,
        )
        if before is not None:
            output.earlier, before.earlier = [*before.earlier, before][1 - MOST_CALLS :], []
        return output

    def settle(self) -> None:
        """Of a model's calls, the last that a loss was given beside the batch's labels counts; else the last of all.

        The others may have been for other samples, as the unlabelled ones of another loader.
        """
        if self.batch is None:
            return
        for key, output in self.outputs.items():
            calls, output.earlier = [*output.earlier, output], []
            beside = [one for one in calls if any(self.compared(one, path) for path in one.given)]
            counts = (beside or calls)[-1]
            counts.calls, counts.final, counts.inner = output.calls, output.final, output.inner
            self.outputs[key] = counts

    def compared(self, output: Output, path: Path) -> bool:
        """Whether a loss was given this tensor of an output beside the batch's labels."""
        if self.batch is None:
            return False
        labels = self.sightings[self.batch.source].labels
        return any(
            self.sightings[one].labels is labels
            for one in output.given.get(path, ())
            if one in self.sightings
        )

    def over(self, module: torch.nn.Module) -> bool:
        """Whether its batch is found, and a call of this module begins something else."""
        return self.batch is not None and self._is_later(module, self.outputs.get(id(module)))

    def _is_later(self, module: torch.nn.Module, before: Output | None) -> bool:
        """Whether a call comes after the one that counts; it does not after an attack on a model in evaluation mode."""
        return before is not None and before.final and (before.training or not module.training)

    def _forget(self) -> None:
        if self.batch is None:
            for one in (self.outputs, self.functions, self.arguments, self.widths):
                one.clear()

    def lost(self, logits: torch.Tensor, source: str) -> None:
        """A loss was given these [R, C], beside labels that were seen at ``source``, or others ("")."""
        for output in self.outputs.values():
            for one in (*output.earlier, output):
                for path, ref in one.originals.items():
                    if ref() is logits:
                        one.given.setdefault(path, set()).add(source)

    def called(self, function: str, sighting: Sighting) -> tuple[str, list[torch.Tensor]]:
        """A function was given labels: the name of the source, and what other labels it was given beside the same before."""
        source, others = function, []
        for place in range(2, MOST_SIGHTINGS):
            before = self.functions.get(source)
            if before is None:
                self.functions[source] = sighting
                break
            if before.beside_same(sighting) and before.labels is not sighting.labels:
                others.append(before.labels)
            source = f"{function} {place}"
        return source, others
