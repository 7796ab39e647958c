"""Slices on many ranks: together they are exactly the set that `condense` gives on the whole."""

from __future__ import annotations

import itertools
import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Naive, Plain, entropy_of, identical_state, index_of, join_ranks, logits_of, run_ranks
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler

import kcd_core as kcd
from kcd_core.algorithms import radix_select as counting
from kcd_core.algorithms.bitset import Members
from kcd_core.algorithms.ranks import rank_scores
from kcd_core.base import distributed
from kcd_core.recipes import MixRecipes
from kcd_core.sharded import condense as sharded
from kcd_core.sharded.reslice import resliced
from kcd_core.sharded.slices import ShardedSet, bounds, within

# Ranks are simulated here, without a process group.
pytestmark = pytest.mark.filterwarnings("ignore:the sampler draws for one of num_replicas")

# Crowds of ties, values that differ in the last bit only, both signs, and any numbers.
VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, np.nextafter(1.0, 2.0), np.nextafter(1.0, 0.0), -2.5, 3.0]),
    st.floats(-1e6, 1e6),
)


@st.composite
def stages(draw: st.DrawFn) -> dict[str, Any]:
    n = draw(st.integers(1, 60))
    same = draw(st.booleans())
    value = np.array([draw(VALUES)] * n if same else draw(st.lists(VALUES, min_size=n, max_size=n)))
    count = np.array(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), np.int32)
    value[count == 0] = np.nan
    previous = draw(st.integers(1, n))
    return {
        "value": value,
        "count": count,
        "ranks": draw(st.integers(1, min(n, 7))),
        "previous": previous,
        "target": draw(st.integers(1, n)),
        "alpha": draw(st.sampled_from([0.0, 0.03, 1.0])),
    }


def on_shards(value: Any, count: Any, *, ranks: int, alpha: float = 0.03, **sizes: Any) -> list[ShardedSet]:
    """`condense_shard` on every slice, driven in turns."""
    n, countings = len(value), []
    for rank in range(ranks):
        part = slice(*bounds(n, rank, ranks))
        score = rank_scores(value[part], count[part], alpha)
        countings.append(sharded.condense_shard(score, num_samples=n, rank=rank, ranks=ranks, **sizes))
    return counting.in_one_process(countings)


@given(stages())
def test_together_the_shards_choose_what_condense_does(stage: dict[str, Any]) -> None:
    whole = kcd.condense(**{k: v for k, v in stage.items() if k != "ranks"})
    try:
        shards = on_shards(**stage)
    except ValueError:
        ends = [bounds(len(stage["value"]), r, stage["ranks"]) for r in range(stage["ranks"])]
        assert any(not ((whole.kept >= a) & (whole.kept < b)).any() for a, b in ends)
        return
    np.testing.assert_array_equal(np.concatenate([s.kept for s in shards]), whole.kept)
    for shard in shards:
        np.testing.assert_array_equal(shard.sizes, [len(s.members) for s in shards])
        np.testing.assert_array_equal(shard.tail, whole.tail)
        np.testing.assert_array_equal(shard.dropped, whole.dropped[: len(whole.tail)])
        np.testing.assert_array_equal(shard.weights, whole.weights)
        assert shard.cut == whole.cut


@pytest.mark.parametrize("distinct", [3, 50, 10**9])
def test_large_shards(distinct: int) -> None:
    """More than one block a shard, with and without so few candidates that they are copied."""
    rng = np.random.default_rng(distinct)
    n = 300_007
    value = rng.integers(0, distinct, n) / distinct
    count = rng.integers(0, 40, n).astype(np.int32)
    sizes = {"previous": 280_000, "target": 250_001}
    whole = kcd.condense(value, count, **sizes)
    shards = on_shards(value, count, ranks=3, **sizes)
    np.testing.assert_array_equal(np.concatenate([s.kept for s in shards]), whole.kept)
    np.testing.assert_array_equal(shards[1].tail, whole.tail)
    np.testing.assert_array_equal(shards[2].dropped, whole.dropped)
    assert all(len(s.tail) == 0 for s in on_shards(value, count, ranks=3, mixing=False, **sizes))


def test_what_is_sent_does_not_depend_on_the_number_of_points() -> None:
    def sent(n: int) -> int:
        value, sizes = np.random.default_rng(n).random(n), []
        shard = sharded.condense_shard(
            value, num_samples=n, rank=0, ranks=1, previous=n, target=n // 2, mixing=False
        )
        with suppress(StopIteration):
            counts = next(shard)
            while True:
                sizes.append(counts.nbytes)
                counts = shard.send(counts)
        return sum(sizes)

    assert sent(100) == sent(100_000) == 4 * 2**16 * 8 + 2 * 8


@given(st.lists(st.booleans(), min_size=1, max_size=3000))
def test_members(member: list[bool]) -> None:
    expected = np.flatnonzero(member)
    members = Members(np.packbits(member), len(member))
    assert len(members) == len(expected)
    np.testing.assert_array_equal(members.indices(), expected)
    np.testing.assert_array_equal(members.select(np.arange(len(expected))), expected)
    np.testing.assert_array_equal(members.bits, np.packbits(member))


