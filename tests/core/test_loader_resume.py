"""Interrupted at any batch and gone on: the same keys, sets and pixels as without."""

import inspect
import io
import pickle
from collections import OrderedDict
from itertools import islice

import numpy as np
import pytest
import torch
from helpers import (
    Cifar,
    Plain,
    examples,
    identical_state,
    index_of,
    logits_of,
    ranks_in_one_process,
    run_epoch,
    wrap,
)
from hypothesis import given
from hypothesis import strategies as st
from test_loader_guards import look_ahead
from torch.utils.data import DataLoader, DistributedSampler

import kcd_core as kcd

# Ranks are simulated here, without a process group.
pytestmark = pytest.mark.filterwarnings("ignore:the sampler draws for one of num_replicas")

N = 40
EPOCHS = 6
SCHEDULE = kcd.CondensationSchedule(ratio=0.5, stages=2, period=2)


def make(**options):
    options.setdefault("schedule", SCHEDULE)
    return wrap(Cifar(N), batch_size=7, **options)


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def go_on(loader, *, stop=None, log=None):
    """Train to the end, or until ``stop`` batches are in ``log``: what was drawn, pixels and all."""
    log = [] if log is None else log
    while loader.epoch <= EPOCHS:
        for batch in loader:
            indices = index_of(batch)
            log.append((loader.epoch, indices, batch[0].numpy().tobytes()))
            loader.record(logits_of(indices, loader.epoch))
            if len(log) == stop:
                return log
        chosen = loader.end_epoch()
        if chosen is not None:
            log.append((chosen.stage, chosen.kept.tolist(), chosen.tail.tolist(), chosen.dropped.tolist()))
            if len(log) == stop:
                return log
    return log


def resumed(loader, **options):
    fresh = make(**options)
    fresh.load_state_dict(through_a_file(loader.state_dict()))
    return fresh


@pytest.fixture(scope="module", params=["cumulative", "fresh"])
def uninterrupted(request):
    loader = make(kcd_options={"mixing": request.param})
    log = go_on(loader)
    return request.param, log, loader.state_dict()


def test_interrupted_at_every_batch(uninterrupted):
    mixing, expected, end = uninterrupted
    options = {"kcd_options": {"mixing": mixing}}
    for stop in range(1, len(expected), 1 if mixing == "cumulative" else 4):
        loader = make(**options)
        log = go_on(loader, stop=stop)
        loader = resumed(loader, **options)
        go_on(loader, log=log)
        assert log == expected, f"interrupted after {stop}"
        assert identical_state(loader.state_dict(), end)


def test_interrupted_again_and_again(uninterrupted):
    """After every single batch, so many times within an epoch."""
    mixing, expected, end = uninterrupted
    options = {"kcd_options": {"mixing": mixing}}
    loader, log = make(**options), []
    for stop in range(1, len(expected)):
        go_on(loader, stop=stop, log=log)
        loader = resumed(loader, **options)
    go_on(loader, log=log)
    assert log == expected
    assert identical_state(loader.state_dict(), end)


def test_the_run_mixes(uninterrupted):
    """Or the comparison of pixels would say nothing."""
    expected = uninterrupted[1]
    raw = Cifar(N).data
    batches = [e for e in expected if isinstance(e[2], bytes)]
    assert any(raw[indices].tobytes() != pixels for _, indices, pixels in batches)
    assert raw[batches[0][1]].tobytes() == batches[0][2]


@pytest.mark.parametrize("stop", [3, 7, 16, 25])
@pytest.mark.parametrize("persistent", [True, False])
def test_with_workers_that_run_ahead(uninterrupted, stop, persistent):
    mixing, expected, end = uninterrupted
    options = {"num_workers": 2, "persistent_workers": persistent, "kcd_options": {"mixing": mixing}}
    loader = make(**options)
    log = go_on(loader, stop=stop)
    loader = resumed(loader, **options)
    go_on(loader, log=log)
    assert log == expected
    assert identical_state(loader.state_dict(), end)


def test_loaded_into_a_loader_that_is_in_use(uninterrupted):
    mixing, expected, _ = uninterrupted
    loader, busy = (make(kcd_options={"mixing": mixing}) for _ in range(2))
    log = go_on(loader, stop=9)
    state = loader.state_dict()
    loader = busy
    go_on(loader, stop=20)
    batch = next(iter(loader))
    loader.load_state_dict(state)
    with pytest.raises(RuntimeError, match="before this pass yielded"):
        loader.record(logits_of(index_of(batch), 1))
    go_on(loader, log=log)
    assert log == expected


