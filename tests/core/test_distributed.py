"""Real processes over gloo: the set is that of one process that recorded everything."""

import datetime
import functools
import json
import os
import signal
import tempfile
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    SECONDS,
    Naive,
    Plain,
    entropy_of,
    identical_state,
    index_of,
    join_ranks,
    leave_together,
    logits_of,
    rank_processes,
    run_epoch,
    run_ranks,
    wrap,
)
from torch.utils.data import DataLoader, DistributedSampler

import kcd_core as kcd
from kcd_core.base import distributed

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

N = 23
EPOCHS = 4
SCHEDULE = kcd.CondensationSchedule(ratio=0.5, stages=3, period=1)


# -- what each rank does, in a process of its own ---------------------------------------------------------


def rank_loader(
    rank, world, *, n=N, cut=False, seed=5, schedule=SCHEDULE, batch_size=3, shard=None, kept=None, **options
):
    sampler = DistributedSampler(range(n), rank=shard, shuffle=True, seed=seed, drop_last=cut)
    assert (sampler.rank, sampler.num_replicas) == (rank if shard is None else shard, world)
    loader = DataLoader(Plain(n), batch_size=batch_size, sampler=sampler)
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


def sent(rank, world):
    """Bytes handed to torch.distributed: in the steps of each of four epochs, and at its end. Two are a stage."""
    loader = rank_loader(rank, world, schedule=kcd.CondensationSchedule(ratio=0.5, stages=3, period=2))
    dist, calls, log = torch.distributed, [], []
    names = ["all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "all_to_all", "barrier",
             "broadcast", "broadcast_object_list", "gather", "isend", "irecv", "recv", "reduce", "scatter", "send"]  # fmt: skip

    def metered(call, tensor, *args, **options):
        calls.append(tensor.nbytes)
        return call(tensor, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(dist, name, functools.partial(metered, getattr(dist, name)))
        for _ in range(4):
            run_epoch(loader, end=False)
            steps, calls[:] = sum(calls), []
            loader.end_epoch()
            log.append([steps, sum(calls)])
            calls.clear()
    return log


def disagree(rank, world, *, version=None, **options):
    odd = rank == world - 1
    loader = rank_loader(rank, world, **(options if odd else {}))
    if odd and "n" in options:
        rank_loader(rank, world)  # ranks number the loaders of each size
    run_epoch(loader, end=False)
    with pytest.MonkeyPatch.context() as patch:
        if odd and version:
            patch.setattr(distributed, "__version__", version)
        return refusal(loader)


def disagree_later(rank, world):
    """After an epoch in which all was well."""
    loader = rank_loader(rank, world, schedule=kcd.CondensationSchedule(ratio=0.5, stages=3, period=2))
    run_epoch(loader)
    run_epoch(loader, end=False)
    if rank == world - 1:
        loader.sampler.install(kcd.CondensedSet(np.array([1, 2, 3]), N))
    return refusal(loader)


def one_rank_reorders(rank, world):
    loader = rank_loader(rank, world)
    loader.dataset.indices = list(range(N))
    run_epoch(loader, end=False)
    if rank == world - 1:
        loader.dataset.indices.reverse()
    return refusal(loader)


def refusal(loader):
    try:
        loader.end_epoch()
    except RuntimeError as error:
        return [str(error), loader.epoch, loader.sampler.stage, len(loader.history)]
    return None


def disagree_by_hand(rank, world, n=N, seed=1, ratio=0.5, value="entropy"):
    """Without a loader, where nothing was compared before the stage."""
    if rank < world - 1:
        n, seed, ratio, value = N, 1, 0.5, "entropy"
    sampler, tracker = kcd.CondensedSampler(n, seed=seed), kcd.KnowledgeValueTracker(n, value=value)
    tracker.record([0], [1.0])
    try:
        kcd.condense_step(tracker, sampler, kcd.CondensationSchedule(ratio=ratio, stages=3, period=1))
    except RuntimeError as error:
        return [str(error), sampler.stage]
    return None


def one_rank_selects(rank, world, how):
    """A user's selection that raises on the last rank, or chooses otherwise there."""
    tracker, sampler = kcd.KnowledgeValueTracker(N), kcd.CondensedSampler(N)
    tracker.record(range(N), np.arange(float(N)))

    def select(value, count, kept, target, generator):
        odd = rank == world - 1
        if odd and how == "raises":
            raise KeyError("no such class")
        return kcd.CondensedSet(np.arange(target) + odd, N)

    try:
        kcd.condense_step(tracker, sampler, SCHEDULE, select=select)
    except (RuntimeError, KeyError) as error:
        return [type(error).__name__, str(error), sampler.stage]
    return None


def same_recordings(rank, world):
    """A fixed list of recordings, dealt out to the ranks."""
    tracker, sampler, log = kcd.KnowledgeValueTracker(N), kcd.CondensedSampler(N), []
    for stage in range(3):
        indices, values = recordings(stage)
        for at in range(rank, len(indices), world):
            tracker.record(indices[at : at + 1], values[at : at + 1])
        chosen = kcd.condense_step(tracker, sampler, SCHEDULE)
        log.append([x.tolist() for x in (chosen.kept, chosen.tail, chosen.dropped, chosen.weights)])
    return log


def recordings(stage):
    """With ties, and points that are never recorded."""
    rng = np.random.default_rng(stage)
    return rng.integers(0, N - 2, 97), np.append(rng.integers(0, 5, 57) / 4, rng.normal(1, 3, 40))


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
    """By hand, as where it gathers the logits of all; of a loader, whose batches others drew, that is refused."""
    run = kcd.Condensation(kcd.CondensedSampler(N, num_replicas=world, rank=rank), schedule=SCHEDULE)
    if rank == 0:
        run.record(logits_of(range(N), 1), indices=range(N))
    before = run.state_dict()
    try:
        run.end_epoch()
    except (
        UserWarning,
        RuntimeError,
    ):  # the warning of the ranks that recorded nothing is an error on all of them
        assert identical_state(run.state_dict(), before)
        return run.end_epoch().kept.tolist()
    raise AssertionError("a warning that is an error has to be raised on every rank")


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
    join_ranks(rank, world, folder)
    result = {
        "padded": train(rank, world, cut=False),
        "cut": train(rank, world, cut=True),
        "same recordings": same_recordings(rank, world),
        "by hand": by_hand(rank, world),
        "sums": sums(rank, world),
        "sent": sent(rank, world),
    }
    if world > 1:
        other = kcd.CondensationSchedule(ratio=0.6, stages=3, period=1)
        rarer = kcd.CondensationSchedule(ratio=0.5, stages=3, period=2)
        result |= {
            "seed": disagree(rank, world, seed=6),
            "schedule": disagree(rank, world, schedule=other),
            "period": disagree(rank, world, schedule=rarer),
            "length": disagree(rank, world, n=N + 9),
            "version": disagree(rank, world, version="0.0.9"),
            "batch size": disagree(rank, world, batch_size=4),
            "value": disagree(rank, world, value="margin"),
            "shard": disagree(rank, world, shard=0),
            "kept": disagree(rank, world, kept=[1, 2, 3]),
            "later": disagree_later(rank, world),
            "length by hand": disagree_by_hand(rank, world, n=N + 9),
            "seed by hand": disagree_by_hand(rank, world, seed=2),
            "schedule by hand": disagree_by_hand(rank, world, ratio=0.6),
            "value by hand": disagree_by_hand(rank, world, value="margin"),
            "too large": too_large(rank, world),
            "one rank fails": one_rank_fails(rank, world),
            "reordered": one_rank_reorders(rank, world),
            "select raises": one_rank_selects(rank, world, "raises"),
            "select differs": one_rank_selects(rank, world, "differs"),
            "one rank records": one_rank_records(rank, world),
            "nobody records": nobody_records(rank, world),
        }
    leave_together(folder / f"rank{rank}.json", result, world)


@functools.cache
def seen_by_ranks(world):
    """What every rank saw, lowest first."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return run_ranks(work, world, folder)


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def ranks(request):
    return seen_by_ranks(request.param)


@pytest.fixture(scope="module", params=[2, 3, 4])
def several(request):
    return seen_by_ranks(request.param)


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


def test_the_same_recordings_give_the_same_sets_on_any_number_of_ranks(ranks):
    naive, log = Naive(N, SCHEDULE), []
    for stage in range(3):
        naive.record(*recordings(stage))
        naive.stage()
        log.append([naive.kept, naive.tail, naive.dropped])
    for rank in ranks:
        assert [stage[:3] for stage in rank["same recordings"]] == log
        assert rank["same recordings"] == ranks[0]["same recordings"]


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
    assert drawn == {1: 23, 2: 24, 3: 24, 4: 24}[len(ranks)]  # so there was padding


#: What a message calls them.
NAMES = {
    "seed": "seed",
    "schedule": "schedule",
    "period": "schedule",
    "length": "num_samples",
    "version": "kcd_core",
}


@pytest.mark.parametrize("setting", NAMES)
def test_disagreement_raises_on_every_rank_and_changes_nothing(several, setting):
    for number, rank in enumerate(several):
        message, epoch, stage, history = rank[setting]
        assert f"rank(s) [{len(several) - 1}] differ from rank 0 in {NAMES[setting]}: " in message
        assert message == several[0][setting][0], number
        assert (epoch, stage, history) == (1, 0, 0)


def test_recordings_of_one_rank_are_everybodys(several):
    kept = [rank["one rank records"] for rank in several]
    assert all(k == kept[0] for k in kept)
    assert len(kept[0]) == SCHEDULE.target(N, N)


def test_nothing_recorded_raises_on_every_rank(several):
    for rank in several:
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


def test_nothing_is_sent_in_a_step_and_one_reduction_at_a_stages_end(ranks):
    """And fingerprints before it, of its target after it, and at the first epoch's end."""
    world = len(ranks)
    fingerprints = world * (32 + 8)
    stage = 4 * world * 8 + 12 * N + fingerprints  # and a flag of each rank, four times
    for rank in ranks:
        if world == 1:
            assert rank["sent"] == [[0, 0]] * 4
        else:
            assert rank["sent"] == [
                [0, fingerprints],
                [0, fingerprints + stage],
                [0, 0],
                [0, fingerprints + stage],
            ]


def test_without_a_process_group_nothing_is_asked():
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    total, count = np.array([1, 2]), np.array([1, 1], np.int32)
    assert distributed.sum_over_ranks(total, count)[0] is total
    distributed.check_agreement({"seed": 1}, shard=0, shards=1)


@pytest.mark.parametrize("what", ["batch size", "value", "kept", "later"])
def test_more_that_ranks_can_disagree_in(several, what):
    for rank in several:
        message, epoch, *_ = rank[what]
        assert f"rank(s) [{len(several) - 1}] differ from rank 0" in message
        assert epoch == (2 if what == "later" else 1)


@pytest.mark.parametrize("what", ["length", "seed", "schedule", "value"])
def test_disagreement_by_hand(several, what):
    for rank in several:
        message, stage = rank[f"{what} by hand"]
        assert f"rank(s) [{len(several) - 1}] differ from rank 0" in message
        assert stage == 0


def test_ranks_that_draw_the_same_shard(several):
    for rank in several:
        assert "must draw each of the" in rank["shard"][0]


def test_sums_that_are_too_large_together(several):
    assert all("too large to be summed" in rank["too large"] for rank in several)


def test_a_rank_that_fails_takes_the_others_along(several):
    *others, last = (rank["one rank fails"] for rank in several)
    assert last[0] == "ValueError" and "not finite" in last[1]  # noqa: PT018
    for kind, message, stage in others:
        assert kind == "RuntimeError"
        assert f"rank(s) [{len(several) - 1}] could not continue" in message
        assert stage == 0


def test_a_data_set_that_one_rank_reorders_is_an_error_on_all(several):
    *others, last = (rank["reordered"] for rank in several)
    assert "indices of Plain changed since the first batch" in last[0]
    for message, *_ in others:
        assert f"rank(s) [{len(several) - 1}] could not continue" in message
    assert all(rank["reordered"][1:] == [1, 0, 0] for rank in several)


def test_a_selection_that_fails_or_differs_on_one_rank_is_no_ones(several):
    *others, last = (rank["select raises"] for rank in several)
    assert last[0] == "KeyError"
    for kind, message, stage in others:
        assert (kind, stage) == ("RuntimeError", 0)
        assert f"rank(s) [{len(several) - 1}] could not continue" in message
    for kind, message, stage in (rank["select differs"] for rank in several):
        assert (kind, stage) == ("RuntimeError", 0)
        assert "what select chose" in message


@pytest.mark.parametrize(
    ("backend", "device"),
    [("gloo", "cpu"), ("nccl", "cuda"), ("cpu:gloo,cuda:nccl", "cpu"), ("cuda:nccl", "cuda")],
)
def test_what_is_sent_lies_where_the_back_end_takes_it(backend, device, monkeypatch):
    moved = []
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: moved.append(1) or tensor)
    dist = types.SimpleNamespace(get_backend=lambda group: backend)
    distributed.communicate(dist, np.arange(3), lambda tensor, group: None)
    assert bool(moved) == (device == "cuda")


