"""Which rank draws what, with whom it sums, and whether ranks that lost step are told so: real processes over gloo."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import pickle
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Plain, index_of, join_ranks, leave_together, logits_of, run_epoch, run_ranks, wrap
from torch.utils.data import DataLoader, DistributedSampler

import kcd_core as kcd
from kcd_core.base import distributed, resumption

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

N, WORLD = 24, 4
SCHEDULE = kcd.CondensationSchedule(ratio=0.5, stages=3, period=1)
EVERY_SECOND = kcd.CondensationSchedule(ratio=0.5, stages=3, period=2)


# -- what each rank does -----------------------------------------------------------------------------------


def plain(**options: Any) -> Any:
    loader = DataLoader(Plain(N), batch_size=3, shuffle=True)
    return kcd.wrap_loader(loader, **{"schedule": SCHEDULE, **options})


def told(work: Any) -> Any:
    """What a rank is told, or what ``work`` returns."""
    try:
        return work()
    except (RuntimeError, ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}"


def values(indices: Any, job: int) -> Any:
    """Of two students."""
    return logits_of([(7 * i + 5 * job) % N for i in indices], 1)


def in_pairs(rank: int, groups: list[Any]) -> list[int]:
    job = rank // 2
    loader = plain(num_replicas=2, rank=rank % 2, group=groups[job])
    for batch in loader:
        loader.record(values(index_of(batch), job))
    return list(map(int, loader.end_epoch().kept))


def told_to_the_logger(rank: int, groups: list[Any]) -> list[int]:
    """How many lines a stage of all ranks is, and one of a pair."""
    lines: list[logging.LogRecord] = []
    logger, handler = logging.getLogger("kcd"), logging.Handler()
    handler.emit = lines.append  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    run_epoch(plain(num_replicas=WORLD, rank=rank))
    of_all = len(lines)
    in_pairs(rank, groups)
    logger.removeHandler(handler)
    return [of_all, len(lines) - of_all]


def slices_in_pairs(rank: int, groups: list[Any]) -> int:
    sampler = kcd.ShardedSampler(N, num_replicas=2, rank=rank % 2, mixing=None)
    tracker = kcd.KnowledgeValueTracker(N // 2)
    indices = np.arange(sampler.start, sampler.stop)
    tracker.update(indices - sampler.start, values(indices.tolist(), rank // 2))
    kcd.condense_sharded(tracker, sampler, SCHEDULE, group=groups[rank // 2])
    return list(map(int, sampler.kept))


def two_loaders(rank: int) -> Any:
    """Ended in another order on the last rank."""
    loaders = [plain(num_replicas=WORLD, rank=rank) for _ in range(2)]
    for loader in loaders:
        run_epoch(loader, end=False)
    for loader in loaders if rank < WORLD - 1 else reversed(loaders):
        loader.end_epoch()


def ended_twice(rank: int) -> Any:
    """By the last rank."""
    loader = plain(num_replicas=WORLD, rank=rank, schedule=EVERY_SECOND)
    run_epoch(loader)
    if rank < WORLD - 1:
        run_epoch(loader)
    else:
        loader.end_epoch()


def forgotten(rank: int, who: int, shares: int = WORLD, **options: Any) -> list[str]:
    """Whether rank ``who`` records or not, all ranks are told the same, or nothing."""
    loader = plain(num_replicas=shares, rank=rank % shares, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in loader:
            if rank != who:
                loader.record(logits_of(index_of(batch), 1))
        error = told(lambda: loader.end_epoch() and None)
    return [error, *(str(one.message) for one in caught)]


def gathered_on_one_rank(rank: int) -> str:
    """Rank 0 records all ranks' batches, as loops that gather logits for a metric may do."""
    loader = plain(num_replicas=WORLD, rank=rank, return_index=True)
    for indices, batch in loader:
        everyones = distributed.gather(lambda batch=batch: index_of(batch))
        assert indices.tolist() == everyones[rank]
        if rank == 0:
            alls = [index for one in everyones for index in one]
            loader.record(logits_of(alls, 1), indices=torch.tensor(alls))
    return told(lambda: loader.end_epoch() and None)