def test_saved_after_the_last_batch():
    loader = make()
    run_epoch(loader, end=False)
    loader = resumed(loader)
    assert list(loader) == []
    assert loader.epoch == 1
    loader.end_epoch()  # without a warning: it was recorded, before the interruption
    assert loader.epoch == 2
    assert sum(map(len, run_epoch(loader, end=False))) == N


def test_saved_again_before_anything_was_drawn(uninterrupted):
    mixing, expected, _ = uninterrupted
    options = {"kcd_options": {"mixing": mixing}}
    loader = make(**options)
    log = go_on(loader, stop=9)
    loader = resumed(resumed(loader, **options), **options)
    iter(loader)  # as trainers do to look whether it works
    loader = resumed(loader, **options)
    go_on(loader, log=log)
    assert log == expected


def test_an_epoch_ended_right_after_loading_is_over():
    loader = make()
    go_on(loader, stop=3)
    loader = resumed(loader)
    loader.end_epoch()
    assert sorted(i for batch in run_epoch(loader) for i in batch) == list(range(N))


def test_saved_at_the_start_of_an_epoch():
    loader = make()
    run_epoch(loader)
    run_epoch(loader)
    assert loader.epoch == 3
    fresh = resumed(loader)
    assert (fresh.epoch, len(fresh), fresh.sampler.stage) == (3, len(loader), 1)
    assert run_epoch(fresh) == run_epoch(loader)


# -- what a saved position means ---------------------------------------------------------------------------


def rest_of(state):
    """What a run that was resumed from this state draws of its epoch."""
    fresh = make()
    fresh.load_state_dict(through_a_file(state))
    iter(fresh)  # as trainers do to look whether it works
    next(iter(fresh), None)
    return [index_of(batch) for batch in fresh]


@given(
    skipped=st.sets(st.integers(1, 5)),
    stop=st.integers(0, 5),
    owing=st.booleans(),
    workers=st.sampled_from([0, 0, 0, 1]),
)
def test_a_batch_that_owes_its_record_is_drawn_again_and_one_that_was_skipped_is_not(
    skipped, stop, owing, workers
):
    loader, order = make(num_workers=workers), [index_of(batch) for batch in make()]
    for number, batch in enumerate(loader):
        if number == stop and owing:
            break
        if number not in skipped:
            loader.record(logits_of(index_of(batch), 1))
        if number == stop:
            break
    again = owing or stop in skipped  # the last batch drawn, unless the next was asked for
    recorded = bool(set(range(stop + (not owing))) - skipped)
    state = loader.state_dict()
    assert rest_of(state) == (order[stop + (not again) :] if recorded else order)
    assert state["position"] == (min(7 * (stop + (not again)), N) if recorded else 0)


@examples(40)
@given(
    ahead=st.integers(0, 7), stop=st.integers(1, 6), moved=st.booleans(), skipped=st.sets(st.integers(0, 5))
)
def test_with_indices_the_position_is_what_was_recorded_however_far_ahead_others_were_fetched(
    ahead, stop, moved, skipped
):
    loader, order = make(kcd_options={"return_index": True}), [index_of(batch) for batch in make()]
    iterator = iter(loader)
    waiting = [indices for indices, _ in islice(iterator, ahead)]
    for number in range(stop):
        waiting += [indices for indices, _ in islice(iterator, 1)]
        indices = waiting.pop(0)
        if number not in skipped:
            indices = indices.flip(0) if moved else indices
            loader.record(logits_of(indices, 1), indices=indices)
    done = max(set(range(stop)) - skipped, default=-1) + 1
    assert rest_of(loader.state_dict()) == order[done:]


def test_a_last_batch_that_was_skipped_ends_the_epoch():
    loader = make()
    for number, batch in enumerate(loader):
        if number < 5:
            loader.record(logits_of(index_of(batch), 1))
    assert rest_of(loader.state_dict()) == []


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("batches", [1, 3, 6])
def test_a_pass_in_which_nothing_is_recorded_moves_nothing(passes, batches):
    loader = make()
    run_epoch(loader)
    before, order = loader.state_dict(), [index_of(batch) for batch in loader]
    for _ in range(passes):
        list(islice(loader, batches))
    assert identical_state(before, loader.state_dict())
    assert rest_of(before) == order
    assert run_epoch(loader) == order


