"""Loops with Accelerate: shared out, accumulated, saved and gone on with, on one process and on two."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler

pytest.importorskip("accelerate", reason="run make test-trainers")

from accelerate import Accelerator
from accelerate.utils import (
    DataLoaderConfiguration,
    GradientAccumulationPlugin,
    find_executable_batch_size,
    set_seed,
)
from common import Samples, Student, check_asked, expected_sets, on_ranks, summed, which

import kcd_core as kcd
from kcd_adapters.trainers.accelerate import AcceleratedLoader, prepare, unprepared
from kcd_core.base import resumption

N, BATCH, EPOCHS, ACCUMULATE = 203, 16, 5, 2
SCHEDULE = kcd.CondensationSchedule(ratio=0.4, stages=3, period=1)
SIZES = [203, 163, 123, 83, 81]
WAYS = [
    (1, 4),
    (2, 2),
    (3, "last"),
    (2, "end"),
    (1, "end"),
]  # a resumed run goes on after these: (epoch, batches)


def data_loader(n: int = N, **settings: Any) -> Any:
    return DataLoader(Samples(n), **{"batch_size": BATCH, "shuffle": True, **settings})


def accelerated(**settings: Any) -> Accelerator:
    return Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**settings))


class Run:
    """A loop as accelerate's users write it, up to and with ``until``: (epoch, batches done, "last" or "end")."""

    def __init__(self, folder: Path, *, seed: int = 5, until: Any = None, resume: bool = False) -> None:
        set_seed(seed)
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
        self.loader = loader = prepare(accelerator, data_loader(), schedule=SCHEDULE, mixing=None)
        student = Student()
        student.layer = torch.nn.Sequential(torch.nn.Dropout(0.1), student.layer)
        optimizer: Any = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
        scheduler: Any = torch.optim.lr_scheduler.LinearLR(
            optimizer, 1.0, 0.0, total_iters=loader.scheduler_steps(EPOCHS)
        )
        model, optimizer, same, scheduler = accelerator.prepare(student, optimizer, loader, scheduler)
        assert same is loader
        if resume:
            accelerator.load_state(str(folder))
        self.student, self.updates, self.lr, self.scheduler = student, 0, scheduler.get_last_lr, scheduler
        self.drawn: list[list[int]] = []  # by batch, -1 where a row only pads
        self.metrics: list[int] = []  # how many rows gather_for_metrics left, by epoch
        self.read: list[list[tuple[int, float]]] = [[]]
        while loader.epoch <= EPOCHS:
            self.metrics.append(0)
            for x, labels in loader:
                with accelerator.accumulate(model):
                    logits = model(x)
                    loader.record(logits)
                    accelerator.backward(cross_entropy(logits, labels))
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
                self.updates += accelerator.sync_gradients
                self.drawn.append(loader.indices.tolist())
                self.read[-1] += [
                    pair for pair, i in zip(student.read[-1], self.drawn[-1], strict=True) if i >= 0
                ]
                student.new_epoch()
                self.metrics[-1] += len(accelerator.gather_for_metrics(x))
                assert accelerator.gradient_state.active_dataloader is loader
                place = "last" if loader.batches_done == len(loader) else loader.batches_done
                if until in ((loader.epoch, place), (loader.epoch, loader.batches_done)):
                    break
            else:
                ended = loader.epoch
                loader.end_epoch()
                self.read.append([])
                if until != (ended, "end"):
                    continue
            accelerator.save_state(str(folder))
            break
        assert accelerator.gradient_state.active_dataloader is None

    def result(self) -> dict[str, Any]:
        """What is equal in a run that was not interrupted."""
        value, count = self.loader.tracker.value, self.loader.tracker.count
        return {
            "weights": [p.detach().clone() for p in self.student.parameters()],
            "value": np.array(value),
            "count": np.array(count),
            "kept": self.loader.sampler.kept,
            "lr": self.lr(),
            "stepped": [self.scheduler.scheduler.last_epoch, self.loader.scheduler_steps(EPOCHS)],
            "history": [stage["kept"] for stage in self.loader.history],
        }


def told(work: Any) -> Any:
    """What ``work`` returns, or what it says."""
    try:
        return work()
    except (RuntimeError, ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}"


