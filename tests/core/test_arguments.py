"""Wrong objects for every argument: an error that names it, at the call, and nothing changed."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Cifar, identical_state
from torch.utils.data import DataLoader

import kcd_core as kcd

N, CLASSES = 8, 4

#: What is given for an argument. Each argument lists those that it takes.
WRONG: dict[str, Any] = {
    "none": None,
    "text": "wrong",
    "true": True,
    "half": 0.5,
    "nan": float("nan"),
    "minus": -7,
    "object": object(),
    "ellipsis": ...,
    "lambda": lambda: None,
    "empty": [],
    "mixed": [0.5, "a", None],
    "dict": {"a": 1},
    "set": {1, 2},
    "bytes": b"ab",
    "complex": torch.zeros(N, dtype=torch.complex64),
    "mask": torch.ones(N, dtype=torch.bool),
    "floats": torch.zeros(N),
    "cube": torch.zeros(N, 2, 2, dtype=torch.int64),
    "objects": np.array([object()] * N),
}


@dataclass
class Call:
    """A public callable.

    Attributes
    ----------
    make
        Gives what is called, and what must be unchanged after a call that failed, as a function that says it.
    good
        Arguments that it takes, by name; those that are positional only, by place.
    takes
        For arguments that take some of `WRONG`, their names.
    called
        What errors call an argument, where that is not its name: a regular expression.
    """

    make: Callable[[], tuple[Callable[..., Any], Callable[[], Any]]]
    good: Mapping[str, Callable[[], Any]]
    takes: Mapping[str, str] = field(default_factory=dict)
    called: Mapping[str, str] = field(default_factory=dict)


def schedule() -> kcd.CondensationSchedule:
    return kcd.CondensationSchedule(ratio=0.5, stages=2, period=1)


def some(n: int = N) -> Any:
    return np.arange(n)


def logits() -> Any:
    return torch.randn(N, CLASSES)


def tokens() -> Any:
    return torch.randn(N, 3, CLASSES)


def token_labels() -> Any:
    return torch.arange(3 * N).reshape(N, 3) % CLASSES


def labels() -> Any:
    return torch.arange(N) % CLASSES


def tracker(n: int = N, value: Any = "entropy") -> kcd.KnowledgeValueTracker:
    made = kcd.KnowledgeValueTracker(n, value=value)
    made.record(some(n), np.linspace(0.1, 1, n))
    return made


def chosen() -> kcd.CondensedSet:
    return kcd.CondensedSet(
        np.arange(N - 2), N, dropped=np.array([N - 1, N - 2]), tail=np.array([1, 0]), weights=[1, 0.8]
    )


def sampler(cls: Any = kcd.CondensedSampler) -> Any:
    return cls(N, num_replicas=1, rank=0)


def run() -> kcd.Condensation:
    made = kcd.Condensation(sampler(), schedule=schedule())
    made.record(logits(), indices=some())
    return made


def gate() -> kcd.TeacherGate:
    return kcd.TeacherGate(N)


def plain() -> DataLoader[Any]:
    return DataLoader(Cifar(N), batch_size=3, shuffle=True)


def loader() -> Any:
    made = kcd.wrap_loader(plain(), schedule=schedule(), seed=1)
    next(iter(made))
    made.record(torch.randn(3, CLASSES))
    return made


def drawn() -> Any:
    """The batch that a `loader` has held."""
    return loader().indices


def stream() -> kcd.CondensedStream:
    made = kcd.CondensedStream(range(N), key=int, slots=64, schedule=schedule())
    made.record(logits(), ids=some())
    return made


def loss() -> kcd.CondensedLoss:
    return kcd.CondensedLoss(torch.nn.CrossEntropyLoss(reduction="none"), tracker())


def history() -> kcd.CondensationHistory:
    made = kcd.CondensationHistory(N)
    made.append(chosen(), tracker().value, tracker().count, epoch=1)
    return made


def nothing() -> None:
    return None


def made_by(function: Any) -> Callable[[], Any]:
    return lambda: (function, nothing)


def method(owner: Callable[[], Any], name: str) -> Callable[[], Any]:
    """A method of a new object, whose state must be the same afterwards."""

    def make() -> Any:
        made = owner()
        state = made.state_dict if hasattr(made, "state_dict") else nothing
        return getattr(made, name), state

    return make


SETTINGS = {"alpha": lambda: 0.03, "min_weight": lambda: 0.7}
RUN = {
    "schedule": schedule,
    "value": lambda: "margin",
    **SETTINGS,
    "select": nothing,
    "on_nonfinite": lambda: "skip",
    "device": nothing,
    "group": nothing,
}
RUN_TAKES = {"alpha": "half", "min_weight": "half", "select": "none", "device": "none", "group": "none"}

CALLS: dict[str, Call] = {
    "KnowledgeValueTracker": Call(
        made_by(kcd.KnowledgeValueTracker),
        {"num_samples": lambda: N, "value": lambda: "entropy", "statistic": lambda: "last", "device": nothing, "on_nonfinite": lambda: "raise", "first": lambda: 2},
        {"device": "none"},
    ),
    "KnowledgeValueTracker.update": Call(method(tracker, "update"), {"indices": some, "student_logits": logits}),
    "KnowledgeValueTracker.update(teacher_logits)": Call(
        method(partial(tracker, value="kd_divergence"), "update"), {"indices": some, "student_logits": logits, "teacher_logits": logits}
    ),
    "KnowledgeValueTracker.update(targets)": Call(
        method(partial(tracker, value="cross_entropy"), "update"), {"indices": some, "student_logits": logits, "targets": labels}
    ),
    "KnowledgeValueTracker.update(sequences)": Call(
        method(partial(tracker, value="sequence_entropy"), "update"), {"indices": some, "student_logits": tokens, "targets": token_labels}
    ),
    "KnowledgeValueTracker.record": Call(method(tracker, "record"), {"indices": some, "values": lambda: torch.rand(N)}, {"values": "floats"}, {"values": "values|the batch"}),
    "KnowledgeValueTracker.end_epoch": Call(method(tracker, "end_epoch"), {"group": nothing}, {"group": "none"}),
    "KnowledgeValueTracker.to": Call(method(tracker, "to"), {"device": nothing}, {"device": "none"}),
    "KnowledgeValueTracker.load_state_dict": Call(method(tracker, "load_state_dict"), {"state": lambda: tracker().state_dict()}),
    "CondensationSchedule": Call(
        made_by(kcd.CondensationSchedule), {"ratio": lambda: 0.5, "stages": lambda: 1, "period": lambda: 1, "warmup": lambda: 0}, {"ratio": "half"}
    ),
    "FreeSchedule": Call(made_by(kcd.FreeSchedule), {"period": lambda: 2, "until": lambda: 4}, {"until": "none"}),
    "FreeSchedule.size": Call(method(partial(kcd.FreeSchedule, 1, 2), "size"), {"num_samples": lambda: N, "epoch": lambda: 3}),
    "InfoBatch": Call(
        made_by(kcd.InfoBatch), {"epochs": lambda: 4, "prune": lambda: 0.5, "until": lambda: 0.875}, {"prune": "half", "until": "half"}
    ),
    "CondensationSchedule.due": Call(method(schedule, "due"), {"epoch": lambda: 1}),
    "CondensationSchedule.target": Call(method(schedule, "target"), {"num_samples": lambda: N, "previous": lambda: N}),
    "CondensationSchedule.size": Call(method(schedule, "size"), {"num_samples": lambda: N, "epoch": lambda: 3}),
    "condense": Call(
        made_by(kcd.condense),
        {"value": lambda: np.linspace(0.1, 1, N), "count": lambda: np.ones(N, int), "previous": lambda: N, "target": lambda: 4, **SETTINGS, "stage": lambda: 1},
        {"alpha": "half", "min_weight": "half", "value": "floats"},
    ),
    "CondensedSet": Call(
        made_by(kcd.CondensedSet),
        {"kept": lambda: np.arange(3), "num_samples": lambda: N, "stage": lambda: 1, "dropped": lambda: np.array([5]), "tail": lambda: np.array([0]), "weights": lambda: [0.5], "cut": lambda: 0.5, "sample_weights": lambda: np.ones(3)},
        {"cut": "half nan minus", "sample_weights": "none"},
    ),
    "condense_step": Call(
        made_by(kcd.condense_step), {"tracker": tracker, "sampler": sampler, "schedule": schedule, **SETTINGS, "select": nothing, "group": nothing},
        {"alpha": "half", "min_weight": "half", "select": "none", "group": "none"},
    ),
    "condense_sharded": Call(
        made_by(kcd.condense_sharded), {"tracker": tracker, "sampler": lambda: sampler(kcd.ShardedSampler), "schedule": schedule, **SETTINGS, "group": nothing},
        {"alpha": "half", "min_weight": "half", "group": "none"},
    ),
    **{
        name: Call(
            made_by(getattr(kcd, name)),
            {"num_samples": lambda: N, "shuffle": lambda: True, "seed": lambda: 0, "num_replicas": lambda: 1, "rank": lambda: 0, "drop_last": lambda: False, "mixing": nothing},
            {"shuffle": "true", "drop_last": "true", "num_replicas": "none", "rank": "none", "mixing": "none"},
        )
        for name in ("CondensedSampler", "ShardedSampler")
    },
    **{
        f"{cls.__name__}.{name}": Call(method(partial(sampler, cls), name), {argument: good}, {argument: takes})
        for cls in (kcd.CondensedSampler, kcd.ShardedSampler)
        for name, argument, good, takes in (
            ("set_epoch", "epoch", lambda: 3, ""),
            ("order", "epoch", lambda: 3, "none"),
            ("install", "condensed_set", chosen, ""),
            ("steps", "index", lambda: 1, ""),
            ("load_state_dict", "state", lambda cls=cls: sampler(cls).state_dict(), ""),
        )
    },
    "CondensedSampler.weights_of": Call(method(sampler, "weights_of"), {"indices": some}, {"indices": "empty"}),
    "TeacherGate": Call(made_by(kcd.TeacherGate), {"num_samples": lambda: N}),
    "TeacherGate.asked": Call(
        method(gate, "asked"), {"indices": some, "mixed": lambda: np.zeros(N, bool), "multiple": lambda: 2},
        {"mixed": "none mask", "indices": "empty"},
    ),
    "TeacherGate.install": Call(method(gate, "install"), {"condensed_set": chosen}),
    "TeacherGate.load_state_dict": Call(method(gate, "load_state_dict"), {"state": lambda: gate().state_dict()}),
    "gated_loss": Call(
        made_by(kcd.gated_loss),
        {"label_losses": lambda: torch.rand(3), "teacher_losses": lambda: torch.rand(1), "rows": lambda: torch.tensor([1]), "label_weight": lambda: 0.1, "teacher_weight": lambda: 0.9, "unasked_weight": lambda: 1.0, "divide_by": lambda: "asked"},
        {"label_losses": "floats", "label_weight": "half", "teacher_weight": "half", "unasked_weight": "half"},
    ),
    "Condensation": Call(
        made_by(kcd.Condensation), {"sampler": sampler, **RUN, "statistic": lambda: "variance", "tracker": nothing, "dataset": nothing},
        {**RUN_TAKES, "tracker": "none", "dataset": "none text empty mixed dict set bytes complex mask floats cube objects", "device": "none", "value": "none", "statistic": "none", "on_nonfinite": "none"},
    ),
    "Condensation.record": Call(method(run, "record"), {"indices": some, "student_logits": logits}),
    "Condensation.load_state_dict": Call(method(run, "load_state_dict"), {"state": lambda: run().state_dict()}),
    "wrap_loader": Call(
        made_by(kcd.wrap_loader),
        {"loader": plain, **RUN, "statistic": lambda: "last", "ask": lambda: 0.5, "ask_multiple": lambda: 2, "mixing": nothing, "mixing_cache": lambda: 0, "mixer": lambda: "auto", "return_index": lambda: True, "prefetch": lambda: iter, "seed": lambda: 1, "num_replicas": lambda: 1, "rank": lambda: 0, "sharded": lambda: False},
        {**RUN_TAKES, "schedule": "none", "statistic": "none", "ask": "none half", "mixing": "none", "mixing_cache": "none", "return_index": "true", "prefetch": "none lambda", "sharded": "true", "seed": "none", "num_replicas": "none", "rank": "none"},
    ),
    "CondensedLoader.record": Call(method(loader, "record"), {"indices": drawn, "student_logits": lambda: torch.randn(3, CLASSES)}, {"indices": "none"}),
    "CondensedLoader.record(values)": Call(method(loader, "record"), {"indices": drawn, "values": lambda: torch.rand(3)}, takes={"indices": "none"},
called={"values": "values|the batch"}),
    "Condensation.record(values)": Call(method(run, "record"), {"indices": some, "values": lambda: torch.rand(N)}, {"values": "floats"}, {"values": "values|the batch"}),
    "CondensedLoader.steps": Call(method(loader, "steps"), {"epoch": lambda: 1}),
    "CondensedLoader.total_steps": Call(method(loader, "total_steps"), {"epochs": lambda: 2}),
    "CondensedLoader.load_state_dict": Call(method(loader, "load_state_dict"), {"state": lambda: loader().state_dict()}),
    "CondensedLoss": Call(
        made_by(kcd.CondensedLoss), {"criterion": lambda: torch.nn.CrossEntropyLoss(reduction="none"), "tracker": tracker, "reduction": lambda: "sum"},
        {"criterion": "lambda"},
    ),
    "CondensedLoss.install": Call(method(loss, "install"), {"condensed_set": chosen}),
    "CondensedStream": Call(
        made_by(kcd.CondensedStream),
        {"dataset": lambda: range(N), "key": lambda: 0, "slots": lambda: 64, **{k: v for k, v in RUN.items() if k != "min_weight"}, "seed": lambda: 0},
        {**RUN_TAKES, "dataset": "none text empty mixed dict set bytes complex mask floats cube objects", "key": "text lambda minus"},
    ),
    "CondensedStream.record": Call(method(stream, "record"), {"ids": some, "student_logits": logits}, called={"ids": r"\bids?\b"}),
    "CondensedStream.is_kept": Call(method(stream, "is_kept"), {"ids": some}, {"ids": "empty"}, called={"ids": r"\bids?\b"}),
    "CondensedStream.slots_of": Call(method(stream, "slots_of"), {"ids": some}, {"ids": "empty"}, called={"ids": r"\bids?\b"}),
    "CondensedStream.load_state_dict": Call(method(stream, "load_state_dict"), {"state": lambda: stream().state_dict()}),
    "CondensationHistory": Call(made_by(kcd.CondensationHistory), {"num_samples": lambda: N, "schedule": schedule}, {"schedule": "none"}),
    "CondensationHistory.append": Call(
        method(history, "append"),
        {"condensed_set": chosen, "value": lambda: tracker().value, "count": lambda: tracker().count, "epoch": lambda: 4, "alpha": lambda: 0.03, "mixing": lambda: True, "unseen": nothing},
        {"alpha": "half", "mixing": "true", "unseen": "none", "value": "floats"},
    ),
    "CondensationHistory.from_state": Call(made_by(kcd.CondensationHistory.from_state), {"state": lambda: history().state_dict()}),
    "Account": Call(made_by(kcd.Account), {"first": lambda: 1}),
    "step_flops": Call(
        made_by(kcd.step_flops), {"student": lambda: torch.nn.Linear(CLASSES, 1), "teacher": lambda: torch.nn.Linear(CLASSES, 2), "example": logits},
        {"student": "lambda", "teacher": "none lambda", "example": "floats mask complex cube"},
    ),
    "entropy": Call(made_by(kcd.entropy), {"student_logits": logits}),
    "margin": Call(made_by(kcd.margin), {"student_logits": logits}),
    "cross_entropy": Call(made_by(kcd.cross_entropy), {"student_logits": logits, "targets": labels}),
    "reducible_loss": Call(made_by(kcd.reducible_loss), {"student_logits": logits, "teacher_logits": logits, "targets": labels}),
    "sequence_entropy": Call(made_by(kcd.sequence_entropy), {"student_logits": tokens, "targets": token_labels}),
    "kd_divergence": Call(made_by(kcd.kd_divergence), {"student_logits": logits, "teacher_logits": logits, "temperature": lambda: 2.0}, {"temperature": "half"}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "argument"), [(name, each) for name, call in CALLS.items() for each in call.good]
)
def test_a_wrong_object_is_named_at_the_call(name: str, argument: str) -> None:
    call = CALLS[name]
    named = call.called.get(argument, argument)
    for wrong, value in WRONG.items():
        if wrong in call.takes.get(argument, "").split():
            continue
        function, state = call.make()
        before = copy.deepcopy(state())
        given = {name: good() for name, good in call.good.items()}
        with pytest.raises((TypeError, ValueError, IndexError)) as caught:
            function(**{**given, argument: value})
        assert re.search(named, str(caught.value)), (wrong, caught.value)
        assert identical_state(state(), before), wrong


@pytest.mark.parametrize("name", CALLS)
def test_what_is_right_is_taken(name: str) -> None:
    call = CALLS[name]
    call.make()[0](**{name: good() for name, good in call.good.items()})


#: Of public functions, what is not looked at here: data sets and mixers (test_mixing), files (test_checkpoint), tuples of numbers,
#: and what a value accepts and ignores.
ELSEWHERE = {
    "Cost",
    "StepFlops",
    "mix_arrays",
    "mix_samples",
    "save_checkpoint",
    "load_checkpoint",
    "CondensedLoader",
}
IGNORED = {"entropy": {"teacher_logits", "targets"}, "margin": {"teacher_logits", "targets"}, "cross_entropy": {"teacher_logits"}, "kd_divergence": {"targets"}, "sequence_entropy": {"teacher_logits"}}  # fmt: skip


@pytest.mark.parametrize("name", sorted({*kcd.__all__} - ELSEWHERE))
def test_every_argument_of_every_public_function_is_swept(name: str) -> None:
    public = kcd.CondensedSampler if name == "ShardedSampler" else getattr(kcd, name)  # whose settings it has
    assert {*inspect.signature(public).parameters} == {*CALLS[name].good} | IGNORED.get(name, set())