def test_a_pass_begins_with_its_first_batch():
    """One that is made before a state is loaded, or before an epoch's end, is of what is there then."""
    loader, other = make(), make()
    go_on(loader, stop=3)
    iterator = iter(other)
    other.load_state_dict(loader.state_dict())
    first = index_of(next(iterator))
    assert first == rest_of(loader.state_dict())[0]
    other.record(logits_of(first, 1))
    iterator = iter(other)
    other.end_epoch()
    assert other.batches_done == 0
    assert index_of(next(iterator)) == index_of(next(iter(other)))
    assert other.batches_done == 1


class BrokenAt(Plain):
    broken = 0

    def __getitem__(self, index):
        if index == self.broken:
            raise OSError(f"sample {index} is broken")
        return super().__getitem__(index)


@pytest.mark.parametrize("prefetch", [None, iter, look_ahead], ids=["", "through", "ahead"])
@pytest.mark.parametrize("batch_size", [3, 4, 5])
def test_a_batch_that_can_not_be_fetched_loses_no_other_on_a_resume(batch_size, prefetch):
    """Wherever it is: also where the last full batch lends a sample to the last."""
    schedule = kcd.CondensationSchedule(ratio=0.5, stages=1, period=1)

    def made(state):
        options = {"mixing": None, "prefetch": prefetch}
        loader = wrap(BrokenAt(26), batch_size=batch_size, schedule=schedule, kcd_options=options)
        loader.load_state_dict(state)
        return loader

    def drawn(loader):
        """Samples of the batches that are left; recorded."""
        iterator, batches = iter(loader), []
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return batches
            except OSError:
                continue
            states.append((len(batches), loader.state_dict()))  # its record is owed
            loader.record(logits_of(index_of(batch), 1))
            batches.append(index_of(batch))
            states.append((len(batches), loader.state_dict()))

    first = wrap(Plain(26), batch_size=batch_size, schedule=schedule, kcd_options={"mixing": None})
    run_epoch(first)
    assert len(first.sampler.kept) == 13
    for broken in first.sampler.kept:
        BrokenAt.broken, states = broken, []
        whole = drawn(made(first.state_dict()))
        assert sum(map(len, whole)) >= 13 - batch_size
        for number, state in list(states):
            assert drawn(made(state)) == whole[number:]


@pytest.mark.parametrize("by_indices", [False, True])
def test_a_batch_with_nothing_to_record_is_done(by_indices):
    """As one whose loss is NaN: a state saved right after it goes on with the next, and with all that were recorded."""
    skipped = {0, 3, 5}
    for saved in range(6):
        loader, drawn = make(), []
        for number, batch in enumerate(loader):
            drawn.append(index_of(batch))
            indices = loader.indices if by_indices else None
            if number in skipped:
                loader.skip(indices=indices)
                loader.skip(indices=indices)  # nothing is owed any more
            else:
                loader.record(logits_of(drawn[-1], 1), indices=indices)
            if number == saved:
                state = loader.state_dict()
        again = make()
        again.load_state_dict(state)
        assert again.batches_done == saved + 1
        assert [index_of(batch) for batch in again] == drawn[saved + 1 :]
        recorded = [index for number, batch in enumerate(drawn) if number not in skipped for index in batch]
        assert np.flatnonzero(loader.tracker.count).tolist() == sorted(recorded)


def test_after_a_pass_of_skipped_batches_the_epoch_may_be_recorded():
    loader = make()
    loader.skip()  # nothing was drawn
    for _ in loader:
        loader.skip()
    run_epoch(loader)
    assert (loader.tracker.count == 1).all()


def test_batches_done_after_a_resume():
    loader = make()
    for expected in range(1, len(loader) + 1):
        for batch in loader:
            loader.record(logits_of(index_of(batch), 1))
            break
        assert loader.batches_done == expected
        loader = resumed(loader)
        assert loader.batches_done == expected
    assert list(loader) == []


def test_passes_go_on_at_the_saved_position_until_something_is_recorded():
    loader = make()
    iterator = iter(loader)
    for _ in range(2):
        loader.record(logits_of(index_of(next(iterator)), 1))
    loader = resumed(loader)
    assert len(loader) == 6  # of the whole epoch
    assert loader.batches_done == 2
    assert [len(list(loader)) for _ in range(2)] == [4, 4]
    for batch in loader:
        loader.record(logits_of(index_of(batch), 1))
    assert loader.batches_done == 6
    assert len(list(loader)) == 6  # for the training accuracy, say


def test_state_holds_still_and_is_a_copy():
    loader = make()
    go_on(loader, stop=9)
    state = loader.state_dict()
    kept = through_a_file(state)
    loader.end_epoch()
    go_on(loader)
    assert identical_state(state, kept)
    fresh = make()
    fresh.load_state_dict(state)
    go_on(fresh)
    assert identical_state(state, kept)


