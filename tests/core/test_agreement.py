"""Ranks that differ in one setting are told so, key by key, and nothing is changed.

The ranks are threads of this process: the sums are those of `torch.distributed`, and only the sending is left out.
"""

from __future__ import annotations

import re
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SECONDS, Plain, identical_state, logits_of
from torch.utils.data import DataLoader, DistributedSampler, Subset

import kcd_core as kcd
from kcd_core import run_state

N, RANKS = 24, 2
SCHEDULE = kcd.CondensationSchedule(ratio=0.5, stages=3, period=1)
EVERY_SECOND = kcd.CondensationSchedule(ratio=0.5, stages=3, period=2)


class Ranks:
    """What kcd uses of ``torch.distributed``, for ranks that are threads."""

    def __init__(self) -> None:
        self._here = threading.local()
        self._barrier = threading.Barrier(RANKS, timeout=SECONDS)
        self._given: list[Any] = [None] * RANKS

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return hasattr(self._here, "rank")

    def get_world_size(self, group: Any = None) -> int:
        return RANKS

    def get_rank(self, group: Any = None) -> int:
        return int(self._here.rank)

    def get_backend(self, group: Any = None) -> str:
        return "gloo"

    def all_reduce(self, tensor: torch.Tensor, group: Any = None) -> None:
        self._given[self._here.rank] = tensor.clone()
        self._barrier.wait()
        tensor.copy_(sum(self._given))
        self._barrier.wait()

    def all_gather_object(self, everyones: list[Any], mine: Any, group: Any = None) -> None:
        self._given[self._here.rank] = mine
        self._barrier.wait()
        everyones[:] = self._given
        self.compared = set(mine[0])  # settings
        self._barrier.wait()

    group = types.SimpleNamespace(WORLD=None)  # without a store

    def numbered(self, what: str, size: int) -> str:
        """Each rank numbers its runs itself."""
        self._here.made = getattr(self._here, "made", 0) + 1
        return f"number {self._here.made} of the {what}s"

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.distributed, name)

    def each(self, work: Callable[[int], Any]) -> list[Any]:
        """What ``work(rank)`` returned or raised on every rank."""
        results: list[Any] = [None] * RANKS

        def run(rank: int) -> None:
            self._here.rank, self._here.made = rank, 0
            try:
                results[rank] = work(rank)
            except Exception as error:
                results[rank] = error

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(RANKS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    made = Ranks()
    monkeypatch.setitem(sys.modules, "torch.distributed", made)
    monkeypatch.setattr(run_state, "numbered", made.numbered)
    return made


def differences(errors: list[Any], odd: int = RANKS - 1) -> set[str]:
    """In what one rank differs, where all are told so."""
    for error in errors:
        assert isinstance(error, RuntimeError), error
        assert str(error) == str(errors[0])
    return set(re.findall(rf"rank\(s\) \[{odd}\] differ from rank 0 in (.*?): ", str(errors[0])))


class Same(kcd.CondensationSchedule):
    """With the state of its parent, and another name."""


def highest(value: Any, count: Any, kept: Any, target: int, generator: Any) -> kcd.CondensedSet:
    return kcd.CondensedSet(np.arange(target), len(value))


def first(value: Any, count: Any, kept: Any, target: int, generator: Any) -> kcd.CondensedSet:
    return kcd.CondensedSet(np.arange(target), len(value))


#: Of the last rank, where every other has the default.
ANYWHERE = {
    "value": {"value": "margin"},
    "schedule": {"schedule": kcd.CondensationSchedule(ratio=0.6, stages=3, period=1)},
    "schedule_type": {"schedule": Same(ratio=0.5, stages=3, period=1)},
    "alpha": {"alpha": 0.5},
}
SAMPLERS = {
    **ANYWHERE,
    "num_samples": {"n": N + 2},
    "min_weight": {"min_weight": 0.5},
    "seed": {"seed": 6},
    "set": {"kept": True},
}
RUNS = {"shuffle": {"shuffle": False}, "mixing": {"mixing": "fresh"}, "epoch": {"epoch": 5}}
SELECTS = {"select": {"select": first}}
OF_RANKING = ("alpha", "min_weight")  # which no select takes
STATISTICS = {"statistic": {"statistic": "variance"}}  # where there is a choice


# -- by hand -----------------------------------------------------------------------------------------------


def step(rank: int, *, sharded: bool = False, n: int = N, seed: int = 5, **odd: Any) -> Callable[[], Any]:
    """``condense_step`` or ``condense_sharded``, ready to be called; its objects are attributes."""
    sampler: Any = (kcd.ShardedSampler if sharded else kcd.CondensedSampler)(
        n,
        seed=seed,
        mixing=odd.pop("mixing", "cumulative"),
        num_replicas=odd.pop("num_replicas", RANKS),
        rank=rank,
    )
    size = sampler.stop - sampler.start if sharded else n
    recording = {name: odd.pop(name) for name in ("value", "statistic") if name in odd}
    tracker = kcd.KnowledgeValueTracker(size, **recording)
    tracker.record(np.arange(size), np.arange(float(size)))
    if odd.pop("kept", False):
        sampler.install(kcd.CondensedSet(np.arange(3, N - 1), n))
    schedule = odd.pop("schedule", SCHEDULE)
    function = kcd.condense_sharded if sharded else kcd.condense_step

    def call() -> Any:
        before = sampler.in_force
        try:
            return function(tracker, sampler, schedule, **odd)
        except RuntimeError:
            assert sampler.in_force is before
            raise

    return call


STEP: dict[str, Any] = {**SAMPLERS, **STATISTICS, **SELECTS, "num_replicas": {"num_replicas": 4}}
SHARDED_STEP: dict[str, Any] = {
    **SAMPLERS, "mixing": {"mixing": "fresh"}, "num_replicas": {"num_replicas": 4}
}  # fmt: skip


@pytest.mark.parametrize("name", STEP)
def test_a_step_compares_every_setting(ranks: Ranks, name: str) -> None:
    usual = {} if name in OF_RANKING else {"select": highest}

    def work(rank: int) -> Any:
        given = {**usual, **(STEP[name] if rank == RANKS - 1 else {})}
        return step(rank, **given)()

    assert name in differences(ranks.each(work))
    assert ranks.compared == {*STEP, "kcd_core"}


@pytest.mark.parametrize("name", SHARDED_STEP)
def test_a_step_over_slices_compares_every_setting(ranks: Ranks, name: str) -> None:
    def work(rank: int) -> Any:
        return step(rank, sharded=True, **(SHARDED_STEP[name] if rank == RANKS - 1 else {}))()

    assert name in differences(ranks.each(work))
    assert ranks.compared == {*SHARDED_STEP, "statistic", "select", "kcd_core"}


@pytest.mark.parametrize("sharded", [False, True])
def test_a_step_of_ranks_that_agree_is_that_of_one(ranks: Ranks, sharded: bool) -> None:
    sets = ranks.each(lambda rank: step(rank, sharded=sharded)())
    kept = [chosen.num_kept if sharded else chosen.kept.tolist() for chosen in sets]
    assert kept[0] == kept[1]


def test_a_step_of_losses_which_draw_nothing(ranks: Ranks) -> None:
    """What has no rank of its own draws one shard on every rank."""

    def work(rank: int) -> Any:
        tracker = kcd.KnowledgeValueTracker(N)
        loss = kcd.CondensedLoss(torch.nn.CrossEntropyLoss(reduction="none"), tracker)
        tracker.record([rank, RANKS + rank], [1.0, 2.0])
        kcd.condense_step(tracker, loss, SCHEDULE)
        return loss.kept.tolist(), tracker.count.tolist()

    (kept, count), (again, other) = ranks.each(work)
    assert kept == again
    assert count != other
    assert len(kept) == SCHEDULE.target(N, N)
    assert kept[:RANKS] != [0, 1]  # the lowest of what was recorded: what never was comes first


# -- runs --------------------------------------------------------------------------------------------------


def by_hand(rank: int, n: int = N, **odd: Any) -> Any:
    epoch, kept, replicas = (odd.pop(name, None) for name in ("epoch", "kept", "num_replicas"))
    settings = {name: odd.pop(name) for name in ("shuffle", "mixing", "drop_last") if name in odd}
    sampler = kcd.CondensedSampler(n, seed=odd.pop("seed", 5), num_replicas=replicas, rank=rank, **settings)
    if kept:
        sampler.install(kcd.CondensedSet(np.arange(3, N - 1), n))
    run = kcd.Condensation(sampler, **{"schedule": SCHEDULE, **odd})
    run.epoch = epoch or run.epoch
    return run


def loader(rank: int, n: int = N, **odd: Any) -> Any:
    epoch, kept, shuffle = (odd.pop(name, None) for name in ("epoch", "kept", "shuffle"))
    order = DistributedSampler(
        range(n),
        RANKS,
        rank,
        shuffle=shuffle is not False,
        seed=odd.pop("seed", 5),
        drop_last=odd.pop("cut", False),
    )
    size, drop_last = odd.pop("batch_size", 4), odd.pop("drop_last", False)
    plain = DataLoader(odd.pop("data", Plain(n)), batch_size=size, sampler=order, drop_last=drop_last)
    made = kcd.wrap_loader(plain, **{"schedule": SCHEDULE, **odd})
    if kept:
        made.sampler.install(kcd.CondensedSet(np.arange(3, N - 1), n))
    if epoch:
        made._run.epoch = epoch
    return made


def stream(rank: int, **odd: Any) -> Any:
    bits, stage, epoch = (odd.pop(name, None) for name in ("bits", "stage", "epoch"))
    made = kcd.CondensedStream(
        range(N), **{"key": int, "slots": 4096, "schedule": SCHEDULE, "seed": 5, **odd}
    )
    if bits:
        made.bits[0] = bits
    if stage:
        made._layout.stage = stage
    if epoch:
        made._run.epoch = epoch
    return made


def record(run: Any, rank: int) -> None:
    """This rank's half of the samples."""
    if isinstance(run, kcd.CondensedStream):
        ids = np.array([i for i in range(rank, N, RANKS) if run.keep(i)])
        run.record(logits_of(ids, run.epoch), ids=ids)
    else:
        sampler = run.sampler
        some = sampler.order()
        some = some if isinstance(sampler, kcd.ShardedSampler) else some[some % RANKS == rank]
        run.record(logits_of(some, run.epoch), indices=some)


RUN: dict[str, tuple[Callable[..., Any], dict[str, Any], set[str]]] = {
    "by hand": (
        by_hand,
        {
            **SAMPLERS,
            **RUNS,
            **STATISTICS,
            **SELECTS,
            "drop_last": {"drop_last": True},
            "dataset": {"dataset": list(range(N))},
        },
        {"sharded", "num_replicas"},
    ),
    "loader": (
        loader,
        {
            **SAMPLERS,
            **RUNS,
            "mixing": {"mixing": "cumulative"},  # of these samples, fresh is the default
            **STATISTICS,
            **SELECTS,
            "batch_size": {"batch_size": 3},
            "drop_last": {"cut": True},
            "loader's drop_last": {"drop_last": True},
            "sharded": {"sharded": True, "select": None},
            "mixer": {"mixer": "arrays"},
            "ask": {"ask": 0.5},
            "dataset": {"data": Subset(Plain(2 * N), range(0, 2 * N, 2))},
        },
        {"num_replicas"},
    ),
    "sharded": (
        lambda rank, **odd: loader(rank, sharded=True, **odd),
        {
            **SAMPLERS,
            **RUNS,
            "mixing": {"mixing": "cumulative"},
            "batch_size": {"batch_size": 3},
            "drop_last": {"cut": True},
            "loader's drop_last": {"drop_last": True},
        },
        {"select", "statistic", "num_replicas", "sharded", "dataset", "mixer", "ask"},
    ),
    "stream": (
        stream,
        {
            **ANYWHERE,
            **SELECTS,
            "slots": {"slots": 2048},
            "seed": {"seed": 6},
            "key": {"key": abs},
            "epoch": {"epoch": 5},
            "stage": {"stage": 1},
            "set": {"bits": 3},
        },
        {
            "statistic",  # the one there is
            "min_weight",  # of no use without mixing
        },
    ),
}
CASES = [(kind, name) for kind, (_, odd, _) in RUN.items() for name in odd]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_run_compares_every_setting(ranks: Ranks, kind: str, name: str) -> None:
    make, odd, others = RUN[kind]
    usual = {"select": highest} if "select" in odd and name not in OF_RANKING else {}

    def work(rank: int) -> Any:
        run = make(rank, **{**usual, **(odd[name] if rank == RANKS - 1 else {})})
        record(run, rank)
        before = run.state_dict()
        try:
            return run.end_epoch()
        except RuntimeError:
            assert identical_state(run.state_dict(), before)
            raise

    assert name in differences(ranks.each(work))
    always = {"kcd_core", "version", "run", "number of epochs drawn", "calls of record() in this epoch"}
    assert ranks.compared == {*odd, *others, *always}


def another_set(run: Any) -> None:
    run.sampler.install(kcd.CondensedSet(np.arange(3, N - 1), N))


def another_schedule(run: Any) -> None:
    getattr(run, "_run", run).schedule = Same(ratio=0.5, stages=3, period=2)


def other_bits(run: Any) -> None:
    run.bits[0] ^= 1


def another_stage(run: Any) -> None:
    run._layout.stage += 1


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *((kind, another_schedule) for kind in RUN),
        *((kind, another_set) for kind in RUN if kind != "stream"),
        ("stream", other_bits),
        ("stream", another_stage),
    ],
)
@pytest.mark.parametrize("resumed", [False, True])
def test_a_run_compares_again_at_a_stage_and_after_a_state_was_loaded(
    ranks: Ranks, kind: str, change: Any, resumed: bool
) -> None:
    """An epoch's end without a stage is compared but for the first, and the first after loading."""
    make, *_ = RUN[kind]

    def work(rank: int) -> Any:
        run = make(rank, schedule=EVERY_SECOND)
        epochs = 2 if resumed else 1
        for _ in range(epochs):
            record(run, rank)
            run.end_epoch()
        if resumed:
            run.load_state_dict(run.state_dict())
        record(run, rank)
        if rank == RANKS - 1:
            change(run)
        before = run.state_dict()
        try:
            return run.end_epoch()
        except RuntimeError:
            assert identical_state(run.state_dict(), before)
            raise

    assert differences(ranks.each(work))


