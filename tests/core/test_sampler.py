"""What an epoch draws, in which order, on which rank."""

from __future__ import annotations

import io
import itertools
import pickle
import random
import tracemalloc
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

import kcd_core as kcd

Sampler = kcd.CondensedSampler


def keep(n: int, kept: Any, **mixed: Any) -> kcd.CondensedSet:
    return kcd.CondensedSet(kept, n, **mixed)


def drawn(sampler: Any, epoch: int | None = None, start: int = 0) -> list[int]:
    return [int(i) for block, _ in sampler.blocks(epoch, start) for i in block]


# -- one rank ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_an_epoch_is_a_permutation_of_every_size(seed: int) -> None:
    sizes = [*range(1, 301), 1023, 1024, 1025, 40000, 65536, 65537]
    for n in sizes:
        sampler = Sampler(n, seed=seed)
        for epoch in (1, 2):
            sampler.set_epoch(epoch)
            order = list(sampler)
            assert len(order) == len(sampler) == n
            assert sorted(order) == list(range(n))


def test_indices_are_python_ints_of_the_kept_set() -> None:
    sampler = Sampler(50)
    kept = np.flatnonzero(np.arange(50) % 3)
    sampler.install(keep(50, kept))
    order = list(sampler)
    assert all(type(i) is int for i in order)
    assert sorted(order) == kept.tolist()
    assert len(sampler) == sampler.num_kept == len(kept)
    assert (sampler.num_samples, sampler.stage) == (50, 1)
    np.testing.assert_array_equal(sampler.kept, kept)


def test_without_shuffle_the_order_is_the_data_sets() -> None:
    sampler = Sampler(6, shuffle=False)
    for epoch in (1, 2):
        sampler.set_epoch(epoch)
        assert list(sampler) == [0, 1, 2, 3, 4, 5]
    sampler.install(keep(6, [1, 2, 5]))
    assert list(sampler) == [1, 2, 5]


def test_order_is_a_function_of_seed_epoch_and_set() -> None:
    def order(seed: int, epoch: int, kept: Any = None) -> tuple[int, ...]:
        sampler = Sampler(100, seed=seed)
        if kept is not None:
            sampler.install(keep(100, kept))
        sampler.set_epoch(epoch)
        assert list(sampler) == list(sampler)  # iter() twice: the same
        return tuple(sampler)

    seeds = [0, 1, 2, 2**31, 2**63, 2**64 - 1]
    orders = {(seed, epoch): order(seed, epoch) for seed in seeds for epoch in (0, 1, 2, 10**6)}
    assert len(set(orders.values())) == len(orders)
    assert order(1, 2) == orders[1, 2]
    assert order(1, 2, np.arange(100)) == orders[1, 2]  # a set of everything is everything
    places = order(1, 2, np.arange(50, 100))
    assert sorted(places) == list(range(50, 100))
    assert places == tuple(50 + i for i in order(1, 2, np.arange(50)))


@pytest.mark.parametrize(
    ("n", "seed", "epoch", "recorded"),
    [
        (10, 0, 1, "5 4 6 9 3 0 1 2 7 8"),
        (1000, 7, 3, "778 922 459 767 854 402 442 331"),
        (1024, 7, 3, "778 922 459 767 1004 402 442 331"),  # of a power of two, nothing lands outside
        (2**15, 7, 3, "13647 14741 1642 19421 16649 15531 11106 15860"),  # an odd one: halves of 7 and 8 bits
    ],
)
def test_the_order_is_written_into_checkpoints(n: int, seed: int, epoch: int, recorded: str) -> None:
    """Recorded: a resume must see the same order with the next version of kcd, too."""
    sampler = Sampler(n, seed=seed)
    sampler.set_epoch(epoch)
    expected = [int(i) for i in recorded.split()]
    assert list(itertools.islice(sampler, len(expected))) == expected


@given(
    n=st.integers(1, 1200),
    replicas=st.integers(1, 5),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
    data=st.data(),
)
def test_a_later_start_is_a_suffix(n: int, replicas: int, drop_last: bool, shuffle: bool, data: Any) -> None:
    """A resume skips positions, and what comes after them is what would have come."""
    rank = data.draw(st.integers(0, replicas - 1))
    sampler = Sampler(n, seed=3, num_replicas=replicas, rank=rank, drop_last=drop_last, shuffle=shuffle)
    whole = drawn(sampler)
    assert whole == list(sampler)
    steps = data.draw(st.integers(0, len(whole)))
    assert drawn(sampler, start=steps * replicas) == whole[steps:]