def test_state_is_plain():
    def check(x):
        if isinstance(x, dict):
            assert all(type(k) is str for k in x)
            for v in x.values():
                check(v)
        elif isinstance(x, list):
            for v in x:
                check(v)
        else:
            assert type(x) in (int, float, bool, str, type(None), torch.Tensor)

    loader = make()
    go_on(loader, stop=15)
    check(loader.state_dict())
    make().load_state_dict(OrderedDict(loader.state_dict()))


def test_state_does_not_grow_with_epochs():
    """The recordings; what a stage did is a record of fixed size."""
    loader = make(schedule=kcd.CondensationSchedule(ratio=0.5, stages=2, period=100))
    sizes = []
    for _ in range(3):
        run_epoch(loader)
        file = io.BytesIO()
        torch.save(loader.state_dict(), file)
        sizes.append(file.tell())
    assert max(sizes) - min(sizes) <= 128


def test_values_go_on_where_they_were():
    loader = make()
    go_on(loader, stop=4)
    fresh = resumed(loader)
    np.testing.assert_array_equal(fresh.tracker.value, loader.tracker.value)
    np.testing.assert_array_equal(fresh.tracker.count, loader.tracker.count)


def test_history_goes_on():
    loader = make()
    go_on(loader)
    assert str(resumed(loader).history) == str(loader.history)
    assert len(loader.history) == 3


# -- several ranks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [True, False])
def test_ranks_interrupted_at_every_batch(monkeypatch, cut):
    n, epochs = 23, 3
    schedule = kcd.CondensationSchedule(ratio=0.5, stages=2, period=1)

    def ranks():
        return [
            kcd.wrap_loader(
                DataLoader(Plain(n), 2, sampler=DistributedSampler(range(n), 3, rank, drop_last=cut)),
                schedule=schedule,
            )
            for rank in range(3)
        ]

    def train(stop=None):
        loaders, log = ranks(), []
        for epoch in range(1, epochs + 1):
            iterators = [iter(loader) for loader in loaders]
            for _ in range(loaders[0].steps(epoch)):
                for loader, iterator in zip(loaders, iterators, strict=True):
                    log.append(index_of(next(iterator)))
                    loader.record(logits_of(log[-1], epoch))
                if len(log) // 3 == stop:
                    states = [through_a_file(loader.state_dict()) for loader in loaders]
                    loaders = ranks()
                    for loader, state in zip(loaders, states, strict=True):
                        loader.load_state_dict(state)
                    iterators = [iter(loader) for loader in loaders]
            assert [list(iterator) for iterator in iterators] == [[], [], []]
            with ranks_in_one_process(monkeypatch, loaders):
                for loader in loaders:
                    loader._agreed = True
                    loader.end_epoch()
        counts = sum(loader.tracker.count for loader in loaders)
        return log, counts.tolist(), loaders[0].sampler.kept.tolist()

    expected = train()
    for stop in range(1, len(expected[0]) // 3 + 1):
        assert train(stop) == expected


def ranks_of(world, *, n=23, batch_size=2, cut=False, **options):
    samplers = [DistributedSampler(range(n), world, rank, seed=3, drop_last=cut) for rank in range(world)]
    return [
        kcd.wrap_loader(DataLoader(Plain(n), batch_size, sampler=sampler, **options), schedule=EVERY_EPOCH)
        for sampler in samplers
    ]


EVERY_EPOCH = kcd.CondensationSchedule(ratio=0.5, stages=2, period=1)


class Ranks:
    """Ranks that take their steps together, as in DDP, here one after the other in one process."""

    def __init__(self, world, **options):
        self.loaders = ranks_of(world, **options)
        self.start()

    def start(self):
        self.iterators = [iter(loader) for loader in self.loaders]

    def steps(self, many=None):
        """What was drawn, in the order of the steps and then of the places in the global order."""
        drawn, done = [], 0
        while done != many:
            batches = [next(iterator, None) for iterator in self.iterators]
            if batches[0] is None:
                assert batches == [None] * len(batches)
                break
            indices = [index_of(batch) for batch in batches]
            for loader, mine in zip(self.loaders, indices, strict=True):
                loader.record(logits_of(mine, loader.epoch))
            drawn += [i for group in zip(*indices, strict=True) for i in group]
            done += 1
        return drawn

    def finish_epoch(self, monkeypatch):
        drawn = self.steps()
        with ranks_in_one_process(monkeypatch, self.loaders):
            for loader in self.loaders:
                loader._agreed = True
                chosen = loader.end_epoch()
        self.start()
        return drawn, chosen

    def states(self):
        return [through_a_file(loader.state_dict()) for loader in self.loaders]

    def resumed(self, world, shuffled, **options):
        """On ``world`` ranks, from what these saved."""
        states, ranks = self.states(), Ranks(world, **options)
        for loader in ranks.loaders:
            loader.load_state_dict([states[i] for i in shuffled if i < len(states)])
        ranks.start()
        return ranks


@examples(20)
@given(
    n=st.integers(2, 60),
    batch_size=st.integers(1, 5),
    parts=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6)), min_size=2, max_size=6),
    shuffled=st.permutations(range(4)),
)
def test_another_number_of_ranks_goes_on_in_the_same_global_order(n, batch_size, parts, shuffled):
    """Interrupted in every epoch at any step, and gone on with on any number of ranks."""
    options = {"n": n, "batch_size": batch_size}
    ranks = Ranks(parts[0][0], **options)
    alone = kcd.CondensedSampler(n, seed=3, num_replicas=1, rank=0)
    tracker = kcd.KnowledgeValueTracker(n)
    with pytest.MonkeyPatch.context() as monkeypatch:
        for epoch in range(1, 4):
            alone.set_epoch(epoch)
            drawn = []
            for world, steps in parts:
                ranks = ranks.resumed(world, shuffled, **options)
                drawn += ranks.steps(steps)
            rest, chosen = ranks.finish_epoch(monkeypatch)
            drawn += rest
            order = list(alone)
            # Whatever comes after the order's end pads, and only there.
            assert drawn[: len(order)] == order
            assert len(drawn) - len(order) < 4
            tracker.update(order, logits_of(order, epoch))
            expected = kcd.condense_step(tracker, alone, EVERY_EPOCH)
            for name in ("kept", "tail", "dropped"):
                assert getattr(chosen, name).tolist() == getattr(expected, name).tolist()
            counts = sum(loader.tracker.count for loader in ranks.loaders)
            assert counts.tolist() == tracker.count.tolist()