@pytest.mark.parametrize("kind", RUN)
def test_runs_that_agree_end_in_one_set(ranks: Ranks, kind: str) -> None:
    """So what the tests above see refused is refused for its reason."""
    make, *_ = RUN[kind]

    def work(rank: int) -> Any:
        run = make(rank)
        for _ in range(3):
            record(run, rank)
            run.end_epoch()
        return run.epoch, run.history.state_dict()

    one, other = ranks.each(work)
    assert one == other
    assert one[0] == 4


def test_what_one_rank_alone_knows_of_the_data_set_says_nothing(ranks: Ranks) -> None:
    """It has looked at a sample already, and the data set opens its files at the first."""

    def work(rank: int, labels: Any) -> Any:
        data = Plain(N)
        if labels[rank] is not None:
            data.labels = labels[rank]  # type: ignore[attr-defined]
        run = loader(rank, data=data)
        record(run, rank)
        return run.end_epoch().kept.tolist()

    one, other = ranks.each(lambda rank: work(rank, [list(range(N)), None]))
    assert one == other
    assert isinstance(one, list)
    (found,) = {str(error) for error in ranks.each(lambda rank: work(rank, [[0] * N, [1] * N]))}
    assert found.startswith("ranks disagree: rank(s) [1] differ from rank 0 in dataset: {labels: ")


