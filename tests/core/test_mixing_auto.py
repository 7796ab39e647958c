"""The default of ``mixing``: mixtures of mixtures where raw images are mixed, from the originals elsewhere."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from helpers import Cifar, Plain, identical_state, run_epoch, wrap

import kcd_core as kcd

N = 40


def raw(dataset: Any, index: int, steps: Any) -> Any:
    return kcd.mix_arrays(dataset, index, steps)


def loader_of(dataset: Any, **options: Any) -> Any:
    return wrap(dataset, kcd_options=options)


def trained(dataset: Any, epochs: int, **options: Any) -> Any:
    loader = loader_of(dataset, **options)
    for _ in range(epochs):
        run_epoch(loader)
    return loader


@pytest.mark.parametrize(
    ("dataset", "mixer", "expected"),
    [
        (Cifar(N), "auto", "cumulative"),
        (Cifar(N), "arrays", "cumulative"),
        (Cifar(N), "samples", "fresh"),
        (Plain(N), "auto", "fresh"),
        (Plain(N), partial(kcd.mix_samples, fields=[0]), "fresh"),
        (Cifar(N), raw, "fresh"),
    ],
    ids=["arrays", "arrays asked for", "samples asked for", "samples", "fields", "own mixer"],
)
def test_auto_is_what_is_cheap(dataset: Any, mixer: Any, expected: str) -> None:
    assert loader_of(dataset, mixer=mixer).sampler.mixing == expected
    for explicit in ("cumulative", "fresh"):
        assert loader_of(dataset, mixer=mixer, mixing=explicit).sampler.mixing == explicit
    assert loader_of(dataset, mixing=None).sampler.mixing is None


def test_fresh_is_two_fetches() -> None:
    loader = trained(Plain(N), 3)
    steps = [loader.sampler.steps(index) for index in loader.sampler.kept]
    assert {len(one) for one in steps} == {0, 1}


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("several", [False, True], ids=["one state", "list"])
def test_a_state_of_the_old_default_goes_on_as_it_was(sharded: bool, several: bool) -> None:
    before = trained(Plain(N), 2, mixing="cumulative", sharded=sharded)
    state = before.state_dict()
    again = loader_of(Plain(N), sharded=sharded)
    again.load_state_dict([state] if several else state)
    assert again.sampler.mixing == "cumulative"
    run_epoch(before)
    run_epoch(again)
    assert max(len(again.sampler.steps(index)) for index in again.sampler.kept) > 1
    assert identical_state(again.state_dict(), before.state_dict())


@pytest.mark.parametrize(
    ("saved", "given"),
    [("cumulative", "fresh"), ("fresh", "cumulative"), ("fresh", None), (None, "auto"), (None, "fresh")],
)
def test_what_was_asked_for_is_not_replaced(saved: Any, given: Any) -> None:
    state = trained(Plain(N), 1, mixing=saved).state_dict()
    loader = loader_of(Plain(N), mixing=given)
    before = loader.state_dict()
    with pytest.raises(ValueError, match=r"saved with mix(ing|er) = "):
        loader.load_state_dict(state)
    assert identical_state(loader.state_dict(), before)


def test_an_unknown_one_is_refused() -> None:
    with pytest.raises(ValueError, match="mixing must be 'auto', 'cumulative', 'fresh' or None, got 'stale'"):
        loader_of(Plain(N), mixing="stale")