# -- ranks that die ---------------------------------------------------------------------------------------


def left_alone(rank, world, how, folder):
    """Train, without DDP, until another rank is missed; the last rank is the one to go."""
    join_ranks(rank, world, folder)
    loader = rank_loader(rank, world)
    run_epoch(loader)
    if how == "freeze":  # all that is left is to wait for it; what is dead is noticed at once
        torch.distributed.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=1))
    for step, batch in enumerate(loader):
        if rank == world - 1 and how == "kill in a step" and step == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        loader.record(logits_of(index_of(batch), loader.epoch))
    if rank == world - 1:
        if how == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(3)
    before = loader.state_dict()
    message = refusal(loader)
    assert identical_state(loader.state_dict(), before)
    (folder / f"rank{rank}.json").write_text(json.dumps(message))
    os._exit(0)  # not to wait for the dead at the end


@pytest.mark.parametrize(("how", "world"), [("exit", 2), ("kill in a step", 3), ("freeze", 2)])
def test_the_others_notice_a_rank_that_is_gone(tmp_path, how, world):
    start = rank_processes().Process
    processes = [start(target=left_alone, args=(rank, world, how, tmp_path)) for rank in range(world)]
    try:
        for process in processes:
            process.start()
        for process in processes[:-1]:
            process.join(SECONDS)
            assert process.exitcode == 0, "it hangs, or failed otherwise"
    finally:
        for process in processes:
            process.kill()
            process.join()
    for rank in range(world - 1):
        message, epoch, stage, history = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert message.startswith(f"rank {rank} waited in vain for the other ranks (")
        assert "If one has died" in message
        assert (epoch, stage, history) == (2, 1, 1)


