"""What a run cost in floating-point operations, by torch's own counter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from .account import Cost
from .base.arguments import COMPILED
from .base.users_line import warn

__all__ = ["StepFlops", "step_flops"]

BUILT_IN = ("aten", "prim", "prims")  # namespaces of torch's own operations
#: Of those, what takes much and is not counted.
MISSED = ("aten.mkldnn_rnn_layer", "aten._cudnn_rnn", "aten.miopen_rnn", "aten._cdist_forward")
#: Attention on a device, and that on a CPU, which some versions of torch do not count.
ATTENTION = ("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu")


class StepFlops(NamedTuple):
    """Floating-point operations of one sample's forward pass.

    Attributes
    ----------
    student, teacher : float

    Examples
    --------
    >>> from kcd_core import Cost
    >>> step = StepFlops(student=10.0, teacher=70.0)
    >>> cost = Cost(drawn=800, asked=250, plain=1000)
    >>> step.of(cost), step.of_plain(cost)
    (41500.0, 100000.0)
    """

    student: float
    teacher: float

    def of(self, cost: Cost) -> float:
        """The operations of a run: three student passes for each sample drawn, and a teacher pass for each query.

        A backward pass counts as two forward passes, as is the convention.
        """
        return 3 * self.student * cost.drawn + self.teacher * cost.asked

    def of_plain(self, cost: Cost) -> float:
        """The operations of plain distillation in as many epochs; 0 if ``cost.plain`` is not known."""
        return (3 * self.student + self.teacher) * cost.plain


def step_flops(student: Any, teacher: Any, example: Any) -> StepFlops:
    """Count the operations of each model's forward pass for one sample.

    Parameters
    ----------
    student, teacher : torch.nn.Module or other callable
        Each is run once, without gradients and in evaluation mode, and is left as it was. For a model in
        DistributedDataParallel or `torch.compile`, the inner model is run. ``teacher=None`` counts as 0.
    example : tensor, tuple or dict
        A batch of inputs, on the models' device: a tuple is given as arguments, a dict as keyword arguments.

    Returns
    -------
    StepFlops
        Matrix products, convolutions and attention; a multiplication and an addition count as two operations.
        Everything else, such as normalisation, is left out, as in `torch.utils.flop_counter.FlopCounterMode`, which
        does the counting.

    Raises
    ------
    TypeError
        If ``example`` has no tensor with samples, or a model can't be called.

    Warns
    -----
    UserWarning
        If a model calls operations that torch's counter does not know: those that are not torch's own, and fused
        ones, such as recurrent layers; or if nothing was counted. Kernels that bypass torch's dispatcher, such as
        Triton's, are not seen.

    Examples
    --------
    >>> import torch
    >>> student, teacher = torch.nn.Linear(10, 5), torch.nn.Linear(10, 50)
    >>> step_flops(student, teacher, torch.zeros(8, 10))
    StepFlops(student=100.0, teacher=1000.0)
    """
    for model, name in ((student, "student"), (teacher, "teacher")):
        if not (callable(model) or (model is None and name == "teacher")):
            raise TypeError(
                f"{name} must be a model, which is called with example, got {type(model).__name__}"
            )
    given = example if isinstance(example, (tuple, list, Mapping)) else (example,)
    inputs = given.values() if isinstance(given, Mapping) else given
    rows = next((len(x) for x in inputs if isinstance(x, torch.Tensor) and x.ndim), 0)
    if not rows:
        raise TypeError(
            f"example must be a batch of inputs, tensors [B, ...] of at least one sample, got {type(example).__name__}"
        )
    return StepFlops(
        _forward(student, given, "student") / rows,
        0.0 if teacher is None else _forward(teacher, given, "teacher") / rows,
    )


class _Strangers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which operations are called that may take much, and are not ``known``."""

    def __init__(self, known: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known, self.names = known, set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket)
        if (func.namespace not in BUILT_IN or name in MISSED) and func.overloadpacket not in self.known:
            self.names.add(name)
        return func(*args, **(kwargs or {}))


def _forward(model: Callable[..., Any], given: Any, name: str) -> int:
    """The operations of one call."""
    model = _unwrapped(model)
    counter = FlopCounterMode(display=False)
    counted, on_cpu = (getattr(torch.ops.aten, name, None) for name in ATTENTION)
    counter.flop_registry.setdefault(on_cpu, counter.flop_registry[counted])
    strangers = _Strangers(counter.flop_registry)
    with torch.no_grad(), _evaluating(model), counter, strangers:
        model(**given) if isinstance(given, Mapping) else model(*given)
    flops = int(counter.get_total_flops())
    if strangers.names:
        warn(
            f"the {name} calls operations of which torch's counter does not know what they take, and which are not counted: "
            f"{', '.join(sorted(strangers.names))}"
        )
    elif not flops:
        warn(
            f"nothing of the {name}'s forward pass was counted: it has no product of matrices, convolution or attention that "
            "torch's counter sees"
        )
    return flops


def _unwrapped(model: Any) -> Any:
    """What `torch.compile` and DistributedDataParallel hold: its forward pass is seen, and is no collective."""
    parallel = (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)
    while isinstance(model, parallel) or hasattr(model, COMPILED):
        model = model.module if isinstance(model, parallel) else getattr(model, COMPILED)
    return model


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """In evaluation mode: statistics of normalisation and random numbers stay as they are.

    Without the kernel that takes a transformer's layer for one operation then, which would not be counted.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    before = {part: part.training for part in model.modules()} if isinstance(model, torch.nn.Module) else {}
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for part in before:  # not by eval(), which models override, to merge weights for instance
            part.training = False
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for part, training in before.items():
            part.training = training
