"""Real processes over gloo: the set is that of one process that recorded everything."""

import datetime
import json
import time

import numpy as np
import pytest
import torch
from helpers import Naive, Plain, entropy_of, index_of, logits_of, run_epoch, wrap
from torch.utils.data import DataLoader, DistributedSampler

import kcd_core as kcd
from kcd_core import distributed

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

N = 23
EPOCHS = 4
SCHEDULE = kcd.CondensationSchedule(ratio=0.5, stages=3, period=1)


# -- what each rank does, in a process of its own ---------------------------------------------------------


def rank_loader(
    rank, world, *, cut=False, seed=5, schedule=SCHEDULE, batch_size=3, shard=None, kept=None, **options
):
    sampler = DistributedSampler(range(N), rank=shard, shuffle=True, seed=seed, drop_last=cut)
    assert (sampler.rank, sampler.num_replicas) == (rank if shard is None else shard, world)
    loader = DataLoader(Plain(N), batch_size=batch_size, sampler=sampler)
    loader = kcd.wrap_loader(loader, schedule=schedule, **options)
    if kept is not None:
        loader.sampler.install(kcd.CondensedSet(np.array(kept), N))
    return loader


def train(rank, world, cut):
    loader, log = rank_loader(rank, world, cut=cut), []
    promised = [loader.steps(epoch) for epoch in range(1, EPOCHS + 1)]
    for epoch in range(1, EPOCHS + 1):
        length, sizes = len(loader), []
        before, drawn = loader.tracker.count.copy(), []
        for batch in loader:
            indices = index_of(batch)
            drawn += indices
            sizes.append(len(indices))
            loader.record(logits_of(indices, epoch))
        recorded = np.repeat(np.arange(N), loader.tracker.count - before).tolist()
        chosen = loader.end_epoch()
        sets = [x.tolist() for x in (chosen.kept, chosen.tail, chosen.dropped)]
        log.append({"length": length, "sizes": sizes, "drawn": drawn, "recorded": recorded, "sets": sets})
    return {"promised": promised, "epochs": log}


def disagree(rank, world, **options):
    loader = rank_loader(rank, world, **(options if rank == world - 1 else {}))
    run_epoch(loader, end=False)
    try:
        loader.end_epoch()
    except RuntimeError as error:
        return [str(error), loader.epoch, loader.sampler.stage, len(loader.history)]
    return None


def too_large(rank, world):
    """Sums that fit on each rank, and not together."""
    tracker = kcd.KnowledgeValueTracker(N)
    for _ in range(4):
        tracker.record([0], [2.0**20])
    try:
        kcd.condense_step(tracker, kcd.CondensedSampler(N), SCHEDULE)
    except ValueError as error:
        return str(error)
    return None


def one_rank_fails(rank, world):
    """Where values are looked at only when they are read, as on a device."""
    tracker = kcd.KnowledgeValueTracker(N, device="cpu", on_nonfinite="raise")
    tracker.record([0, 1], torch.tensor([1.0, float("nan") if rank == world - 1 else 2.0]))
    sampler = kcd.CondensedSampler(N)
    try:
        kcd.condense_step(tracker, sampler, SCHEDULE)
    except (ValueError, RuntimeError) as error:
        return [type(error).__name__, str(error), sampler.stage]
    return None


def one_rank_records(rank, world):
    loader = rank_loader(rank, world)
    for batch in loader:
        if rank == 0:
            loader.record(logits_of(index_of(batch), 1))
    try:
        return loader.end_epoch().kept.tolist()
    except UserWarning:  # on the ranks that recorded nothing: the epoch has ended all the same
        return loader.sampler.kept.tolist()


def nobody_records(rank, world):
    loader = rank_loader(rank, world)
    list(loader)
    try:
        loader.end_epoch()
    except RuntimeError as error:
        return [str(error), loader.epoch]
    return None