def test_members_take_nine_bits_for_eight_points() -> None:
    member = np.random.default_rng(0).random(1_000_000) < 0.7
    members = Members(np.packbits(member), len(member))
    assert members.nbytes / len(member) == pytest.approx(9 / 64, rel=1e-3)
    places = np.random.default_rng(1).integers(0, len(members), 1000)
    np.testing.assert_array_equal(members.select(places), np.flatnonzero(member)[places])


# -- the sampler ------------------------------------------------------------------------------------------


def samplers(n: int, ranks: int, **settings: Any) -> list[kcd.ShardedSampler]:
    return [kcd.ShardedSampler(n, num_replicas=ranks, rank=rank, **settings) for rank in range(ranks)]


def keep(n: int, kept: Any) -> kcd.CondensedSet:
    return kcd.CondensedSet(np.array(kept), n)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_ranks_draw_equally_many_of_their_own(drop_last: bool, shuffle: bool) -> None:
    n, ranks = 103, 4
    kept = np.flatnonzero(np.random.default_rng(0).random(n) < 0.6)
    for sampler in samplers(n, ranks, drop_last=drop_last, shuffle=shuffle):
        sampler.install(keep(n, kept))
        own = kept[(kept >= sampler.start) & (kept < sampler.stop)]
        np.testing.assert_array_equal(sampler.kept, own)
        assert sampler.num_kept == len(kept)
        assert len(sampler) == (len(kept) // ranks if drop_last else -(-len(kept) // ranks))
        for epoch in range(1, 4):
            parts = list(sampler.blocks(epoch))
            drawn, padding = (np.concatenate(x) for x in zip(*parts, strict=True))
            assert len(drawn) == len(sampler)
            # Each once, as far as they go; then from the start of the same order.
            real = drawn[~padding]
            assert len(set(real.tolist())) == len(real) == min(len(own), len(sampler))
            np.testing.assert_array_equal(drawn[padding], drawn[: padding.sum()])
            assert set(drawn.tolist()) <= set(own.tolist())
            if not shuffle:
                assert (np.diff(real) > 0).all()


def test_what_is_left_out_changes_from_epoch_to_epoch() -> None:
    n = 40
    kept = [*range(18), 20, 21]  # rank 0 keeps 18 and draws 10
    first, second = samplers(n, 2)
    for sampler in (first, second):
        sampler.install(keep(n, kept))
    drawn = []
    for epoch in range(1, 30):
        first.set_epoch(epoch)
        drawn.append(frozenset(first))
        assert len(drawn[-1]) == len(first) == 10
    assert len(set(drawn)) > 20
    assert frozenset.union(*drawn) == set(range(18))
    assert sorted(second) == [20] * 5 + [21] * 5


def test_in_ascending_order_every_sample_is_left_out_equally_often() -> None:
    kept = [*range(18), 20, 21]  # rank 0 keeps 18 and draws 10
    first, _ = samplers(40, 2, shuffle=False)
    first.install(keep(40, kept))
    drawn = []
    for epoch in range(1, 19):
        first.set_epoch(epoch)
        whole = list(first)
        assert whole == sorted(set(whole))
        assert [i for indices, _ in first.blocks(start=2 * 3) for i in indices.tolist()] == whole[3:]
        drawn += whole
    np.testing.assert_array_equal(np.bincount(drawn), [10] * 18)


def test_order_depends_on_seed_epoch_and_rank() -> None:
    def order(seed: int, epoch: int, rank: int) -> list[int]:
        sampler = kcd.ShardedSampler(2000, num_replicas=2, rank=rank, seed=seed)
        sampler.set_epoch(epoch)
        return (np.array(list(sampler)) - sampler.start).tolist()

    orders = [order(s, e, r) for s in (0, 1) for e in (1, 2) for r in (0, 1)]
    assert all(sorted(o) == list(range(1000)) for o in orders)
    assert len({tuple(o) for o in orders}) == len(orders)
    assert order(0, 1, 1) == order(0, 1, 1)


@pytest.mark.parametrize(
    ("n", "recorded"),
    [
        (1000, "773 826 878 509 820 559 905 743"),
        (2**15, "24033 29640 21423 25581 18871 19919 20046 24124"),
    ],
)
def test_the_order_is_written_into_checkpoints(n: int, recorded: str) -> None:
    sampler = kcd.ShardedSampler(n, seed=7, num_replicas=2, rank=1)
    sampler.set_epoch(3)
    assert list(sampler)[:8] == [int(i) for i in recorded.split()]


def test_neither_sampler_is_the_other() -> None:
    assert not issubclass(kcd.ShardedSampler, kcd.CondensedSampler)
    assert not issubclass(kcd.CondensedSampler, kcd.ShardedSampler)


def test_a_resume_skips_positions() -> None:
    sampler = kcd.ShardedSampler(3001, num_replicas=3, rank=1)
    whole = list(sampler)
    rest = [i for indices, _ in sampler.blocks(start=3 * 700) for i in indices.tolist()]
    assert rest == whole[700:]


def test_sampler_state() -> None:
    n, ranks = 60, 3
    whole = kcd.condense(np.random.default_rng(0).random(n), np.ones(n, int), previous=n, target=40)
    for mixing in ("cumulative", "fresh", None):
        for sampler, again in zip(
            samplers(n, ranks, mixing=mixing), samplers(n, ranks, mixing=mixing), strict=True
        ):
            again.load_state_dict(sampler.state_dict())  # everything
            assert list(again) == list(sampler)
            sampler.install(whole)
            again.load_state_dict(sampler.state_dict())
            assert list(again) == list(sampler)
            assert again.fingerprint() == sampler.fingerprint()
            own = whole.tail[(whole.tail >= sampler.start) & (whole.tail < sampler.stop)]
            expected = {"cumulative": whole.tail, "fresh": own, None: own[:0]}[mixing]
            assert again.recipes.target.tolist() == sorted(expected)
            pairs = dict(zip(whole.tail.tolist(), whole.dropped.tolist(), strict=True))
            for target, source in zip(again.recipes.target, again.recipes.source, strict=True):
                assert pairs[int(target)] == source
    state = samplers(n, ranks)[0].state_dict()
    with pytest.raises(ValueError, match="saved with num_replicas = 3, here it is 2"):
        kcd.ShardedSampler(n, num_replicas=2, rank=0).load_state_dict(state)
    with pytest.raises(ValueError, match="saved with rank = 0, here it is 1"):
        kcd.ShardedSampler(n, num_replicas=3, rank=1).load_state_dict(state)
    again, want = kcd.ShardedSampler(n, num_replicas=3, rank=0), list(range(20))
    again.load_state_dict(state)
    for name in ("bits", "sizes"):
        state[name].zero_()  # the state was copied
    assert again.kept.tolist() == want
    assert again.sizes.tolist() == [20, 20, 20]
    with pytest.raises(ValueError, match="not a sharded sampler state"):
        kcd.ShardedSampler(n, num_replicas=1, rank=0).load_state_dict(kcd.CondensedSampler(n).state_dict())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"bits": np.zeros(5, np.uint8)}, "bits are uint8"),
        ({"bits": np.zeros(2, np.uint8)}, "bits are uint8"),
        ({"bits": np.zeros((3, 1), np.uint8)}, "bits are uint8"),
        ({"bits": np.zeros(3, np.int64)}, "bits are int64"),
        ({"bits": None}, "bits are object"),
        ({"sizes": None}, "not one number of samples a rank"),
        ({"bits": np.full(3, 255, np.uint8)}, "contradict each other"),  # beyond the end of the slice
        ({"bits": np.array([15, 255, 255], np.uint8)}, "contradict each other"),  # more than 15
        ({"bits": np.array([7, 255, 241], np.uint8)}, "contradict each other"),  # 15, one beyond the end
        ({"bits": np.empty(0, np.uint8)}, "contradict each other"),  # everything, of sizes that are less
        ({"sizes": np.array([13, 13, 14])}, "contradict each other"),
        ({"sizes": np.array([20, 20])}, "not one number of samples a rank"),
        ({"sizes": np.array([15, 20, 0])}, "not one number of samples a rank"),
        ({"sizes": np.array([15, 20, 5], np.int32)}, "not one number of samples a rank"),
        ({"sizes": np.array([[15, 20, 5]])}, "not one number of samples a rank"),
        ({"epoch": -1}, "epoch must be at least 0"),
        ({"epoch": "1"}, "epoch must be an integer"),
        ({"stage": -1}, "stage must be at least 0"),
        ({"stage": 0}, r"of a stage outside 1 \.\. 0"),
        ({"mix_target": np.array([60])}, "an index lies outside"),
        ({"mix_source": np.array([-1])}, "an index lies outside"),
        ({"mix_weight": np.array([2], np.float32)}, "a mixing weight lies outside"),
        ({"mix_weight": np.array([1, 1], np.float32)}, "differ in length"),
    ],
)
def test_damaged_sampler_states(damage: dict[str, Any], reason: str) -> None:
    sampler = kcd.ShardedSampler(60, num_replicas=3, rank=0)
    sampler.install(kcd.CondensedSet(np.arange(5, 45), 60, dropped=[50], tail=[7], weights=[0.7]))
    state, before = sampler.state_dict(), sampler.in_force
    with pytest.raises(ValueError, match=f"damaged: .*{reason}"):
        sampler.load_state_dict({**state, **damage})
    assert sampler.in_force is before
    for key in state:
        with pytest.raises(ValueError, match=f"not a sharded sampler state: it has no '{key}'"):
            sampler.load_state_dict({k: x for k, x in state.items() if k != key})
    sampler.load_state_dict(state)
    assert list(sampler.kept) == list(range(5, 20))