def forgotten_by_hand(rank: int) -> list[str]:
    """Rank 0 may have gathered all logits, so that rank 1 is told, and no error raised."""
    run = kcd.Condensation(kcd.CondensedSampler(N, num_replicas=WORLD, rank=rank), schedule=SCHEDULE)
    if rank != 1:
        run.record(logits_of(range(N), 1), indices=range(N))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.end_epoch()
    return [str(one.message) for one in caught]


def torn(rank: int, sharded: bool) -> list[Any]:
    """The last rank's state is one batch older."""
    loader = plain(num_replicas=WORLD, rank=rank, sharded=sharded)
    states = []
    for batch in loader:
        loader.record(logits_of(index_of(batch), 1))
        states.append(loader.state_dict())
    again = plain(num_replicas=WORLD, rank=rank, sharded=sharded)
    again.load_state_dict(states[0 if rank == WORLD - 1 else 1])
    iterator = iter(again)  # as trainers do to see whether they can
    return [told(lambda: len(index_of(next(iterator)))), told(lambda: len(index_of(next(iter(again)))))]


def torn_by_hand(rank: int) -> Any:
    run = kcd.Condensation(kcd.CondensedSampler(N), schedule=EVERY_SECOND)
    run.record(logits_of([rank], 1), indices=[rank])
    states = [run.state_dict()]
    run.end_epoch()
    states.append(run.state_dict())
    run.load_state_dict(states[rank != 2])
    return run.record(logits_of([rank], 1), indices=[rank])


@contextlib.contextmanager
def waiting_in_vain() -> Iterator[None]:
    """For ranks that do not come: not as long as for those that do, however slow they are."""
    before, resumption.WAIT = resumption.WAIT, 0.6
    try:
        yield
    finally:
        resumption.WAIT = before


def alone(rank: int) -> Any:
    """Rank 1 alone goes on from a state."""
    loader = plain(num_replicas=WORLD, rank=rank)
    if rank == 1:
        loader.load_state_dict(loader.state_dict())
    with waiting_in_vain():
        return len(run_epoch(loader, end=False))


def probed(rank: int) -> Any:
    """Rank 0 draws a batch long before the others have loaded; then all go on, and load once more."""
    loader = plain(num_replicas=WORLD, rank=rank)
    run_epoch(loader)
    state = loader.state_dict()
    if rank:
        time.sleep(0.3)
    loader.load_state_dict(state)
    if rank == 0:
        next(iter(loader))
    run_epoch(loader)
    later = loader.state_dict()
    if rank == 2:
        time.sleep(0.3)
    loader.load_state_dict(later)
    run_epoch(loader)
    return [loader.epoch, len(loader.history)]


def gathered(rank: int, sharded: bool) -> Any:
    loader = plain(num_replicas=WORLD, rank=rank, sharded=sharded)
    for _, batch in zip(range(2 if not sharded else 10), loader, strict=False):
        loader.record(logits_of(index_of(batch), 1))
    if sharded:
        loader.end_epoch()
    states = loader.gather_state_dict()
    if rank == 2:
        torch.save(states, gathered.folder / f"states{sharded}.pt")
    return [[state["rank"], int(state["tracker"]["count"].sum())] for state in states]


def gathered_by_one_rank_alone(rank: int) -> Any:
    """As where a loop saves on its main process only; and then, by all."""
    loader = plain(num_replicas=WORLD, rank=rank)
    with waiting_in_vain():
        alone = told(loader.gather_state_dict) if rank == 0 else ""
    torch.distributed.barrier()
    return [alone, len(loader.gather_state_dict())]


def gathered_alike(rank: int) -> Any:
    """All ranks draw everything. Gathered in the first epoch, gone on with, and compared when it ends."""
    loader = plain(num_replicas=1, rank=0, mixing=None)
    for _, batch in zip(range(2), loader, strict=False):
        loader.record(logits_of(index_of(batch), 1))
    states = loader.gather_state_dict()
    again = plain(num_replicas=1, rank=0, mixing=None)
    again.load_state_dict(states)
    return [len(states), len(run_epoch(again)), again.tracker.count.tolist()]