def drawn_by(loader: Any, epochs: int = 1) -> list[list[list[int]]]:
    """The indices that each batch of each epoch is recorded by; what else is drawn is an error."""
    student, drawn = Student(), []
    for _ in range(epochs):
        drawn.append([])
        for x, _ in loader:
            loader.record(student(x))
            drawn[-1].append(loader.indices.tolist())
            assert all(i in (-1, j) for i, j in zip(drawn[-1][-1], which(x), strict=True))
        loader.end_epoch()
    return drawn


def asked_by(schedule: Any) -> list[Any]:
    """What `check_asked` takes, of three epochs that go on from a state within the second."""
    told: list[Any] = [[], [], []]
    student, state = Student(), None
    for last in ((2, 3), (3, None)):
        loader = prepare(accelerated(), data_loader(), schedule=schedule, ask=0.25, mixing=None, seed=3)
        if state is not None:
            loader.load_state_dict(state)
        while state is None or loader.epoch <= 3:
            epoch = loader.epoch
            for x, _ in loader:
                student.new_epoch()
                loader.record(student(x))
                pairs = zip(loader.indices.tolist(), student.read[-1], strict=True)
                told[epoch - 1].append(([(i, value) for i, (_, value) in pairs], loader.asked_rows.tolist()))
                if (epoch, loader.batches_done) == last:
                    break
            else:
                loader.end_epoch()
                continue
            state = loader.state_dict()
            break
    return told


def on_two() -> dict[str, Any]:
    """What differs where there are several processes."""
    accelerator = accelerated()
    set_seed(accelerator.process_index, device_specific=True)
    seeds = make().sampler.seed, make(seed=4).sampler.seed
    split = make(accelerator=accelerated(split_batches=True))
    each = make(accelerator=Accelerator(cpu=True, step_scheduler_with_optimizer=False))
    generator = Accelerator(cpu=True, rng_types=["torch"])
    first = next(iter(make(accelerator=generator)))
    loader = make()
    before, resumption.WAIT = resumption.WAIT, 0.5  # in vain, and no longer than it takes to see so
    alone = told(loader.state_dict) if accelerator.is_main_process else ""
    resumption.WAIT = before
    accelerator.wait_for_everyone()
    noisy = make(data_loader(num_workers=1, collate_fn=with_noise), seed=6)
    hand = kcd.Condensation(kcd.CondensedSampler(N), schedule=SCHEDULE)
    for x, _ in accelerator.prepare(DataLoader(Samples(), batch_size=BATCH, sampler=hand.sampler)):
        hand.record(torch.zeros(len(x), 5), indices=which(x))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        hand.end_epoch()
    slices = make(sharded=True)
    remainders = []
    for _ in slices:
        remainders.append(accelerator.gradient_state.remainder)
    sliced = drawn_by(slices)
    slices.load_state_dict(slices.state_dict())
    return {
        "seeds": seeds,
        "asked": [asked_by(None), asked_by(SCHEDULE)],
        "split": [split.batch_size, split.scheduler_steps(1), drawn_by(split)],
        "not split": told(lambda: make(data_loader(batch_size=5), accelerated(split_batches=True))),
        "prepared before": drawn_by(make(accelerator.prepare(data_loader()))),
        "even_batches": told(lambda: make(accelerator=accelerated(even_batches=False))),
        "distributed": drawn_by(
            make(data_loader(shuffle=None, sampler=DistributedSampler(Samples(), seed=3)))
        ),
        "generators": [len(first), torch.rand(1).item()],
        "alone": alone,
        "slices": sliced + drawn_by(slices),
        "remainders": remainders,
        "noise": next(iter(noisy))[0],
        "each call": each.scheduler_steps(EPOCHS),
        "plain": told(lambda: kcd.wrap_loader(data_loader(), schedule=SCHEDULE)),
        "twice": [str(warning.message) for warning in warned],
    }


def everything(folder: Path) -> dict[str, Any]:
    """A whole run, and those that go on from each of `WAYS`."""
    whole = Run(folder / "whole")
    results = {"whole": whole.result(), "drawn": whole.drawn, "read": whole.read, "updates": whole.updates}
    results["metrics"] = whole.metrics
    for way in WAYS:
        first = Run(folder / f"{way}", until=way)
        then = Run(folder / f"{way}", seed=77, resume=True)
        results[way] = then.result(), first.drawn + then.drawn
    if Accelerator().num_processes > 1:
        results.update(on_two())
    return results


