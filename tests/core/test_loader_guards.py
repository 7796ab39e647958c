"""``record()`` knows which batch it was given, or raises: it never guesses."""

import copy
import itertools
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from helpers import (
    Plain,
    entropy_of,
    identical_state,
    index_of,
    logits_of,
    ranks_in_one_process,
    run_epoch,
    wrap,
)
from torch.utils.data import DataLoader, DistributedSampler, default_collate

import kcd_core as kcd

# Ranks are simulated here, without a process group.
pytestmark = pytest.mark.filterwarnings("ignore:the sampler draws for one of num_replicas")

N = 40


def record(loader, batch, **options):
    batch = batch[1] if isinstance(batch, tuple) else batch
    loader.record(logits_of(index_of(batch), 1), **options)


def assert_right(loader):
    """Whatever was recorded, was recorded for the sample it belongs to."""
    seen = np.flatnonzero(loader.tracker.count)
    expected = entropy_of(logits_of(seen, 1))
    np.testing.assert_allclose(loader.tracker.value[seen], expected, atol=1e-6)


def look_ahead(iterable, batches=1):
    """A prefetcher, such as accelerate's and timm's: yields a batch when the next one is fetched already."""
    iterator = iter(iterable)
    waiting = list(itertools.islice(iterator, batches))
    for batch in iterator:
        waiting.append(batch)
        yield waiting.pop(0)
    yield from waiting


# -- (i) a record needs a batch yielded since the last one ------------------------------------------------


def test_twice_for_one_batch():
    loader = wrap(Plain(N))
    for batch in loader:
        record(loader, batch)
        with pytest.raises(RuntimeError, match=r"twice for one batch.*indices="):
            record(loader, batch)
    assert (loader.tracker.count == 1).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_that_are_replayed(workers):
    """`itertools.cycle` keeps what it was given first, and draws nothing any more."""
    loader = wrap(Plain(N), num_workers=workers)
    batches = itertools.cycle(loader)
    for _ in range(5):
        record(loader, next(batches))
    batch = next(batches)
    with pytest.raises(RuntimeError, match=r"had ended.*end_epoch\(\).*itertools.cycle replays"):
        record(loader, batch)
    assert (loader.tracker.count == 1).all()


def test_before_any_batch():
    loader = wrap(Plain(N))
    logits = logits_of(range(8), 1)
    with pytest.raises(RuntimeError, match="before this pass yielded a batch"):
        loader.record(logits)
    iterator = iter(loader)
    with pytest.raises(RuntimeError, match="before this pass yielded a batch"):
        loader.record(logits)
    record(loader, next(iterator))
    list(iterator)
    loader.end_epoch()
    with pytest.raises(RuntimeError, match="before this pass yielded a batch"):
        loader.record(logits)  # one epoch's last batch is not the next one's business
    assert loader.tracker.count.sum() == 8


def test_an_epoch_that_is_ended_in_its_pass():
    """`end_epoch` indented into the loop: after `record`, or before it."""
    loader = wrap(Plain(N))

    def ended_after():
        for batch in loader:
            record(loader, batch)
            loader.end_epoch()

    def ended_before():
        for batch in loader:
            loader.end_epoch()
            record(loader, batch)

    where = "began before end_epoch().* call these after the loop"
    with pytest.raises(RuntimeError, match=where):
        ended_after()
    assert loader.tracker.count.sum() == 8
    with pytest.warns(UserWarning, match="nothing was recorded"), pytest.raises(RuntimeError, match=where):
        ended_before()
    # A pass that was broken off is under way no more: then it is another loader's batch.
    for batch in loader:
        record(loader, batch)
        break
    loader.end_epoch()
    with pytest.raises(RuntimeError, match="before this pass yielded a batch"):
        record(loader, batch)


# -- (ii) no batch yielded before is still in use ---------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("batches", [1, 2])
def test_behind_a_prefetcher(batches, workers):
    loader = wrap(Plain(N), num_workers=workers)
    for batch in look_ahead(loader, batches):
        with pytest.raises(
            RuntimeError, match=r"batches were fetched since the pass began.*prefetcher.*return_index"
        ):
            record(loader, batch)
        break
    assert loader.tracker.count.sum() == 0