@given(n=st.integers(1, 400), epoch=st.integers(0, 5))
def test_an_epoch_can_be_named(n: int, epoch: int) -> None:
    sampler = Sampler(n)
    named = drawn(sampler, epoch)
    assert sampler.epoch == 1
    sampler.set_epoch(epoch)
    assert drawn(sampler) == named


def test_iterating_changes_nothing() -> None:
    sampler = Sampler(30)
    before = sampler.state_dict()
    first = iter(sampler)
    assert first is not sampler
    next(first)
    second = list(sampler)
    assert [second[0], *first] == [second[0], *second[1:]]
    for key, x in sampler.state_dict().items():
        assert np.array_equal(x, before[key])


def test_an_iterator_keeps_the_set_and_epoch_it_was_made_with() -> None:
    sampler = Sampler(40)
    want = list(sampler)
    started, unstarted = iter(sampler), iter(sampler)
    got = [next(started)]
    sampler.install(keep(40, [1, 2, 3]))
    sampler.set_epoch(2)
    assert got + list(started) == want
    assert list(unstarted) == want
    assert sorted(sampler) == [1, 2, 3]


def test_the_set_is_a_copy() -> None:
    kept = np.array([1, 2, 3])
    sampler = Sampler(5, shuffle=False)
    sampler.install(keep(5, kept))
    kept[:] = 0
    sampler.kept[:] = 0
    assert list(sampler) == [1, 2, 3]


def test_in_a_data_loader() -> None:
    """Torch asks for iter() and len() and for nothing else."""
    sampler = Sampler(10, seed=1)
    sampler.install(keep(10, [0, 2, 4, 6, 8]))
    loader = DataLoader(range(10), batch_size=2, sampler=sampler)
    assert len(loader) == 3
    for epoch in (1, 2):
        sampler.set_epoch(epoch)
        batches = [batch.tolist() for batch in loader]
        assert [i for batch in batches for i in batch] == list(sampler)


# -- how random the order is ---------------------------------------------------------------------------

DRAWS = 2400