def same(one: Any, other: Any) -> bool:
    """To the bit."""
    if isinstance(one, dict):
        return all(same(one[name], other[name]) for name in one)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, list) and one and isinstance(one[0], torch.Tensor):
        return all(map(torch.equal, one, other))
    return bool(np.array_equal(one, other, equal_nan=isinstance(one, np.ndarray) and one.dtype.kind == "f"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: Any) -> list[Any]:
    return [everything(tmp_path_factory.mktemp("alone"))]


@pytest.fixture(scope="module")
def together(tmp_path_factory: Any) -> list[Any]:
    folder = tmp_path_factory.mktemp("together")
    return [{**rank, "folder": folder} for rank in on_ranks(everything, folder)]


@pytest.fixture(params=["alone", "together"])
def ranks(request: Any) -> Any:
    return request.getfixturevalue(request.param)


def test_values_counts_and_sets_are_those_of_an_independent_reading(ranks: list[Any]) -> None:
    read = [[pair for rank in ranks for pair in rank["read"][epoch]] for epoch in range(EPOCHS)]
    assert [len(epoch) for epoch in read] == SIZES
    assert all(len({index for index, _ in epoch}) == len(epoch) for epoch in read)
    value, count = summed([pair for epoch in read for pair in epoch], N)
    total = sum(np.nan_to_num(rank["whole"]["value"]) * rank["whole"]["count"] for rank in ranks)
    assert np.array_equal(sum(rank["whole"]["count"] for rank in ranks), count)
    np.testing.assert_allclose(total / count, value, atol=3e-7)
    sets = expected_sets(read, N, SCHEDULE)
    for rank in ranks:
        assert np.array_equal(rank["whole"]["kept"], sets[-1])
        assert rank["whole"]["history"] == [len(one) for one in sets]


def test_epochs_are_as_long_on_every_rank_and_padding_is_not_recorded(ranks: list[Any]) -> None:
    for rank in ranks:
        assert list(map(len, rank["drawn"])) == list(map(len, ranks[0]["drawn"]))
    drawn = sum(len(batch) for rank in ranks for batch in rank["drawn"])
    padding = sum(batch.count(-1) for rank in ranks for batch in rank["drawn"])
    assert (drawn, padding) == (sum(SIZES) + 5 * (len(ranks) - 1), 5 * (len(ranks) - 1))


def test_the_last_batch_of_an_epoch_is_stepped_and_the_schedule_ends_at_its_end(ranks: list[Any]) -> None:
    steps = [-(-size // len(ranks) // BATCH) for size in SIZES]
    for rank in ranks:
        assert rank["updates"] == sum(-(-step // ACCUMULATE) for step in steps)
        assert rank["whole"]["lr"] == [0.0]
        assert rank["whole"]["stepped"] == [rank["updates"] * len(ranks)] * 2


def test_gather_for_metrics_leaves_out_what_only_pads(ranks: list[Any]) -> None:
    assert all(rank["metrics"] == SIZES for rank in ranks)


@pytest.mark.parametrize("way", WAYS)
def test_a_run_goes_on_to_the_bit(ranks: list[Any], way: Any) -> None:
    count = sum(rank[way][0]["count"] for rank in ranks)
    total = sum(np.nan_to_num(rank[way][0]["value"]) * rank[way][0]["count"] for rank in ranks)
    assert np.array_equal(count, sum(rank["whole"]["count"] for rank in ranks))
    whole = sum(np.nan_to_num(rank["whole"]["value"]) * rank["whole"]["count"] for rank in ranks)
    np.testing.assert_allclose(total, whole, rtol=1e-12)
    for rank in ranks:
        result, drawn = rank[way]
        assert drawn == rank["drawn"]
        assert same({k: v for k, v in result.items() if k not in ("value", "count")}, rank["whole"])


def test_two_processes_checkpoint_goes_on_on_one(together: list[Any]) -> None:
    then = Run(together[0]["folder"] / f"{(1, 4)}", resume=True)
    first = [index for rank in together for batch in rank["drawn"][:4] for index in batch]
    left = [index for batch in then.drawn[: then.loader.steps(1) - 8] for index in batch]
    assert sorted(first + left) == list(range(N))
    assert [stage["kept"] for stage in then.loader.history] == together[0]["whole"]["history"]
    assert then.loader.tracker.count.sum() == sum(SIZES)


# -- what differs on several processes ---------------------------------------------------------------------


def shared_out(ranks: list[Any], name: str, *place: int) -> list[int]:
    """What all ranks record in the first epoch, one batch of each in turn."""
    epochs = [rank[name][-1][0] if name == "split" else rank[name][0] for rank in ranks]
    assert len({len(epoch) for epoch in epochs}) == 1
    return [index for batches in zip(*epochs, strict=True) for batch in batches for index in batch]


@pytest.mark.parametrize("name", ["split", "prepared before", "distributed", "slices"])
def test_samples_are_shared_out_and_each_is_drawn_once(together: list[Any], name: str) -> None:
    drawn = shared_out(together, name)
    assert len(drawn) == N + 1
    assert {*drawn} == {-1, *range(N)}


@pytest.mark.parametrize("schedule", [None, SCHEDULE], ids=["alone", "condensed"])
def test_the_teacher_is_asked_for_the_same_samples_on_every_process(
    together: list[Any], schedule: Any
) -> None:
    check_asked([rank["asked"][schedule is not None] for rank in together], N, schedule, 0.25)


@pytest.mark.parametrize("schedule", [None, SCHEDULE], ids=["alone", "condensed"])
def test_the_teacher_is_asked_for_some_rows(schedule: Any) -> None:
    check_asked([asked_by(schedule)], N, schedule, 0.25)


def test_all_processes_draw_by_the_main_ones_seed(together: list[Any]) -> None:
    assert [rank["seeds"] for rank in together] == [(0, 4), (0, 4)]


def test_split_batches_are_split_and_a_scheduler_is_stepped_once(together: list[Any]) -> None:
    for rank in together:
        assert rank["split"][:2] == [BATCH // 2, -(-N // BATCH)]
        assert rank["not split"].startswith(
            "ValueError: with split_batches, the batch size must be a multiple of the 2"
        )


def test_a_scheduler_apart_from_the_optimizer_is_stepped_once_a_batch(together: list[Any]) -> None:
    assert [rank["each call"] for rank in together] == [sum(-(-size // 2 // BATCH) for size in SIZES)] * 2


def test_what_pads_slices_is_not_taken_for_the_end_of_a_batch(together: list[Any]) -> None:
    assert [{*rank["remainders"]} for rank in together] == [{-1}] * 2


def test_processes_of_unequal_lengths_are_refused(together: list[Any]) -> None:
    assert all(rank["even_batches"].startswith("ValueError: even_batches=False asks") for rank in together)


def test_generators_are_synchronised_as_accelerate_was_told(together: list[Any]) -> None:
    assert together[0]["generators"] == together[1]["generators"]


def test_a_state_saved_on_the_main_process_alone_is_refused(together: list[Any]) -> None:
    assert "rank(s) [1] did not come within" in together[0]["alone"]


def test_without_prepare_ranks_that_draw_alike_are_refused(together: list[Any]) -> None:
    assert all(rank["plain"].startswith("RuntimeError: there are 2 ranks, and each") for rank in together)


def test_a_sampler_by_hand_that_accelerate_shares_out_again_is_told(together: list[Any]) -> None:
    for rank in together:
        [said] = [text for text in rank["twice"] if "shared out to 2 ranks again" in text]
        assert said.startswith("this rank's share of epoch 1 is 102 samples, and 64 were recorded")


# -- what is refused, at prepare() -------------------------------------------------------------------------


def make(loader: Any = None, accelerator: Any = None, **settings: Any) -> Any:
    loader = loader or data_loader()
    return prepare(accelerator or accelerated(), loader, schedule=SCHEDULE, **{"mixing": None, **settings})


def test_what_reads_on_the_main_process_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="dispatch_batches=True"):
        make(accelerator=accelerated(dispatch_batches=True))
    dispatched = accelerated(dispatch_batches=True).prepare(data_loader())
    with pytest.raises(TypeError, match="dispatch_batches=True"):
        make(dispatched)


@pytest.mark.parametrize("name", ["num_replicas", "rank", "group"])
def test_who_draws_what_is_accelerates_to_say(name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name} is accelerate's to say"):
        make(**{name: 1})


@pytest.mark.parametrize("name", ["tp_size", "cp_size", "sp_size"])
def test_several_processes_with_one_replica_are_refused(monkeypatch: Any, name: str) -> None:
    accelerator, shape = accelerated(), SimpleNamespace(**{name: 2})
    monkeypatch.setattr(Accelerator, "parallelism_config", property(lambda self: shape), raising=False)
    with pytest.raises(ValueError, match=f"not supported with {name}: each process must"):
        make(accelerator=accelerator)


@pytest.mark.parametrize("kind", ["XLA", "MEGATRON_LM", "TP"])
def test_other_kinds_of_processes_are_refused(monkeypatch: Any, kind: str) -> None:
    accelerator = accelerated()
    monkeypatch.setattr(Accelerator, "distributed_type", property(lambda self: SimpleNamespace(value=kind)))
    with pytest.raises(ValueError, match=f"not supported with {kind}: each"):
        make(accelerator=accelerator)


def test_no_accelerator_is_refused() -> None:
    with pytest.raises(TypeError, match="accelerator must be a Accelerator, got DataLoader"):
        prepare(data_loader(), data_loader(), schedule=SCHEDULE)  # type: ignore[arg-type]


def test_a_prefetch_that_is_none_is_refused_before_anything_is_registered(tmp_path: Path) -> None:
    accelerator = accelerated()
    with pytest.raises(
        TypeError, match=r"prefetch must be a callable prefetch\(batches\) -> iterator, got 5"
    ):
        make(accelerator=accelerator, prefetch=5)
    with pytest.raises(TypeError, match=r"prefetch must be .* takes other arguments"):
        make(accelerator=accelerator, prefetch=lambda: None)
    accelerator.save_state(str(tmp_path))
    assert not [*tmp_path.glob("custom_checkpoint_*")]


@pytest.mark.parametrize("inside", [False, True])
def test_attempts_at_a_batch_size_leave_one_loader_where_the_accelerator_is_made_in_them(
    tmp_path: Path, inside: bool
) -> None:
    outside = accelerated()

    @find_executable_batch_size(starting_batch_size=BATCH)
    def train(batch_size: int) -> Any:
        accelerator = accelerated() if inside else outside
        accelerator.free_memory()
        loader = make(data_loader(batch_size=batch_size), accelerator)
        if batch_size == BATCH:
            raise RuntimeError("CUDA out of memory.")
        drawn_by(loader)
        accelerator.save_state(str(tmp_path))
        return loader

    first = train()
    resumed = accelerated()
    then = make(data_loader(batch_size=first.batch_size), resumed)
    if inside:
        resumed.load_state(str(tmp_path))
        assert then.epoch == 2
        assert drawn_by(then) == drawn_by(first)
    else:  # accelerate's own refusal
        with pytest.raises(RuntimeError, match="Number of custom checkpoints"):
            resumed.load_state(str(tmp_path))


def test_skip_first_batches_says_that_the_loader_goes_on_by_itself() -> None:
    accelerator = accelerated()
    for workers in (0, 1):
        loader = make(data_loader(num_workers=workers), accelerator)
        with pytest.raises(RuntimeError, match=r"skip_first_batches .* iterate the loader itself"):
            next(iter(accelerator.skip_first_batches(loader, 2)))


# -- what a loader was before ------------------------------------------------------------------------------


@pytest.mark.parametrize("seedable", [False, True])
def test_a_loader_that_was_prepared_already_is_made_again(seedable: bool) -> None:
    accelerator = accelerated(use_seedable_sampler=seedable, data_seed=11 if seedable else None)
    before = data_loader(drop_last=True, pin_memory=True)
    after = unprepared(accelerator.prepare(before))
    assert type(after) is DataLoader
    assert (after.batch_size, after.drop_last, after.pin_memory) == (BATCH, True, True)
    assert after.dataset is before.dataset
    first, second = (make(loader, accelerator) for loader in (before, accelerator.prepare(before)))
    assert first.sampler.seed == second.sampler.seed == (11 if seedable else torch.initial_seed())
    fresh = data_loader()
    assert unprepared(fresh) is fresh


def test_batch_samplers_of_ones_own_are_refused_whether_prepared_or_not() -> None:
    class Own(BatchSampler):
        pass

    loader = DataLoader(Samples(), batch_sampler=Own(SequentialSampler(range(N)), BATCH, False))
    for given in (loader, accelerated().prepare(loader)):
        with pytest.raises(TypeError, match="a batch sampler of its own, Own"):
            make(given)


def test_a_distributed_sampler_brings_its_seed() -> None:
    sampler: Any = DistributedSampler(Samples(), num_replicas=1, rank=0, seed=8)
    assert make(data_loader(shuffle=False, sampler=sampler)).sampler.seed == 8


# -- on one process ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accelerators", "own", "placed"),
    [(True, None, True), (False, None, False), (True, False, False), (False, True, True)],
)
def test_batches_are_moved_to_the_device_as_accelerate_was_told(
    monkeypatch: Any, accelerators: bool, own: Any, placed: bool
) -> None:
    accelerator = Accelerator(cpu=True, device_placement=accelerators)
    monkeypatch.setattr(Accelerator, "device", property(lambda self: torch.device("meta")))
    loader = make(accelerator=accelerator, device_placement=own, return_index=True, prefetch=lambda b: b)
    indices, (x, labels) = next(iter(loader))
    assert x.is_meta is labels.is_meta is placed
    assert indices.is_cpu
    loader.record(torch.zeros(len(x), 5))
    assert loader.tracker.count.sum() == BATCH


@pytest.mark.filterwarnings("ignore:epoch 1 is recorded again")
def test_accumulation_sees_the_end_also_of_a_pass_that_is_looked_into() -> None:
    accelerator = accelerated()
    loader, evaluation = make(), accelerator.prepare(data_loader(32, shuffle=False))
    state = accelerator.gradient_state
    ends, looks = [], []
    for x, _ in loader:
        loader.record(torch.zeros(len(x), 5))
        looks.append(iter(loader))
        next(looks[-1])  # an iterator that is kept
        next(iter(loader))
        for _ in evaluation:
            assert state.active_dataloader is evaluation
        assert state.active_dataloader is loader
        ends.append(state.end_of_dataloader)
        if len(ends) == 2:
            break
    looks.clear()
    assert state.active_dataloader is None
    for x, _ in loader:
        loader.record(torch.zeros(len(x), 5))
        ends.append(state.end_of_dataloader)
    assert ends == [False] * 14 + [True]
    assert not loader.end_of_dataloader


def test_a_remainder_that_is_not_at_the_end_is_unknown() -> None:
    def remainder(n: int, ranks: int, **settings: Any) -> int:
        condensed = kcd.wrap_loader(
            data_loader(n, batch_size=4, **settings), schedule=SCHEDULE, num_replicas=ranks, rank=0
        )
        several: Any = SimpleNamespace(num_processes=ranks, rng_types=["generator"])
        loader = AcceleratedLoader(several, condensed, torch.Generator())
        for _ in loader:
            last = loader.remainder
        return last

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is no process group
        # the last batches have 2 rows on each of 4 processes, and as many samples as
        assert [remainder(n, 4) for n in (24, 23, 22, 21)] == [0, 7, -1, -1]
        assert [remainder(n, 4, drop_last=True) for n in (24, 23, 16, 15)] == [0, 0, 0, 15]


def test_a_scheduler_apart_from_the_optimizer_ends_at_its_end() -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, step_scheduler_with_optimizer=False)
    loader, student = make(accelerator=accelerator), Student()
    optimizer: Any = torch.optim.SGD(student.parameters(), lr=0.1)
    scheduler: Any = torch.optim.lr_scheduler.LinearLR(
        optimizer, 1.0, 0.0, total_iters=loader.scheduler_steps(3)
    )
    model, optimizer, scheduler = accelerator.prepare(student, optimizer, scheduler)
    for _ in range(3):
        for x, labels in loader:
            assert scheduler.get_last_lr() != [0.0]
            with accelerator.accumulate(model):
                logits = model(x)
                accelerator.backward(cross_entropy(logits, labels))
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            loader.record(logits)
        loader.end_epoch()
    assert scheduler.scheduler.last_epoch == loader.scheduler_steps(3)
    assert scheduler.get_last_lr() == [0.0]


class Told(Samples):
    """Says in its labels which epoch it was told last."""

    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> Any:
        return self.x[index].clone(), self.epoch


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_set_is_told_the_epoch_before_it_is_read(workers: int) -> None:
    loaders, accelerator = [], accelerated()

    def epochs(loader: Any) -> Any:
        for x, told in loader:
            loader.record(torch.zeros(len(x), 5))
            yield {*told.tolist()}

    for _ in range(2):
        loaders.append(make(DataLoader(Told(40), batch_size=BATCH, num_workers=workers), accelerator))
    first, then = loaders
    assert first.dataset.epoch == -1
    for epoch in range(2):
        assert [*epochs(first)] == [{epoch}] * first.steps(epoch + 1)
        first.end_epoch()
    then.load_state_dict(first.state_dict())
    assert [*epochs(then)] == [{2}] * then.steps(3)
    theirs = accelerator.prepare(DataLoader(Told(40), batch_size=BATCH))
    assert [{*told.tolist()} for _ in range(2) for _, told in theirs] == [{0}] * 3 + [{1}] * 3


def test_an_epoch_set_by_a_loop_changes_nothing_and_is_not_warned_of() -> None:
    plain, called = make(seed=3), make(seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        called.set_epoch(7)
    assert called.epoch == 1
    assert drawn_by(called) == drawn_by(plain)


@pytest.mark.parametrize("across", [False, True])
def test_one_cycle_ends_at_its_end(across: bool) -> None:
    plugin = GradientAccumulationPlugin(num_steps=3, adjust_scheduler=False, sync_with_dataloader=not across)
    accelerator = Accelerator(cpu=True, gradient_accumulation_plugin=plugin)
    loader, student = make(accelerator=accelerator), Student()
    optimizer: Any = torch.optim.SGD(student.parameters(), lr=0.1)
    total = loader.scheduler_steps(4)
    scheduler: Any = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total + 1)
    model, optimizer, scheduler = accelerator.prepare(student, optimizer, scheduler)
    updates = 0
    for _ in range(4):
        for x, labels in loader:
            with accelerator.accumulate(model):
                logits = model(x)
                accelerator.backward(cross_entropy(logits, labels))
                optimizer.step()
                scheduler.step()
                updates += accelerator.sync_gradients
            loader.record(logits)
        loader.end_epoch()
    assert updates == total
    assert scheduler.scheduler.last_epoch == total
    assert scheduler.get_last_lr()[0] == pytest.approx(4e-7)


def test_what_accelerate_does_to_its_own_loaders_is_harmless(tmp_path: Path) -> None:
    accelerator = accelerated(use_stateful_dataloader=True)
    loader = make(accelerator=accelerator)
    accelerator.register_for_checkpointing(loader)  # as it is already
    first = drawn_by(loader)
    accelerator.save_state(str(tmp_path))
    then = drawn_by(loader)
    accelerator.load_state(str(tmp_path))
    assert accelerator.prepare(loader) is loader
    assert drawn_by(loader) == then != first
    accelerator.free_memory()
    accelerator.end_training()
    assert len(drawn_by(loader)[0]) == loader.steps(3)
    with pytest.raises(AttributeError, match="batch_size can't be set on a wrapped loader"):
        loader.batch_size = 8


def test_a_pass_draws_nothing_from_the_global_generator_and_workers_are_seeded_by_epoch() -> None:
    torch.manual_seed(6)
    loader = make(data_loader(64, num_workers=1, collate_fn=with_noise))
    before = torch.get_rng_state()
    first = [noise for noise, _ in loader]
    for noise, x in loader:
        loader.record(torch.zeros(len(x), 5))
        assert noise == first[loader.batches_done - 1]
    assert torch.equal(torch.get_rng_state(), before)
    loader.end_epoch()
    assert next(iter(loader))[0] != first[0]


@pytest.mark.parametrize("generator", [None, 9])
def test_what_workers_draw_after_a_resume_between_epochs_is_what_they_would_have(generator: Any) -> None:
    def made(seed: int) -> Any:
        set_seed(seed)
        own = None if generator is None else torch.Generator().manual_seed(generator)
        return make(data_loader(64, num_workers=1, collate_fn=with_noise, generator=own))

    def noise_of(loader: Any) -> list[float]:
        drawn = []
        for noise, x in loader:
            drawn.append(noise)
            loader.record(torch.zeros(len(x), 5))
        loader.end_epoch()
        return drawn

    whole = made(1)
    first, state, second = noise_of(whole), whole.state_dict(), noise_of(whole)
    then = made(2)
    then.load_state_dict(state)
    assert noise_of(then) == second
    assert not {*first} & {*second}


def test_workers_of_each_process_draw_others(together: list[Any]) -> None:
    first, second = (rank["noise"] for rank in together)
    assert first != second


def with_noise(samples: Any) -> Any:
    return torch.rand(1).item(), torch.stack([x for x, _ in samples])
