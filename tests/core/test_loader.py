"""The wrapped loader: lengths, order, recorded values, ends of epochs."""

import inspect
import random
import warnings

import numpy as np
import pytest
import torch
from helpers import (
    SCHEDULE,
    Cifar,
    Naive,
    Plain,
    entropy_of,
    identical_state,
    index_of,
    logits_of,
    ranks_in_one_process,
    run_epoch,
    same,
    wrap,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler

import kcd_core as kcd

# Ranks are simulated here, without a process group.
pytestmark = pytest.mark.filterwarnings("ignore:the sampler draws for one of num_replicas")

N = 40


# -- lengths -------------------------------------------------------------------------------------------


def sizes_of_batches(length, batch_size, drop_last, condensed):
    """All full but the last; where condensing left one sample over, the last full batch lends it another."""
    full, rest = divmod(length, batch_size)
    sizes = [batch_size] * full + [rest] * (rest > 0 and not drop_last)
    if condensed and full and not drop_last and rest == 1 and batch_size > 2:
        sizes[-2:] = [batch_size - 1, 2]
    return sizes


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@pytest.mark.filterwarnings("ignore:nothing was recorded")
@pytest.mark.filterwarnings("ignore:a run of 7 epochs")
@pytest.mark.filterwarnings(r"ignore:epoch \d+ (will have|had) no batch")
@given(
    n=st.integers(1, 60), batch_size=st.integers(1, 17), drop_last=st.booleans(), cut=st.booleans(),
    world=st.integers(1, 4), ratio=st.sampled_from([0.01, 0.29, 0.3, 0.5, 0.7, 0.999, 1.0]),
    stages=st.integers(1, 4), period=st.integers(1, 3), warmup=st.integers(0, 5), shuffle=st.booleans(),
)  # fmt: skip
@example(  # 4 kept in batches of 3
    n=6, batch_size=3, drop_last=False, cut=False, world=1, ratio=0.7, stages=1, period=1, warmup=0, shuffle=True
)  # fmt: skip
def test_promised_lengths_are_what_is_run(
    monkeypatch, n, batch_size, drop_last, cut, world, ratio, stages, period, warmup, shuffle
):
    epochs = 7
    schedule = kcd.CondensationSchedule(ratio=ratio, stages=stages, period=period, warmup=warmup)
    dataset = list(range(n))
    loaders = []
    for rank in range(world):
        sampler = DistributedSampler(dataset, world, rank, shuffle=shuffle, drop_last=cut)
        loaders.append(
            kcd.wrap_loader(
                DataLoader(dataset, batch_size=batch_size, sampler=sampler, drop_last=drop_last),
                schedule=schedule,
                mixing=None,
            )
        )
    promised = [loaders[0].steps(epoch) for epoch in range(1, epochs + 1)]
    total = loaders[0].total_steps(epochs)
    assert total == sum(promised)
    run = []
    for epoch in range(1, epochs + 1):
        sizes = []
        for loader in loaders:
            assert len(loader) == loader.steps(epoch) == promised[epoch - 1]
            sizes.append([len(batch) for batch in loader])
            loader.tracker.record([0], [1.0])
        assert all(s == sizes[0] for s in sizes)  # every rank gets the same
        kept = loaders[0].sampler.num_kept
        length = kept // world if cut else -(-kept // world)
        assert sizes[0] == sizes_of_batches(length, batch_size, drop_last, condensed=kept < n)
        run.append(len(sizes[0]))
        with ranks_in_one_process(monkeypatch, loaders):
            for loader in loaders:
                loader._agreed = True  # no process group to agree in
                loader.end_epoch()
                assert loader.total_steps(epochs) == total  # whenever it is asked
    assert run == promised
    assert sum(run) == total


def test_paper_setting():
    class FiftyThousand(Plain):
        def __len__(self):
            return 50_000

    loader = wrap(FiftyThousand(1), schedule=kcd.CondensationSchedule(), batch_size=64)
    sizes = [50_000, 47_500, 45_000, 42_500, 40_000, 37_500]
    steps = [-(-size // 64) for size in sizes]
    assert [loader.steps(epoch) for epoch in range(1, 241, 40)] == steps
    assert [loader.steps(epoch) for epoch in range(40, 241, 40)] == steps
    assert loader.total_steps(240) == 40 * sum(steps)
    assert loader.total_steps(0) == 0


@pytest.mark.parametrize("accumulate", [1, 2, 3, 7])
def test_steps_of_the_optimizer(accumulate):
    """A step where ``accumulate`` batches are together, and at each epoch's end for what is left."""
    loader, steps = wrap(Plain(N), batch_size=3), []
    promised = [loader.steps(epoch, accumulate=accumulate) for epoch in range(1, 5)]
    for _ in range(4):
        steps.append(0)
        for number, batch in enumerate(loader, 1):
            loader.record(logits_of(index_of(batch), 1))
            assert loader.batches_done == number
            steps[-1] += number % accumulate == 0 or loader.batches_done == len(loader)
        loader.end_epoch()
    assert steps == promised
    assert loader.total_steps(4, accumulate=accumulate) == sum(steps)
    with pytest.raises(ValueError, match="accumulate"):
        loader.steps(1, accumulate=0)


def test_steps_asks_for_an_epoch():
    loader = wrap(Plain(N))
    for wrong, error in [(0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError)]:
        with pytest.raises(error, match="epoch"):
            loader.steps(wrong)
    with pytest.raises(ValueError, match="epochs"):
        loader.total_steps(-1)


def test_length_is_right_before_each_epoch():
    """Not one epoch late, as where the selection is made in ``__iter__``."""
    loader = wrap(Plain(N), batch_size=1)
    for size in (40, 34, 28, 22, 20, 20):
        assert len(loader) == size
        assert len(run_epoch(loader)) == size


def test_step_based_learning_rate_schedule_comes_out_at_zero():
    loader = wrap(Plain(N))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    total = loader.total_steps(5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    for _ in range(5):
        for batch in loader:
            optimizer.step()
            scheduler.step()
            loader.record(logits_of(index_of(batch), loader.epoch))
        loader.end_epoch()
    assert scheduler.get_last_lr() == [0.0]


# -- order ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [True, False])
def test_ratio_one_draws_everything_once_an_epoch_and_mixes_nothing(shuffle):
    dataset = Cifar(N)
    loader = wrap(dataset, schedule=kcd.CondensationSchedule(ratio=1.0, stages=6, period=1), shuffle=shuffle)
    orders = []
    for _ in range(4):
        batches = run_epoch(
            loader, seen=lambda indices, batch: np.testing.assert_array_equal(batch[0], dataset.data[indices])
        )
        orders.append([i for b in batches for i in b])
        assert sorted(orders[-1]) == list(range(N))
        assert len(loader.sampler.recipes) == 0
    if shuffle:
        assert len(set(map(tuple, orders))) == 4
        assert list(range(N)) not in orders
    else:
        assert orders == [list(range(N))] * 4


def test_without_shuffling_the_order_is_the_data_sets():
    loader = wrap(Plain(N), shuffle=False)
    for _ in range(5):
        drawn = [i for batch in run_epoch(loader, end=False) for i in batch]
        assert drawn == loader.sampler.kept.tolist()
        loader.end_epoch()
    assert len(drawn) == 20


def test_only_the_set_in_force_is_drawn():
    loader = wrap(Plain(N))
    for _ in range(5):
        drawn = [i for batch in run_epoch(loader, end=False) for i in batch]
        assert sorted(drawn) == loader.sampler.kept.tolist()
        assert len(set(drawn)) == len(drawn)
        loader.end_epoch()


def test_the_order_is_a_function_of_seed_epoch_and_set():
    first, again, other = (wrap(Plain(N), seed=seed) for seed in (1, 1, 2))
    orders = [[run_epoch(loader) for _ in range(3)] for loader in (first, again, other)]
    assert orders[0] == orders[1]
    assert all(a != b for a, b in zip(orders[0], orders[2], strict=True))


def test_iterating_changes_no_state():
    """Neither the selection nor the order moves on in ``__iter__``: torch calls it more than once an epoch."""
    loader = wrap(Plain(N))
    run_epoch(loader)
    before = loader.state_dict()
    drawn = [[index_of(batch) for batch in loader] for _ in range(3)]
    assert drawn[0] == drawn[1] == drawn[2]
    assert iter(loader) is not iter(loader)
    assert identical_state(before, loader.state_dict())  # nor does a pass that records nothing


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_ends_whatever_the_number_of_workers(workers):
    loader = wrap(Plain(N), num_workers=workers, persistent_workers=workers > 0)
    for _ in range(2):
        assert len(list(loader)) == 5
    iterator = iter(loader)
    assert len(list(iterator)) == 5
    assert list(iterator) == []


def test_set_epoch_by_the_users_habit_does_no_harm():
    """It is in every DDP script and trainer, which count from 0, or count passes: the epoch is the run's."""
    twin = [run_epoch(loader) for loader in [wrap(Plain(N))] for _ in range(3)]
    loader, drawn = wrap(Plain(N)), []
    loader.total_steps(3)
    for epoch in range(3):
        loader.set_epoch(epoch)
        loader.sampler.set_epoch(epoch)
        loader.batch_sampler.sampler.set_epoch(epoch)
        drawn.append(run_epoch(loader))
    assert drawn == twin
    assert loader.epoch == 4


def test_a_trainer_that_counts_epochs_and_asks_for_no_lengths_is_told_once():
    loader = wrap(Plain(N))
    with pytest.warns(
        UserWarning, match=r"set_epoch\(0\) comes from a trainer, and trainers take all epochs"
    ):
        loader.set_epoch(0)
    loader.set_epoch(1)  # a second warning would be an error
    planned = wrap(Plain(N))
    planned.steps(1)
    planned.set_epoch(0)


# -- global state --------------------------------------------------------------------------------------


def global_states():
    return torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002


def reseed():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("generator", [True, False])
def test_global_random_numbers_are_left_as_the_plain_loader_leaves_them(workers, generator):
    def options():
        return {
            "num_workers": workers,
            "generator": torch.Generator().manual_seed(1) if generator else None,
        }

    reseed()
    start = global_states()
    plain = DataLoader(Cifar(N), batch_size=8, shuffle=False, **options())
    for _ in range(3):
        list(plain)
    expected = global_states()
    reseed()
    loader = wrap(Cifar(N), shuffle=False, **options())
    for _ in range(3):
        run_epoch(loader)
    assert same(global_states(), expected)
    assert same(start, expected) == generator  # or the comparison would say nothing


def test_shuffling_draws_nothing_global():
    plain, shuffled = [], []
    for shuffle, states in ((False, plain), (True, shuffled)):
        loader = wrap(Plain(N), shuffle=shuffle)
        reseed()
        for _ in range(3):
            run_epoch(loader)
            loader.state_dict()
        states.extend(global_states())
    assert same(plain, shuffled)


# -- recorded values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_workers": 2},
        {"num_workers": 2, "persistent_workers": True, "prefetch_factor": 1},
        {"num_workers": 2, "in_order": False},
    ],
)
def test_recorded_values_are_those_of_the_samples(options):
    if not set(options) <= set(inspect.signature(DataLoader.__init__).parameters):
        pytest.skip("this torch has no such option")
    loader, naive = wrap(Plain(N), batch_size=3, **options), Naive(N)
    for epoch in range(1, 6):
        for batch in loader:
            indices = index_of(batch)
            logits = logits_of(indices, epoch)
            naive.record(indices, entropy_of(logits))
            loader.record(logits)
        np.testing.assert_array_equal(loader.tracker.count, naive.count)
        np.testing.assert_allclose(loader.tracker.value, naive.value, atol=1e-6)
        chosen = loader.end_epoch()
        naive.stage()
        assert chosen.kept.tolist() == naive.kept == loader.sampler.kept.tolist()
        assert chosen.dropped.tolist() == naive.dropped
        assert chosen.tail.tolist() == naive.tail


def test_half_precision_logits_and_large_indices_keep_their_index():
    """Not as where indices travel with half-precision losses, and 40001 becomes 40000."""
    loader = wrap(list(range(40_002)), batch_size=1024, kcd_options={"mixing": None})
    for batch in loader:
        logits = torch.zeros(len(batch), 2, dtype=torch.float16)
        logits[:, 0] = torch.where(batch == 40_001, 0, 10)
        loader.record(logits)
    assert (loader.tracker.count == 1).all()
    value = loader.tracker.value
    assert value[40_001] == pytest.approx(np.log(2), abs=1e-6)
    assert np.delete(value, 40_001).max() < 0.01


def test_values_that_need_teacher_and_targets():
    n, got = 12, {}
    loader = wrap(Plain(n), batch_size=5, kcd_options={"value": "cross_entropy"})
    naive = Naive(n)
    for batch in loader:
        indices = index_of(batch)
        logits, targets = logits_of(indices, 1), batch[1] % 5
        log_p = torch.log_softmax(logits.double(), 1)
        naive.record(indices, -log_p[torch.arange(len(indices)), targets])
        loader.record(logits, targets=targets)
    np.testing.assert_allclose(loader.tracker.value, naive.value, atol=1e-6)

    def mine(student_logits, *, teacher_logits, targets):
        got["shapes"] = teacher_logits.shape, targets.shape
        return student_logits[:, 0] * 0 + targets

    loader = wrap(Plain(n), batch_size=5, kcd_options={"value": mine})
    for batch in loader:
        loader.record(
            logits_of(index_of(batch), 1), teacher_logits=torch.zeros(len(batch[1]), 5), targets=batch[1]
        )
    np.testing.assert_array_equal(loader.tracker.value, np.arange(n))
    assert got["shapes"] == ((2, 5), (2,))


def test_logits_with_a_graph_need_no_detach():
    loader = wrap(Plain(N))
    weight = torch.nn.Parameter(torch.ones(5))
    for batch in loader:
        logits = logits_of(index_of(batch), 1) * weight
        loader.record(logits)
        logits.sum().backward()
    assert loader.tracker.count.sum() == N
    assert weight.grad is not None


@pytest.mark.parametrize("device", [None, "cpu"])
def test_logits_of_inference_mode(device):
    loader, naive = wrap(Plain(N), kcd_options={"device": device}), Naive(N)
    for number, batch in enumerate(loader):
        indices = index_of(batch)
        naive.record(indices, entropy_of(logits_of(indices, 1)))
        with torch.inference_mode():
            logits = logits_of(indices, 1) * 1
            if number % 2:
                loader.record(logits)
        if not number % 2:
            loader.record(logits)
    assert logits.is_inference()
    np.testing.assert_allclose(loader.tracker.value, naive.value, atol=1e-6)


def test_non_finite_logits_are_never_ranked():
    loader = wrap(Plain(N))
    for batch in loader:
        logits = logits_of(index_of(batch), 1)
        logits[torch.tensor(index_of(batch)) == 7, 2] = float("nan")
        logits[torch.tensor(index_of(batch)) == 8, 2] = -float("inf")
        loader.record(logits)
    with pytest.warns(RuntimeWarning, match="not finite"):
        chosen = loader.end_epoch()
    assert loader.tracker.skipped["nonfinite"] == 2
    assert {7, 8} <= set(chosen.kept.tolist())  # never recorded: not dropped unseen
    assert np.isnan(loader.tracker.value[[7, 8]]).all()

    loader = wrap(Plain(N), kcd_options={"on_nonfinite": "raise"})
    next(iter(loader))
    with pytest.raises(ValueError, match="not finite"):
        loader.record(torch.full((8, 5), float("nan")))


def test_what_a_record_refuses_is_not_recorded_and_can_be_put_right():
    loader = wrap(Plain(N))
    batch = next(iter(loader))
    logits = logits_of(index_of(batch), 1)
    for wrong, error, reason in [
        (logits[:, :1], ValueError, "C >= 2"),
        (logits[:7], ValueError, "7 rows for a batch of 8"),
        (torch.cat([logits, logits]), ValueError, "16 rows for a batch of 8"),  # two views of each sample
        (logits.long(), TypeError, "floating-point"),
    ]:
        with pytest.raises(error, match=reason):
            loader.record(wrong)
        assert loader.tracker.count.sum() == 0
    loader.record(logits)
    assert loader.tracker.count.sum() == 8


# -- ends of epochs ------------------------------------------------------------------------------------


def test_no_stage_is_due():
    loader = wrap(Plain(N), schedule=kcd.CondensationSchedule(ratio=0.5, stages=2, period=3, warmup=4))
    results = []
    for _ in range(9):
        run_epoch(loader, end=False)
        results.append(loader.end_epoch())
    assert [r is not None for r in results] == [False] * 5 + [True, False, False, True]
    assert [r.stage for r in results if r] == [1, 2]
    assert loader.epoch == 10


def test_a_due_stage_with_nothing_recorded_ever_changes_nothing():
    loader = wrap(Plain(N), schedule=kcd.CondensationSchedule(ratio=0.5, stages=2, period=2))
    list(loader)
    with pytest.warns(UserWarning, match="nothing was recorded in epoch 1: call loader.record"):
        loader.end_epoch()  # not due: a warning and no more
    list(loader)
    before = loader.state_dict()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no value was ever recorded"):
            loader.end_epoch()
        assert identical_state(loader.state_dict(), before)
    assert (loader.epoch, len(loader.history)) == (2, 0)
    loader.tracker.record([3], [0.5])
    assert loader.end_epoch().kept.size == 30
    assert (loader.epoch, len(loader.history)) == (3, 1)


def test_an_epoch_without_records_warns_once():
    loader = wrap(Plain(N), schedule=kcd.CondensationSchedule(ratio=0.5, stages=2, period=10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_epoch(loader)
    with pytest.warns(UserWarning, match="epoch 2") as caught:
        loader.end_epoch()
    assert [w.filename for w in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader.end_epoch()


def test_where_warnings_are_errors_nothing_has_changed_and_the_next_call_goes_on():
    loader = wrap(Plain(N))
    run_epoch(loader)
    before = loader.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="epoch 2"):
            loader.end_epoch()
        assert identical_state(loader.state_dict(), before)
        loader.end_epoch()
    assert (loader.epoch, loader.sampler.stage, len(loader.history)) == (3, 2, 2)


def test_stage_goes_on_from_older_recordings():
    """A due stage in an epoch without records ranks by what was recorded before."""
    loader = wrap(Plain(N))
    run_epoch(loader)
    with pytest.warns(UserWarning, match="nothing was recorded in epoch 2"):
        assert len(loader.end_epoch().kept) == 28


def test_after_the_last_stage_the_set_is_ranked_anew_at_constant_size():
    loader, naive = wrap(Cifar(N), kcd_options={"mixing": "fresh"}), Naive(N)
    sets = []
    for epoch in range(1, 9):
        for batch in loader:
            indices = index_of(batch)
            naive.record(indices, entropy_of(logits_of(indices, epoch)))
            loader.record(logits_of(indices, epoch))
        sets.append(loader.end_epoch())
        naive.stage()
        assert sets[-1].kept.tolist() == naive.kept
    assert [len(s.kept) for s in sets] == [34, 28, 22, 20, 20, 20, 20, 20]
    for late in sets[4:]:
        assert len(late.tail) == len(late.dropped) == len(late.weights) == 0
        assert late.stage > 4
    assert len(loader.sampler.recipes) == 0  # fresh: nothing is dropped, so nothing is mixed
    assert any(sets[i].kept.tolist() != sets[i + 1].kept.tolist() for i in range(3, 7))


def test_points_never_recorded_are_not_dropped():
    loader = wrap(Plain(N), batch_size=9, drop_last=True)  # 4 of 40 are left out
    drawn = {i for batch in run_epoch(loader, end=False) for i in batch}
    unseen = set(range(N)) - drawn
    assert len(unseen) == 4
    chosen = loader.end_epoch()
    assert unseen <= set(chosen.kept.tolist())
    assert loader.history[0]["unseen"] == 4


def test_early_break_ends_the_epoch_neither_replaying_nor_losing_one():
    whole, broken = wrap(Plain(N)), wrap(Plain(N))
    orders = [run_epoch(whole)]
    for number, batch in enumerate(broken):
        broken.record(logits_of(index_of(batch), 1))
        if number == 2:
            break
    broken.end_epoch()
    assert broken.epoch == whole.epoch == 2
    assert len(broken) == len(whole)
    assert broken.tracker.count.sum() == 24
    orders.append([index_of(b) for b in broken])
    assert len(orders[1]) == len(whole)
    assert orders[1][0] != orders[0][0]


def test_a_stage_at_a_fractional_share_of_the_epochs_is_reached():
    """Not as where a last phase starts only if an epoch equals a product of floats."""
    schedule = kcd.CondensationSchedule(ratio=0.7, stages=6, period=7)
    due = [epoch for epoch in range(1, 60) if schedule.due(epoch)]
    assert due == [7, 14, 21, 28, 35, 42, 49, 56]


def test_history_is_kept():
    loader = wrap(Plain(N))
    for _ in range(3):
        run_epoch(loader)
    assert [(r["stage"], r["epoch"], r["kept"], r["dropped"]) for r in loader.history] == [
        (1, 1, 34, 6), (2, 2, 28, 6), (3, 3, 22, 6),
    ]  # fmt: skip


# -- by hand, and the user's own selection -------------------------------------------------------------


@pytest.mark.parametrize("own", [True, False])
def test_a_condense_step_by_hand_is_drawn_and_mixed_next(own):
    dataset = Cifar(N)
    loader, naive = wrap(dataset), Naive(N, images=dataset.data)
    tracker = loader.tracker if own else kcd.KnowledgeValueTracker(N)
    naive.record(range(N), np.arange(N))
    tracker.record(np.arange(N), np.arange(N, dtype=float))
    chosen = kcd.condense_step(tracker, loader.sampler, SCHEDULE)
    naive.stage()
    assert chosen.kept.tolist() == naive.kept == list(range(6, N))
    assert chosen.tail.tolist() == [11, 10, 9, 8, 7, 6]
    assert len(loader) == loader.steps(1) == 5
    drawn = run_epoch(
        loader, seen=lambda i, batch: np.testing.assert_array_equal(batch[0], naive.images[i]), end=False
    )
    assert sorted(i for b in drawn for i in b) == naive.kept
    assert loader.steps(2) == 4
    assert len(loader.end_epoch().kept) == 28
    assert loader.sampler.stage == 2
    assert len(loader) == 4


def test_trackers_of_another_size_are_refused():
    loader = wrap(Plain(N))
    tracker = kcd.KnowledgeValueTracker(N + 1)
    tracker.record([0], [1.0])
    with pytest.raises(ValueError, match="one size"):
        kcd.condense_step(tracker, loader.sampler, SCHEDULE)


def test_own_selection():
    got = {}

    def hardest_classes(value, count, kept, target, generator):
        got.update(value=value, count=count, kept=kept, target=target, draw=generator.integers(1 << 30))
        return kcd.CondensedSet(kept=np.arange(target), num_samples=len(value), stage=9)

    draws = []
    for _ in range(2):
        loader = wrap(Plain(N), kcd_options={"select": hardest_classes})
        run_epoch(loader, end=False)
        chosen = loader.end_epoch()
        draws.append(got["draw"])
    assert (got["value"] == loader.tracker.value).all()
    assert (got["count"] == 1).all()
    assert got["kept"].tolist() == list(range(N))
    assert got["target"] == 34
    assert draws[0] == draws[1]  # the same on every rank
    assert chosen.stage == loader.sampler.stage == 1
    assert sorted(i for b in run_epoch(loader) for i in b) == list(range(34))
    assert got["draw"] != draws[0]
    assert loader.history[0]["cut"] is None  # unknown


@pytest.mark.parametrize(
    ("select", "error", "reason"),
    [
        (lambda *a: None, TypeError, "CondensedSet, got NoneType"),
        (lambda *a: np.arange(34), TypeError, "CondensedSet, got ndarray"),
        (lambda v, c, k, target, g: kcd.CondensedSet(np.arange(target - 1), N), ValueError, "exactly 34 of 40 .* 33"),
        (lambda v, c, k, target, g: kcd.CondensedSet(np.arange(target), N + 1), ValueError, "34 of 41"),
        (lambda v, c, k, target, g: kcd.CondensedSet(np.arange(target)[::-1], N), ValueError, "ascending"),
        (lambda v, c, k, target, g: kcd.CondensedSet(np.arange(target) + N, N), IndexError, "kept"),
        (lambda v, c, k, target, g: 1 / 0, ZeroDivisionError, "division"),
    ],
)  # fmt: skip
def test_own_selection_that_breaks_its_promise_changes_nothing(select, error, reason):
    loader = wrap(Plain(N), kcd_options={"select": select})
    run_epoch(loader, end=False)
    before = loader.state_dict()
    with pytest.raises(error, match=reason):
        loader.end_epoch()
    assert identical_state(loader.state_dict(), before)


def test_lengths_follow_a_set_installed_by_hand_or_are_refused():
    """What is promised for the epochs ahead is what is drawn; of those behind, nothing is guessed."""
    loader = wrap(Plain(N), schedule=kcd.CondensationSchedule(ratio=0.5, stages=2, period=2))
    lengths = [len(run_epoch(loader)) for _ in range(3)]
    assert [loader.steps(epoch) for epoch in (1, 2, 3)] == lengths
    loader.sampler.install(kcd.CondensedSet(np.arange(0, N, 5), N))
    ahead = [loader.steps(epoch) for epoch in range(4, 9)]
    assert [len(run_epoch(loader)) for _ in range(4, 9)] == ahead
    for ask in (lambda: loader.steps(1), lambda: loader.total_steps(3)):
        with pytest.raises(RuntimeError, match="a set was installed by hand"):
            ask()
