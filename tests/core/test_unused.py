"""Settings that nothing would use are refused where they are given, by one rule for all that take them."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import numpy as np
import pytest
from helpers import Cifar
from torch.utils.data import DataLoader

import kcd_core as kcd
from kcd_core.unused import UNSET

N = 40
SCHEDULE = kcd.CondensationSchedule(ratio=0.5, stages=4, period=1)
FREE = kcd.InfoBatch(8)


def own(value: Any, count: Any, kept: Any, target: Any, generator: Any) -> kcd.CondensedSet:
    return kcd.CondensedSet(np.arange(target), len(value))


def loader(**given: Any) -> Any:
    return kcd.wrap_loader(
        DataLoader(Cifar(N), batch_size=8, shuffle=True), **{"schedule": SCHEDULE, **given}
    )


def run(**given: Any) -> Any:
    return kcd.Condensation(kcd.CondensedSampler(N), **{"schedule": SCHEDULE, **given})


def stream(**given: Any) -> Any:
    return kcd.CondensedStream(range(N), key=int, slots=400, **{"schedule": SCHEDULE, **given})


def step(**given: Any) -> Any:
    tracker = kcd.KnowledgeValueTracker(N)
    tracker.record(np.arange(N), np.linspace(0, 1, N))
    return kcd.condense_step(tracker, kcd.CondensedSampler(N), SCHEDULE, **given)


def sharded_step(**given: Any) -> Any:
    tracker = kcd.KnowledgeValueTracker(N)
    tracker.record(np.arange(N), np.linspace(0, 1, N))
    sampler = kcd.ShardedSampler(N, mixing=given.pop("mixing", "fresh"))
    return kcd.condense_sharded(tracker, sampler, SCHEDULE, **given)


mixes = partial(kcd.mix_samples, fields=[0])
#: What can be given, not its default.
OTHERS = {
    "select": own,
    "alpha": 0.1,
    "min_weight": 0.5,
    "mixing": "fresh",
    "mixer": mixes,
    "mixing_cache": "1 GB",
    "ask_multiple": 8,
}
RULES = {"random": "random", "rs2": "rs2", "own": own, "InfoBatch": FREE}
BY_CHANCE = {"alpha", "min_weight", "mixing", "mixer", "mixing_cache", "ask_multiple"}
#: What each kind of run does without: the arguments that say so, and the settings.
UNUSED: dict[str, tuple[dict[str, Any], set[str]]] = {
    "by value": ({}, {"ask_multiple"}),
    "by value, gated": ({"ask": 0.5}, set()),
    "random": ({"select": "random"}, BY_CHANCE),
    "rs2": ({"select": "rs2"}, BY_CHANCE),
    "InfoBatch": ({"select": FREE, "schedule": None}, BY_CHANCE),
    "own": ({"select": own}, {"alpha", "min_weight", "ask_multiple"}),
    "random, gated": ({"select": "random", "ask": 0.5}, BY_CHANCE - {"alpha", "ask_multiple"}),
    "unmixed": ({"mixing": None}, {"min_weight", "mixer", "mixing_cache", "ask_multiple"}),
    "a gate alone": (
        {"schedule": None, "ask": 0.5},
        {"select", "min_weight", "mixing", "mixer", "mixing_cache"},
    ),
    "nothing dropped": ({"schedule": kcd.CondensationSchedule(ratio=1)}, {"ask_multiple"}),
}


CASES = [(kind, name) for kind, (given, _) in UNUSED.items() for name in OTHERS if name not in given]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_loader_takes_what_it_uses_and_refuses_the_rest(kind: str, name: str) -> None:
    given, unused = UNUSED[kind]
    setting = {name: OTHERS[name]}
    if name == "mixing_cache" and name not in unused:
        setting["mixer"] = "arrays"  # alone, it goes with no other
    loader(**given)
    loader(**given, **{name: UNSET[name]})  # as a script passes it that has options of its own
    if name not in unused:
        loader(**given, **setting)
        return
    with pytest.raises(ValueError, match=f"^{name}=.* would not be used: with.*; leave it out$") as told:
        loader(**given, **setting)
    assert repr(OTHERS[name]) in str(told.value)


@pytest.mark.parametrize(
    ("made", "name"),
    [
        *((made, name) for made in (loader, run, stream, step) for name in ("random", "rs2", "own")),
        *((made, "InfoBatch") for made in (loader, run)),  # a stream has no weights, a step no other schedule
    ],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_all_that_take_a_rule_refuse_what_it_does_not_use(made: Any, name: str) -> None:
    given: dict[str, Any] = {"select": RULES[name]}
    if name == "InfoBatch":
        given["schedule"] = None
    made(**given)
    for setting in {"alpha", "min_weight"} - ({"min_weight"} if made is stream else set()):
        made(**{setting: OTHERS[setting]})
        made(**given, **{setting: UNSET[setting]})
        with pytest.raises(ValueError, match=f"^{setting}={OTHERS[setting]} would not be used: with select="):
            made(**given, **{setting: OTHERS[setting]})


def test_a_step_over_slices_refuses_weights_of_mixtures_that_nobody_makes() -> None:
    sharded_step(min_weight=0.5, alpha=0.1)
    sharded_step(mixing=None, alpha=0.1)
    with pytest.raises(ValueError, match=r"^min_weight=0\.5 would not be used: with mixing=None"):
        sharded_step(mixing=None, min_weight=0.5)


def test_what_counts_as_not_given_is_the_default_everywhere() -> None:
    for made in (
        kcd.wrap_loader,
        kcd.Condensation,
        kcd.CondensedStream,
        kcd.condense_step,
        kcd.condense_sharded,
        kcd.condense,
    ):
        for name, parameter in inspect.signature(made).parameters.items():
            if name in UNSET:
                assert parameter.default == UNSET[name], (made, name)