def gathered_with_a_skip(rank: int) -> Any:
    """The last rank does not record the batch after which all save; its values were not finite, say."""
    loader = plain(num_replicas=WORLD, rank=rank)
    for step, batch in zip(range(2), loader, strict=False):
        if step == 0:
            loader.record(logits_of(index_of(batch), 1))
            states = loader.gather_state_dict()
            before = [state["position"] for state in states]
        elif rank < WORLD - 1:
            loader.record(logits_of(index_of(batch), 1))
    states = loader.gather_state_dict()
    again = plain(num_replicas=WORLD, rank=rank)
    again.load_state_dict(states)
    drawn = len(run_epoch(again, end=False))
    return [
        before,
        [state["position"] for state in states],
        drawn,
        int(sum(s["tracker"]["count"].sum() for s in states)),
    ]


def looked_between_loads(rank: int) -> Any:
    """Every rank runs the same lines; the last one is slow."""
    loader = plain(num_replicas=WORLD, rank=rank)
    states = []
    for _, batch in zip(range(2), loader, strict=False):
        loader.record(logits_of(index_of(batch), 1))
        states.append(loader.state_dict())
    loader.load_state_dict(states[0])
    if rank == WORLD - 1:
        time.sleep(0.5)
    next(iter(loader))
    loader.load_state_dict(states[1])
    return len(run_epoch(loader, end=False))


class Odd(kcd.CondensationSchedule):
    """With a target that is a function of the rank."""

    def target(self, num_samples: int, previous: int) -> int:
        if self.warmup == 1 and distributed.rank() == 2:
            raise KeyError("no such metric")
        return super().target(num_samples, previous) + (distributed.rank() == 3)


def step(rank: int, schedule: Any = SCHEDULE, alpha: float = 0.03) -> Any:
    tracker, sampler = kcd.KnowledgeValueTracker(N), kcd.CondensedSampler(N)
    tracker.record([rank], [1.0])
    try:
        kcd.condense_step(tracker, sampler, schedule, alpha=alpha)
    except KeyError as error:
        return str(error)
    return sampler.stage


