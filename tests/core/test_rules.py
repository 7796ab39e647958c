"""Rules by which a set is chosen instead of the ranking."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Plain, identical_state, index_of, logits_of
from torch.utils.data import DataLoader

import kcd_core as kcd
from kcd_core.rules import Rule

N = 40
SCHEDULE = kcd.CondensationSchedule(ratio=0.5, stages=4, period=1)
NAMES = ("random", "rs2")


def wrapped(data: Any = None, **options: Any) -> Any:
    loader = DataLoader(Plain(N) if data is None else data, batch_size=7, shuffle=True)
    return kcd.wrap_loader(loader, seed=3, **{"schedule": SCHEDULE, **options})


def one_epoch(loader: Any) -> Any:
    for batch in loader:
        loader.record(logits_of(index_of(batch), loader.epoch))
    return loader.end_epoch()


def stages(select: Any, seed: int = 0, epochs: int = 6, n: int = N, logits: Any = None) -> list[np.ndarray]:
    """The sets of a run by hand, after each epoch."""
    run = kcd.Condensation(kcd.CondensedSampler(n, seed=seed), schedule=SCHEDULE, select=select)
    sets = []
    for epoch in range(1, epochs + 1):
        indices = run.sampler.order()
        run.record(logits_of(indices, epoch) if logits is None else logits[indices], indices=indices)
        sets.append(run.end_epoch().kept)
    return sets


def test_random_leaves_out_samples_of_the_set_in_force_by_chance() -> None:
    sets = stages("random")
    assert [len(kept) for kept in sets] == [35, 30, 25, 20, 20, 20]  # the schedule's
    for before, kept in zip([np.arange(N), *sets[:-1]], sets, strict=True):
        assert set(kept) <= set(before)
    assert sets[3].tolist() == sets[5].tolist()
    often = np.mean([np.isin(np.arange(N), stages("random", seed, 4)[-1]) for seed in range(200)], 0)
    assert abs(often - 0.5).max() < 5 * 0.5 / np.sqrt(200)  # all alike


def test_random_takes_others_in_where_the_set_is_to_grow() -> None:
    class Growing(kcd.CondensationSchedule):
        def target(self, num_samples: int, previous: int) -> int:
            return 10 if previous == num_samples else 25

    sampler, tracker = kcd.CondensedSampler(N), kcd.KnowledgeValueTracker(N)
    tracker.record(np.arange(N), np.linspace(0, 1, N))
    few, more = (
        kcd.condense_step(tracker, sampler, Growing(period=1), select="random").kept for _ in range(2)
    )
    assert (len(few), len(more)) == (10, 25)
    assert set(few) < set(more)


def test_rs2_draws_anew_from_all_samples() -> None:
    sets = stages("rs2", epochs=200)
    assert [len(kept) for kept in sets[:5]] == [35, 30, 25, 20, 20]
    late = np.array([np.isin(np.arange(N), kept) for kept in sets[4:]])
    assert abs(late.mean(0) - 0.5).max() < 5 * 0.5 / np.sqrt(
        len(late)
    )  # all alike, whatever was dropped before
    again = (late[1:] & late[:-1]).sum() / late[:-1].sum()
    assert abs(again - 0.5) < 0.05  # and whether a sample was in the set before does not matter


@pytest.mark.parametrize("name", NAMES)
def test_by_name_no_value_is_looked_at_and_seed_and_stage_decide(name: str) -> None:
    constant = torch.zeros(N, 5)
    assert [kept.tolist() for kept in stages(name)] == [
        kept.tolist() for kept in stages(name, logits=constant)
    ]
    assert [kept.tolist() for kept in stages(name)] != [kept.tolist() for kept in stages(name, seed=1)]


@pytest.mark.parametrize("name", NAMES)
def test_names_go_wherever_a_selection_goes(name: str) -> None:
    loader = wrapped(select=name)
    for _ in range(2):
        chosen = one_epoch(loader)
    assert len(chosen.kept) == 30
    gate, tracker = kcd.TeacherGate(N), kcd.KnowledgeValueTracker(N)
    tracker.record(np.arange(N), np.linspace(0, 1, N))
    assert len(kcd.condense_step(tracker, gate, SCHEDULE, select=name).kept) == gate.num_kept == 35
    stream = kcd.CondensedStream(range(N), key=int, slots=1000, schedule=SCHEDULE, select=name)
    stream.record(logits_of(range(N), 1), ids=np.arange(N))
    assert len(stream.end_epoch().kept) == 35


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_resumed_under_the_same_name_alone(name: str) -> None:
    loader, others = wrapped(select=name), {*NAMES, None} - {name}
    one_epoch(loader)
    state = loader.state_dict()
    assert state["select"] == name
    again = wrapped(select=name)
    again.load_state_dict(state)
    assert one_epoch(again).kept.tolist() == one_epoch(loader).kept.tolist()
    for other in others:
        loader = wrapped(select=other, mixing=None)
        before = loader.state_dict()
        with pytest.raises(ValueError, match=f"saved with select = '{name}'"):
            loader.load_state_dict(state)
        assert identical_state(loader.state_dict(), before)


class Ids(Plain):
    """Token ids, which can't be mixed."""

    def __getitem__(self, index: int) -> Any:
        return torch.tensor([index, 7, 9]), index