def by_hand(rank, world):
    sampler, tracker = kcd.CondensedSampler(N, seed=1), kcd.KnowledgeValueTracker(N)
    drawn = []
    for epoch in range(1, 3):
        sampler.set_epoch(epoch)
        indices = list(sampler)
        drawn.append(indices)
        tracker.update(indices, logits_of(indices, epoch))
        kcd.condense_step(tracker, sampler, SCHEDULE)
    return {"rank": [sampler.rank, sampler.num_replicas], "drawn": drawn, "kept": sampler.kept.tolist()}


def sums(rank, world):
    """Beyond what float32 or float64 can add, and nothing of the arguments is changed."""
    total, count = np.array([2**60 + rank, -rank]), np.array([rank, 1], np.int32)
    result = distributed.sum_over_ranks(total, count)
    assert total.tolist() == [2**60 + rank, -rank]
    return [x.tolist() for x in result]


def work(rank, world, folder):
    import warnings

    warnings.simplefilter("error")
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world,
        timeout=datetime.timedelta(seconds=30),
    )  # fmt: skip
    result = {
        "padded": train(rank, world, cut=False),
        "cut": train(rank, world, cut=True),
        "seed": disagree(rank, world, seed=6),
        "schedule": disagree(rank, world, schedule=kcd.CondensationSchedule(ratio=0.6, stages=3, period=1)),
        "batch size": disagree(rank, world, batch_size=4),
        "value": disagree(rank, world, value="margin"),
        "shard": disagree(rank, world, shard=0),
        "kept": disagree(rank, world, kept=[1, 2, 3]),
        "too large": too_large(rank, world),
        "one rank fails": one_rank_fails(rank, world),
        "one rank records": one_rank_records(rank, world),
        "nobody records": nobody_records(rank, world),
        "by hand": by_hand(rank, world),
        "sums": sums(rank, world),
    }
    (folder / f"rank{rank}.json").write_text(json.dumps(result))
    torch.distributed.barrier()  # torch 2.2 can wait forever for a rank that left first
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request, tmp_path_factory):
    """What every rank saw, lowest first."""
    world, folder = request.param, tmp_path_factory.mktemp("ranks")
    processes = torch.multiprocessing.start_processes(
        work, (world, folder), nprocs=world, join=False, start_method="spawn"
    )
    try:
        deadline = time.monotonic() + 90
        while not processes.join(timeout=1):  # raises what a rank raised
            assert time.monotonic() < deadline, "the ranks hang"
    finally:
        for process in processes.processes:
            process.kill()
            process.join()
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(world)]


# -- and what it should have done -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["padded", "cut"])
def test_sets_are_those_of_one_process_that_recorded_everything(ranks, how):
    naive, tracker = Naive(N, SCHEDULE), kcd.KnowledgeValueTracker(N)
    alone = kcd.CondensedSampler(N, num_replicas=1, rank=0)
    for epoch in range(1, EPOCHS + 1):
        seen = [rank[how]["epochs"][epoch - 1] for rank in ranks]
        for rank in seen:
            indices = rank["recorded"]
            naive.record(indices, entropy_of(logits_of(indices, epoch)))
            tracker.update(indices, logits_of(indices, epoch))
        naive.stage()
        chosen = kcd.condense_step(tracker, alone, SCHEDULE)
        expected = [naive.kept, naive.tail, naive.dropped]
        assert [x.tolist() for x in (chosen.kept, chosen.tail, chosen.dropped)] == expected
        assert all(rank["sets"] == expected for rank in seen)


def test_ranks_that_draw_everything_choose_as_one_loader(ranks):
    loader = wrap(Plain(N), schedule=SCHEDULE)
    for epoch in range(EPOCHS):
        run_epoch(loader)
        assert ranks[0]["padded"]["epochs"][epoch]["sets"][0] == loader.sampler.kept.tolist()


