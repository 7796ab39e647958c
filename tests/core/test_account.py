"""What a run cost, against what a loop saw: every batch that was yielded counted beside the loader."""

from __future__ import annotations

import copy
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    Cifar,
    Plain,
    examples,
    identical_state,
    index_of,
    join_ranks,
    leave_together,
    logits_of,
    run_ranks,
    wrap,
)
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import kcd_core as kcd
from kcd_core import account as module

N = 37
SCHEDULE = kcd.CondensationSchedule(ratio=0.5, stages=3, period=2)


class Clock:
    """Seconds that pass when it is told so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(module, "monotonic", lambda: self.now)

    def pass_(self, seconds: float) -> None:
        self.now += seconds


def counts(account: kcd.Account) -> list[tuple[int, int, int]]:
    return [(cost.drawn, cost.asked, cost.plain) for cost in account.epochs]


NEVER = kcd.CondensationSchedule(ratio=0.5, stages=1, period=1000)


def yielded(loader: Any, batches: int | None = None) -> tuple[int, int]:
    """A pass, or its first batches: samples that were yielded, and those of them that the teacher is asked for."""
    drawn = asked = 0
    for number, (indices, _) in enumerate(loader, 1):
        drawn += int((indices >= 0).sum())
        asked += len(loader.asked_rows)
        if number == batches:
            break
    return drawn, asked


@examples(usual=40)
@given(
    n=st.integers(9, 60),
    batch_size=st.integers(1, 12),
    drop_last=st.booleans(),
    ask=st.booleans(),
    multiple=st.sampled_from([1, 4]),
    share=st.sampled_from([(1, 0), (3, 0), (3, 2)]),
    sharded=st.booleans(),
    epochs=st.lists(st.lists(st.integers(1, 4) | st.none(), min_size=1, max_size=2), min_size=1, max_size=5),
    seed=st.integers(0, 9),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_was_yielded_is_counted(
    n: int,
    batch_size: int,
    drop_last: bool,
    ask: bool,
    multiple: int,
    share: Any,
    sharded: bool,
    epochs: Any,
    seed: int,
) -> None:
    """Also of passes that are broken off and of several in one epoch, by rank, without what only pads."""
    rng, (ranks, rank) = np.random.default_rng(seed), share
    options = {"return_index": True, "mixing": None, "num_replicas": ranks, "rank": rank}
    options |= {"ask": NEVER, "ask_multiple": multiple} if ask else {"sharded": sharded}
    settings = {"schedule": NEVER, "batch_size": batch_size, "drop_last": drop_last, "kcd_options": options}
    loader, plain = wrap(Plain(n), **settings), wrap(Plain(n), **settings)
    expected, whole = [], yielded(plain)[0]
    for epoch in epochs:
        seen = [yielded(loader, batches) for batches in epoch]
        expected.append((*np.sum(seen, 0).tolist(), whole))
        loader.end_epoch()
        for part in (loader.sampler, loader.gate):  # from now on, of some samples
            if part is not None and not options.get("sharded"):
                part.install(kcd.CondensedSet(np.sort(rng.permutation(n)[: rng.integers(1, n)]), n))
    assert counts(loader.account) == expected
    assert loader.account.total[:3] == tuple(np.sum(expected, 0).tolist())


def test_batches_that_wait_in_a_worker_are_not_drawn_yet() -> None:
    loader = wrap(Plain(N), batch_size=4, num_workers=2, kcd_options={"mixing": None})
    batches = iter(loader)
    seen = len(index_of(next(batches))) + len(index_of(next(batches)))
    assert loader.account.under_way[:2] == (seen, seen) == (8, 8)
    assert loader.account.epochs == ()
    assert not loader.account


def test_without_a_gate_the_teacher_is_asked_for_all_and_mixed_ones_are_asked_with_one() -> None:
    """Against the definitions: the mean of all that was recorded is ranked, and what is mixed is asked for."""
    asked = []
    for options in ({}, {"ask": 0.25}):
        loader = wrap(Cifar(N), schedule=SCHEDULE, kcd_options=options)
        for _ in range(6):
            rows = 0
            for batch in loader:
                indices = index_of(batch)
                mixed = loader.sampler.recipes.contains(np.array(indices))
                in_gate = np.isin(indices, np.arange(N) if loader.gate is None else loader.gate.kept)
                rows += int((mixed | in_gate).sum())
                loader.record(logits_of(indices, loader.epoch))
            asked.append(rows)
            loader.end_epoch()
        assert [cost.asked for cost in loader.account.epochs] == asked[-6:]
    sizes = [SCHEDULE.size(N, epoch) for epoch in range(1, 7)]
    assert asked[:6] == [cost.drawn for cost in loader.account.epochs] == sizes
    assert sum(asked[6:]) < 0.6 * sum(sizes)


def test_seconds_are_those_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    loader = wrap(Plain(12), batch_size=4, kcd_options={"mixing": None})
    for batch in loader:
        clock.pass_(2)
        loader.record(logits_of(index_of(batch), 1))
    clock.pass_(50)  # an evaluation
    loader.end_epoch()
    clock.pass_(50)
    next(iter(loader))  # a look
    clock.pass_(50)
    for batch in loader:
        clock.pass_(3)
        loader.record(logits_of(index_of(batch), 2))
        clock.pass_(1)
        if loader.batches_done == 2:
            assert loader.account.under_way.seconds == 4 + 3  # up to the last record
            break
    clock.pass_(50)
    loader.end_epoch()
    assert [cost.seconds for cost in loader.account.epochs] == [6, 7]
    assert loader.account.total.seconds == 13
    assert copy.deepcopy(loader).account.total == loader.account.total


@pytest.mark.parametrize("how", ["own state", "list", "pickle"])
def test_a_resumed_run_goes_on_with_its_account(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds add up; a batch that owed its record is drawn again, and counted again."""
    clock = Clock(monkeypatch)
    first = wrap(Plain(20), schedule=SCHEDULE, batch_size=4, kcd_options={"mixing": None, "ask": 0.5})
    for _ in range(3):
        for batch in first:
            clock.pass_(1)
            first.record(logits_of(index_of(batch), first.epoch))
        first.end_epoch()
    for number, batch in enumerate(first, 1):
        clock.pass_(1)
        if number == 3:
            break  # and is killed in the third step
        first.record(logits_of(index_of(batch), first.epoch))
    under_way = first.account.under_way
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    clock.now = 5.0  # another machine's
    if how == "pickle":
        again = pickle.loads(pickle.dumps(first))
    else:
        state = torch.load(file, weights_only=True)
        again = wrap(Plain(20), schedule=SCHEDULE, batch_size=4, kcd_options={"mixing": None, "ask": 0.5})
        again.load_state_dict([state] if how == "list" else state)
    assert again.account.epochs == first.account.epochs
    assert again.account.under_way == under_way
    assert again.history.account is again.account
    drawn = asked = 0
    for batch in again:
        clock.pass_(1)
        drawn, asked = drawn + len(index_of(batch)), asked + len(again.asked_rows)
        again.record(logits_of(index_of(batch), again.epoch))
    assert drawn == SCHEDULE.size(20, 4) - 8
    again.end_epoch()
    last = again.account.epochs[-1]
    assert last[:3] == (under_way.drawn + drawn, under_way.asked + asked, 20)
    assert last.seconds == under_way.seconds + -(-drawn // 4)


def test_a_run_that_is_resumed_in_its_first_epoch_goes_on_with_its_account() -> None:
    runs = [
        kcd.Condensation(kcd.CondensedSampler(8), schedule=kcd.CondensationSchedule(0.5, 1, 1))
        for _ in range(2)
    ]
    runs[0].record(torch.eye(8)[:6], indices=range(6), asked=3)
    runs[1].load_state_dict(runs[0].state_dict())
    runs[1].record(torch.eye(8)[6:], indices=[6, 7])
    runs[1].end_epoch()
    assert counts(runs[1].account) == [(8, 5, 8)]


def test_a_state_of_before_begins_an_account() -> None:
    loader = wrap(Plain(20), schedule=SCHEDULE, kcd_options={"mixing": None})
    for _ in range(3):
        for batch in loader:
            loader.record(logits_of(index_of(batch), loader.epoch))
        loader.end_epoch()
    state = loader.state_dict()
    del state["account"]
    loader.load_state_dict(state)
    assert (loader.account.first, loader.account.epochs, str(loader.history).count("\n")) == (4, (), 1)
    for batch in loader:
        loader.record(logits_of(index_of(batch), loader.epoch))
    loader.end_epoch()
    drawn = SCHEDULE.size(20, 4)
    assert counts(loader.account) == [(drawn, drawn, 20)]
    text = f"epochs 4 to 4: {drawn} samples drawn ({drawn / 20:.1%} of plain distillation's), "
    assert str(loader.history).splitlines()[-1].startswith(text)


def test_an_end_that_fails_leaves_the_account_as_it_was() -> None:
    loader = wrap(Plain(20), kcd_options={"mixing": None, "ask": 0.5})
    for batch in loader:
        loader.record(logits_of(index_of(batch), 1))
    before = loader.account.under_way[:2]

    class StopError(Exception):
        pass

    def fail(_: Any) -> None:
        raise StopError

    loader.gate.install = fail  # the last that an epoch's end changes
    with pytest.raises(StopError):
        loader.end_epoch()
    assert (loader.account.epochs, loader.account.under_way[:2]) == ((), before)
    assert loader.history.account is loader.account
    del loader.gate.install
    loader.end_epoch()
    assert counts(loader.account) == [(20, 20, 20)]


# -- loops that draw for themselves ----------------------------------------------------------------------


def test_a_run_by_hand_counts_what_it_records() -> None:
    run = kcd.Condensation(kcd.CondensedSampler(N, mixing=None), schedule=SCHEDULE)
    expected = []
    for epoch in range(1, 7):
        order = run.sampler.order()[:-1]  # its loop leaves one out, in plain training, too
        for indices in np.array_split(order, 4):
            run.record(logits_of(indices, epoch).numpy(), indices=indices, asked=len(indices) // 2)
        expected.append((len(order), sum(len(part) // 2 for part in np.array_split(order, 4)), N - 1))
        run.end_epoch()
    assert counts(run.account) == expected
    with pytest.raises(TypeError, match=r"asked must be an integer, got 0\.5"):
        run.record(logits_of([0], 7).numpy(), indices=[0], asked=0.5)
    with pytest.raises(ValueError, match=r"asked must be at most the number of rows, 1, got 2"):
        run.record(logits_of([0], 7).numpy(), indices=[0], asked=2)
    assert not run.tracker.count[0] > 6
    assert run.account.under_way.drawn == 0
    state = run.state_dict()
    del state["account"]
    run.load_state_dict(state)
    run.record(logits_of([0], 7).numpy(), indices=[0, -1][:1])
    run.end_epoch()
    assert counts(run.account) == [(1, 1, 0)]  # what plain training would draw was not seen
    assert "plain" not in str(run.account)


def test_a_stream_counts_what_it_records() -> None:
    samples = [{"name": f"s{i}", "x": i} for i in range(N)]
    stream = kcd.CondensedStream(samples, key="name", slots=5000, schedule=SCHEDULE)
    drawn = []
    for epoch in range(1, 7):
        passed = [sample["x"] for sample in DataLoader(stream, batch_size=None)]
        for part in np.array_split(passed, 3):
            stream.record(logits_of(part, epoch), ids=[f"s{i}" for i in part])
        drawn.append(len(passed))
        stream.end_epoch()
    assert counts(stream.account) == [(number, number, N) for number in drawn]
    assert drawn[-1] < N
    assert str(stream.history).endswith(str(stream.account))


# -- several ranks -----------------------------------------------------------------------------------------


def rank_work(rank: int, world: int, folder: str) -> None:
    """Two epochs on a rank, and a part of a third; then all that were saved, on one."""
    join_ranks(rank, world, folder)
    options = {"mixing": None, "ask": 0.5, "num_replicas": world, "rank": rank}
    schedule = kcd.CondensationSchedule(ratio=0.5, stages=2, period=1)
    loader, seen = wrap(Plain(N), schedule=schedule, batch_size=4, kcd_options=options), []
    for epoch in range(3):
        drawn = asked = 0
        for batch in loader:
            drawn, asked = drawn + int((loader.indices >= 0).sum()), asked + len(loader.asked_rows)
            loader.record(logits_of(index_of(batch), loader.epoch))
            if epoch == 2:
                break
        seen.append((drawn, asked))
        if epoch < 2:
            loader.end_epoch()
    states = loader.gather_state_dict()
    loader.load_state_dict(states)
    same = loader.account.state_dict() == states[rank]["account"]
    (Path(folder) / f"states{rank}.json").write_text(json.dumps([state["account"] for state in states]))
    leave_together(
        Path(folder) / f"rank{rank}.json",
        {"seen": seen, "account": loader.account.state_dict(), "same": same},
        world,
    )


def test_each_rank_accounts_its_own_share(tmp_path: Path) -> None:
    ranks = run_ranks(rank_work, 2, tmp_path)
    assert all(each["same"] for each in ranks)  # of a list, each rank takes over its own
    for each, plain in zip(ranks, (19, 18), strict=True):
        account = kcd.Account.from_state(each["account"])
        assert [cost[:2] for cost in (*account.epochs, account.under_way)] == [tuple(x) for x in each["seen"]]
        assert [cost.plain for cost in account.epochs] == [plain, plain]
    together = np.sum([each["seen"] for each in ranks], 0)
    assert together[0].tolist() == [N, N]  # the padding is nobody's


def test_on_another_number_of_ranks_the_first_takes_over_all() -> None:
    accounts = []
    for rank in range(3):
        account = kcd.Account()
        account.add(kcd.Cost(10, 5 + rank, seconds=rank))
        account.end_epoch(12)
        account.add(kcd.Cost(3, 2, seconds=1))
        accounts.append(account)
    first, second = (module.joined(accounts, rank, 2, epoch=2) for rank in range(2))
    assert first.epochs[0][:3] == (30, 18, 36)
    assert first.epochs[0].seconds == pytest.approx(2, abs=0.1)  # all at one time
    assert first.under_way[:2] == (9, 6)
    assert counts(second) == [(0, 0, 0)]
    assert module.joined([*accounts[:2], None], 0, 3, epoch=2).state_dict() == kcd.Account(2).state_dict()
    assert module.joined(accounts, 1, 3, epoch=2).epochs == accounts[1].epochs


# -- text and state ----------------------------------------------------------------------------------------


def test_text() -> None:
    account = kcd.Account()
    assert str(account) == "nothing was drawn in an epoch that ended"
    for drawn, asked in ((1000, 1000), (750, 250)):
        account.add(kcd.Cost(drawn, asked, seconds=2.5))
        account.end_epoch(1000)
    assert str(account) == (
        "epochs 1 to 2: 1,750 samples drawn (87.5% of plain distillation's), 1,250 teacher queries "
        "(62.5%), 5.0 s"
    )
    assert repr(account) == f"Account({account})"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"drawn": [1]}, "its columns differ in length"),
        ({"drawn": "1, 2"}, "drawn must be a list of numbers"),
        ({"asked": [1, -1]}, "asked must be numbers from 0"),
        ({"asked": [1, 1.5]}, "asked must be numbers from 0"),
        ({"plain": [1, True]}, "plain must be numbers from 0"),
        ({"seconds": [1.0, float("nan")]}, "seconds must be numbers from 0"),
        ({"seconds": None}, "seconds must be a list"),
        ({"first": 0}, "first must be at least 1"),
        ({"first": "1"}, "first must be an integer"),
    ],
)
def test_damage_is_refused(change: dict[str, Any], reason: str) -> None:
    account = kcd.Account()
    account.add(kcd.Cost(3, 2))
    account.end_epoch(3)
    state = account.state_dict()
    assert kcd.Account.from_state(json.loads(json.dumps(state))).epochs == account.epochs
    with pytest.raises(ValueError, match=f"not an account's state: {reason}"):
        kcd.Account.from_state({**state, **change})
    loader = wrap(Plain(20))
    before = loader.state_dict()
    with pytest.raises(ValueError, match="not an account's state"):
        loader.load_state_dict({**before, "account": {**state, **change}})
    with pytest.raises(ValueError, match="not an account's state: expected what state_dict"):
        loader.load_state_dict({**before, "account": [1]})
    assert identical_state(loader.state_dict(), before)