def test_refusals() -> None:
    n = 12
    first, second = samplers(n, 2)
    with pytest.raises(ValueError, match="of 13 samples"):
        first.install(keep(13, [0, 1]))
    with pytest.raises(ValueError, match=r"rank\(s\) \[1\] would keep none"):
        first.install(keep(n, [0, 1]))
    value = np.arange(n, dtype=float)
    mine, other = on_shards(value, np.ones(n, int), ranks=2, previous=n, target=8)
    with pytest.raises(ValueError, match="of rank 1 of 2, this sampler of 0 of 2"):
        first.install(other)
    assert "kept=8 of 12, 2 of them on rank 0 of 2" in repr(mine)
    with pytest.raises(ValueError, match="at least the number of ranks, 3"):
        kcd.ShardedSampler(2, num_replicas=3, rank=0)
    schedule = kcd.CondensationSchedule(ratio=0.5, stages=1, period=1)
    with pytest.raises(ValueError, match="num_samples = 6"):
        kcd.condense_sharded(kcd.KnowledgeValueTracker(n), first, schedule)
    with pytest.raises(RuntimeError, match="one of num_replicas = 2 ranks, and no process group"):
        kcd.condense_sharded(kcd.KnowledgeValueTracker(6), first, schedule)
    with pytest.raises(TypeError, match="use condense_sharded"):
        kcd.condense_step(kcd.KnowledgeValueTracker(n), second, schedule)
    alone = kcd.ShardedSampler(n)
    with pytest.raises(RuntimeError, match="no value was ever recorded"):
        kcd.condense_sharded(kcd.KnowledgeValueTracker(n), alone, schedule)
    overflown = kcd.KnowledgeValueTracker(n)
    overflown.record([0, 1, 2], [float("nan")] * 3)
    with pytest.warns(RuntimeWarning, match="not finite"):
        overflown.sums()
    with pytest.raises(RuntimeError, match="3 predictions of the student were not finite"):
        kcd.condense_sharded(overflown, alone, schedule)
    assert (alone.stage, alone.num_kept) == (0, n)


