"""A value function that is given the batch's indices: always those of the rows that it is given, by every way in."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SCHEDULE, Plain, index_of, logits_of, run_epoch
from torch.utils.data import DataLoader

import kcd_core as kcd

N = 23
TABLE = np.random.default_rng(7).normal(size=N)  # of each sample, by its index


def by_table(student_logits: Any, *, indices: Any, **_: Any) -> Any:
    return TABLE[np.asarray(indices)]


class Table:
    def __call__(self, student_logits: Any, indices: Any, teacher_logits: Any = None) -> Any:
        return by_table(student_logits, indices=indices)

    def method(self, student_logits: Any, *, targets: Any = None, indices: Any = None) -> Any:
        return by_table(student_logits, indices=indices)


class TableModule(torch.nn.Module):
    def forward(self, student_logits: Any, indices: Any = None) -> Any:
        return np.zeros(len(student_logits)) if indices is None else by_table(student_logits, indices=indices)


class WithForward:
    """Whose `forward` has nothing to do with how it is called."""

    keywords = ("indices",)

    def forward(self, student_logits: Any) -> Any: ...

    def __call__(self, student_logits: Any, *, indices: Any = None) -> Any:
        return np.zeros(len(student_logits)) if indices is None else by_table(student_logits, indices=indices)


def scaled(student_logits: Any, scale: float, *, indices: Any) -> Any:
    return scale * by_table(student_logits, indices=indices)


@functools.wraps(by_table)
def wrapped(*args: Any, **kwargs: Any) -> Any:
    return by_table(*args, **kwargs)


TAKERS: dict[str, Callable[..., Any]] = {
    "function": by_table,
    "lambda": lambda z, indices, **_: TABLE[np.asarray(indices)],
    "object": Table(),
    "method": Table().method,
    "module": TableModule(),
    "partial of a module": functools.partial(functools.partial(TableModule())),
    "object with forward": WithForward(),
    "partial": functools.partial(scaled, scale=1.0),
    "wrapped": wrapped,
    "compiled module": torch.compile(TableModule(), backend="eager"),
    "compiled function": torch.compile(by_table, backend="eager"),
    "partial of a compiled module": functools.partial(torch.compile(TableModule(), backend="eager")),
}


def of_table(indices: Any) -> Any:
    """V as it must be: float64, by index."""
    expected = np.full(N, np.nan)
    expected[indices] = np.rint(TABLE[indices] * 2**40) / 2**40
    return expected


@pytest.mark.parametrize("kind", TAKERS)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_indices_are_those_of_the_batch(kind: str, library: str) -> None:
    tracker = kcd.KnowledgeValueTracker(N, value=TAKERS[kind])
    some = np.array([5, 0, 22, 5])
    logits = logits_of(some, 1)
    tracker.update(some.tolist(), logits if library == "torch" else logits.numpy())
    np.testing.assert_array_equal(tracker.value, of_table(some))
    assert tracker.count[5] == 2


@pytest.mark.parametrize(
    "value",
    [
        lambda z, **given: z[:, len(given) - 1] if [*given] == ["targets"] else None,
        lambda z, teacher_logits=None, targets=None: z[:, 0],
        functools.partial(lambda z, indices: z[:, 0] if indices is None else None, indices=None),
    ],
    ids=["kwargs alone", "no such parameter", "set by a partial"],
)
def test_others_are_called_as_before(value: Any) -> None:
    tracker = kcd.KnowledgeValueTracker(N, value=value)
    tracker.update(
        [1, 2], logits_of([1, 2], 1), **({} if isinstance(value, functools.partial) else {"targets": [3, 4]})
    )
    assert tracker.count.sum() == 2


def test_a_function_that_takes_indices_for_logits_is_refused() -> None:
    for value in (lambda indices: indices, lambda indices, **given: indices):
        with pytest.raises(TypeError, match="takes indices in place 1, where it is given something else"):
            kcd.KnowledgeValueTracker(N, value=value)


def test_a_function_that_takes_indices_by_their_place_is_refused() -> None:
    for value in (
        lambda z, indices, /, **given: z[:, 0],
        lambda z, indices=None, /, **given: z[:, 0],
    ):
        with pytest.raises(TypeError, match="takes indices by its place alone"):
            kcd.KnowledgeValueTracker(N, value=value)


def test_padding_is_left_out_in_host_memory() -> None:
    seen: list[Any] = []

    def value(z: Any, indices: Any, targets: Any) -> Any:
        seen.append((indices, targets))
        return by_table(z, indices=indices)

    tracker = kcd.KnowledgeValueTracker(N, value=value)
    tracker.update([3, -1, 4, -1], logits_of([3, 0, 4, 0], 1), targets=torch.tensor([30, 0, 40, 0]))
    ((indices, targets),) = seen
    assert isinstance(indices, torch.Tensor)
    assert indices.dtype is torch.int64
    assert indices.tolist() == [3, 4]
    assert targets.tolist() == [30, 40]
    np.testing.assert_array_equal(tracker.value, of_table([3, 4]))


@pytest.mark.parametrize("device", [None, "cpu"])
def test_what_the_function_does_to_its_indices_changes_nothing(device: Any) -> None:
    def value(z: Any, indices: Any) -> Any:
        values = by_table(z, indices=indices.clone())
        indices.zero_()
        return values

    tracker, given = kcd.KnowledgeValueTracker(N, value=value, device=device), torch.tensor([7, 8, 9])
    tracker.update(given, logits_of(given, 1))
    np.testing.assert_array_equal(tracker.value, of_table([7, 8, 9]))
    assert given.tolist() == [7, 8, 9]


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("ask", [None, 0.5])
def test_a_loader_gives_those_of_its_batch(explicit: bool, ask: float | None) -> None:
    loader = kcd.wrap_loader(
        DataLoader(Plain(N), batch_size=5, shuffle=True), schedule=SCHEDULE, value=by_table, ask=ask
    )
    seen = []
    for batch in loader:
        indices = index_of(batch)
        seen += indices
        loader.record(logits_of(indices, 1), **({"indices": loader.indices} if explicit else {}))
    np.testing.assert_array_equal(loader.tracker.value, of_table(seen))
    assert sorted(seen) == list(range(N))


def test_a_padded_rank_gives_its_samples_alone() -> None:
    """Rank 1 of 2 of an odd number draws one sample that only pads."""
    seen: list[int] = []

    def value(z: Any, indices: Any) -> Any:
        seen.extend(indices.tolist())
        return by_table(z, indices=indices)

    loader = kcd.wrap_loader(
        DataLoader(Plain(N), batch_size=5), schedule=SCHEDULE, value=value, num_replicas=2, rank=1
    )
    drawn = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is no process group
        for batch in loader:
            drawn += loader.indices.tolist()
            loader.record(logits_of(index_of(batch), 1))
    assert drawn.count(-1) == 1
    assert seen == [i for i in drawn if i >= 0]
    np.testing.assert_array_equal(loader.tracker.value, of_table(seen))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_slice_gives_indices_of_the_whole_data_set(rank: int, device: Any) -> None:
    loader = kcd.wrap_loader(
        DataLoader(Plain(N), batch_size=5),
        schedule=SCHEDULE, value=by_table, num_replicas=2, rank=rank, sharded=True, device=device,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for batch in loader:
            loader.record(logits_of(index_of(batch), 1))
    mine = slice(loader.sampler.start, loader.sampler.stop)
    np.testing.assert_array_equal(loader.tracker.value, of_table(np.arange(N)[mine])[mine])


def test_by_hand_and_at_the_loss() -> None:
    indices = np.array([4, -1, 9])
    logits = logits_of([4, 0, 9], 1)
    run = kcd.Condensation(kcd.CondensedSampler(N), schedule=SCHEDULE, value=by_table)
    run.record(logits, indices=indices)
    np.testing.assert_array_equal(run.tracker.value, of_table([4, 9]))
    tracker = kcd.KnowledgeValueTracker(N, value=by_table)
    criterion = kcd.CondensedLoss(torch.nn.CrossEntropyLoss(reduction="none"), tracker)
    criterion(logits.requires_grad_(), torch.tensor([0, 1, 2]), indices=indices)
    np.testing.assert_array_equal(tracker.value, of_table([4, 9]))


def test_a_stream_refuses_it() -> None:
    settings: dict[str, Any] = {"key": int, "slots": 100, "schedule": SCHEDULE}
    with pytest.raises(ValueError, match=r"parameter named indices.*slots_of"):
        kcd.CondensedStream(range(N), value=by_table, **settings)
    stream = kcd.CondensedStream(range(N), value=lambda z, **_: z[:, 0], **settings)
    stream.tracker.record(stream.slots_of(range(N)), TABLE)  # what the error says to do
    assert stream.tracker.count.sum() == N


def test_the_set_is_that_of_the_table() -> None:
    """From the first batch to the end of a stage, in a loop as in the README."""
    loader = kcd.wrap_loader(
        DataLoader(Plain(N), batch_size=5, shuffle=True),
        schedule=kcd.CondensationSchedule(0.5, 1, 1),
        value=by_table,
    )
    run_epoch(loader)
    assert loader.sampler.kept.tolist() == sorted(
        np.argsort(-TABLE, kind="stable")[: len(loader.sampler.kept)].tolist()
    )
