"""Calls a host's teacher with the rows of a batch that it is asked for, instead of the whole batch.

The calls are seen by replacing ``__call__`` of the teacher's class, not by hooks on the teacher, which would be copied and
saved with it. What is not the one call for a batch of the student's loader is left alone: validation, say.
"""

from __future__ import annotations

import functools
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..profiles import Loss, Teacher
from ..watching.tensors import tensors
from .alignment import CHECKED_AT_ONCE, Pass
from .finder import Drawn
from .rows import logits_in, rows_of, selected, sent, spread

if TYPE_CHECKING:
    import torch

    from .loader import HostedLoader

__all__ = ["AskedTeacher"]

LOOKED_AHEAD = 4  # batches that a host may have fetched before it uses one


def _nothing() -> None:
    return None


class Call(NamedTuple):
    """The teacher's call for a batch whose prediction was not observed yet.

    Attributes
    ----------
    given, asked : int
        Rows that the host called it with, and that it was called with.
    problem : Exception or None
        Why it can't be asked for a part of one.
    indices
        Of the batch that it was taken for, where it was asked for a part.
    """

    given: int
    asked: int
    problem: Exception | None = None
    indices: Any = None


class AskedTeacher:
    """What comes between a host and its teacher.

    Parameters
    ----------
    teacher : Teacher
    followed : callable
        The loaders that the student may be trained on: one, once it is known.
    """

    def __init__(self, teacher: Teacher, followed: Callable[[], Sequence[HostedLoader]]) -> None:
        self._profile, self._followed = teacher, followed
        self._teacher: Callable[[], Any] = _nothing  # weak references
        self._student: Callable[[], Any] = _nothing
        self._loss = Loss(1, 0)
        self._kinds: set[type] = set()  # whose calls are seen
        self._due = False  # whether a batch was asked for since the last call that counts
        self._prediction: torch.Tensor | None = None  # the student's last, of that batch
        self._predictions = 0
        self._call: Call | None = None
        self._ahead: int | None = None  # batches that the host fetches before it uses one
        self._looked_at: Pass | None = None  # in which all parts of the teacher were
        self._compared = 0  # calls, with the images of the batch
        self._images: deque[list[torch.Tensor]] = deque(maxlen=LOOKED_AHEAD)
        self._followed_back = 0  # batches whose gradient was looked at

    def meet(self, *args: Any, **kwargs: Any) -> None:
        """The host's function is about to run that is given student and teacher."""
        student, teacher, self._loss = self._profile.pair(*args, **kwargs)
        known = self._teacher()
        if known is not None and teacher is not known:
            raise RuntimeError(
                f"--ask is for one teacher, and {self._profile.given} was given another {type(teacher).__name__} beside the "
                "first one (a copy for another device?): leave it out"
            )
        self._teacher, self._student = weakref.ref(teacher), weakref.ref(student)
        _ = self._loss.share  # which it may have none of
        for module in (student, teacher):
            kind: Any = type(module)
            if not any(issubclass(kind, seen) for seen in self._kinds):  # it has that one's, else
                self._kinds.add(kind)
                kind.__call__ = self._seen(kind.__call__)

    def _seen(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            if module is self._teacher():
                return self._called(functools.partial(original, module), args, kwargs)
            output = original(module, *args, **kwargs)
            if module is self._student() and self._due:
                found = dict(tensors(output)).get(self._profile.logits)
                if found is not None and found.requires_grad:
                    self._predictions += 1
                    self._prediction = found
            return output

        return call

    # -- what the host does ------------------------------------------------------------------------

    def before_batch(self, first: bool) -> None:
        """The host is done with a batch. See `Running.before_batch`."""
        self._due, self._call, self._prediction, self._predictions = True, None, None, 0
        passes = [one for hosted in self._followed() for one in hosted.passes] if first else ()
        if any(one.over and one.observed and not one.asked for one in passes):
            raise RuntimeError(
                f"in a whole epoch, the module that {self._profile.given} was given as the teacher was not called before "
                "the student's predictions were observed, so --ask is of no use: leave it out"
            )

    def drawn(self, batch: Any) -> None:
        """The host is about to get a batch."""
        if self._profile.same_images and self._compared < CHECKED_AT_ONCE:
            self._images.append([one for _, one in tensors(batch) if one.ndim > 1])

    def observed(self, batch: Drawn) -> None:
        """The student's prediction for a batch was found."""
        call, self._call = self._call, None
        self._ahead = batch.one.ahead
        if call is None:
            return
        self._check_rows(call.given, batch.rows)
        if call.problem is not None:
            raise call.problem
        if call.indices is not None and call.indices is not batch.indices:
            raise RuntimeError(
                "the teacher was called for another batch than the student's prediction is of, so what stood in for its "
                "logits was wrong: leave out --ask"
            )
        batch.one.asked += call.asked

    def _called(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        passes = [(hosted, one) for hosted in self._followed() for one in hosted.passes if one.pending]
        if not (passes and self._due):
            if self._call is not None:
                raise RuntimeError(
                    "the teacher was called twice for one batch, and --ask is for methods that call it once: leave it out"
                )
            return original(*args, **kwargs)
        self._due = False
        hosted, one = passes[-1]
        gate = hosted.gate
        batch = None if gate is None or gate.open else one.due(self._ahead)
        if gate is None or batch is None:
            output = original(*args, **kwargs)
            self._call = self._whole((args, kwargs), output, one)
            return output
        indices, fields = batch
        self._check_rows(rows_of((args, kwargs)), len(indices))
        self._check((args, kwargs), one)
        rows = gate.rows(indices, hosted.sampler.recipes)
        self._call = Call(len(indices), len(rows), indices=indices)
        return self._ask(original, (args, kwargs), rows, next(iter(fields.values())))

    # -- asking ------------------------------------------------------------------------------------

    def _whole(self, given: Any, output: Any, one: Pass) -> Call:
        """A call for a whole batch. Whether for one of the student's, the student's prediction will tell."""
        rows = 0
        try:
            rows = rows_of(given)
            self._check(given, one)
            self._predicted(logits_in(output, self._profile.logits, rows))
            return Call(rows, rows)
        except RuntimeError as problem:
            return Call(rows, rows, problem)

    def _ask(
        self, original: Callable[..., Any], given: Any, asked: torch.Tensor, labels: torch.Tensor
    ) -> Any:
        """Call the teacher with the rows ``asked``, and put its logits among those that stand in for it."""
        from .standin import GradientCheck, labels_as_logits

        rows = sent(asked, next(one.device for _, one in tensors(given)))
        args, kwargs = selected(given, rows)
        output = original(*args, **kwargs)
        logits = logits_in(output, self._profile.logits, len(rows))
        student = self._predicted(logits)
        labels = sent(labels.long(), student.device)
        whole = labels_as_logits(student, labels, self._loss).to(logits.dtype, copy=True)
        whole.index_copy_(0, rows, logits)
        if self._loss.share and self._followed_back < CHECKED_AT_ONCE:
            self._followed_back += 1
            check = GradientCheck(student, labels, whole, self._loss)
            student.register_hook(check)  # type: ignore[no-untyped-call]
        return spread(output, self._profile.logits, whole)

    def _predicted(self, logits: torch.Tensor) -> torch.Tensor:
        """The student's logits for the batch that the teacher is called for."""
        student, self._prediction = self._prediction, None
        if student is None or student.shape[1:] != logits.shape[1:]:
            shown = "was not called before it" if student is None else f"has logits {list(student.shape)}"
            raise RuntimeError(
                f"the student, whose logits stand in for those of the teacher, {list(logits.shape)}, {shown}: --ask is for a loop "
                "that calls the student, then the teacher. Leave it out"
            )
        if self._predictions > 1:
            raise RuntimeError(
                f"the student was called {self._predictions} times for one batch (several views?), so it is not known which of its "
                "logits stand in for those of the teacher: leave out --ask"
            )
        return student

    def _check_rows(self, given: int, rows: int) -> None:
        if given != rows:
            raise RuntimeError(
                f"the teacher was called with {given} rows for a batch of {rows} samples (several views, or several "
                "devices?), and --ask is for methods that call it with the batch as it is: leave it out"
            )

    def _check(self, given: Any, one: Pass) -> None:
        """RuntimeError if a part of this call would not be as good as that part of it."""
        teacher = self._teacher()
        parts = (teacher,) if one is self._looked_at else teacher.modules()
        self._looked_at = one
        if any(part.training for part in parts):
            raise RuntimeError(
                f"the teacher ({type(teacher).__name__}) is in training mode, in which what it says of a sample depends on the "
                "others of its batch: call its eval() before each epoch, or leave out --ask"
            )
        if self._profile.same_images and self._compared < CHECKED_AT_ONCE:
            self._compared += 1
            self._compare(next(one for _, one in tensors(given)))
            if self._compared == CHECKED_AT_ONCE:
                self._images.clear()

    def _compare(self, images: torch.Tensor) -> None:
        for known in self._images:
            for one in known:
                if one.shape == images.shape and one.to(images.device, images.dtype).equal(images):
                    return
        raise RuntimeError(
            "the teacher is not given the images as the loader yields them (another view, or mixed by the loop?), so what "
            "stands in for its logits would be of others: leave out --ask"
        )