@pytest.mark.parametrize(
    ("indices", "expected"),
    [
        ([5, 9], [0, 4]),
        (np.array([9, 5], np.int16), [4, 0]),
        (torch.tensor([7, 7]), [2, 2]),
        (np.empty(0, np.int64), []),
    ],
)
def test_indices_within_a_slice(indices: Any, expected: list[int]) -> None:
    inside = within(indices, 5, 10)
    assert inside.tolist() == expected
    assert inside.dtype == np.int64


@pytest.mark.parametrize("indices", [[4, 5], [5, 10], torch.tensor([-1, -2]), np.array([200], np.uint8)])
def test_indices_outside_a_slice(indices: Any) -> None:
    with pytest.raises(
        IndexError, match=r"this rank records samples 5 \.\. 9, got \[-?\d+\]; nothing of this batch"
    ):
        within(indices, 5, 10)


def test_of_many_indices_outside_a_slice_the_first_five_are_named() -> None:
    with pytest.raises(IndexError, match=r"5 \.\. 9, got \[10, 11, 12, 13, 14\]; nothing"):
        within(np.arange(7, 17), 5, 10)


@pytest.mark.parametrize("device", [None, "cpu"])
def test_one_rank_by_hand_is_condense_step(device: Any) -> None:
    n = 50
    schedule = kcd.CondensationSchedule(ratio=0.5, stages=2, period=1)
    tracker = kcd.KnowledgeValueTracker(n, device=device)
    tracker.record(np.arange(40), np.random.default_rng(0).random(40))
    whole, alone = kcd.CondensedSampler(n), kcd.ShardedSampler(n)
    for _ in range(3):
        chosen = kcd.condense_sharded(tracker, alone, schedule)
        expected = kcd.condense_step(tracker, whole, schedule)
        np.testing.assert_array_equal(chosen.kept, expected.kept)
        np.testing.assert_array_equal(alone.kept, whole.kept)
        assert alone.recipes.target.tolist() == whole.recipes.target.tolist()
        assert (chosen.stage, chosen.num_kept, chosen.cut) == (
            expected.stage,
            expected.num_kept,
            expected.cut,
        )


# -- real processes ---------------------------------------------------------------------------------------

N = 61
SCHEDULE = kcd.CondensationSchedule(ratio=0.5, stages=3, period=1)


def sharded_loader(**options: Any) -> Any:
    sampler: Any = DistributedSampler(range(N), seed=5)
    loader: Any = DataLoader(Plain(N), batch_size=4, sampler=sampler)
    return kcd.wrap_loader(loader, schedule=SCHEDULE, sharded=True, **options)


def train(rank: int, mixing: str | None, resume: bool) -> list[Any]:
    loader, log = sharded_loader(mixing=mixing), []
    for epoch in range(1, 5):
        drawn, images = [], {}
        for number, batch in enumerate(loader):
            indices = index_of(batch)
            drawn += indices
            images.update(zip(indices, batch[0].sum((1, 2)).tolist(), strict=True))
            loader.record(logits_of(indices, epoch))
            if resume and number == 1:
                state = loader.state_dict()
        if resume:  # from the middle of the epoch, in a new loader
            loader = sharded_loader(mixing=mixing)
            loader.load_state_dict(state)
            for batch in loader:
                loader.record(logits_of(index_of(batch), epoch))
        chosen = loader.end_epoch()
        log.append(
            {
                "drawn": drawn,
                "images": images,
                "kept": chosen.kept.tolist(),
                "pairs": [chosen.tail.tolist(), chosen.dropped.tolist()],
                "steps": [len(loader), loader.steps(loader.epoch)],
                "history": loader.history.records[-1],
                "count": loader.tracker.count.tolist(),
            }
        )
    return log