def test_behind_a_prefetcher_after_an_epoch_without():
    loader = wrap(Plain(N), schedule=kcd.CondensationSchedule(period=9))
    run_epoch(loader)
    batch = next(look_ahead(loader))
    with pytest.raises(RuntimeError, match="2 batches were fetched"):
        record(loader, batch)


def test_what_the_caller_does_with_the_indices_changes_no_recording():
    loader = wrap(Plain(N), kcd_options={"return_index": True})
    for indices, batch in loader:
        indices.fill_(-7)
        record(loader, batch)
    assert (loader.tracker.count == 1).all()
    assert_right(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_indices_that_come_along_are_right_behind_a_prefetcher(workers):
    loader = wrap(Plain(N), num_workers=workers, kcd_options={"return_index": True})
    for indices, batch in look_ahead(loader):
        assert indices.tolist() == index_of(batch)
        record(loader, batch, indices=indices)
    assert (loader.tracker.count == 1).all()
    assert_right(loader)
    assert len(loader.end_epoch().kept) == 34


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batches", [1, 3])
def test_a_prefetcher_that_the_loader_knows(batches, workers):
    """No indices needed: what it holds back is not drawn."""
    loader = wrap(
        Plain(N), num_workers=workers, kcd_options={"prefetch": partial(look_ahead, batches=batches)}
    )
    for done, batch in enumerate(loader, 1):
        assert loader.indices.tolist() == index_of(batch)
        assert loader.batches_done == done
        record(loader, batch)
        assert loader.state_dict()["position"] == 8 * done
        with pytest.raises(RuntimeError, match="twice for one batch"):
            record(loader, batch)
    assert (loader.tracker.count == 1).all()
    assert_right(loader)


def test_a_loop_that_looks_ahead_of_a_prefetcher_is_told():
    loader = wrap(Plain(N), kcd_options={"prefetch": look_ahead})
    batch = next(look_ahead(loader))
    with pytest.raises(RuntimeError, match="2 batches were fetched"):
        record(loader, batch)


@pytest.mark.parametrize(
    ("prefetch", "told"),
    [
        (lambda batches: itertools.islice(batches, 2), "ended after 2 batches, and others were left"),
        (
            lambda batches: itertools.islice(batches, 0, None, 2),
            "kept 2 of the 5 batches.*may be of other samples",
        ),
        (lambda batches: itertools.chain(batches, [None]), "more batches than the 5"),
    ],
)
def test_a_prefetcher_yields_one_batch_for_each(prefetch, told):
    loader = wrap(Plain(N), kcd_options={"prefetch": prefetch})
    with pytest.raises(RuntimeError, match=told) as error:
        list(loader)
    assert "it must yield one batch for each that it is given" in str(error.value)


def test_a_prefetcher_that_counts_its_batches():
    loader = wrap(Plain(N), kcd_options={"prefetch": lambda batches: itertools.islice(batches, 5)})
    assert [len(index_of(batch)) for batch in loader] == [8, 8, 8, 8, 8]
    loader = wrap(Plain(N), kcd_options={"prefetch": lambda batches: None})
    with pytest.raises(TypeError, match="prefetch must return an iterator over batches, got NoneType"):
        next(iter(loader))


@pytest.mark.parametrize("start", [0, 16])
@pytest.mark.parametrize("skipped", [1, 3])
def test_the_first_batches_not_recorded(start, skipped):
    """Of a pass, or after a resume: NaN in the first step, or a burn-in."""
    loader = wrap(Plain(N))
    if start:
        for batch in itertools.islice(loader, start // 8):
            record(loader, batch)
        state, loader = loader.state_dict(), wrap(Plain(N))
        loader.load_state_dict(state)
    for number, batch in enumerate(loader):
        if number >= skipped:
            record(loader, batch)
    assert loader.tracker.count.sum() == N - 8 * skipped
    assert_right(loader)


@pytest.mark.parametrize("sign", ["CUDA is in use", "logits on a device"])
def test_the_first_batches_not_recorded_where_a_device_may_hide_a_prefetcher(sign, monkeypatch):
    """It may have fetched two batches, and hold copies of them alone."""
    loader = wrap(Plain(N))
    for number, batch in enumerate(loader):
        logits = logits_of(index_of(batch), 1)
        if sign == "CUDA is in use":
            monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        else:
            logits = logits.to("meta")
        if number:
            with pytest.raises(RuntimeError, match="2 batches were fetched before the first record"):
                loader.record(logits)
            break
    assert loader.tracker.count.sum() == 0


def test_a_loop_recorded_in_step_may_skip_its_first_batch_on_a_device(monkeypatch):
    """As AMP loops do where a loss is not finite: by then it is known that nothing looks ahead."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    loader = wrap(Plain(N), schedule=kcd.CondensationSchedule(0.5, period=9))
    for epoch in (1, 2):
        for number, batch in enumerate(loader):
            if number or epoch == 1:
                record(loader, batch)
        loader.end_epoch()
    assert loader.tracker.count.sum() == 2 * N - 8
    assert_right(loader)


@pytest.mark.parametrize("device", [False, True])
def test_a_first_batch_without_samples_has_nothing_to_record(device, monkeypatch):
    class Missing(Plain):
        def __getitem__(self, index):
            return None if index in (0, 1, 4, 5) else super().__getitem__(index)

    def collate(samples):
        there = [sample for sample in samples if sample is not None]
        return default_collate(there) if there else None

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: device)
    loader = wrap(Missing(N), batch_size=2, shuffle=False, collate_fn=collate, kcd_options={"mixing": None})
    kept = []
    for batch in loader:
        if batch is not None:
            record(loader, batch)
        kept.append(batch)
    assert loader.tracker.count.sum() == N - 4
    assert_right(loader)


def test_skipping_records_later_stays_right():
    """Not as where a queue of indices is popped by each record."""
    loader = wrap(Plain(N))
    for number, batch in enumerate(loader):
        if number != 1 and number != 3:  # gradient accumulation, a skipped AMP step, ...
            record(loader, batch)
    assert loader.tracker.count.sum() == 24
    assert_right(loader)


# -- (iii) no other pass while a batch owes its record ----------------------------------------------------


def test_second_pass_while_a_batch_is_owed():
    loader = wrap(Plain(N))
    first = iter(loader)
    record(loader, next(first))
    next(first)
    batch = next(iter(loader))
    with pytest.raises(RuntimeError, match="a second iteration was started"):
        record(loader, batch)
    assert loader.tracker.count.sum() == 8
    loader.end_epoch()
    run_epoch(loader)  # a new epoch is a new start


def test_a_look_at_one_batch_confuses_nothing():
    """``next(iter(loader))``, for its shape or a picture: nobody holds that pass any more."""
    loader = wrap(Plain(N))
    next(iter(loader))
    run_epoch(loader)
    assert_right(loader)


def test_two_passes_at_once():
    loader = wrap(Plain(N), schedule=kcd.CondensationSchedule(period=9))
    for batch, twin in zip(loader, loader, strict=True):
        assert index_of(batch) == index_of(twin)
        record(loader, batch)  # which of the two doesn't matter
    assert (loader.tracker.count == 1).all()
    assert_right(loader)

    loader = wrap(Plain(N), schedule=kcd.CondensationSchedule(period=9))
    first, second = iter(loader), iter(loader)
    next(first)
    batch = next(first)
    next(second)
    with pytest.raises(RuntimeError, match="read in turns"):
        record(loader, batch)
    assert loader.tracker.count.sum() == 0


def test_a_stale_pass_does_not_disturb_the_next_epoch():
    loader = wrap(Plain(N))
    stale = iter(loader)
    record(loader, next(stale))
    loader.end_epoch()
    next(stale)
    assert loader.state_dict()["position"] == 0
    with pytest.raises(RuntimeError, match=r"began before end_epoch\(\).*call these after the loop"):
        loader.record(logits_of(range(8), 1))
    assert len(run_epoch(loader, end=False)) == 5
    next(stale)
    assert loader.state_dict()["position"] == 34


def test_a_pass_that_owes_nothing_may_be_left():
    loader = wrap(Plain(N))
    iterator = iter(loader)
    iter(loader)  # started and dropped without a batch
    del iterator
    run_epoch(loader)
    assert loader.tracker.count.sum() == N


# -- (iv) lengths agree -----------------------------------------------------------------------------------


def test_lengths_that_disagree():
    loader = wrap(Plain(N), batch_size=7)  # the last batch has 5
    for batch in loader:
        logits = logits_of(index_of(batch), 1)
        with pytest.raises(ValueError, match=rf"{2 * len(logits)} rows for a batch of {len(logits)}"):
            loader.record(torch.cat([logits, logits]))
        with pytest.raises(ValueError, match=rf"{len(logits) - 1} rows for a batch of {len(logits)}"):
            loader.record(logits[1:])
        loader.record(logits)
    with pytest.raises(ValueError, match="5 rows for a batch of 7"):
        loader.record(logits, indices=range(7))
    assert (loader.tracker.count == 1).all()
    assert_right(loader)


# -- once an epoch ----------------------------------------------------------------------------------------


def test_the_same_epoch_twice():
    loader = wrap(Plain(N))
    run_epoch(loader, end=False)
    with pytest.raises(RuntimeError, match="part of epoch 1 was recorded before: call end_epoch"):
        run_epoch(loader)
    assert (loader.tracker.count == 1).all()
    loader.end_epoch()
    assert len(run_epoch(loader)) == 5


@pytest.mark.parametrize("stop", [1, 3, 4])
@pytest.mark.parametrize("owing", [False, True])
def test_an_epoch_that_was_broken_off_is_run_again(stop, owing):
    """By an error, or Ctrl-C in a notebook: the cell is run again, which is said once."""
    loader = wrap(Plain(N))
    for number, batch in enumerate(loader):
        if owing and number == stop:
            break
        record(loader, batch)
        if number == stop - 1 and not owing:
            break
    with pytest.warns(
        UserWarning, match=r"epoch 1 is recorded again.*end_epoch.*next\(iter\(loader\)\)"
    ) as told:
        run_epoch(loader, end=False)
    assert [len(told), told[0].filename] == [1, run_epoch.__code__.co_filename]
    assert sorted(loader.tracker.count) == [1] * (N - 8 * stop) + [2] * 8 * stop
    assert_right(loader)
    with pytest.raises(RuntimeError, match="recorded before"):
        run_epoch(loader)
    loader.end_epoch()
    assert len(run_epoch(loader)) == 5


# -- explicit indices -------------------------------------------------------------------------------------


def test_explicit_indices():
    loader = wrap(Plain(N))
    loader.record(logits_of([5, 6], 1), indices=[5, 6])  # of a loop that draws in another way
    batch = next(iter(loader))
    first, second, *_ = index_of(batch)
    loader.record(logits_of([first], 1), indices=torch.tensor([first]))
    loader.record(logits_of([second], 1), indices=np.array([second], np.int32))
    assert loader.tracker.count.sum() == 4
    assert_right(loader)
    with pytest.raises(RuntimeError, match="twice for one batch"):
        record(loader, batch)  # that batch had its record


def test_explicit_indices_that_are_wrong():
    loader = wrap(Plain(N))
    logits = logits_of([0, 1], 1)
    with pytest.raises(IndexError, match=r"0 \.\. 39"):
        loader.record(logits, indices=[0, N])
    with pytest.raises(IndexError, match=r"0 \.\. 39"):
        loader.record(logits, indices=[0, -2])
    with pytest.raises(TypeError, match="integers"):
        loader.record(logits, indices=[0.0, 1.0])
    with pytest.raises(TypeError, match="integers"):
        loader.record(logits, indices=torch.tensor([True, False]))
    assert loader.tracker.count.sum() == 0


def test_an_index_of_minus_one_is_padding_on_one_rank_too():
    loader = wrap(Plain(N))
    loader.record(logits_of([5, 6, 7], 1), indices=[5, -1, 7])
    assert np.flatnonzero(loader.tracker.count).tolist() == [5, 7]
    assert_right(loader)


def padded(return_index, rank=2):
    """Rank 2 of 3, on 4 samples: its second sample is padding."""
    dataset = Plain(4)
    sampler = DistributedSampler(dataset, 3, rank, shuffle=False)
    plain = DataLoader(dataset, batch_size=4, sampler=sampler)
    schedule = kcd.CondensationSchedule(ratio=0.5, stages=1, period=1)
    return kcd.wrap_loader(plain, schedule=schedule, return_index=return_index)


@pytest.mark.parametrize("return_index", [True, False])
def test_padding_is_drawn_but_not_recorded(return_index):
    loader = padded(return_index)
    (batch,) = loader
    if return_index:
        indices, batch = batch
        assert indices.tolist() == [2, -1]
        record(loader, batch, indices=indices)
    else:
        record(loader, batch)
    assert index_of(batch) == [2, 1]
    assert loader.tracker.count.tolist() == [0, 0, 1, 0]


def test_padding_takes_targets_and_teacher_with_it():
    def value(student_logits, *, teacher_logits, targets):
        return student_logits[:, 0] * 0 + teacher_logits[:, 0] + torch.as_tensor(targets)

    dataset = Plain(4)
    sampler = DistributedSampler(dataset, 3, 2, shuffle=False)
    loader = kcd.wrap_loader(
        DataLoader(dataset, batch_size=4, sampler=sampler), schedule=kcd.CondensationSchedule(), value=value
    )
    (batch,) = loader
    loader.record(logits_of([2, 1], 1), teacher_logits=torch.full((2, 5), 10.0), targets=batch[1].numpy())
    assert loader.tracker.count.tolist() == [0, 0, 1, 0]
    assert loader.tracker.value[2] == 12


def test_padding_is_counted_once_over_all_ranks(monkeypatch):
    loaders = [padded(False, rank) for rank in range(3)]
    for loader in loaders:
        run_epoch(loader, end=False)
    assert sum(loader.tracker.count for loader in loaders).tolist() == [1, 1, 1, 1]
    with ranks_in_one_process(monkeypatch, loaders):
        sets = [kcd.condense_step(x.tracker, x.sampler, x.schedule).kept.tolist() for x in loaders]
    assert sets[0] == sets[1] == sets[2]
    assert len(sets[0]) == 2


def test_a_sampler_for_several_ranks_needs_a_process_group():
    loader = padded(False)
    run_epoch(loader, end=False)
    with pytest.raises(RuntimeError, match="no process group is initialised"):
        loader.end_epoch()
    assert (loader.epoch, len(loader.history)) == (1, 0)


# -- worker errors ----------------------------------------------------------------------------------------


class Broken(Plain):
    def __getitem__(self, index):
        if index in (9, 10):
            raise KeyError(f"sample {index} is broken")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_after_an_error_in_the_data_set(workers):
    """As the plain loader's iterator does: the batch is lost, and every other one is recorded rightly."""
    loader = wrap(Broken(N), shuffle=False, num_workers=workers)
    iterator, errors = iter(loader), 0
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            break
        except KeyError:
            errors += 1
            assert loader.state_dict()["position"] == 8  # resumed here, it would be fetched again
            continue
        record(loader, batch)
    assert errors == 1
    assert loader.tracker.count.tolist() == [1] * 8 + [0] * 8 + [1] * 24
    assert_right(loader)
    assert loader.state_dict()["position"] == N
    assert len(loader.end_epoch().kept) == 34


def test_an_error_in_record_leaves_the_batch_to_be_recorded():
    loader = wrap(Plain(N), kcd_options={"value": "cross_entropy"})
    batch = next(iter(loader))
    with pytest.raises(ValueError, match="targets"):
        loader.record(logits_of(index_of(batch), 1))
    loader.record(logits_of(index_of(batch), 1), targets=batch[1] % 5)
    assert loader.tracker.count.sum() == 8


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))])
def test_a_copy_records_for_no_pass_of_the_original(copied):
    """What the original yielded last is nobody's batch there: a pass of its own has to yield one first."""
    loader = wrap(Plain(N), batch_size=8)
    iterator = iter(loader)
    loader.record(logits_of(index_of(next(iterator)), 1))
    owed = index_of(next(iterator))
    other = copied(loader)
    before = other.state_dict()
    assert (before["position"], before["recorded"]) == (8, 8)
    with pytest.raises(RuntimeError, match="before this pass yielded a batch"):
        other.record(logits_of(owed, 1))
    assert identical_state(other.state_dict(), before)
    assert index_of(next(iter(other))) == owed  # it goes on as a resumed run does
    loader.record(logits_of(owed, 1))  # a pass of the copy takes nothing from the original's
    for batch in iterator:
        loader.record(logits_of(index_of(batch), 1))
    assert_right(loader)
    assert loader.tracker.count.tolist() == [1] * N
    assert other.tracker.count.sum() == 8