@pytest.mark.parametrize("how", ["padded", "cut"])
def test_ranks_have_equal_lengths(ranks, how):
    world = len(ranks)
    for epoch in range(EPOCHS):
        seen = [rank[how]["epochs"][epoch] for rank in ranks]
        assert len({(tuple(s["sizes"]), s["length"]) for s in seen}) == 1
        assert len(seen[0]["sizes"]) == seen[0]["length"] == ranks[0][how]["promised"][epoch]
        size = N if epoch == 0 else len(seen[0]["sets"][0])
        before = ranks[0][how]["epochs"][epoch - 1]["sets"][0] if epoch else list(range(N))
        drawn = [i for s in seen for i in s["drawn"]]
        assert set(drawn) <= set(before)
        if how == "cut":
            assert len(drawn) == len(set(drawn)) == len(before) // world * world
        else:
            assert set(drawn) == set(before)
            assert len(drawn) == -(-len(before) // world) * world
        assert size <= N


def test_padding_is_counted_once(ranks):
    for epoch in range(EPOCHS):
        seen = [rank["padded"]["epochs"][epoch] for rank in ranks]
        recorded = sorted(i for s in seen for i in s["recorded"])
        assert recorded == sorted({i for s in seen for i in s["drawn"]})
    drawn = sum(len(rank["padded"]["epochs"][0]["drawn"]) for rank in ranks)
    assert drawn == {2: 24, 3: 24}[len(ranks)]  # so there was padding


@pytest.mark.parametrize("setting", ["seed", "schedule"])
def test_disagreement_raises_on_every_rank_and_changes_nothing(ranks, setting):
    for number, rank in enumerate(ranks):
        message, epoch, stage, history = rank[setting]
        assert f"rank(s) [{len(ranks) - 1}] differ from rank 0" in message
        assert f"on rank {number}" in message
        assert (epoch, stage, history) == (1, 0, 0)


def test_recordings_of_one_rank_are_everybodys(ranks):
    kept = [rank["one rank records"] for rank in ranks]
    assert all(k == kept[0] for k in kept)
    assert len(kept[0]) == SCHEDULE.target(N, N)


def test_nothing_recorded_raises_on_every_rank(ranks):
    for rank in ranks:
        message, epoch = rank["nobody records"]
        assert "no value was ever recorded" in message
        assert epoch == 1


def test_the_parts_by_hand_find_the_process_group(ranks):
    for number, rank in enumerate(ranks):
        assert rank["by hand"]["rank"] == [number, len(ranks)]
        assert rank["by hand"]["kept"] == ranks[0]["by hand"]["kept"]
    assert {i for rank in ranks for i in rank["by hand"]["drawn"][0]} == set(range(N))
    orders = [rank["by hand"]["drawn"][0] for rank in ranks]
    alone = list(kcd.CondensedSampler(N, seed=1, num_replicas=1, rank=0))
    together = [i for group in zip(*orders, strict=True) for i in group]
    assert together[:N] == alone  # one order, shared out
    assert together[N:] == alone[: len(together) - N]


def test_sums_are_exact(ranks):
    world = len(ranks)
    for rank in ranks:
        total, count = rank["sums"]
        assert total == [world * 2**60 + world * (world - 1) // 2, -(world * (world - 1) // 2)]
        assert count == [world * (world - 1) // 2, world]


def test_without_a_process_group_nothing_is_asked():
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    total, count = np.array([1, 2]), np.array([1, 1], np.int32)
    assert distributed.sum_over_ranks(total, count)[0] is total
    distributed.check_agreement({"seed": 1}, shard=0, shards=1)


@pytest.mark.parametrize("what", ["batch size", "value", "kept"])
def test_more_that_ranks_can_disagree_in(ranks, what):
    for rank in ranks:
        message, epoch, *_ = rank[what]
        assert f"rank(s) [{len(ranks) - 1}] differ from rank 0" in message
        assert epoch == 1


def test_ranks_that_draw_the_same_shard(ranks):
    for rank in ranks:
        assert "must draw each of the" in rank["shard"][0]


def test_sums_that_are_too_large_together(ranks):
    assert all("too large to be summed" in rank["too large"] for rank in ranks)


def test_a_rank_that_fails_takes_the_others_along(ranks):
    *others, last = (rank["one rank fails"] for rank in ranks)
    assert last[0] == "ValueError" and "not finite" in last[1]  # noqa: PT018
    for kind, message, stage in others:
        assert kind == "RuntimeError"
        assert f"rank(s) [{len(ranks) - 1}] could not go on" in message
        assert stage == 0