def one_rank_fails(rank: int, world: int) -> Any:
    tracker = kcd.KnowledgeValueTracker(10, device="cpu", on_nonfinite="raise")
    tracker.record([0, 1], torch.tensor([1.0, float("nan") if rank == world - 1 else 2.0]))
    sampler = kcd.ShardedSampler(10 * world)
    try:
        kcd.condense_sharded(tracker, sampler, SCHEDULE)
    except (ValueError, RuntimeError) as error:
        return [type(error).__name__, str(error), sampler.stage]


def disagree(rank: int, world: int, **settings: Any) -> Any:
    """What the last rank has otherwise than the rest."""
    settings = settings if rank == world - 1 else {}
    sampler = kcd.ShardedSampler(
        settings.pop("num_samples", N),
        seed=settings.pop("seed", 5),
        mixing=settings.pop("mixing", "cumulative"),
    )
    value, schedule = settings.pop("value", "entropy"), settings.pop("schedule", SCHEDULE)
    tracker = kcd.KnowledgeValueTracker(sampler.stop - sampler.start, value=value)
    tracker.record([0], [1.0])
    if "kept" in settings:
        sampler.install(keep(N, settings.pop("kept")))
    before = sampler.stage
    try:
        kcd.condense_sharded(tracker, sampler, schedule, **settings)
    except (RuntimeError, ValueError) as error:
        return [str(error), sampler.stage - before]


def agree(rank: int, world: int) -> Any:
    """An integer on one rank, and the same number as a float on the others."""
    sampler = kcd.ShardedSampler(N, seed=5)
    tracker = kcd.KnowledgeValueTracker(sampler.stop - sampler.start)
    tracker.record([0], [1.0])
    last = rank == world - 1
    kcd.condense_sharded(tracker, sampler, SCHEDULE, alpha=0 if last else 0.0, min_weight=1 if last else 1.0)
    return [sampler.stage, sampler.num_kept]


def nowhere_finite(rank: int, world: int) -> Any:
    sampler = kcd.ShardedSampler(N)
    tracker = kcd.KnowledgeValueTracker(sampler.stop - sampler.start)
    if rank == world - 1:
        tracker.record([0, 1], [float("nan"), float("inf")])
    try:
        kcd.condense_sharded(tracker, sampler, SCHEDULE)
    except RuntimeError as error:
        return [str(error), sampler.stage]


def foreign(rank: int, world: int) -> Any:
    loader = sharded_loader()
    foreigner = loader.sampler.stop % N
    try:
        loader.record(torch.zeros(1, 3), indices=[foreigner])
    except IndexError as error:
        return [foreigner, str(error), int(loader.tracker.count.sum())]


def work(rank: int, world: int, folder: Any) -> None:
    join_ranks(rank, world, folder)
    result = {
        "cumulative": train(rank, "cumulative", False),
        "fresh": train(rank, "fresh", False),
        "off": train(rank, None, False),
        "resumed": train(rank, "cumulative", True),
        "fails": one_rank_fails(rank, world),
        "disagrees": disagree(rank, world, alpha=0.5),
        "differ": {
            name: disagree(rank, world, **{name: value})
            for name, value in {
                "min_weight": 0.5,
                "alpha": -1,
                "seed": 6,
                "mixing": "fresh",
                "value": "margin",
                "schedule": kcd.CondensationSchedule(ratio=0.4, stages=3, period=1),
                "kept": np.arange(N - 1),
                "num_samples": N + world,
            }.items()
        },
        "agree": agree(rank, world),
        "nowhere finite": nowhere_finite(rank, world),
        "foreign": foreign(rank, world),
    }
    (folder / f"rank{rank}.json").write_text(json.dumps(result))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    world, folder = request.param, tmp_path_factory.mktemp("sharded")
    return run_ranks(work, world, folder)