@examples(20)
@given(
    n=st.integers(8, 60),
    worlds=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    steps=st.integers(1, 4),
)
def test_another_number_of_ranks_that_leave_out_the_end(n, worlds, steps):
    """Never a sample twice, in the global order, and no more left out than ranks can't share evenly."""
    ranks, drawn = Ranks(worlds[0], n=n, cut=True), []
    for world in worlds:
        ranks = ranks.resumed(world, range(4), n=n, cut=True)
        drawn += ranks.steps(steps)
    drawn += ranks.steps()
    order = list(kcd.CondensedSampler(n, seed=3, num_replicas=1, rank=0))
    assert drawn == order[: len(drawn)]
    assert n - len(drawn) < worlds[-1]
    assert sum(loader.tracker.count for loader in ranks.loaders).sum() == len(drawn)


def test_a_part_recorded_before_is_not_drawn_again_on_other_ranks():
    """The ranks have recorded the epoch, and have begun to read it again."""
    run = Ranks(2)
    run.steps()
    run.start()
    for iterator in run.iterators:
        next(iterator)
    ranks = run.resumed(3, range(4))
    assert ranks.loaders[0].epoch == 1
    assert ranks.steps(1) == []


def test_what_only_one_rank_recorded_and_skipped_is_taken_over():
    run = Ranks(3)
    batches = [index_of(next(iterator)) for iterator in run.iterators]
    logits = logits_of(batches[1], 1)
    logits[0] = torch.nan
    run.loaders[1].tracker.update(batches[1], logits)
    with pytest.warns(RuntimeWarning, match="not finite"):
        run.loaders[1].tracker.sums()
    new = run.resumed(2, range(4)).loaders
    assert [x.tracker.skipped["nonfinite"] for x in new] == [1, 0]
    assert [int(x.tracker.count.sum()) for x in new] == [1, 0]


def test_no_last_batch_of_one_sample_where_resuming_leaves_one_over(monkeypatch):
    """Of 16 kept, 3 ranks drew 9 in batches of 3; for 2 ranks that leaves 4 each."""
    options = {"n": 21, "batch_size": 3}
    run = Ranks(3, **options)
    run.finish_epoch(monkeypatch)
    assert run.loaders[0].sampler.num_kept == 16
    run.steps(1)
    for iterator in run.resumed(2, range(4), **options).iterators:
        assert [len(index_of(batch)) for batch in iterator] == [2, 2]


# -- refusals ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good_state():
    loader = make()
    go_on(loader, stop=16)
    return loader.state_dict()