def work(rank: int, world: int, folder: Path) -> None:
    torch.manual_seed(rank)
    join_ranks(rank, world, folder)
    gathered.folder = folder  # type: ignore[attr-defined]
    groups = [torch.distributed.new_group([0, 1]), torch.distributed.new_group([2, 3])]
    mine = groups[rank // 2]
    result: dict[str, Any] = {
        "plain": told(plain),
        "plain of slices": told(lambda: plain(sharded=True)),
        "shared": run_epoch(plain(num_replicas=world, rank=rank)),
        "by the group": run_epoch(plain(num_replicas=world)),
        "alike": run_epoch(plain(num_replicas=1, rank=0)),
        "pairs": in_pairs(rank, groups),
        "slices of pairs": slices_in_pairs(rank, groups),
        "no group": told(lambda: plain(num_replicas=2, rank=rank % 2)),
        "no group by hand": told(
            lambda: kcd.Condensation(kcd.CondensedSampler(N, num_replicas=2, rank=0), schedule=SCHEDULE)
        ),
        "another group": told(lambda: plain(num_replicas=2, rank=rank % 2, group=groups[1 - rank // 2])),
        "no such group": told(lambda: plain(num_replicas=2, rank=rank % 2, group="mine")),
        "pickled": [
            told(lambda how=how: how(plain(num_replicas=2, rank=rank % 2, group=mine)) and None)  # type: ignore[misc]
            for how in (pickle.dumps, copy.deepcopy)
        ],
        "two loaders": told(lambda: two_loaders(rank)),
        "ended twice": told(lambda: ended_twice(rank)),
        "forgotten": [forgotten(rank, who) for who in (0, 2)],
        "forgotten slice": forgotten(rank, 2, sharded=True),
        "forgotten before a stage": forgotten(rank, 2, schedule=EVERY_SECOND),
        "recorded by others": forgotten(rank, 2, 1),
        "forgotten by hand": forgotten_by_hand(rank),
        "logits gathered": gathered_on_one_rank(rank),
        "torn": torn(rank, False),
        "torn slices": torn(rank, True),
        "torn by hand": told(lambda: torn_by_hand(rank)),
        "alone": told(lambda: alone(rank)),
        "probed": probed(rank),
        "gathered": gathered(rank, False),
        "gathered slices": gathered(rank, True),
        "gathered alone": gathered_by_one_rank_alone(rank),
        "gathered alike": gathered_alike(rank),
        "gathered with a skip": gathered_with_a_skip(rank),
        "looked between loads": told(lambda: looked_between_loads(rank)),
        "alpha": told(lambda: step(rank, alpha=-1.0 if rank == 1 else 0.03)),
        "target fails": told(lambda: step(rank, Odd(0.5, 3, 1, warmup=1))),
        "target differs": told(lambda: step(rank, Odd(0.5, 3, 1))),
        "logged": told_to_the_logger(rank, groups),
    }
    leave_together(folder / f"rank{rank}.json", result, world)


@functools.cache
def seen() -> tuple[list[Any], dict[bool, Any]]:
    with tempfile.TemporaryDirectory() as name:
        results = run_ranks(work, WORLD, Path(name))
        return results, {how: torch.load(Path(name) / f"states{how}.pt") for how in (False, True)}


def on_every_rank(what: str) -> list[Any]:
    return [rank[what] for rank in seen()[0]]


# -- and what it should have done --------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["plain", "plain of slices"])
def test_ranks_that_would_draw_alike_are_told_both_ways_out(what: str) -> None:
    for message in on_every_rank(what):
        assert message.startswith("RuntimeError: there are 4 ranks")
        assert "DistributedSampler" in message
        assert "num_replicas=1, rank=0" in message


@pytest.mark.parametrize("what", ["shared", "by the group"])
def test_a_plain_loader_is_shared_out_where_asked(what: str) -> None:
    drawn = [i for batches in on_every_rank(what) for batch in batches for i in batch]
    assert sorted(drawn) == list(range(N))


def test_ranks_draw_alike_where_asked_whatever_their_seeds_of_torch() -> None:
    first, *others = on_every_rank("alike")
    assert sorted(i for batch in first for i in batch) == list(range(N))
    assert others == [first] * 3


@pytest.mark.parametrize("what", ["pairs", "slices of pairs"])
def test_students_in_groups_of_their_own_get_sets_of_their_own(what: str) -> None:
    """Exactly those that each pair recorded."""
    sets = on_every_rank(what)
    if what != "pairs":
        sets = [sets[0] + sets[1]] * 2 + [sets[2] + sets[3]] * 2
    for rank, kept in enumerate(sets):
        tracker = kcd.KnowledgeValueTracker(N)
        tracker.update(np.arange(N), values(range(N), rank // 2))
        alone = kcd.condense(tracker.value, tracker.count, previous=N, target=SCHEDULE.target(N, N))
        assert kept == alone.kept.tolist()
    assert sets[0] != sets[2]


def test_the_first_rank_of_each_student_tells_the_logger() -> None:
    assert on_every_rank("logged") == [[1, 1], [0, 0], [0, 1], [0, 0]]


def test_shares_for_fewer_ranks_than_there_are_need_their_group() -> None:
    for what in ("no group", "no group by hand"):
        for message in on_every_rank(what):
            assert "num_replicas = 2 ranks" in message
            assert "as group=" in message
    assert all(m.startswith("ValueError: group must be") for m in on_every_rank("another group"))
    assert all(m.startswith("TypeError: group must be") for m in on_every_rank("no such group"))
    for messages in on_every_rank("pickled"):
        assert all("can't be pickled or copied" in message for message in messages)


def test_ranks_that_lost_step_are_all_told_so() -> None:
    for what, name in (("two loaders", "run"), ("ended twice", "number of epochs drawn")):
        first, *others = on_every_rank(what)
        assert f"rank(s) [3] differ from rank 0 in {name}: " in first
        assert others == [first] * 3


def test_a_rank_that_forgets_to_record_its_share_is_an_error_on_all() -> None:
    two = "ranks disagree: rank(s) [2] differ from rank 0 in calls of record() in this epoch: 'none' there"
    for what in ("forgotten slice", "forgotten before a stage"):
        assert all(
            error.startswith(f"RuntimeError: {two}") and not said for error, *said in on_every_rank(what)
        )
    for (by_0, *none), (by_2, *said) in on_every_rank("forgotten"):
        assert "rank(s) [1, 2, 3] differ from rank 0 in calls of record() in this epoch: 'some' there" in by_0
        assert two in by_2
        assert not none
        assert not said


def test_ranks_whose_logits_were_gathered_on_one_are_told_to_record_their_own() -> None:
    first, *others = on_every_rank("logits gathered")
    assert "rank(s) [1, 2, 3] differ from rank 0 in calls of record() in this epoch: 'none' there" in first
    assert "records what it drew itself (ranks' recordings are summed: gather no logits)" in first
    assert others == [first] * 3


def test_a_rank_that_need_not_record_is_no_error() -> None:
    by_others, by_hand = on_every_rank("recorded by others"), on_every_rank("forgotten by hand")
    assert [error for error, *_ in by_others] == [None] * WORLD
    assert [said for _, *said in by_others][:2] == [[], []]
    assert by_others[2][1].startswith("nothing was recorded in epoch 1 on rank 2: call loader.record")
    assert by_hand[1][0].startswith("nothing was recorded in epoch 1 on rank 1: call run.record")
    assert not any("nothing was recorded" in text for rank in (0, 2, 3) for text in by_hand[rank])


@pytest.mark.parametrize("what", ["torn", "torn slices"])
def test_states_of_two_moments_are_told_at_the_first_batch(what: str) -> None:
    for rank, messages in enumerate(on_every_rank(what)):
        for message in messages:  # and again, if one goes on
            assert "the ranks resume from different moments" in message
            assert ("position 24 (here 12)" if rank == 3 else "position 12 (here 24)") in message


def test_states_of_two_moments_are_told_at_the_first_record_by_hand() -> None:
    for message in on_every_rank("torn by hand"):
        assert "the ranks resume from different moments" in message
        assert "epoch" in message


def test_a_rank_that_loads_alone_is_told_and_no_other_waits() -> None:
    first, lonely, *others = on_every_rank("alone")
    assert "rank(s) [0, 2, 3] have not loaded one within" in lonely
    assert [first, *others] == [2] * 3


def test_ranks_may_load_and_look_at_a_first_batch_in_their_own_time() -> None:
    assert on_every_rank("probed") == [[4, 3]] * WORLD


@pytest.mark.parametrize("sharded", [False, True])
def test_gathered_states_go_on_on_any_number_of_ranks(sharded: bool) -> None:
    lists = on_every_rank("gathered slices" if sharded else "gathered")
    assert lists == [[[rank, 6] for rank in range(WORLD)]] * WORLD
    loader = plain(sharded=sharded, seed=0)
    loader.load_state_dict(seen()[1][sharded])
    assert loader.tracker.count.sum() == 6 * WORLD
    assert len(loader.gather_state_dict()) == 1


def test_a_rank_that_gathers_states_alone_is_told_and_does_not_wait_in_a_collective() -> None:
    results = on_every_rank("gathered alone")
    assert [gathered for _, gathered in results] == [WORLD] * WORLD
    assert results[0][0].startswith(
        "RuntimeError: this rank gathers the states of all ranks, and rank(s) [1, 2, 3] did not come within 1 s"
    )


def test_of_ranks_that_draw_alike_one_state_is_gathered() -> None:
    for of_each in on_every_rank("gathered alike"):
        assert of_each == [1, 6, [1] * N]


def test_what_one_rank_passed_over_when_all_saved_is_passed_over_by_all() -> None:
    for of_each in on_every_rank("gathered with a skip"):
        assert of_each == [[3 * WORLD] * WORLD, [6 * WORLD] * WORLD, 0, 6 * WORLD - 3]


def test_each_load_is_compared_with_the_same_load_of_the_others() -> None:
    assert on_every_rank("looked between loads") == [0] * WORLD


def test_what_fails_on_one_rank_is_raised_on_all() -> None:
    for what, odd, kind in (("alpha", 1, "alpha must be"), ("target fails", 2, "no such metric")):
        for rank, message in enumerate(on_every_rank(what)):
            assert (kind if rank == odd else f"rank(s) [{odd}] could not continue") in message
    for message in on_every_rank("target differs"):
        assert "rank(s) [3] differ from rank 0 in target: " in message


# -- one process -------------------------------------------------------------------------------------------


def test_ranks_that_only_the_launcher_announces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told at the first batch: the process group may be made after the loader."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    iterator = iter(plain())
    with pytest.raises(RuntimeError, match=r"WORLD_SIZE says 2 ranks.*num_replicas=1, rank=0"):
        next(iterator)
    assert len(run_epoch(plain(num_replicas=1, rank=0))) == N // 3
    tracker, sampler = kcd.KnowledgeValueTracker(N), kcd.CondensedSampler(N)
    tracker.record(np.arange(N), np.arange(N))
    with pytest.raises(RuntimeError, match="WORLD_SIZE says 2 ranks"):
        kcd.condense_step(tracker, sampler, SCHEDULE)
    assert sampler.stage == 0
    kcd.condense_step(tracker, kcd.CondensedSampler(N, num_replicas=1, rank=0), SCHEDULE)


def test_a_loss_and_a_stream_have_no_shares_and_warn_of_ranks_that_nobody_sums_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    loss = kcd.CondensedLoss(torch.nn.CrossEntropyLoss(reduction="none"), kcd.KnowledgeValueTracker(N))
    run = kcd.Condensation(loss, schedule=SCHEDULE)
    stream = kcd.CondensedStream(range(N), key=int, slots=64, schedule=SCHEDULE)

    def record() -> None:
        run.record(logits_of([0], 1), indices=[0])
        stream.record(logits_of([0], 1), ids=[0])

    with pytest.warns(UserWarning, match="WORLD_SIZE says 2 ranks, and no process group") as caught:
        record()
    record()  # once
    assert [warning.filename for warning in caught] == [__file__] * 2


def test_a_loss_that_records_by_itself_warns_of_them_at_the_end_of_an_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    loss = kcd.CondensedLoss(torch.nn.CrossEntropyLoss(reduction="none"), kcd.KnowledgeValueTracker(N))
    run = kcd.Condensation(loss, schedule=SCHEDULE)
    for times in (1, 0):
        loss(logits_of([0], 1), torch.zeros(1, dtype=torch.int64), indices=[0])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run.end_epoch()
        assert [str(one.message)[:22] for one in caught] == ["WORLD_SIZE says 2 rank"] * times


def test_slices_of_ranks_that_only_the_launcher_announces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    tracker, sampler = kcd.KnowledgeValueTracker(N), kcd.ShardedSampler(N)
    tracker.record(np.arange(N), np.arange(N))
    with pytest.raises(RuntimeError, match="WORLD_SIZE says 2 ranks"):
        kcd.condense_sharded(tracker, sampler, SCHEDULE)
    assert sampler.stage == 0
    kcd.condense_sharded(tracker, kcd.ShardedSampler(N, num_replicas=1, rank=0), SCHEDULE)


def test_a_group_that_is_younger_than_the_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = plain()
    run = kcd.Condensation(kcd.CondensedSampler(N), schedule=SCHEDULE)
    monkeypatch.setattr(distributed, "world_size", lambda group=None: 2)
    with pytest.raises(RuntimeError, match="there are 2 ranks"):
        next(iter(loader))
    with pytest.raises(RuntimeError, match="there are 2 ranks"):
        run.record(logits_of([0], 1), indices=[0])
    assert run.tracker.count.sum() == 0


def test_shares_without_a_process_group_are_told_in_the_first_epoch() -> None:
    loader = plain(num_replicas=3, rank=1, schedule=kcd.CondensationSchedule(period=40))
    with pytest.warns(UserWarning, match="no process group is initialised to sum") as caught:
        run_epoch(loader)
    assert [warning.filename for warning in caught] == [run_epoch.__code__.co_filename]
    run_epoch(loader)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_replicas": 2}, "rank must be given with num_replicas = 2"),
        ({"num_replicas": 2, "rank": 2}, "rank must be below num_replicas = 2, got 2"),
        ({"rank": 1}, "rank must be below num_replicas = 1"),
    ],
)
def test_half_a_share_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plain(**given)
    with pytest.raises(ValueError, match=message):
        kcd.CondensedSampler(N, **given)


def test_a_distributed_sampler_is_not_contradicted() -> None:
    def loader(**given: Any) -> Any:
        order: Any = DistributedSampler(range(N), 2, 1)  # type: ignore[arg-type]
        return kcd.wrap_loader(DataLoader(Plain(N), sampler=order), schedule=SCHEDULE, **given)  # type: ignore[arg-type]

    with pytest.raises(
        ValueError, match="rank = 0 contradicts the loader's DistributedSampler, of which it is 1"
    ):
        loader(rank=0)
    with pytest.raises(ValueError, match="num_replicas = 1 contradicts"):
        loader(num_replicas=1)
    assert loader(num_replicas=2, rank=1).sampler.rank == 1


# -- the order's seed --------------------------------------------------------------------------------------


def seed_of(seed: int | None = None, given: Any = None, **options: Any) -> int:
    loader = DataLoader(Plain(N), shuffle=True, **options)
    return int(kcd.wrap_loader(loader, schedule=SCHEDULE, seed=seed, **(given or {})).sampler.seed)


@pytest.mark.parametrize("seed", [0, 5, 2**63 + 1, -1])
def test_the_order_has_torchs_seed_and_nothing_is_drawn(seed: int) -> None:
    torch.manual_seed(seed)
    before = torch.get_rng_state()
    assert seed_of() == seed % 2**64
    assert torch.equal(torch.get_rng_state(), before)
    generator = torch.Generator().manual_seed(7)
    before = generator.get_state()
    assert seed_of(generator=generator) == 7
    assert torch.equal(generator.get_state(), before)
    assert seed_of(3, generator=generator) == 3


def test_several_ranks_have_one_seed() -> None:
    torch.manual_seed(99)
    assert seed_of(given={"num_replicas": 2, "rank": 0}) == 0
    assert seed_of(given={"num_replicas": 1, "rank": 0}) == 99
    order: Any = DistributedSampler(range(N), 2, 0, seed=8)  # type: ignore[arg-type]
    loader: Any = DataLoader(Plain(N), sampler=order)  # type: ignore[arg-type]
    assert kcd.wrap_loader(loader, schedule=SCHEDULE).sampler.seed == 8
    assert kcd.wrap_loader(loader, schedule=SCHEDULE, seed=4).sampler.seed == 4


@pytest.mark.parametrize("sharded", [False, True])
def test_a_state_brings_its_seed_unless_one_was_given(sharded: bool) -> None:
    options = {"sharded": sharded}
    torch.manual_seed(1)
    first = plain(**options)
    batches = run_epoch(first, end=False)
    assert batches == run_epoch(plain(seed=1, **options), end=False)
    state = plain(seed=1, **options).state_dict()
    torch.manual_seed(2)
    again = plain(**options)
    assert run_epoch(plain(**options), end=False) != batches
    again.load_state_dict(state)
    assert run_epoch(again, end=False) == batches
    assert again.state_dict()["seed"] == 1
    with pytest.raises(ValueError, match="seed = 1, here it is 3"):
        plain(seed=3, **options).load_state_dict(state)


# -- by hand -----------------------------------------------------------------------------------------------


def test_a_sampler_of_ones_own_has_its_stages_counted() -> None:
    class Mine:
        num_samples, kept = N, np.arange(N)

        def install(self, condensed_set: kcd.CondensedSet) -> None:
            self.kept = condensed_set.kept

    run = kcd.Condensation(Mine(), schedule=SCHEDULE)
    for stage in range(1, 4):
        run.record(logits_of(range(N), 1), indices=range(N))
        assert run.end_epoch().stage == stage
    assert [entry["stage"] for entry in run.history] == [1, 2, 3]


def test_a_sampler_at_another_epoch_begins_with_the_runs() -> None:
    sampler = kcd.CondensedSampler(N)
    sampler.set_epoch(5)
    kcd.Condensation(sampler, schedule=SCHEDULE)
    assert sampler.epoch == 1


@pytest.mark.parametrize("given", [{"value": "entropy"}, {"on_nonfinite": "raise"}, {"device": "cpu"}])
def test_what_belongs_to_the_tracker_is_not_given_beside_it(given: Any) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(given))} must be given to the tracker"):
        kcd.Condensation(
            kcd.CondensedSampler(N), schedule=SCHEDULE, tracker=kcd.KnowledgeValueTracker(N), **given
        )


def test_a_loader_of_one_process_has_no_trouble_with_any_of_it() -> None:
    loader = wrap(Plain(N), schedule=SCHEDULE)
    loader.load_state_dict(loader.state_dict())
    run_epoch(loader)
    assert copy.deepcopy(loader).epoch == 2