@pytest.mark.parametrize("how", ["cumulative", "fresh", "off"])
def test_real_ranks_choose_as_one_process_that_recorded_everything(ranks: Any, how: str) -> None:
    world = len(ranks)
    naive, tracker = Naive(N, SCHEDULE), kcd.KnowledgeValueTracker(N)
    history, images = kcd.CondensationHistory(N), None
    mixed = Naive(N, SCHEDULE, images=Plain(N).images.numpy(), fresh=how == "fresh")
    for epoch in range(1, 5):
        seen = [rank[how][epoch - 1] for rank in ranks]
        drawn: list[int] = []
        for number, rank in enumerate(seen):
            start, stop = bounds(N, number, world)
            assert all(start <= i < stop for i in rank["drawn"])
            drawn += dict.fromkeys(rank["drawn"])  # padding is not recorded
            if images is not None:
                for i, total in rank["images"].items():
                    np.testing.assert_allclose(total, images[int(i)].sum(), rtol=1e-5)
        for to in (naive, mixed):
            to.record(drawn, entropy_of(logits_of(drawn, epoch)))
            to.stage()
        tracker.update(drawn, logits_of(drawn, epoch))
        if how != "off":
            images = mixed.images
        assert [i for rank in seen for i in rank["kept"]] == naive.kept
        assert [c for rank in seen for c in rank["count"]] == tracker.count.tolist()
        pairs = [naive.tail, naive.dropped] if how != "off" else [[], []]
        assert all(rank["pairs"] == pairs for rank in seen)
        chosen = kcd.condense(
            tracker.value,
            tracker.count,
            previous=SCHEDULE.size(N, epoch),
            target=len(naive.kept),
            stage=epoch,
        )
        history.append(chosen, tracker.value, tracker.count, epoch=epoch, mixing=how != "off")
        assert all(rank["history"] == history.records[-1] for rank in seen)
        assert len({tuple(rank["steps"]) for rank in seen}) == 1


def test_a_resumed_rank_goes_on_as_if_nothing_had_happened(ranks: Any) -> None:
    for rank in ranks:
        for a, b in zip(rank["cumulative"], rank["resumed"], strict=True):
            assert {**a, "drawn": 0, "images": 0} == {**b, "drawn": 0, "images": 0}


def test_a_rank_that_fails_takes_the_others_along(ranks: Any) -> None:
    *others, last = (rank["fails"] for rank in ranks)
    assert last[0] == "ValueError"
    assert "not finite" in last[1]
    assert last[2] == 0
    for kind, message, stage in others:
        assert (kind, stage) == ("RuntimeError", 0)
        assert f"rank(s) [{len(ranks) - 1}] could not continue" in message


def test_ranks_that_disagree_are_told_so(ranks: Any) -> None:
    for rank in ranks:
        message, stage = rank["disagrees"]
        assert f"rank(s) [{len(ranks) - 1}] differ from rank 0" in message
        assert stage == 0


def test_ranks_that_disagree_in_any_setting_are_told_so(ranks: Any) -> None:
    *others, last = (rank["differ"] for rank in ranks)
    for name in last:
        for rank in (*others, last):
            message, stage = rank[name]
            assert stage == 0, name
            if name != "alpha":  # which is refused on that rank by itself
                assert f"rank(s) [{len(ranks) - 1}] differ from rank 0" in message, name
    assert "alpha must be a finite number, at least 0" in last["alpha"][0]
    for rank in others:
        assert f"rank(s) [{len(ranks) - 1}] could not continue" in rank["alpha"][0]


def test_a_number_is_the_same_as_an_integer_and_as_a_float(ranks: Any) -> None:
    for rank in ranks:
        assert rank["agree"] == [1, SCHEDULE.size(N, 2)]


def test_predictions_that_are_nowhere_finite_are_named_on_every_rank(ranks: Any) -> None:
    for rank in ranks:
        message, stage = rank["nowhere finite"]
        assert "2 predictions of the student were not finite" in message
        assert stage == 0


def test_a_sample_of_another_rank_is_refused(ranks: Any) -> None:
    for rank in ranks:
        foreigner, message, recorded = rank["foreign"]
        assert f"got [{foreigner}]" in message
        assert recorded == 0


def test_loader_refusals() -> None:
    loader: Any = DataLoader(Plain(N), batch_size=4)
    with pytest.raises(ValueError, match="select needs the values of all samples"):
        kcd.wrap_loader(loader, schedule=SCHEDULE, sharded=True, select=lambda *_: None)  # type: ignore[arg-type,return-value]
    wrapped = kcd.wrap_loader(loader, schedule=SCHEDULE, sharded=True)
    with pytest.raises(ValueError, match="empty list"):
        wrapped.load_state_dict([])
    with pytest.raises(ValueError, match="saved with sharded = False, here it is True"):
        wrapped.load_state_dict(kcd.wrap_loader(loader, schedule=SCHEDULE).state_dict())


def test_where_a_peer_dies_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any of the exchanges at a stage's end."""
    loader = kcd.wrap_loader(DataLoader(Plain(N), batch_size=4), schedule=SCHEDULE, sharded=True)
    for batch in loader:
        loader.record(logits_of(index_of(batch), 1))
    before, exchanges = loader.state_dict(), 0

    def sum_until(dead: int) -> Any:
        def sum_over_ranks(*arrays: Any, group: Any = None) -> Any:
            nonlocal exchanges
            exchanges += 1
            if exchanges > dead:
                raise RuntimeError("a peer is gone")
            return arrays

        return sum_over_ranks

    for dead in range(100):
        exchanges = 0
        monkeypatch.setattr(distributed, "sum_over_ranks", sum_until(dead))
        try:
            loader.end_epoch()
            break
        except RuntimeError:
            assert identical_state(loader.state_dict(), before)
    assert dead == exchanges > 5
    assert (loader.epoch, loader.sampler.stage, len(loader.history)) == (2, 1, 1)