def assert_refused(loader, state, reason):
    for stop in (0, 10):
        if stop:
            go_on(loader, stop=stop)
        before = loader.state_dict()
        with pytest.raises(ValueError, match=reason):
            loader.load_state_dict(state)
        assert identical_state(loader.state_dict(), before)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"schedule": kcd.CondensationSchedule(ratio=0.6, stages=2, period=2)}, "schedule = .*0.5.*here it is .*0.6"),
        ({"schedule": kcd.CondensationSchedule(ratio=0.5, stages=2, period=1)}, "schedule"),
        ({"seed": 4}, "seed = 3, here it is 4"),
        ({"shuffle": False}, "shuffle = True, here it is False"),
        ({"kcd_options": {"alpha": 0.1}}, "alpha = 0.03, here it is 0.1"),
        ({"kcd_options": {"min_weight": 0.5}}, "min_weight"),
        ({"kcd_options": {"mixing": "fresh"}}, "mixing = 'cumulative', here it is 'fresh'"),
        ({"kcd_options": {"mixing": None}}, "mixing"),
        ({"kcd_options": {"value": "margin"}}, "value = 'entropy', here it is 'margin'"),
    ],
)  # fmt: skip
def test_state_of_other_settings_is_refused(good_state, options, reason):
    assert_refused(make(**options), through_a_file(good_state), reason)


def test_state_of_another_data_set_is_refused(good_state):
    assert_refused(wrap(Cifar(N + 1), schedule=SCHEDULE), good_state, "num_samples = 40, here it is 41")


@pytest.mark.parametrize(("part", "mine"), [(None, 2), ("tracker", 1), ("sampler", 1)])
@pytest.mark.parametrize("by", [-1, 1])
def test_state_of_another_version_is_refused(good_state, part, mine, by):
    state = through_a_file(good_state)
    (state if part is None else state[part])["version"] = mine + by
    assert_refused(
        make(), state, f"of version {mine + by}, and this kcd_core reads version {mine}: finish the run"
    )


def test_state_of_another_rank_is_refused():
    state = ranks_of(2)[1].state_dict()
    for other, here in [
        (ranks_of(2)[0], "rank 0 of 2"),
        (ranks_of(3)[1], "rank 1 of 3"),
        (ranks_of(1)[0], "rank 0 of 1"),
    ]:
        assert_refused_once(other, state, f"saved by rank 1 of 2, and this is {here}: give every rank a list")


def assert_refused_once(loader, state, reason):
    before = loader.state_dict()
    with pytest.raises(ValueError, match=reason):
        loader.load_state_dict(state)
    assert identical_state(loader.state_dict(), before)


def test_states_of_ranks_that_do_not_belong_together_are_refused(monkeypatch):
    run, later = Ranks(3), Ranks(3)
    for both in (run, later):
        both.finish_epoch(monkeypatch)
        both.steps(2)
    states = run.states()
    later.steps(1)
    other = later.states()[1]
    ahead = {**states[1], "epoch": states[1]["epoch"] + 1}
    told = {**states[1], "history": {**states[1]["history"], "records": []}}
    kept = {**states[1], "sampler": {**states[1]["sampler"], "kept": states[1]["sampler"]["kept"][1:]}}
    elsewhere = {**states[1], "sampler": {**states[1]["sampler"], "seed": 8}}
    beyond = {**states[1], "rank": 3}
    unrecorded = {**states[1], "recorded": 0}  # saved before record()
    for together, reason in [
        ([], "an empty list"),
        (states[:2], r"all 3 ranks are needed, each once: missing are those of \[2\]"),
        (states[:1], r"missing are those of \[1, 2\], given are \['0 of 3'\]"),
        ([*states, states[0]], r"each once: missing are those of \[\], given are .*'2 of 3', '0 of 3'"),
        ([states[0], states[0], states[2]], r"missing are those of \[1\]"),
        ([states[0], beyond, states[2]], r"missing are those of \[1\], given are .*'3 of 3'"),
        ([*states[:2], Ranks(2).states()[0]], "given are .*'0 of 2'"),
        ([states[0], other, states[2]], "rank 1 has another position than rank 0, 18 against 12"),
        (
            [states[0], unrecorded, states[2]],
            "rank 1 has another recorded position than rank 0, 0 against 12",
        ),
        ([states[0], ahead, states[2]], "rank 1 has another epoch than rank 0, 3 against 2"),
        ([states[0], told, states[2]], "rank 1 has another history than rank 0"),
        ([states[0], kept, states[2]], "rank 1 has another set than rank 0"),
        ([states[0], elsewhere, states[2]], "rank 1 has another seed than rank 0, 8 against 3"),
        ([*states[:2], {**states[2], "num_replicas": 10**15}], "all 3 ranks"),
        ([{**s, "num_replicas": 10**15} for s in states], r"missing are those of \[3, 4, 5, 6, 7\]"),
        ([*states[:2], 3], "not a loader state"),
    ]:
        for loader in (*Ranks(2).loaders, *Ranks(1).loaders):
            assert_refused_once(loader, together, reason)