@pytest.mark.parametrize("name", NAMES)
def test_what_mixes_nothing_asks_for_no_mixing(name: str) -> None:
    loader = wrapped(Ids(N), select=name)
    one_epoch(loader)
    assert loader.sampler.mixing is None
    for mixing in ("fresh", "cumulative"):
        with pytest.raises(ValueError, match=f"mixing='{mixing}' would not be used: with select={name}"):
            wrapped(select=name, mixing=mixing)
    with pytest.raises((TypeError, ValueError), match="mix"):  # as a selection that may mix does
        one_epoch(wrapped(Ids(N), select=of_five))


@pytest.mark.parametrize("wrong", ["rando", "", "infobatch", b"random", 3, ("random",)])
def test_another_name_is_refused_and_the_names_are_said(wrong: Any) -> None:
    with pytest.raises(
        ValueError,
        match=r"select must be 'random', 'rs2' or a callable such as kcd\.InfoBatch\(epochs\), got",
    ):
        wrapped(select=wrong)


# -- a selection that is given the stage -------------------------------------------------------------


def of_five(value: Any, count: Any, kept: Any, target: Any, generator: Any) -> kcd.CondensedSet:
    return kcd.CondensedSet(np.arange(target), len(value))


def by_name(value: Any, count: Any, kept: Any, target: Any, generator: Any, *, stage: int) -> Any:
    SEEN.append(stage)
    return of_five(value, count, kept, target, generator)


def sixth(value: Any, count: Any, kept: Any, target: Any, generator: Any, stage: int = -1) -> Any:
    return by_name(value, count, kept, target, generator, stage=stage)


def after_all(*given: Any, stage: int) -> Any:
    return by_name(*given, stage=stage)


def anything(*given: Any, **also: Any) -> Any:
    assert not also  # nobody asked for it
    return of_five(*given)


class Choosing:
    def __call__(self, value: Any, count: Any, kept: Any, target: Any, generator: Any, stage: int) -> Any:
        return by_name(value, count, kept, target, generator, stage=stage)

    def method(self, value: Any, count: Any, kept: Any, target: Any, generator: Any, stage: int) -> Any:
        return by_name(value, count, kept, target, generator, stage=stage)


class ChoosingModule(torch.nn.Module):
    def forward(self, value: Any, count: Any, kept: Any, target: Any, generator: Any, *, stage: int) -> Any:
        return by_name(value, count, kept, target, generator, stage=stage)


SEEN: list[int] = []
GIVEN = {
    "by name": (by_name, [1, 2, 3]),
    "the sixth": (sixth, [1, 2, 3]),
    "after all others": (after_all, [1, 2, 3]),
    "an object": (Choosing(), [1, 2, 3]),
    "a method": (Choosing().method, [1, 2, 3]),
    "a partial": (partial(by_name), [1, 2, 3]),
    "a partial that sets it": (partial(by_name, stage=9), [9, 9, 9]),
    "not asked for": (of_five, []),
    "a module": (ChoosingModule(), [1, 2, 3]),
    "any name": (anything, []),
}


@pytest.mark.parametrize("name", GIVEN)
def test_a_parameter_named_stage_is_given_the_new_stages_number(name: str) -> None:
    select, expected = GIVEN[name]
    SEEN.clear()
    sets = stages(select, epochs=3)
    assert expected == SEEN
    assert [len(kept) for kept in sets] == [35, 30, 25]


def test_what_needs_another_argument_is_refused_at_construction() -> None:
    def epoch_too(
        value: Any, count: Any, kept: Any, target: Any, generator: Any, stage: int, epoch: int
    ) -> Any:
        return None

    with pytest.raises(TypeError, match=r"select must be .*missing a required argument: 'epoch'"):
        wrapped(select=epoch_too)


def test_a_parameter_named_stage_that_would_be_given_something_else_is_refused() -> None:
    def in_place_of_target(value: Any, count: Any, kept: Any, stage: Any, generator: Any) -> Any:
        return None

    def in_place_of_generator(value: Any, count: Any, kept: Any, target: Any, stage: Any = None) -> Any:
        return None

    for select, place in ((in_place_of_target, 4), (in_place_of_generator, 5)):
        with pytest.raises(
            TypeError, match=f"takes stage in place {place}, where it is given something else"
        ):
            wrapped(select=select)