def loaders(ranks: int, mixing: str | None, n: int = N, seed: int = 0, **settings: Any) -> list[Any]:
    """Those of all ranks, in one process; no stage is due."""
    settings = {"schedule": kcd.CondensationSchedule(ratio=0.5, stages=3, period=100), **settings}
    made = []
    for rank in range(ranks):
        sampler: Any = DistributedSampler(range(n), num_replicas=ranks, rank=rank, seed=seed)
        loader: Any = DataLoader(Plain(n), batch_size=4, sampler=sampler)
        made.append(kcd.wrap_loader(loader, mixing=mixing, sharded=True, **settings))
    return made


@pytest.mark.parametrize("mixing", ["cumulative", "fresh", None])
@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 5), (4, 1), (3, 3)])
def test_another_number_of_ranks_takes_over_its_slices(mixing: str | None, before: int, after: int) -> None:
    old, new = loaders(before, mixing), loaders(after, mixing)
    expected = loaders(after, mixing)
    value = np.random.default_rng(0).random(N)
    for stage in range(3):  # the first without a set
        if stage:
            chosen = kcd.condense(value, np.ones(N, int), previous=N, target=50 - stage)
            for loader in (*old, *expected):
                loader.sampler.install(chosen)
        for loader in old:
            for batch in loader:
                loader.record(logits_of(index_of(batch), stage))
            loader.end_epoch()
        states = [loader.state_dict() for loader in old]
        for loader, same in zip(new, expected, strict=True):
            loader.load_state_dict(states[::-1])
            same.sampler.set_epoch(loader.epoch)
            assert loader.epoch == stage + 2
            assert list(loader.sampler) == list(same.sampler)
            assert loader.sampler.fingerprint() == same.sampler.fingerprint()
            assert list(map(loader.sampler.steps, range(N))) == list(map(same.sampler.steps, range(N)))
        for what in (0, 1):
            parts = [np.concatenate([loader.tracker.sums()[what] for loader in some]) for some in (old, new)]
            np.testing.assert_array_equal(*parts)


@pytest.mark.parametrize("after", [1, 3, 5])
def test_every_number_and_recipe_goes_to_one_new_rank(after: int) -> None:
    n, old = 10, samplers(10, 2, mixing="fresh")
    stage = kcd.CondensedSet(np.arange(1, n), n)
    parts: list[Any] = []
    for sampler in old:
        sampler.install(stage)
        own = np.arange(sampler.start, sampler.stop)
        recipes = MixRecipes(own, own[::-1], np.full(len(own), 0.5, np.float32), np.ones(len(own), int))
        tracker = own * 10, own.astype(np.int32), np.array([1 + sampler.rank, 5])
        parts.append((tracker, sampler.in_force._replace(recipes=recipes)))
    new = samplers(n, after, mixing="fresh")
    got = [resliced(parts, sampler, 0) for sampler in new]
    for part, expected in ((0, np.arange(n) * 10), (1, np.arange(n))):
        np.testing.assert_array_equal(np.concatenate([tracker[part] for tracker, _ in got]), expected)
    assert [tracker[2].tolist() for tracker, _ in got] == [[3, 10], *[[0, 0]] * (after - 1)]
    for sampler, (_, in_force) in zip(new, got, strict=True):
        assert in_force.recipes.target.tolist() == list(range(sampler.start, sampler.stop))
        sampler.in_force = in_force
    assert [i for sampler in new for i in sampler.kept] == list(range(1, n))


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_a_history_sees_every_kth_sample_of_all_ranks(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded, "MOST", 10)  # of 61: every seventh
    value = np.random.default_rng(0).random(N)
    times, total, unseen = np.zeros(9, int), np.zeros(9), N
    for sampler in samplers(N, ranks):
        tracker = kcd.KnowledgeValueTracker(sampler.stop - sampler.start)
        for i in range(sampler.start, sampler.stop - 1):  # the last of each slice is never recorded
            tracker.record([i - sampler.start] * (1 + i % 3), [value[i]] * (1 + i % 3))
        seen = sharded.for_history(tracker, sampler)  # of this rank alone, without a process group
        times += seen["count"]
        total += np.where(seen["count"] > 0, seen["value"], 0)
        unseen -= N - seen["unseen"]
    recorded = np.ones(N, bool)
    recorded[[sampler.stop - 1 for sampler in samplers(N, ranks)]] = False
    np.testing.assert_array_equal(times, np.where(recorded, 1 + np.arange(N) % 3, 0)[::7])
    np.testing.assert_allclose(total, np.where(recorded, value, 0)[::7], atol=1e-9)
    assert unseen == ranks