def test_a_selection_that_differs_is_found_whichever_array_differs(ranks: Ranks) -> None:
    sets = {
        "kept": {"kept": [*range(17), 18]},
        "dropped": {"dropped": [22, 20]},
        "tail": {"tail": [1, 0]},
        "weights": {"weights": [0.9, 0.7]},
    }
    usual: dict[str, Any] = {"kept": range(18), "dropped": [20, 21], "tail": [0, 1], "weights": [0.9, 0.8]}
    schedule = kcd.CondensationSchedule(ratio=0.75, stages=1, period=1)
    for name, odd in sets.items():

        def work(rank: int, odd: dict[str, Any] = odd) -> Any:
            given = {**usual, **(odd if rank else {})}

            def select(value: Any, *_: Any) -> kcd.CondensedSet:
                return kcd.CondensedSet(
                    np.array(given["kept"]),
                    N,
                    **{key: np.array(given[key]) for key in ("dropped", "tail", "weights")},
                )

            return step(rank, select=select, schedule=schedule)()

        assert differences(ranks.each(work)) == {"what select chose"}, name


@pytest.mark.parametrize("select", ["random", "rs2", kcd.InfoBatch(9)], ids=["random", "rs2", "infobatch"])
def test_a_rule_chooses_one_set_on_every_rank(ranks: Ranks, select: Any) -> None:
    """Each rank records its own samples, and the set, with its weights, is that of all of them."""
    schedule = None if isinstance(select, kcd.InfoBatch) else SCHEDULE
    loss = np.random.default_rng(0).gamma(1.0, size=N)

    def work(rank: int | None) -> Any:
        share = {"num_replicas": 1, "rank": 0} if rank is None else {}
        sampler = kcd.CondensedSampler(N, seed=5, **share)
        run = kcd.Condensation(sampler, schedule=schedule, select=select)
        for _ in range(3):
            indices = sampler.order()
            sampler.weights_of(indices)  # as a loop does
            run.record(values=loss[indices], indices=indices)
            chosen = run.end_epoch()
        weights = chosen.sample_weights
        return chosen.kept.tolist(), weights if weights is None else weights.tolist()

    one, other = ranks.each(work)
    assert one == other == work(None)
    assert len(one[0]) < N


def test_sample_weights_that_differ_are_found(ranks: Ranks) -> None:
    def work(rank: int) -> Any:
        def select(value: Any, count: Any, kept: Any, target: int, generator: Any) -> kcd.CondensedSet:
            return kcd.CondensedSet(np.arange(target), N, sample_weights=np.full(target, 1.0 + rank))

        return step(rank, select=select)()

    assert differences(ranks.each(work)) == {"what select chose"}


def test_two_ranks_that_draw_one_shard_are_told_so(ranks: Ranks) -> None:
    def work(rank: int) -> Any:
        run = by_hand(0)
        record(run, 0)
        return run.end_epoch()

    for error in ranks.each(work):
        assert "must draw each of the 2 shards equally often, and they draw them [2, 0] times" in str(error)
