"""The automatic mode: which model is the student, and what it predicts for every batch, seen from outside.

The student's prediction is the last output [B, C] with a gradient that an outermost module returned before
``backward()``, of a model whose parameters an optimizer steps. So it is found in any loop, whatever its losses are; it
may be that of a projector behind the student (SimKD), or of a whole distiller. In the first batches of each pass all
models are watched, and what they returned is kept until an optimizer has stepped; from then on the student alone.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from .calls import Calls
from .choice import Candidate, candidates, rival
from .gradients import Model, depends, parameters
from .mixtures import REFUSED, of_two, permuted
from .step import Sighting, Step
from .tensors import Path, is_labels, named, tensors
from .views import MOST, Views, layout, one_view

if TYPE_CHECKING:
    import torch

    from ..running import Running

__all__ = ["Watcher"]

MOST_HELD = 64  # steps that wait until an optimizer steps
TRIES = 16  # steps of a pass in which the student is looked for
SETTLED = 3  # batches after which it is known where their labels are seen
UNSEEN = (
    "neither cross_entropy nor nll_loss nor a module was given whole numbers [B] (are they soft, or mixed?)"
)
WAY = "Let a profile of ten lines say where the two are (docs/profiles.md), or run without KCD"


class Watcher:
    """Watches a loop for a run, which is given what the student predicted."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._wanted = running.settings.student or ""
        self._calls = Calls(self)
        self._step = Step()
        self._held: deque[Step] = deque(maxlen=MOST_HELD)
        self._seeking, self._narrow = False, True
        self._stepped: dict[
            int, str
        ] = {}  # parameters by id, and what stepped them; in this pass, while seeking
        self._chosen: Candidate | None = None  # of this pass
        self._inner: list[
            tuple[torch.nn.Module, dict[Path, torch.Tensor]]
        ] = []  # what parts of a module returned
        self._student: Model | None = None
        self._said = self._said_of_others = ""
        self._models: list[tuple[Model, str]] = []  # that were trained, and their classes, the first first
        self._recorded = self._unlabelled = 0  # batches
        self._tries = 0
        self._asked = False  # for a batch, since one was found
        self._views: Views | None = None
        self._labels: Any = _nothing  # by which the last batch was found: a weak reference
        self._source: Any = None  # the module that is given the labels, if no function is: a weak reference
        running.when_imported("torch", self._calls.install)
        running.before_batch(self.before_batch)

    # -- what the loop does ------------------------------------------------------------------------

    def returned(self, module: torch.nn.Module, given: tuple[Any, Any], output: Any, *, inner: bool) -> None:
        """A module returned: an outermost one, or one within it, which counts where that returns a loss alone."""
        chosen = self._chosen
        mine = chosen is not None and chosen.module() is module
        learned = {path: one for path, one in tensors(output) if one.requires_grad}
        found = {path: one for path, one in learned.items() if one.ndim == 2 and one.is_floating_point()}
        if inner and self._seeking:
            if found:
                self._inner.append((module, found))
            return
        parts, self._inner = self._inner, []
        if inner and not mine:
            return
        if learned and not inner and (not self._narrow or self._source is not None):
            self._see_arguments(module, given)
        if not self._seeking:
            found = {path: one for path, one in found.items() if mine and chosen and path == chosen.path}
        if found:
            self._take_note(module, found, inner=inner)
        elif learned and self._seeking:
            for part, its in parts:
                self._take_note(part, its, inner=True)

    def _take_note(self, module: torch.nn.Module, found: dict[Path, torch.Tensor], *, inner: bool) -> None:
        if not any(one.requires_grad for one in module.parameters()):
            return
        if self._step.over(module):  # a batch that was drawn before (a prefetcher's), or this one again
            self._close()
        seen = self._step.returned(module, found)
        if seen is not None and not self._narrow:
            seen.nodes, seen.inner = [one.grad_fn for one in found.values()], inner
            if self._seeking:
                seen.reached = parameters(list(found.values()))

    def lost(self, function: str, given: Any, labels: Any) -> None:
        """A loss was given labels, beside what it compares them with."""
        if not getattr(given, "requires_grad", False):
            return
        logits = given if given.ndim == 2 else None
        source = ""
        if not hasattr(labels, "shape"):
            return  # the function says itself what is wrong
        if is_labels(labels):
            beside = weakref.ref(given)
            width = None if logits is None else logits.shape[1]
            source, others = self._step.called(function, Sighting(labels, beside, width))
            if any(permuted(labels, other) for other in others):
                raise RuntimeError(f"{function} is given two orders of the batch's labels: {REFUSED}")
        elif not self._narrow and logits is not None and labels.shape == logits.shape and of_two(labels):
            raise RuntimeError(f"{function} is given labels of two classes each: {REFUSED}")
        if logits is not None:
            self._step.widths.add(logits.shape[1])
            self._step.lost(logits, source)

    def backward(self, roots: list[torch.Tensor]) -> None:
        """The gradient is about to be computed."""
        step = self._step
        if not step.outputs:
            return
        for output in step.outputs.values():
            output.final = True
            for one in (*output.earlier, output):
                one.used = one.used or (bool(one.nodes) and depends(roots, one.nodes))
        if step.batch is None:
            self._find(step)
            step.settle()

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer is about to step."""
        if self._seeking:
            name = type(optimizer).__name__
            self._stepped.update(
                (id(one), name) for group in optimizer.param_groups for one in group["params"]
            )

    def before_batch(self, first: bool) -> None:
        """The step is over, as far as the loader can tell."""
        self._close()
        if self._seeking and self._stepped:
            self._decide()
        while self._held and not self._seeking:
            self._record(self._held.popleft())
        if first:
            self._held.clear()
            self._stepped.clear()
            self._seeking, self._chosen, self._tries = True, None, 0
        self._asked = True
        self._watch()

    def _close(self) -> None:
        for output in self._step.outputs.values():
            output.forget()
        if self._step.outputs:
            self._held.append(self._step)
        self._step = Step()
        self._inner.clear()

    def _watch(self) -> None:
        """Watch the student alone, and what is given the labels, once it is known where they are seen."""
        narrow = not self._seeking and (self._chosen is None or self._recorded >= SETTLED)
        if narrow == self._narrow:
            return
        self._narrow = narrow
        modules = [self._chosen and self._chosen.module(), self._source and self._source()]
        self._calls.watch([one for one in modules if one is not None] if narrow else None)

    # -- labels, and the batch they are of ---------------------------------------------------------

    def _see_arguments(self, module: torch.nn.Module, given: tuple[Any, Any]) -> None:
        args, kwargs = given
        arguments = list(tensors((*args, kwargs)))
        for path, one in arguments:
            if not is_labels(one):
                continue
            keyword = path[1:] if path[0] == len(args) else path
            source = f"{type(module).__name__}.{named(keyword)}"
            if source in self._step.arguments:
                continue
            self._step.arguments[source] = Sighting(one, module=weakref.ref(module))
            for _, other in arguments:
                if other.ndim == 2 and other.requires_grad:
                    self._step.lost(other, source)

    def _find(self, step: Step) -> None:
        """Find the batch that a step is of, by the labels that were seen."""
        seen: dict[str, torch.Tensor] = {}
        views: dict[str, Views] = {}
        for source, sighting in step.sightings.items():
            labels = sighting.labels
            if self._asked or labels is not self._labels():  # else those of the batch before, again
                self._add(source, labels, seen, views)
        if step.sightings and not self._asked and not seen:
            self._step = Step()  # the batch before again
            return
        batch = self._running.find(seen) if seen else None
        if batch is None:
            return
        found = step.sightings[batch.source]
        step.batch, step.views = batch, views.get(batch.source)
        self._views = step.views or self._views
        self._labels, self._source, self._asked = weakref.ref(found.labels), found.module, False

    def _add(
        self, source: str, labels: torch.Tensor, seen: dict[str, torch.Tensor], views: dict[str, Views]
    ) -> None:
        rows = len(labels)
        if self._running.waits(rows):
            seen[source] = labels
            return
        for number in range(2, MOST + 1):
            if rows % number == 0 and self._running.waits(rows // number):
                known = self._views if self._views and self._views[0] == number else layout(labels, number)
                if known is not None:
                    seen[source], views[source] = one_view(labels, known), known
                    return

    # -- the student -------------------------------------------------------------------------------

    def _decide(self) -> None:
        """Choose the student among the models that were trained in the steps that are held."""
        found = candidates(self._held, self._stepped, self._running.dataset())
        trained = [one for one in found if one.trainer]
        trained = [one for one in trained if not one.inner] or trained
        trained = [one for one in trained if one.used] or trained
        for one in trained:
            if not self._number(one):
                self._models.append((Model(one.reached), one.names[-1]))
        wanted = [one for one in trained if self._is_wanted(one)]
        if not wanted:
            self._pass_over(found, trained)
            return
        chosen = wanted[-1]
        other = rival(chosen, wanted)
        if other is not None:
            both = (other, chosen)
            if self._number(other) == self._number(chosen):  # they share parameters: an auxiliary head
                ways = [f"--student {one.names[-1]}" for one in both]
            else:
                ways = [self._named(one) for one in both]
            raise RuntimeError(
                f"two models are trained at once, {other} and {chosen}: say which one is the student, with {' or '.join(ways)}"
            )
        if chosen.unclear:
            raise RuntimeError(f"{chosen.several()}, so it is not known which is the prediction. {WAY}")
        self._take(chosen, found)

    def _pass_over(self, found: list[Candidate], trained: list[Candidate]) -> None:
        """None of these is the student; another may be stepped later, where gradients are accumulated."""
        self._tries += 1
        self._seeking = self._tries < TRIES
        for one in found:
            why = f"it is not {self._wanted}" if one.trainer else "no optimizer steps it"
            self._running.pass_over(one.name, f"{one} was passed over: {why}")
        if self._held and not any(step.sightings for step in self._held):
            self._running.pass_over("labels", f"no labels were seen: {UNSEEN}")
        if trained:
            self._running.excuse()
            text = (
                f"{trained[-1].name} is trained, which is not the --student {self._wanted}: on all the data, and not counted. "
                f"If it is the student, stop here, and give {self._named(trained[-1])}"
            )
            if text != self._said_of_others:
                self._running.say(text)
            self._said_of_others = text

    def _number(self, one: Candidate) -> int:
        """Its place among the models that were trained, from 1; 0 if it is none of them."""
        for number, (model, _) in enumerate(self._models, 1):
            if model.shares(one.reached):
                return number
        return 0

    def _named(self, one: Candidate) -> str:
        """The option that names it: by its class, if no other that was trained is of that."""
        number, kind = self._number(one), one.names[-1]
        alone = [known for _, known in self._models].count(kind) == 1
        return f"--student {kind} (or its number, {number})" if alone else f"--student {number}"

    def _is_wanted(self, one: Candidate) -> bool:
        if self._wanted.isdecimal():
            return self._number(one) == int(self._wanted)
        return not self._wanted or self._wanted in one.names

    def _take(self, chosen: Candidate, found: list[Candidate]) -> None:
        another = self._student is not None and not self._student.shares(chosen.reached)
        if another and not self._running.restart():
            raise RuntimeError(
                f"another model is trained now, {chosen}, after {self._said}, for which a set is in force: its values say "
                f"nothing of this one. Say which one is the student, with {self._named(chosen)}; the other is trained on all the data, "
                "without KCD"
            )
        if another:
            self._running.say(f"another model is trained now, after {self._said}: KCD begins anew with it")
            self._recorded = 0
        if str(chosen) != self._said:
            others = ", ".join(
                f"{one} ({'trained with it' if one.trainer else 'no optimizer steps it'})"
                for one in found
                if one is not chosen
            )
            times = (
                f"; it is called {chosen.calls} times a batch, the last that is compared with its labels counts"
                if chosen.calls > 1
                else ""
            )
            self._running.say(
                f"the student is {chosen}: the last such output before backward() of a model that an optimizer "
                f"({chosen.trainer}) steps{times}; "
                + (f"also seen: {others}" if others else "no other had a gradient")
            )
        self._said = str(chosen)
        self._chosen, self._seeking, self._student = chosen, False, Model(chosen.reached)

    def _record(self, step: Step) -> None:
        """Record what the student predicted in a step."""
        chosen = self._chosen
        output = step.outputs.get(id(chosen.module())) if chosen is not None else None
        if chosen is None or output is None or not output.final or chosen.path not in output.tensors:
            return
        if step.batch is None:
            if output.used and not step.sightings and not self._recorded:
                self._unlabelled += 1
                if self._unlabelled >= SETTLED:
                    raise RuntimeError(
                        f"the predictions of {chosen} can't be matched with their batches: {UNSEEN}. {WAY}"
                    )
            return
        prediction, rows = output.tensors[chosen.path], step.batch.rows
        if len(prediction) != rows:
            number, rest = divmod(len(prediction), rows)
            if step.views is not None and not rest and number == step.views[0]:
                prediction = one_view(prediction, step.views)
            elif number > 1 and not rest:
                raise RuntimeError(
                    f"{chosen} gives {number} rows for each of the {rows} samples of a batch, and their labels do not say "
                    f"which belong to which. {WAY}"
                )
            else:
                self._running.pass_over("rows", f"{chosen} was for a batch of {rows} samples")
                return
        self._running.record(step.batch, prediction)
        self._recorded += 1


def _nothing() -> None:
    return None