def test_states_that_do_not_belong_together() -> None:
    old, (new,) = loaders(3, None), loaders(1, None)
    states = [loader.state_dict() for loader in old]
    for wrong in (states[:2], [*states, states[0]]):
        with pytest.raises(ValueError, match="the states of all 3 ranks are needed"):
            new.load_state_dict(wrong)
    with pytest.raises(ValueError, match="rank 2 has another epoch than rank 0, 2 against 1"):
        new.load_state_dict([states[0], states[1], {**states[2], "epoch": 2}])
    (batch,) = itertools.islice(old[0], 1)
    old[0].record(torch.zeros(len(batch[1]), 3))
    states[0] = old[0].state_dict()
    for loader in (new, *loaders(3, None)):
        before = loader.state_dict()
        with pytest.raises(ValueError, match="rank 1 has another position than rank 0, 0 against 12"):
            loader.load_state_dict(states)
        assert identical_state(loader.state_dict(), before)
    between = [loader.state_dict() for loader in loaders(3, None)]
    for broken in ({}, 3, {**between[0], "tracker": {}}, {**between[0], "sampler": None}):
        with pytest.raises(ValueError, match="not a"):
            new.load_state_dict([broken, *between[1:]])
    for part, name in (("sampler", "sizes"), ("tracker", "total")):
        damaged = {**between[0], part: {**between[0][part], name: torch.zeros(3, dtype=torch.int64)}}
        with pytest.raises(ValueError, match="damaged"):
            new.load_state_dict([damaged, *between[1:]])
    new.load_state_dict(between)
    for loader in old[1:]:
        (batch,) = itertools.islice(loader, 1)
        loader.record(torch.zeros(len(batch[1]), 3))
    within = [loader.state_dict() for loader in old]
    with pytest.raises(ValueError, match="between epochs only"):
        new.load_state_dict(within)
    for loader, same in zip(loaders(3, None), old, strict=True):  # the same number of ranks
        loader.load_state_dict(within)
        assert identical_state(loader.state_dict(), same.state_dict())


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"seed": 5}, "rank 1 has another seed than rank 0, 5 against 0"),
        ({"n": N + 2}, "num_samples = 63, here it is 61"),
        ({"value": "margin"}, "value = 'margin', here it is 'entropy'"),
        ({"alpha": 0.5}, "alpha = 0.5"),
        ({"mixing": "fresh"}, "mixing = 'fresh', here it is 'cumulative'"),
        ({"schedule": SCHEDULE}, "schedule"),
    ],
)
def test_states_of_another_run_are_refused(settings: dict[str, Any], reason: str) -> None:
    """Each of the states given, not only the first; on every rank."""
    mine, other = (
        [loader.state_dict() for loader in loaders(2, **given)]
        for given in ({"mixing": "cumulative"}, {"mixing": "cumulative", **settings})
    )
    for ranks in (1, 2, 3):
        for loader in loaders(ranks, "cumulative"):
            with pytest.raises(ValueError, match=reason):
                loader.load_state_dict([mine[0], other[1]])


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_states_of_another_set_are_refused(ranks: int) -> None:
    """Of a run of the same settings, at the same step."""
    value = np.random.default_rng(0).random(N)
    other = np.append(value[: N // 2][::-1], value[N // 2 :])  # as many of each slice, and other ones

    def states(values: Any, mixing: str | None, stages: int = 1) -> list[Any]:
        run = loaders(2, mixing)
        for loader in run:
            for stage in range(1, stages + 1):
                chosen = kcd.condense(values, np.ones(N, int), previous=N, target=40, stage=stage)
                loader.sampler.install(chosen)
                loader.history.append(chosen, values, np.ones(N, int), epoch=stage)
        return [loader.state_dict() for loader in run]

    def refused(together: list[Any], mixing: str | None, what: str) -> None:
        for loader in loaders(ranks, mixing):
            with pytest.raises(ValueError, match=f"rank 1 has another {what} than rank 0"):
                loader.load_state_dict(together)

    a, b = states(value, "cumulative"), states(other, "cumulative")
    assert a[0]["sampler"]["sizes"].tolist() == b[0]["sampler"]["sizes"].tolist()
    refused([a[0], b[1]], "cumulative", "set")  # recipes tell
    for mixing in ("cumulative", "fresh", None):
        a = states(value, mixing)
        refused([a[0], states(value, mixing, stages=2)[1]], mixing, "set")
        refused([a[0], states(np.sort(value), mixing)[1]], mixing, "set")  # sizes tell
        refused([a[0], states(value + 1e-3, mixing)[1]], mixing, "history")
        for loader in loaders(ranks, mixing):
            loader.load_state_dict(a)


def test_a_new_slice_that_keeps_nothing() -> None:
    old = loaders(2, None, n=12)
    for loader in old:
        loader.sampler.install(keep(12, [0, 1, 9, 10, 11]))
    states = [loader.state_dict() for loader in old]
    for loader in loaders(3, None, n=12):
        with pytest.raises(ValueError, match=r"rank\(s\) \[1\] would keep none of their samples"):
            loader.load_state_dict(states)


def test_a_state_of_another_rank() -> None:
    first, second = loaders(2, None)
    with pytest.raises(
        ValueError, match="saved by rank 0 of 2, and this is rank 1 of 2: give every rank a list"
    ):
        second.load_state_dict(first.state_dict())
