"""`wrap_loader` with ``ask=``: the rows the teacher is asked for, against a reading of everything recorded."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    Cifar,
    Naive,
    Plain,
    entropy_of,
    identical_state,
    index_of,
    join_ranks,
    leave_together,
    logits_of,
    run_ranks,
    wrap,
)
from torch.utils.data import DataLoader

import kcd_core as kcd

N = 40
QUARTER = kcd.CondensationSchedule(0.25, stages=1, period=1)
HALVES = kcd.CondensationSchedule(0.5, stages=2, period=1)


def made(schedule: Any = None, ask: Any = 0.25, *, data: Any = None, **options: Any) -> Any:
    return wrap(Plain(N) if data is None else data, schedule=schedule, kcd_options={"ask": ask, **options})


def epoch_of(loader: Any, *, end: bool = True, last: int | None = None) -> list[tuple[list[int], list[int]]]:
    """One epoch, or its first batches: the samples of each batch, and those that were asked."""
    drawn = []
    for number, batch in enumerate(loader, 1):
        indices = index_of(batch)
        assert loader.asked.dtype == torch.bool
        assert loader.asked_rows.dtype == torch.int64
        assert loader.asked.nonzero().flatten().tolist() == loader.asked_rows.tolist()
        drawn.append((indices, [indices[row] for row in loader.asked_rows.tolist()]))
        loader.record(logits_of(indices, loader.epoch))
        assert loader.asked_rows.tolist() == [indices.index(i) for i in drawn[-1][1]]  # after it, too
        if number == last:
            return drawn
    if end:
        loader.end_epoch()
    return drawn


@pytest.mark.parametrize("schedule", [None, HALVES], ids=["alone", "condensed"])
def test_all_at_first_and_then_those_of_highest_value(schedule: Any) -> None:
    """Each epoch against every recording ranked anew: of all samples, whether or not they are drawn."""
    loader = made(schedule, mixing=None)
    gate, draws = Naive(N, QUARTER), Naive(N, schedule)
    for _ in range(5):
        epoch, drawn = loader.epoch, []
        for indices, asked in epoch_of(loader, end=False):
            assert asked == [i for i in indices if i in gate.kept]
            drawn += indices
            for naive in (gate, draws):
                naive.record(indices, entropy_of(logits_of(indices, epoch)))
        assert sorted(drawn) == draws.kept
        chosen = loader.end_epoch()
        gate.stage()
        assert loader.gate.kept.tolist() == gate.kept
        if schedule is None:
            assert chosen is None
        else:
            draws.stage()
            assert chosen.kept.tolist() == draws.kept
    assert [stage["kept"] for stage in loader.gate_history] == [10] * 5
    assert len(loader.history) == (0 if schedule is None else 5)


def test_mixed_samples_are_always_asked() -> None:
    loader = made(kcd.CondensationSchedule(0.75, stages=1, period=1), data=Cifar(N), ask=0.05)
    epoch_of(loader)
    mixed, asked = set(loader.sampler.recipes.target.tolist()), set(loader.gate.kept.tolist())
    assert len(mixed - asked) > 5
    for indices, rows in epoch_of(loader):
        assert rows == [i for i in indices if i in mixed | asked]


def test_what_only_pads_is_not_asked() -> None:
    loader = kcd.wrap_loader(
        DataLoader(Plain(7), batch_size=4), schedule=None, ask=0.5, num_replicas=2, rank=1
    )
    with pytest.warns(UserWarning, match="process group"):
        batches = [(loader.indices.tolist(), loader.asked.tolist()) for _ in loader]
    assert batches == [([1, 3, 5, -1], [True, True, True, False])]


def test_without_a_gate_all_are_asked() -> None:
    loader = made(HALVES, None)
    assert loader.gate is None
    assert loader.gate_history is None
    assert loader.asked is None
    assert loader.asked_rows is None
    assert all(indices == asked for indices, asked in epoch_of(loader))
    assert "ask" not in loader.state_dict()


def test_the_number_of_rows_is_a_multiple() -> None:
    loader = made(ask_multiple=4)
    epoch_of(loader)
    asked = [rows for _, rows in epoch_of(loader, end=False)]
    assert all(len(rows) in (0, 4, 8) for rows in asked)
    assert {i for rows in asked for i in rows} > set(loader.gate.kept.tolist())


def test_lengths_are_those_of_all_samples() -> None:
    loader = made()
    assert [loader.steps(epoch) for epoch in (1, 2, 500)] == [5, 5, 5]
    assert loader.total_steps(3) == sum(len(epoch_of(loader)) for _ in range(3)) == 15
    assert loader.total_steps(10) == 50
    assert "next stage never due" in repr(loader)


def saved(loader: Any) -> Any:
    file = io.BytesIO()
    torch.save(loader.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("schedule", [None, HALVES], ids=["alone", "condensed"])
@pytest.mark.parametrize("last", [None, 2], ids=["between epochs", "within one"])
def test_a_run_goes_on_with_its_gate(schedule: Any, last: int | None) -> None:
    whole, first, second = (made(schedule, mixing=None) for _ in range(3))
    expected = [epoch_of(whole) for _ in range(4)]
    assert epoch_of(first) == expected[0]
    begun = epoch_of(first, last=last)
    second.load_state_dict(saved(first))
    assert identical_state(second.state_dict(), first.state_dict())
    if last:
        assert begun + epoch_of(second) == expected[1]
    assert [epoch_of(second) for _ in range(2)] == expected[2:]
    assert identical_state(second.state_dict(), whole.state_dict())


def test_a_state_of_another_gate_is_refused() -> None:
    loader, plain = made(HALVES), made(HALVES, None)
    epoch_of(loader)
    epoch_of(plain)
    state, without = loader.state_dict(), plain.state_dict()
    shorter = kcd.CondensationHistory(N - 1).state_dict()
    for other, wrong, message in (
        (plain, state, "saved with ask=, which is not given here"),
        (loader, without, "saved without ask=, which is given here"),
        (made(HALVES, 0.5), state, "gate state was saved with schedule = "),
        (loader, {**state, "ask": {**state["ask"], "epoch": -1}}, "gate state is damaged: epoch"),
        (loader, {**state, "ask": {**state["ask"], "sampler": {}}}, "not a gate state: it has no"),
        (loader, {**state, "ask": {**state["ask"], "history": shorter}}, "its history is of 39 samples"),
        (loader, [without], "saved without ask="),
    ):
        before = other.state_dict()
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(wrong)
        assert identical_state(other.state_dict(), before)


@pytest.mark.parametrize("where", ["gate", "sampler"])
def test_an_end_that_is_interrupted_changes_nothing(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = made(HALVES, mixing=None)
    epoch_of(loader)
    epoch_of(loader, end=False)
    before, part = loader.state_dict(), getattr(loader, where)
    installs = type(part).install

    def interrupted(self: Any, chosen: Any) -> None:
        installs(self, chosen)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(part), "install", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loader.end_epoch()
    assert identical_state(loader.state_dict(), before)
    loader.end_epoch()
    assert (loader.epoch, loader.gate.stage, loader.sampler.stage) == (3, 2, 2)


def test_rows_are_pinned_where_cuda_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    loader, pinned = made(), []

    def pin(x: torch.Tensor) -> torch.Tensor:
        pinned.append(x)
        return x

    next(iter(loader))
    assert loader.asked_rows.tolist() == list(range(8))
    assert not pinned
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    assert loader.asked_rows is pinned[0]
    assert loader.asked is pinned[1]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ask": 0}, ValueError, r"ask must be in \(0, 1\]"),
        ({"ask": 1.5}, ValueError, r"ask must be in \(0, 1\]"),
        ({"ask": True}, TypeError, "ask must be the share"),
        ({"ask": "half"}, TypeError, "ask must be the share"),
        ({"ask": 0.5, "ask_multiple": 0}, ValueError, "ask_multiple must be"),
        ({"ask": 0.5, "sharded": True}, ValueError, "ask needs the values of all samples in one place"),
        ({"ask": None}, TypeError, "None goes with ask=, or with a select that"),
    ],
    ids=["zero", "above", "bool", "text", "multiple", "sharded", "neither"],
)
def test_what_is_wrong_is_named(options: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        kcd.wrap_loader(DataLoader(Plain(N), batch_size=4, shuffle=True), schedule=None, **options)


def test_a_state_of_another_schedule_is_refused_in_the_words_of_the_call() -> None:
    condensing, asking = (
        kcd.wrap_loader(DataLoader(Plain(N), batch_size=4, shuffle=True), schedule=schedule, ask=0.5, seed=0)
        for schedule in (HALVES, None)
    )
    with pytest.raises(ValueError, match=r"saved with schedule = \{'ratio': 0\.5, .*\}, here it is None"):
        asking.load_state_dict(condensing.state_dict())
    with pytest.raises(ValueError, match=r"saved with schedule = None, here it is \{'ratio': 0\.5, "):
        condensing.load_state_dict(asking.state_dict())
    asking.load_state_dict(asking.state_dict())


def test_too_few_samples_for_the_share_are_warned_of() -> None:
    ask = kcd.CondensationSchedule(0.9, stages=30, period=1)
    with pytest.warns(UserWarning, match="the schedule will drop nothing of 40 samples"):
        made(HALVES, ask)


# -- ranks -----------------------------------------------------------------------------------------------


def refused(rank: int, world: int, ask: float | None) -> list[Any]:
    """What a rank is told where the last asks for another share, or for all."""
    loader = kcd.wrap_loader(
        DataLoader(Plain(N), batch_size=3),
        schedule=HALVES,
        mixing=None,
        ask=ask if rank else 0.25,
        num_replicas=world,
        rank=rank,
    )
    epoch_of(loader, end=False)
    with pytest.raises(RuntimeError) as caught:
        loader.end_epoch()
    return [str(caught.value), loader.epoch, loader.sampler.stage]


def rank_of(rank: int, world: int, folder: Path) -> None:
    import warnings

    warnings.simplefilter("error")
    join_ranks(rank, world, folder)
    loader = kcd.wrap_loader(
        DataLoader(Plain(N), batch_size=3),
        schedule=None,
        ask=0.25,
        seed=5,
        num_replicas=world,
        rank=rank,
    )
    asked = [epoch_of(loader) for _ in range(3)]
    states = loader.gather_state_dict()
    odd = [refused(rank, world, ask) for ask in (0.5, None)]
    torch.save(states, folder / f"states{rank}.pt")
    result = {"asked": asked, "kept": loader.gate.kept.tolist(), "odd": odd}
    leave_together(folder / f"rank{rank}.json", result, world)


def test_two_ranks_ask_as_one_process_that_recorded_everything(tmp_path: Path) -> None:
    ranks = run_ranks(rank_of, 2, tmp_path)
    alone = Naive(N, QUARTER)
    for epoch in range(1, 4):
        batches = [batch for rank in ranks for batch in rank["asked"][epoch - 1]]
        for indices, asked in batches:
            assert asked == [i for i in indices if i in alone.kept]
            alone.record(indices, entropy_of(logits_of(indices, epoch)))
        assert sum(len(indices) for indices, _ in batches) == N
        alone.stage()
    for rank in ranks:
        assert rank["kept"] == alone.kept
        for told, *unchanged in rank["odd"]:
            assert "rank(s) [1] differ from rank 0 in ask: " in told
            assert unchanged == [1, 0]
    # and one process goes on with what both saved
    states = torch.load(tmp_path / "states0.pt", weights_only=True)
    loader = kcd.wrap_loader(
        DataLoader(Plain(N), batch_size=3), schedule=None, ask=0.25, seed=5, num_replicas=1, rank=0
    )
    loader.load_state_dict(states)
    assert loader.gate.kept.tolist() == alone.kept
    assert loader.epoch == 4
    epoch_of(loader)
    alone.record(range(N), entropy_of(logits_of(range(N), 4)))
    alone.stage()
    assert loader.gate.kept.tolist() == alone.kept
    assert np.asarray(loader.tracker.count).tolist() == [4] * N


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("what", ["asked", "asked_rows", "sample_weights"])
def test_a_loop_that_fetches_ahead_is_not_given_the_next_batchs_rows(what: str, copies: bool) -> None:
    """At the first batch already, or where a prefetcher holds copies alone, once a record has shown that it looks ahead."""
    weighed = what == "sample_weights"
    options: Any = {"select": kcd.InfoBatch(8)} if weighed else {"ask": 0.25}
    loader = wrap(Plain(N), schedule=None, kcd_options={"return_index": True, **options})
    if weighed:  # the first epoch has no weights
        for indices, _ in loader:
            loader.record(logits_of(indices.tolist(), 1))
            assert loader.sample_weights is None
        loader.end_epoch()
    steps, refused = 0, None
    batches = ((indices, None if copies else batch) for indices, batch in loader)
    ahead = next(batches)
    for fetched in batches:
        (indices, _), ahead = ahead, fetched
        try:
            rows = getattr(loader, what)
        except RuntimeError as error:
            refused = str(error)
            break
        steps += rows is not None
        loader.record(logits_of(indices.tolist(), 1), indices=indices)
    assert refused is not None
    assert "fetches ahead" in refused
    assert ("weights_of(indices)" if weighed else "gate.asked(indices)") in refused
    assert steps == copies


def test_rows_that_another_thread_fetched_are_not_given() -> None:
    loader = made()
    with ThreadPoolExecutor(1) as thread:
        batch = thread.submit(next, iter(loader)).result()
        assert thread.submit(lambda: loader.asked_rows).result() is not None
        with pytest.raises(RuntimeError, match=r"another thread.*gate\.asked\(indices\)"):
            loader.asked_rows  # noqa: B018
    assert len(loader.gate.asked(index_of(batch))) == 8