def test_a_selection_that_no_stage_would_ask_is_refused() -> None:
    for select in (of_five, *NAMES):
        with pytest.raises(ValueError, match=r"^select=.* would not be used: with schedule=None no stage"):
            wrapped(schedule=None, ask=0.5, select=select)


def test_the_stage_is_the_samplers_where_a_set_was_installed_before() -> None:
    sampler, tracker = kcd.CondensedSampler(N), kcd.KnowledgeValueTracker(N)
    tracker.record(np.arange(N), np.linspace(0, 1, N))
    sampler.install(kcd.CondensedSet(np.arange(38), N))
    SEEN.clear()
    kcd.condense_step(tracker, sampler, SCHEDULE, select=by_name)
    assert SEEN == [2]


def test_a_rule_is_looked_at_once() -> None:
    from kcd_core.rules import resolve_select

    rule = resolve_select(by_name)
    assert isinstance(rule, Rule)
    assert resolve_select(rule) is rule


# -- what a selection says it needs ------------------------------------------------------------------


class Half:
    """Keeps the upper half by value, however many that are, and says so."""

    schedule = kcd.FreeSchedule(period=2, until=6)
    mixes = False

    def __call__(self, value: Any, count: Any, kept: Any, target: Any, generator: Any) -> kcd.CondensedSet:
        if target is not None:
            return kcd.CondensedSet(np.arange(target), len(value))
        return kcd.CondensedSet(np.flatnonzero(value >= np.nanmean(value)), len(value))


def test_a_selection_may_bring_its_schedule() -> None:
    for run in (
        wrapped(schedule=None, select=Half()),
        kcd.Condensation(kcd.CondensedSampler(N), schedule=None, select=Half()),
        kcd.CondensedStream(range(N), key=int, slots=400, schedule=None, select=Half()),
    ):
        assert run.schedule is run.history.schedule is Half.schedule
        assert "the first is due after epoch 2" in str(run.history)
    own = kcd.FreeSchedule(period=1)
    assert wrapped(schedule=own, select=Half()).schedule is own
    assert wrapped(schedule=None, ask=0.5, select=Half()).schedule is Half.schedule
    for select in (None, of_five, "random"):
        with pytest.raises(TypeError, match="schedule must be a CondensationSchedule, got NoneType"):
            wrapped(schedule=None, select=select)
        with pytest.raises(TypeError, match="schedule must be a CondensationSchedule, got NoneType"):
            kcd.Condensation(kcd.CondensedSampler(N), schedule=None, select=select)


def test_what_does_not_go_together_is_refused_at_construction() -> None:
    free = kcd.FreeSchedule()
    for how in (
        lambda **given: wrapped(**given),
        lambda **given: kcd.Condensation(kcd.CondensedSampler(N), **given),
        lambda **given: kcd.CondensedStream(range(N), key=int, slots=400, **given),
        lambda **given: kcd.condense_step(kcd.KnowledgeValueTracker(N), kcd.CondensedSampler(N), **given),
    ):
        with pytest.raises(
            ValueError, match=r"FreeSchedule\(period=1, until=None\) leaves the sizes to select: give"
        ):
            how(schedule=free, select=None)
        for name in NAMES:
            with pytest.raises(ValueError, match=f"select='{name}' has to be told how many"):
                how(schedule=free, select=name)
        with pytest.raises(ValueError, match="select=Half keeps as many samples as it will"):
            how(schedule=SCHEDULE, select=Half())
    with pytest.raises(ValueError, match="leaves the sizes to select"):
        kcd.condense_sharded(
            kcd.KnowledgeValueTracker(N), kcd.ShardedSampler(N, num_replicas=1, rank=0), free
        )
    with pytest.raises(ValueError, match="ask must say how many samples"):
        wrapped(ask=free)


class Weighing(Half):
    weighs = True


def test_who_can_not_weigh_refuses_who_weighs() -> None:
    wrapped(schedule=None, select=Weighing())
    for how, why in (
        (lambda: kcd.Condensation(kcd.TeacherGate(N), schedule=None, select=Weighing()), "a gate says"),
        (
            lambda: kcd.CondensedStream(range(N), key=int, slots=400, schedule=None, select=Weighing()),
            "a stream",
        ),
    ):
        with pytest.raises(ValueError, match=f"select=Weighing gives samples weights, but {why}"):
            how()


def test_what_a_selection_says_is_checked() -> None:
    for name, wrong in (("schedule", 0.7), ("mixes", "no"), ("weighs", None)):
        select = type("Wrong", (Half,), {name: wrong})()
        with pytest.raises(TypeError, match=f"select.{name} must be"):
            wrapped(select=select)