@lru_cache
def orders(n: int) -> Any:
    """One order per row: epochs of several seeds."""
    rows = []
    for seed in range(3):
        sampler = Sampler(n, seed=seed)
        rows += [drawn(sampler, epoch) for epoch in range(1, DRAWS // 3 + 1)]
    return np.array(rows)


def plausible(observed: Any) -> None:
    """Chi-square against equal frequencies. Everything is seeded, so this passes always or never."""
    assert scipy.stats.chisquare(np.ravel(observed)).pvalue > 1e-3


@pytest.mark.parametrize("n", [2, 3, 4, 5, 10, 16, 37, 100])
def test_every_index_comes_at_every_place_equally_often(n: int) -> None:
    table = orders(n)
    for place in {0, 1, n // 2, n - 1}:
        plausible(np.bincount(table[:, place], minlength=n))
    if n > 2:
        for index in {0, 1, n - 1}:
            plausible(np.bincount(np.argmax(table == index, axis=1), minlength=n))


@pytest.mark.parametrize("n", [3, 5, 10, 16])
def test_every_successive_pair_equally_often(n: int) -> None:
    table = orders(n)
    counts = np.zeros((n, n), int)
    # Non-overlapping places and one pair per order, so that the observations are independent.
    np.add.at(counts, (table[:, 0], table[:, 1]), 1)
    plausible(counts[~np.eye(n, dtype=bool)])
    counts[:] = 0
    np.add.at(counts, (table[:, n - 2], table[:, n - 1]), 1)
    plausible(counts[~np.eye(n, dtype=bool)])


@pytest.mark.parametrize("n", [3, 4])
def test_every_permutation_equally_often(n: int) -> None:
    _, counts = np.unique(orders(n), axis=0, return_counts=True)
    assert len(counts) == np.prod(range(1, n + 1))
    plausible(counts)


@pytest.mark.parametrize("n", [1000, 4096, 5000])
def test_differences_and_epochs_are_unrelated(n: int) -> None:
    a, b = (np.array(drawn(Sampler(n, seed=5), epoch)) for epoch in (1, 2))
    # Differences of neighbours, modulo n, in 20 bins; and place by place from one epoch to the next.
    plausible(np.histogram((a[1:] - a[:-1]) % n, bins=20, range=(0, n))[0])
    plausible(np.histogram((a - b) % n, bins=20, range=(0, n))[0])
    for x in (np.arange(n), b):
        assert abs(scipy.stats.spearmanr(a, x).statistic) < 4 / np.sqrt(n)
    # The number of samples that an order leaves where they are is Poisson(1).
    assert (a == np.arange(n)).sum() < 8


# -- ranks ---------------------------------------------------------------------------------------------


@given(
    n=st.integers(1, 200),
    replicas=st.integers(1, 9),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
    epoch=st.integers(0, 4),
)
def test_ranks_share_one_order(n: int, replicas: int, drop_last: bool, shuffle: bool, epoch: int) -> None:
    def of(rank: int, of_replicas: int = replicas) -> Any:
        return Sampler(n, seed=2, num_replicas=of_replicas, rank=rank, drop_last=drop_last, shuffle=shuffle)

    order = drawn(of(0, 1), epoch)  # of one process
    samplers = [of(rank) for rank in range(replicas)]
    per_rank = [drawn(sampler, epoch) for sampler in samplers]
    length = n // replicas if drop_last else -(-n // replicas)
    assert [len(x) for x in per_rank] == [len(sampler) for sampler in samplers] == [length] * replicas
    together = [per_rank[place % replicas][place // replicas] for place in range(length * replicas)]
    endless = list(itertools.islice(itertools.cycle(order), length * replicas))
    assert together == endless
    # The mask says exactly which ones are there for the length alone.
    padded = [np.concatenate([m for _, m in s.blocks(epoch)] or [np.zeros(0, bool)]) for s in samplers]
    is_padding = [bool(padded[place % replicas][place // replicas]) for place in range(length * replicas)]
    assert is_padding == [place >= n for place in range(length * replicas)]
    # Lengths are what torch's own gives, but for drop_last where n < replicas: torch pads there.
    theirs = DistributedSampler(range(n), num_replicas=replicas, rank=0, drop_last=drop_last)
    if n >= replicas:
        assert len(theirs) == length
        assert len(list(theirs)) == length


@given(size=st.integers(1, 50), replicas=st.integers(1, 6), drop_last=st.booleans())
def test_length_of_another_size(size: int, replicas: int, drop_last: bool) -> None:
    sampler = Sampler(50, num_replicas=replicas, rank=0, drop_last=drop_last)
    promised = sampler.length(size)
    sampler.install(keep(50, np.arange(size)))
    assert len(sampler) == len(list(sampler)) == promised


def test_another_number_of_ranks_resumes_the_same_order() -> None:
    two = [Sampler(21, seed=4, num_replicas=2, rank=rank) for rank in range(2)]
    three = [Sampler(21, seed=4, num_replicas=3, rank=rank) for rank in range(3)]
    for sampler in three:
        sampler.load_state_dict(two[0].state_dict())
    seen = [drawn(sampler)[:3] for sampler in two]  # six samples
    rest = [drawn(sampler, start=6) for sampler in three]
    order = drawn(Sampler(21, seed=4))
    assert [x for pair in zip(*seen, strict=True) for x in pair] == order[:6]
    assert [x for triple in zip(*rest, strict=True) for x in triple] == order[6:]


# -- settings and state --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples must be at least 1"),
        ({"num_samples": 2.0}, TypeError, "num_samples must be an integer"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"seed": 2**64}, ValueError, r"seed must be below 2\*\*64"),
        ({"seed": None}, TypeError, "seed must be an integer"),
        ({"num_replicas": 0, "rank": 0}, ValueError, "num_replicas must be at least 1"),
        ({"num_replicas": 2, "rank": 2}, ValueError, "rank must be below num_replicas = 2, got 2"),
        ({"num_replicas": 2, "rank": -1}, ValueError, "rank must be at least 0"),
        ({"mixing": "stale"}, ValueError, "mixing must be 'cumulative', 'fresh' or None, got 'stale'"),
    ],
)
def test_settings_refused(change: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        Sampler(**{"num_samples": 4, **change})


def test_epochs_refused() -> None:
    sampler = Sampler(4)
    with pytest.raises(ValueError, match="epoch must be at least 0"):
        sampler.set_epoch(-1)
    with pytest.raises(TypeError, match="epoch must be an integer"):
        sampler.set_epoch(1.0)
    assert sampler.epoch == 1


def test_a_set_of_another_size_is_refused() -> None:
    sampler = Sampler(4)
    with pytest.raises(ValueError, match="the set is of 5 samples, this sampler of 4"):
        sampler.install(keep(5, [0]))
    assert sampler.stage == 0
    assert len(sampler) == 4


STAGE_1 = keep(6, [0, 1, 2, 3], dropped=[4, 5], tail=[2, 3], weights=[1.0, 0.85])
STAGE_2 = keep(6, [0, 3, 4], dropped=[1, 2, 5], tail=[3, 4], weights=[0.75, 0.5])


def test_recipes_of_each_mode() -> None:
    w = float(np.float32(0.85))
    for mixing, of_3, of_4 in [
        ("cumulative", ((2, 4, 1.0), (3, 5, w), (3, 1, 0.75)), ((2, 4, 1.0), (4, 2, 0.5))),
        ("fresh", ((3, 1, 0.75),), ((4, 2, 0.5),)),
        (None, (), ()),
    ]:
        sampler = Sampler(6, mixing=mixing)
        assert sampler.steps(3) == ()
        sampler.install(STAGE_1)
        sampler.install(STAGE_2)
        assert sampler.steps(3) == tuple(s for s in of_3 if s[0] == 3)
        assert sampler.steps(4) == of_4
        assert sampler.steps(0) == ()
        assert sorted(sampler) == [0, 3, 4]


def test_fresh_mixing_ends_with_its_stage() -> None:
    sampler = Sampler(6, mixing="fresh")
    sampler.install(STAGE_1)
    sampler.install(keep(6, [0, 1, 2, 3]))
    assert sampler.steps(3) == ()


@pytest.mark.parametrize("installs", [0, 1, 2])
def test_state_survives_a_safe_load(installs: int) -> None:
    sampler = Sampler(6, seed=9)
    for condensed in (STAGE_1, STAGE_2)[:installs]:
        sampler.install(condensed)
    sampler.set_epoch(5)
    file = io.BytesIO()
    torch.save(sampler.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = Sampler(6, seed=9)
    other.install(keep(6, [5]))
    other.load_state_dict(state)
    for x in state.values():
        if isinstance(x, torch.Tensor):
            x.zero_()  # the state was copied
    for made in (other, pickle.loads(pickle.dumps(sampler))):
        assert (made.epoch, made.stage) == (5, installs)
        assert list(made) == list(sampler)
        assert [made.steps(i) for i in range(6)] == [sampler.steps(i) for i in range(6)]
        made.install(STAGE_2)
        assert made.stage == installs + 1


DAMAGE: dict[str, tuple[dict[str, Any], str]] = {
    "another N": ({"num_samples": 7}, "saved with num_samples = 7, here it is 6"),
    "another version": ({"version": 2}, "version .*2.* 1"),
    "another seed": ({"seed": 1}, "saved with seed = 1, here it is 0"),
    "another shuffle": ({"shuffle": False}, "saved with shuffle = False, here it is True"),
    "another mixing": ({"mixing": None}, "saved with mixing = None, here it is 'cumulative'"),
    "outside": ({"kept": torch.tensor([0, 6])}, "an index lies outside"),
    "negative": ({"kept": torch.tensor([-1, 2])}, "an index lies outside"),
    "unordered": ({"kept": torch.tensor([2, 1])}, "not ascending"),
    "twice": ({"kept": torch.tensor([2, 2])}, "not ascending"),
    "floats": ({"kept": torch.tensor([1.0, 2.0])}, "expected int64 vectors"),
    "matrix": ({"kept": torch.tensor([[1, 2]])}, "expected int64 vectors"),
    "recipes cut": ({"mix_weight": torch.tensor([0.5])}, "recipes differ in length"),
    "recipes outside": ({"mix_source": torch.tensor([1, 6])}, "an index lies outside"),
    "weights": ({"mix_weight": torch.tensor([0.5, 2.0])}, "weight"),
    "weights in double precision": ({"mix_weight": torch.tensor([0.5, 1.0]).double()}, "mixing weight"),
    "weights that are no numbers": ({"mix_weight": torch.tensor([0.5, float("nan")])}, "mixing weight"),
    "sources negative": ({"mix_source": torch.tensor([1, -1])}, "an index lies outside"),
    "targets outside": ({"mix_target": torch.tensor([1, 6])}, "an index lies outside"),
    "sources cut": ({"mix_source": torch.tensor([1])}, "recipes differ in length"),
    "targets cut": ({"mix_target": torch.tensor([1])}, "recipes differ in length"),
    "stages cut": ({"mix_stage": torch.tensor([1])}, "recipes differ in length"),
    "stages in single precision": ({"mix_stage": torch.tensor([1, 1]).int()}, "expected int64 vectors"),
    "sources a matrix": ({"mix_source": torch.tensor([[1, 2]])}, "expected int64 vectors"),
    "stages ahead": ({"mix_stage": torch.tensor([1, 2])}, r"of a stage outside 1 \.\. 1"),
    "stages before the first": ({"mix_stage": torch.tensor([0, 1])}, r"of a stage outside 1 \.\. 1"),
    "mixed twice": ({"mix_target": torch.tensor([2, 2])}, "mixed twice in one stage"),
    "epoch": ({"epoch": -1}, "epoch"),
    "stage": ({"stage": 1.5}, "stage"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_wrong_state_changes_nothing(damage: str) -> None:
    change, message = DAMAGE[damage]
    sampler = Sampler(6)
    sampler.install(STAGE_1)
    before = list(sampler), [sampler.steps(i) for i in range(6)], sampler.stage, sampler.epoch
    with pytest.raises(ValueError, match=message):
        sampler.load_state_dict({**sampler.state_dict(), **change})
    for key in sampler.state_dict():
        state = sampler.state_dict()
        del state[key]
        with pytest.raises(ValueError, match=f"not a sampler state: it has no '{key}'"):
            sampler.load_state_dict(state)
    with pytest.raises(ValueError, match="not a sampler state"):
        sampler.load_state_dict([])  # type: ignore[arg-type]
    assert (list(sampler), [sampler.steps(i) for i in range(6)], sampler.stage, sampler.epoch) == before


def test_a_sample_may_be_mixed_at_every_stage() -> None:
    sampler, again = Sampler(6), Sampler(6)
    sampler.install(STAGE_1)
    sampler.install(STAGE_2)
    assert sampler.recipes.target.tolist() == [2, 3, 3, 4]
    again.load_state_dict(sampler.state_dict())
    assert again.steps(3) == sampler.steps(3)


@pytest.mark.parametrize("kind", [kcd.CondensedSampler, kcd.ShardedSampler])
def test_what_was_in_force_is_put_back(kind: Any) -> None:
    """One reference is swapped: that undoes a set, whatever happened."""
    sampler = kind(6)
    sampler.install(STAGE_1)
    sampler.set_epoch(4)
    before, state = sampler.in_force, sampler.state_dict()
    name = sampler.fingerprint()
    coming = sampler.after(STAGE_2)
    assert sampler.in_force is before  # only looked ahead
    sampler.install(STAGE_2)
    assert sampler.fingerprint() == sampler.fingerprint(coming) != name == sampler.fingerprint(before)
    sampler.set_epoch(5)
    assert (sampler.stage, sampler.epoch, before.stage, before.epoch) == (2, 5, 1, 4)
    sampler.in_force = before
    for key, x in sampler.state_dict().items():
        assert np.array_equal(x, state[key]), key
    assert sampler.fingerprint() == name
    checked = sampler.check_state(kind(6).state_dict())
    assert sampler.in_force is before  # only looked at
    assert (checked.epoch, checked.stage, len(checked.recipes)) == (1, 0, 0)


@pytest.mark.parametrize("kind", [kcd.CondensedSampler, kcd.ShardedSampler])
def test_a_set_that_is_refused_changes_nothing(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = kind(6)
    sampler.install(STAGE_1)
    before = sampler.in_force
    with pytest.raises(ValueError, match="the set is of 5 samples"):
        sampler.install(keep(5, [0]))

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(sampler.recipes), "with_stage", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sampler.install(STAGE_2)
    assert sampler.in_force is before


def test_an_epoch_that_is_assigned_is_checked() -> None:
    sampler = Sampler(6)
    sampler.epoch = 3
    assert sampler.in_force.epoch == sampler.epoch == 3
    with pytest.raises(ValueError, match="epoch must be at least 0"):
        sampler.epoch = -1


# -- manners -------------------------------------------------------------------------------------------


def test_no_global_random_state_is_read_or_seeded() -> None:
    def state() -> Any:
        return np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), random.getstate()  # noqa: NPY002

    def run() -> list[int]:
        sampler = Sampler(300)
        first = list(sampler)
        sampler.install(keep(300, range(0, 300, 3)))
        sampler.load_state_dict(sampler.state_dict())
        return first + list(sampler)

    before = state()
    want = run()
    assert state() == before
    try:
        torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002
        assert run() == want
    finally:
        torch.set_rng_state(torch.tensor(before[1], dtype=torch.uint8))
        random.setstate(before[2])


@pytest.mark.parametrize("n", [10**8, 2**40])
def test_the_first_index_makes_nothing_of_length_n(n: int) -> None:
    tracemalloc.start()
    try:
        sampler = Sampler(n, seed=1)
        indices = list(itertools.islice(sampler, 1000))
        later = next(iter(sampler.blocks(start=n - 5)))[0]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(set(indices)) == 1000
    assert min(indices) < n // 50
    assert max(indices) > n - n // 50
    assert len(later) == 5
    sizes = [len(block) for block, _ in itertools.islice(sampler.blocks(), 10)]
    assert sizes == [256, 512, 1024, 2048, 4096, *[8192] * 5]
    assert peak < 2**21


@pytest.mark.parametrize(
    ("kind", "replicas", "given"),
    [
        (kcd.CondensedSampler, 1, {}),
        (kcd.CondensedSampler, 3, {}),
        (kcd.CondensedSampler, 3, {"drop_last": True}),
        (kcd.ShardedSampler, 3, {}),
    ],
)
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_order_is_what_iterating_gives(kind: Any, replicas: int, given: Any, shuffle: bool) -> None:
    for rank in range(replicas):
        sampler = kind(1001, shuffle=shuffle, num_replicas=replicas, rank=rank, **given)
        for installed in (False, True):
            if installed:
                sampler.install(kcd.CondensedSet(np.arange(0, 1001, 2), 1001))
            for epoch in (1, 2, 7):
                sampler.set_epoch(epoch)
                drawn = list(sampler)
                for order in (sampler.order(), sampler.order(epoch)):
                    assert order.dtype == np.int64
                    assert order.tolist() == drawn
            assert sampler.order(3).tolist() != sampler.order(4).tolist() or not shuffle
            assert sampler.epoch == 7  # to look at an order changes nothing


def test_places_are_the_inverse_of_the_order() -> None:
    for n, shuffle in itertools.product([1, 2, 7, 64, 1000], [True, False]):
        sampler = kcd.CondensedSampler(n, shuffle=shuffle, seed=n)
        for epoch in (1, 2):
            order = sampler.order(epoch)
            assert sampler.places(order, epoch).tolist() == list(range(len(order)))
        if n > 2:
            kept = np.arange(0, n, 2)
            sampler.in_force = sampler.in_force._replace(kept=kept, stage=1)
            assert sampler.places(sampler.order(3), 3).tolist() == list(range(len(kept)))
            assert (sampler.places(kept[1:] - 1, 3) == n).all()


def test_an_order_needs_an_epoch_that_is_a_number() -> None:
    sampler = kcd.CondensedSampler(5)
    with pytest.raises(TypeError, match=r"epoch must be an integer, got 1\.5"):
        sampler.order(1.5)
    with pytest.raises(ValueError, match="epoch must be at least 0, got -1"):
        sampler.order(-1)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_kept_indices_are_public_in_64_bits_and_held_in_32(dtype: Any) -> None:
    sampler = Sampler(6)
    sampler.install(STAGE_1)
    kept, order = sampler.kept, sampler.order()
    assert kept.dtype == order.dtype == np.int64
    held = sampler.in_force.kept
    assert held is not None
    assert held.dtype == np.int32
    state = sampler.state_dict()
    state["kept"] = np.asarray(state["kept"]).astype(dtype)  # 64 bits: as they were saved once
    again = Sampler(6)
    again.load_state_dict(state)
    assert again.fingerprint() == sampler.fingerprint()
    state["kept"][:] = 0  # the state was copied
    np.testing.assert_array_equal(again.kept, kept)
    np.testing.assert_array_equal(again.order(), order)