def test_sums_too_large_together_are_refused():
    run = Ranks(2)
    for loader in run.loaders:
        for _ in range(4):
            loader.tracker.record([0], [2.0**20])
    for loader in Ranks(1).loaders:
        assert_refused_once(loader, run.states(), "too large to be summed")


@pytest.mark.parametrize(
    "garbage", [None, 3, [], [1, 2], "state", {}, {"version": 2}, {1: 2}, torch.zeros(3), object()]
)
def test_garbage_is_refused(garbage):
    assert_refused(make(), garbage, "not a loader state")


def first(value, count, kept, target, generator):
    return kcd.CondensedSet(np.arange(target), len(value))


def own_mixer(dataset, index, steps):
    return kcd.mix_arrays(dataset, index, steps)


def relabelled(n):
    data = Cifar(n)
    data.targets[3], data.targets[4] = data.targets[4], data.targets[3]
    return data


class OwnSchedule(kcd.CondensationSchedule):
    """With the state of its parent."""


OTHERS = {
    "value": {"kcd_options": {"value": "margin"}},
    "select": {"kcd_options": {"select": first}},
    "mixer": {"kcd_options": {"mixer": own_mixer}},
    "drop_last": {"drop_last": True},
    "schedule_type": {"schedule": OwnSchedule(ratio=0.5, stages=2, period=2)},
    "dataset": {"data": relabelled(N)},
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("saved_with", [True, False])
def test_what_would_change_the_set_or_the_order_is_refused_by_name(name, saved_with):
    def loader_with(odd):
        odd = {"data": Cifar(N), "schedule": SCHEDULE, **odd}
        return wrap(odd.pop("data"), batch_size=7, **odd)

    saver, reader = (loader_with(OTHERS[name] if odd else {}) for odd in (saved_with, not saved_with))
    go_on(saver, stop=3)
    state, before = through_a_file(saver.state_dict()), reader.state_dict()
    for saved in (state, [state]):
        with pytest.raises(ValueError, match=rf"saved with .*{name} = .*, here it is "):
            reader.load_state_dict(saved)
    assert identical_state(reader.state_dict(), before)


def test_labels_that_were_corrected_can_be_said_to_be():
    saver, reader = make(), wrap(relabelled(N), schedule=SCHEDULE, batch_size=7)
    go_on(saver, stop=3)
    state = saver.state_dict()
    with pytest.raises(ValueError, match=r"set state\['dataset'\] = "):
        reader.load_state_dict(state)
    state["dataset"] = reader.state_dict()["dataset"]
    reader.load_state_dict(state)


class OpensLate(Cifar):
    """Reads its labels at the first access."""

    def __init__(self, n):
        super().__init__(n)
        self.late, self.targets = self.targets, None

    def __getitem__(self, index):
        self.targets = self.late
        return super().__getitem__(index)


@pytest.mark.parametrize("opened", [0, 1])
def test_a_data_set_that_opens_at_the_first_access_is_no_other_one(opened):
    datasets = OpensLate(N), OpensLate(N)
    datasets[opened][0]
    saver, reader = (wrap(data, schedule=SCHEDULE, batch_size=7) for data in datasets)
    go_on(saver, stop=3)
    reader.load_state_dict(saver.state_dict())


def test_a_subset_is_another_data_set_than_one_of_its_size():
    plain, part = (
        wrap(data, schedule=SCHEDULE) for data in (Cifar(N), torch.utils.data.Subset(Cifar(2 * N), range(N)))
    )
    for saver, reader in ((plain, part), (part, plain)):
        with pytest.raises(ValueError, match=r"saved with dataset = .*indices"):
            reader.load_state_dict(saver.state_dict())


def test_labels_that_change_in_the_course_of_a_run_are_no_other_data():
    """Pseudo-labels: what counts is what the data set was when it was wrapped."""
    loader = make()
    go_on(loader, stop=3)
    loader.dataset.targets[:] = [0] * N
    resumed(loader)


@pytest.mark.parametrize("size", [3, 7, 11])
def test_another_batch_size_goes_on_at_the_same_sample(size):
    """A position is in samples."""
    loader = make()
    drawn = [i for _, indices, _ in go_on(loader, stop=3) for i in indices]
    reader = wrap(Cifar(N), schedule=SCHEDULE, batch_size=size)
    reader.load_state_dict(loader.state_dict())
    rest = [i for batch in run_epoch(reader, end=False) for i in batch]
    whole = [i for batch in run_epoch(make(), end=False) for i in batch]
    assert drawn + rest == whole


GARBAGE = [
    None,
    -5,
    1.5,
    "text",
    [1, 2],
    [[]],
    {},
    {"version": None},
    torch.zeros(3),
    torch.zeros(2, 2),
    object(),
]


def places(state, path=()):
    for key, value in state.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def fits(path, value):
    """What happens to be a legal value in that place."""
    if path == ("select",):
        return value is None
    return path[-1] == "seen" or (path[-1] in ("skipped", "kept") and value is GARBAGE[4])


def test_garbage_within_is_refused(good_state):
    for path in places(good_state):
        for garbage in GARBAGE:
            if path[0] == "history" or fits(path, garbage):
                continue
            state = through_a_file(good_state)
            part = state
            for key in path[:-1]:
                part = part[key]
            part[path[-1]] = garbage
            loader = make()
            before = loader.state_dict()
            with pytest.raises(ValueError, match=r"."):
                loader.load_state_dict(state)
            assert identical_state(loader.state_dict(), before), (path, garbage)
            if path == ("dataset", "targets"):
                continue  # a data set may know less of itself until it is first accessed
            del part[path[-1]]
            if path in (("account",), ("tracker", "statistic")):
                continue  # older states have none
            with pytest.raises(ValueError, match=r"."):
                loader.load_state_dict(state)


@pytest.mark.parametrize("history", [None, 3, [], {}, {"num_samples": N}, {"num_samples": N, "records": [{}]},
                                     {"num_samples": N, "records": 3}, {"num_samples": 0, "records": []}])  # fmt: skip
def test_a_history_that_is_none_is_refused(good_state, history):
    assert_refused(make(), {**good_state, "history": history}, "not a history state")


def test_damage_is_refused(good_state):
    def damaged(part, **changes):
        return {**good_state, part: {**good_state[part], **changes}}

    sampler, tracker = good_state["sampler"], good_state["tracker"]
    for state, reason in [
        (damaged("sampler", kept=sampler["kept"].flip(0)), "kept is not ascending"),
        (damaged("sampler", kept=sampler["kept"] + N), "lies outside"),
        (damaged("sampler", kept=sampler["kept"].float()), "int64"),
        (damaged("sampler", mix_source=sampler["mix_source"] - N), "lies outside"),
        (damaged("sampler", mix_source=sampler["mix_source"][1:]), "differ in length"),
        (damaged("sampler", mix_weight=sampler["mix_weight"] * float("nan")), "weight"),
        (damaged("tracker", total=tracker["total"][1:]), "shape"),
        (damaged("tracker", count=tracker["count"] * -1), "contradict"),
        (damaged("tracker", count=tracker["count"] * 0), "contradict"),
        (damaged("tracker", total=tracker["total"].double()), "int64"),
    ]:
        assert_refused(make(), state, reason)


def test_a_state_within_an_epoch_needs_batches_in_order():
    if "in_order" not in inspect.signature(torch.utils.data.DataLoader.__init__).parameters:
        pytest.skip("this torch always yields batches in order")
    loader = wrap(Plain(N), num_workers=1, in_order=False)
    loader.state_dict()
    iterator = iter(loader)
    loader.record(logits_of(index_of(next(iterator)), 1))
    with pytest.raises(RuntimeError, match="in_order=False"):
        loader.state_dict()
    for batch in iterator:
        loader.record(logits_of(index_of(batch), 1))
    loader.state_dict()


def test_batches_are_in_order_where_nothing_is_fetched_ahead():
    if "in_order" not in inspect.signature(torch.utils.data.DataLoader.__init__).parameters:
        pytest.skip("this torch always yields batches in order")
    loader = wrap(Plain(N), in_order=False)
    loader.record(logits_of(index_of(next(iter(loader))), 1))
    assert loader.state_dict()["position"] == loader.batch_size


def test_a_loader_that_was_iterated_can_be_pickled():
    loader = wrap(Plain(N))
    iterator = iter(loader)
    loader.record(logits_of(index_of(next(iterator)), 1))
    copied = pickle.loads(pickle.dumps(loader))
    assert copied.tracker.count.sum() == loader.tracker.count.sum() > 0
    copied.end_epoch()