# -- another number of ranks, after an interruption -------------------------------------------------------


def part_of_a_run(rank, world, folder, saved, began_with, last):
    """Go on with what ``began_with`` ranks saved, as far as step ``last``."""
    join_ranks(rank, world, folder)
    loader, log = rank_loader(rank, world, batch_size=2), []
    if began_with:
        loader.load_state_dict(
            [kcd.load_checkpoint(saved / f"{began_with}-{r}.ckpt") for r in range(began_with)]
        )
    for _ in range(loader.epoch, EPOCHS + 1):
        epoch = loader.epoch
        for batch in loader:
            indices = index_of(batch)
            log.append([epoch, indices])
            loader.record(logits_of(indices, epoch))
            if len(log) == last:
                break
        else:
            chosen = loader.end_epoch()
            log.append([epoch, [x.tolist() for x in (chosen.kept, chosen.tail, chosen.dropped)]])
        if len(log) == last:
            break
    kcd.save_checkpoint(saved / f"{world}-{rank}.ckpt", loader.state_dict())
    leave_together(folder / f"rank{rank}.json", log, world)


def test_a_run_goes_on_with_3_then_2_then_1_then_4_ranks(tmp_path):
    """Within the first epoch, after its last batch, at the start of the third."""
    drawn, sets, began_with = {}, {}, 0
    for world, last in ((3, 2), (2, 3), (1, 12), (4, -1)):
        folder = tmp_path / f"of {world}"
        folder.mkdir()
        logs = run_ranks(part_of_a_run, world, folder, tmp_path, began_with, last)
        for step in zip(*logs, strict=True):
            epoch = step[0][0]
            if isinstance(step[0][1][0], list):
                assert all(x == step[0] for x in step)
                sets[epoch] = step[0][1]
            else:
                drawn.setdefault(epoch, []).extend(
                    i for group in zip(*(x[1] for x in step), strict=True) for i in group
                )
        began_with = world
    alone, tracker = kcd.CondensedSampler(N, seed=5, num_replicas=1, rank=0), kcd.KnowledgeValueTracker(N)
    for epoch in range(1, EPOCHS + 1):
        alone.set_epoch(epoch)
        order = list(alone)
        assert drawn[epoch][: len(order)] == order
        assert len(drawn[epoch]) - len(order) < 4
        tracker.update(order, logits_of(order, epoch))
        chosen = kcd.condense_step(tracker, alone, SCHEDULE)
        assert sets[epoch] == [x.tolist() for x in (chosen.kept, chosen.tail, chosen.dropped)]
