"""The parts of the engine, in this process."""

from __future__ import annotations

import importlib.abc
import importlib.util
import re
import sys
import types
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from helpers import Cifar
from test_cuda import Watch, fake_cuda
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    TensorDataset,
)

import kcd_adapters.profiles
import kcd_core as kcd
from kcd_adapters import contrast
from kcd_adapters.hosts import alignment, import_hooks, shims
from kcd_adapters.hosts.alignment import Pass
from kcd_adapters.hosts.engine import Engine
from kcd_adapters.hosts.journal import TASKS, Journal
from kcd_adapters.hosts.loader import HostedLoader
from kcd_adapters.profiles import Profile, find, option, profiles
from kcd_adapters.settings import SHIMS, Settings
from kcd_core.base import distributed

PROFILE = Profile("mini", "Mini", "train.py", (), "torch.nn.functional.cross_entropy", lambda arguments: "kd")


def hosted(
    n: int = 40, batch_size: int = 8, settings: Settings | None = None, **loading: Any
) -> HostedLoader:
    data = TensorDataset(torch.arange(n).float().unsqueeze(1), torch.arange(n) % 3)
    loader = DataLoader(data, batch_size=batch_size, **(loading or {"shuffle": True}))
    train = HostedLoader(loader, PROFILE, settings or Settings())
    train.host = loader  # type: ignore[attr-defined]  # which keeps it, as a host would
    return train


class Noise(Dataset[Any]):
    """Samples that tell how often their process has drawn a random number."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.rand(()), index % 3


def keep(train: HostedLoader, size: int) -> None:
    train.sampler.install(kcd.CondensedSet(np.arange(size) * 2, train.sampler.num_samples))


# -- order ---------------------------------------------------------------------------------------------


def test_the_order_and_the_random_numbers_are_the_hosts() -> None:
    train = hosted()
    torch.manual_seed(0)
    theirs = [x.flatten().tolist() for x, _ in DataLoader.__iter__(train.loader)]
    after = torch.rand(1)
    torch.manual_seed(0)
    assert [x.flatten().tolist() for x, _ in train.start()] == theirs
    assert torch.equal(torch.rand(1), after)


def test_a_condensed_order_is_the_hosts_order_of_positions() -> None:
    train = hosted()
    keep(train, 20)
    torch.manual_seed(0)
    drawn = [int(i) for x, _ in train.start() for i in x]
    torch.manual_seed(0)
    smaller = DataLoader(range(20), batch_size=8, shuffle=True)  # type: ignore[arg-type]
    assert drawn == [2 * int(i) for batch in smaller for i in batch]


def test_persistent_workers_and_their_random_numbers_live_on_while_the_set_is_whole() -> None:
    def two_passes(kcd_stage: bool) -> list[float]:
        torch.manual_seed(0)
        loader = DataLoader(Noise(), batch_size=8, shuffle=True, num_workers=1, persistent_workers=True)
        train = HostedLoader(loader, PROFILE, Settings(ratio=1))
        numbers = [float(x) for batch, _ in (train.start() if kcd_stage else loader) for x in batch]
        if kcd_stage:
            train.sampler.install(kcd.CondensedSet(np.arange(40), 40))
            train.renew()
        return numbers + [float(x) for batch, _ in (train.start() if kcd_stage else loader) for x in batch]

    assert two_passes(True) == two_passes(False)


@pytest.mark.parametrize(
    ("size", "sizes"), [(17, [8, 7, 2]), (16, [8, 8]), (18, [8, 8, 2]), (9, [7, 2]), (1, [1])]
)
def test_no_batch_of_one_is_left_over(size: int, sizes: list[int]) -> None:
    train = hosted()
    keep(train, size)
    batches = [x.flatten().tolist() for x, _ in train.start()]
    assert [len(batch) for batch in batches] == sizes
    assert len(train) == len(sizes)
    assert sorted(i for batch in batches for i in batch) == list(range(0, 2 * size, 2))


def test_ranks_share_the_condensed_set_and_padding_is_not_drawn_twice() -> None:
    drawn = []
    for rank in (0, 1):
        train = hosted(sampler=DistributedSampler(range(40), 2, rank))  # type: ignore[arg-type]
        keep(train, 15)
        train.loader.sampler.set_epoch(4)  # type: ignore[attr-defined]
        values = [x for x, _ in train.start()]
        drawn.append([int(i) for x in values for i in x])
        assert train.passes[-1].drawn == (8, 7)[rank]
    assert len(drawn[0]) == len(drawn[1]) == 8
    assert sorted({*drawn[0], *drawn[1]}) == list(range(0, 30, 2))


def test_every_epoch_after_a_stage_has_the_order_that_a_distributed_sampler_gives_it() -> None:
    orders = {}
    for rank in (0, 1):
        train = hosted(sampler=DistributedSampler(range(40), 2, rank, seed=7))  # type: ignore[arg-type]
        keep(train, 16)
        smaller = DistributedSampler(range(16), 2, rank, seed=7)  # type: ignore[arg-type]
        for epoch in (3, 4):
            train.loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            smaller.set_epoch(epoch)
            orders[epoch, rank] = [int(i) for x, _ in train.start() for i in x]
            assert orders[epoch, rank] == [2 * i for i in smaller]
    assert orders[3, 0] != orders[4, 0]


def test_after_a_stage_the_order_is_still_that_of_the_hosts_own_generator() -> None:
    loading = {"shuffle": True, "generator": torch.Generator().manual_seed(7)}
    train = hosted(**loading)
    keep(train, 20)
    before = torch.get_rng_state()
    drawn = [int(i) for _ in range(2) for x, _ in train.start() for i in x]
    assert torch.equal(torch.get_rng_state(), before)  # nothing is drawn from another one
    loading["generator"] = torch.Generator().manual_seed(7)
    smaller = DataLoader(range(20), batch_size=8, **loading)  # type: ignore[arg-type]
    assert drawn == [2 * int(i) for _ in range(2) for batch in smaller for i in batch]


def test_a_batch_sampler_of_torchs_own_says_the_order() -> None:
    def batches(n: int) -> BatchSampler:
        order = RandomSampler(range(n), generator=torch.Generator().manual_seed(7))
        return BatchSampler(order, 8, drop_last=False)

    data = TensorDataset(torch.arange(40), torch.arange(40) % 5)
    host = DataLoader(data, batch_sampler=batches(40))
    train = HostedLoader(host, PROFILE, Settings(mixing="none"))
    expected = [i for batch in batches(40) for i in batch]
    assert [int(i) for x, _ in train.start() for i in x] == expected != list(range(40))
    keep(train, 20)
    drawn = sorted(int(i) for x, _ in train.start() for i in x)
    assert drawn == list(range(0, 40, 2))


def test_loaders_that_do_not_shuffle_are_not_the_students() -> None:
    engine = Engine(Settings(), PROFILE, [])
    assert engine.hosted(DataLoader(range(8))) is None  # type: ignore[arg-type]


def test_a_new_loader_is_followed_over_the_same_data_once_the_old_one_is_gone() -> None:
    engine, train = Engine(Settings(), PROFILE, []), hosted()
    engine.train = train
    keep(train, 20)
    second = DataLoader(train.dataset, batch_size=4, shuffle=True)
    assert engine.hosted(second) is None  # beside the first, which lives
    del train.host  # type: ignore[attr-defined]
    for other in (
        DataLoader(train.dataset, batch_size=4),
        DataLoader(TensorDataset(torch.zeros(5, 1)), shuffle=True),
    ):
        assert engine.hosted(other) is None
    images, labels = train.dataset.tensors
    for others in (TensorDataset(images, labels.flip(0)), TensorDataset(images)):
        with pytest.raises(RuntimeError, match="do not show that its samples are those of the one before"):
            engine.hosted(DataLoader(others, shuffle=True))
    again = DataLoader(TensorDataset(images.clone(), labels.clone()), batch_size=5, shuffle=True)
    assert engine.hosted(again) is train
    del again
    assert engine.hosted(second) is train
    batches = [x.flatten().tolist() for x, _ in engine.start(train)]
    assert [len(batch) for batch in batches] == [4] * 5
    assert sorted(i for batch in batches for i in batch) == list(range(0, 40, 2))


class Words(Dataset[Any]):
    """Samples that can't be mixed."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[str, int]:
        return f"word {index}", index % 3


@pytest.mark.parametrize("workers", [0, 1])
def test_what_can_not_be_mixed_is_an_error_of_the_students_loader_alone(workers: int) -> None:
    loader = DataLoader(Words(), batch_size=8, shuffle=True, num_workers=workers)
    engine = Engine(Settings(), PROFILE, [])
    words = engine.hosted(loader)
    assert words is not None
    batches = engine.start(words)
    _, y = next(batches)
    assert sorted(word for batch, _ in [*batches] for word in batch)
    train = hosted()
    engine._candidates.add(train)
    _, other = next(train.start())
    engine.observe(torch.zeros(8, 3, requires_grad=True), other)
    assert engine.train is train

    engine = Engine(Settings(), PROFILE, [])
    words = engine.hosted(loader)
    assert words is not None
    _, y = next(engine.start(words))
    with pytest.raises(TypeError, match="--mixing none"):
        engine.observe(torch.zeros(8, 3, requires_grad=True), y)


def test_predictions_that_are_all_nan_are_said_to_be() -> None:
    settings = Settings(ratio=0.5, stages=1, period=1)
    engine, train = Engine(settings, PROFILE, []), hosted(settings=settings)
    engine._candidates.add(train)
    for _, y in engine.start(train):
        engine.observe(torch.full((len(y), 3), torch.nan, requires_grad=True), y)
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(RuntimeError, match="all 40 predictions of the student were not finite"),
    ):
        engine.start(train)


# -- observing -----------------------------------------------------------------------------------------


def test_what_is_no_observation_is_passed_over() -> None:
    engine, train = Engine(Settings(), PROFILE, []), hosted()
    engine._candidates.add(train)
    _, y = next(train.start())
    logits = torch.zeros(8, 3, requires_grad=True)
    engine.observe(torch.zeros(8, 3), y)  # validation
    engine.observe(torch.zeros(24, 3, requires_grad=True), y.repeat(3))  # another head
    engine.observe(torch.zeros(8, 3, 3, requires_grad=True), y)
    engine.observe(logits, torch.zeros(8, 3))  # soft labels
    engine.observe("logits", y)
    assert engine.train is None
    engine.observe(*PROFILE.predicts(PROFILE.observe)(input=logits, target=y))
    assert engine.train is train
    assert train.observed == 8
    engine.observe(logits, y)  # a second time for one batch
    assert train.observed == 8


def test_a_host_that_permutes_its_batch_in_place_is_found_out() -> None:
    engine, train = Engine(Settings(), PROFILE, []), hosted()
    engine._candidates.add(train)
    batches = train.start()
    with pytest.raises(RuntimeError, match="other labels than the batch"):  # noqa: PT012
        for x, y in batches:
            order = torch.arange(len(y)).roll(1)
            x[:], y[:] = x[order], y[order]
            engine.observe(x.expand(-1, 3).clone().requires_grad_(), y)


class OnDevice(torch.Tensor):
    """A number that says that it lies on a device."""

    device = torch.device("cuda:0")  # type: ignore[assignment]


@pytest.mark.parametrize("permuted", [None, 3, 4])
@pytest.mark.parametrize("last", [False, True])
def test_on_a_device_labels_are_compared_when_the_pass_ends(
    permuted: int | None, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "differ", lambda a, b: (a != b).sum().as_subclass(OnDevice))
    engine, train = Engine(Settings(), PROFILE, []), hosted()
    engine._candidates.add(train)
    for batch, (x, y) in enumerate(engine.start(train)):
        labels = y.roll(1) if batch == permuted else y
        engine.observe(x.expand(-1, 3).clone().requires_grad_(), labels)  # waits for nothing
    end = engine.close if last else partial(engine.start, train)
    if permuted is None:
        end()
    else:
        with pytest.raises(RuntimeError, match="other labels than the batch"):
            end()
    assert engine.journal.epochs == (permuted is None)


def test_a_look_into_the_loader_in_the_middle_of_an_epoch_ends_nothing() -> None:
    settings = Settings(ratio=0.5, stages=2, period=1)
    engine, train = Engine(settings, PROFILE, []), hosted(settings=settings)
    engine._candidates.add(train)
    sizes = []
    for _ in range(3):
        sizes.append(0)
        for batch, (x, y) in enumerate(engine.start(train)):
            sizes[-1] += len(y)
            engine.observe(x.expand(-1, 3).clone().requires_grad_(), y)
            if batch == 1:
                next(iter(engine.start(train)))
            if batch == 2:  # the accuracy on all of it
                assert sum(len(y) for _, y in engine.start(train)) == (40, 30, 20)[len(sizes) - 1]
    assert sizes == [40, 30, 20]
    assert (engine.journal.epochs, train.observed, engine.journal.drawn) == (2, 20, 70)


def test_an_epoch_ends_when_the_host_lets_go_of_its_iterator() -> None:
    settings = Settings(ratio=0.5, stages=2, period=1, mixing="none")
    before = hosted()
    engine, train = Engine(settings, PROFILE, []), HostedLoader(before.host, PROFILE, settings)  # type: ignore[attr-defined]
    engine._candidates.add(train)
    drawn: list[int] = []
    for _ in range(3):  # three batches an epoch, and the old iterator lives while the new one is made
        batches = engine.start(train)
        for _ in range(3):
            x, y = next(batches)
            drawn += x.flatten().int().tolist()
            engine.observe(x.expand(-1, 3).clone().requires_grad_(), y)
    assert engine.journal.epochs == 2
    assert set(drawn[48:]) <= set(train.sampler.kept)
    assert train.sampler.num_kept == 20


def test_batches_that_can_not_be_told_apart_are_never_guessed() -> None:
    engine, train = Engine(Settings(), PROFILE, []), hosted()
    engine._candidates.add(train)
    logits = torch.zeros(8, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="have the same labels"):  # noqa: PT012
        for batch, (_, y) in enumerate(engine.start(train)):
            train.passes[-1].pending[-1][1][""].zero_()
            if batch:  # the first is not observed
                engine.observe(logits, torch.zeros_like(y))
    assert train.tracker.count.sum() == 0


def test_a_distance_that_explains_all_observations_is_found() -> None:
    now, labels = Pass(40), [[0, 0], [0, 0], [0, 1], [1, 1]]
    now.pending.append((np.array([0, 1]), {"": torch.tensor(labels[0])}))
    found = []
    for batch in (1, 2, 3):  # the host is one batch ahead
        now.pending.append((np.array([2 * batch, 2 * batch + 1]), {"": torch.tensor(labels[batch])}))
        mine = torch.tensor(labels[batch - 1])
        found.append(now.match(2, lambda held, mine=mine: bool((held[""] == mine).all())))  # type: ignore[misc]
    assert [None if one is None else one[0].tolist() for one in found] == [None, [2, 3], [4, 5]]


def test_a_fork_that_ends_has_nothing_to_sum_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Engine(Settings(), PROFILE, [])
    engine.choose(hosted())
    capsys.readouterr()
    monkeypatch.setattr("os.getpid", lambda: -1)
    assert engine.close()
    assert capsys.readouterr().out == ""


def test_on_cuda_observing_neither_waits_nor_copies_to_the_host() -> None:
    """After the first batches. Fake tensors: whatever needs their data raises."""
    with fake_cuda():
        engine, train = Engine(Settings(), PROFILE, []), hosted()
        now = Pass(40, observed=1, _ahead=0)
        engine.train, train.passes, engine._finder.labels._checked = train, [now], 3
        train.tracker.to("cuda:0")
        with Watch() as watch:
            for _ in range(40):  # more than wait to be added
                now.pending.append((np.arange(8), {"": torch.zeros(8, dtype=torch.long)}))
                # float16, as autocast makes them
                logits = torch.zeros(8, 3, device="cuda:0", dtype=torch.float16, requires_grad=True)
                engine.observe(logits, torch.zeros(8, dtype=torch.long, device="cuda:0"))
        assert train.observed == 321
        assert engine._finder.labels._wrong.device.type == "cuda"
        assert watch.to_host == []


def test_why_nothing_was_observed(capsys: pytest.CaptureFixture[str]) -> None:
    engine, train = Engine(Settings(), PROFILE, []), hosted()
    engine._candidates.add(train)
    engine.unobserved.followed = True
    for _, y in engine.start(train):
        engine.observe(torch.zeros(len(y), 3, requires_grad=True), 1 - y[:2])
    assert "labels have shape [2], [B] expected, for predictions of [8, 3] (5 x)" in capsys.readouterr().out
    assert not engine.close()
    assert engine.close(failed=True) is False  # said once
    assert capsys.readouterr().out.count("kcd: WARNING: this run was without KCD") == 1
    engine = Engine(Settings(), PROFILE, [])
    own = torch.utils.data.BatchSampler(range(8), 3, drop_last=False)  # type: ignore[arg-type]
    own.__class__ = type("Buckets", (torch.utils.data.BatchSampler,), {})
    assert engine.hosted(DataLoader(range(8), batch_sampler=own)) is None  # type: ignore[arg-type]
    assert not engine.close()
    assert "a batch sampler of its own, Buckets (1 x)" in capsys.readouterr().out
    parent = Engine(Settings(), PROFILE, [])
    parent.spawning()
    assert parent.close()
    assert capsys.readouterr().out == ""


def test_predictions_without_a_gradient_are_a_reason_until_the_student_is_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine, train = Engine(Settings(), PROFILE, []), hosted()
    engine._candidates.add(train)
    for _, y in engine.start(train):
        engine.observe(torch.zeros(len(y), 3), y)
    assert "without a gradient, as in validation (5 x)" in capsys.readouterr().out
    for _, y in engine.start(train):
        engine.observe(torch.zeros(len(y), 3, requires_grad=True), y)
        engine.observe(torch.zeros(len(y), 3), y)  # validation, from now on
        engine.observe(torch.zeros(2, 3, requires_grad=True), y)
    assert "without a gradient" not in engine.unobserved.why()
    assert "labels have shape" in engine.unobserved.why()


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        (lambda batch: batch["label"], "KeyError: 'label'|TypeError: list indices"),
        (lambda batch: batch[0], r"it gives Tensor \[8, 1\]"),
        (lambda batch: None, "it gives NoneType"),
    ],
)
def test_labels_that_a_profile_does_not_find_are_told_at_the_first_prediction(
    targets: Any, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, train = Engine(Settings(), PROFILE, []), hosted()
    train._profile = replace(PROFILE, targets=targets)
    engine._candidates.add(train)
    for place, (_, y) in enumerate(engine.start(train)):
        engine.observe(torch.zeros(len(y), 3, requires_grad=True), y)
        out = capsys.readouterr().out
        assert len(
            re.findall(f"labels in the batches of TensorDataset were not found.*(?:{reason})", out)
        ) == (place == 0)


def test_a_length_that_was_told_before_a_shorter_epoch_is_said_to_be_old(
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = Settings(ratio=0.5, stages=2, period=2, mixing="none")

    def epochs(asks: str) -> list[str]:
        engine, train = Engine(settings, PROFILE, []), hosted(settings=settings)
        engine._candidates.add(train)
        lines = []
        for _ in range(6):
            if asks == "before":
                engine.length(train)
            for _, y in engine.start(train):
                engine.observe(torch.zeros(len(y), 3, requires_grad=True), y)
                if asks == "within":
                    assert engine.length(train) == len(train)
            out = capsys.readouterr().out
            lines += re.findall(r"told (\d+), the length of the one that had ended; the next has (\d+)", out)
        return lines

    assert epochs("before") == [("5", "4")]  # once
    assert epochs("within") == epochs("") == []


def test_another_model_on_the_same_loader_stops_the_run() -> None:
    settings = Settings(ratio=0.5, stages=2, period=1, mixing="none")
    teacher, student = (torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Linear(4, 3)) for _ in range(2))
    engine, train = Engine(settings, PROFILE, []), hosted(settings=settings)
    engine._candidates.add(train)

    def epoch(model: torch.nn.Module) -> int:
        for x, y in engine.start(train):
            engine.observe(model(x), y)
        return train.observed

    epoch(teacher)
    teacher[1].requires_grad_(False)  # a model is the same one, whatever of it is frozen
    epoch(teacher)
    teacher[0].requires_grad_(False)
    teacher[1].requires_grad_(True)
    before = epoch(teacher)
    with pytest.raises(RuntimeError, match=r"another model is trained now .* and 3 of its stages have ended"):
        epoch(student)
    assert train.observed == 0 < before


@pytest.mark.parametrize("fields", [None, (1,)])
def test_raw_images_are_mixed_raw_whatever_fields_a_profile_names(fields: Any) -> None:
    loader = DataLoader(Cifar(8), batch_size=4, shuffle=True)
    assert HostedLoader(loader, replace(PROFILE, fields=fields), Settings()).mixer is kcd.mix_arrays


@pytest.mark.parametrize(("others", "meetings"), [(1, 1), (0, 0)])
def test_ranks_meet_once_to_see_that_all_observe(
    others: int, meetings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first pass that was observed, and never again; a rank that is alone in it does not go on."""
    met = []
    monkeypatch.setattr(distributed, "world_size", lambda *group: 2)
    monkeypatch.setattr(distributed, "sum_over_ranks", lambda x, *group: met.append(x) or (x + others,))
    data = TensorDataset(torch.arange(8.0)[:, None], torch.arange(8) % 3)
    sampler: Any = DistributedSampler(data, num_replicas=2, rank=0)
    loader = DataLoader(data, batch_size=4, sampler=sampler)
    engine, train = Engine(Settings(), PROFILE, []), HostedLoader(loader, PROFILE, Settings())
    engine._candidates.add(train)

    def one_pass() -> None:
        for _, y in engine.start(train):
            engine.observe(torch.zeros(len(y), 3, requires_grad=True), y)

    one_pass()
    assert not met
    if not others:
        with pytest.raises(RuntimeError, match="on 1 of 2 ranks"):
            one_pass()
        return
    one_pass()
    one_pass()
    assert len(met) == meetings


@pytest.mark.parametrize(
    ("drop_last", "ranks", "ranks_drop_last"),
    [
        (False, 1, False),
        (True, 1, False),
        (False, 3, False),
        (True, 3, False),
        (False, 3, True),
        (True, 3, True),
    ],
)
def test_the_account_is_of_what_epochs_draw(drop_last: bool, ranks: int, ranks_drop_last: bool) -> None:
    """Not of whole sets, where batches or the ranks' last samples are dropped, or padding makes up for them."""
    settings = Settings(ratio=0.5, stages=2, period=1, mixing="none")
    sizes, data = [40, 30, 21], Cifar(40)
    drawn = [0, 0, 0]
    for rank in range(ranks):
        sampler = DistributedSampler(data, ranks, rank, drop_last=ranks_drop_last) if ranks > 1 else None
        loader: Any = DataLoader(
            data, batch_size=4, shuffle=sampler is None, sampler=sampler, drop_last=drop_last
        )
        train = HostedLoader(loader, PROFILE, settings)
        journal = Journal(settings, "Mini", "kd")
        for place, size in enumerate(sizes):
            train.sampler.install(kcd.CondensedSet(np.arange(size), 40))
            for _ in train.start():
                pass
            (one,) = train.take_over()
            drawn[place] += one.drawn
            journal.add(train, one, "")
    assert [train.drawn_of(size) for size in sizes] == drawn
    assert journal.saved == 2 * drawn[0] - drawn[1] - drawn[2]
    assert f"{journal.saved} of {3 * drawn[0]} samples saved" in journal._savings(train)


def test_a_host_without_ranks_is_the_first_of_one() -> None:
    assert (hosted().sampler.num_replicas, hosted().sampler.rank) == (1, 0)


@pytest.mark.parametrize(
    ("launched", "says"),
    [
        ({}, True),
        ({"RANK": "1"}, True),
        ({"RANK": "1", "WORLD_SIZE": "2"}, False),
        ({"RANK": "0", "WORLD_SIZE": "2"}, True),
    ],
)
def test_before_there_is_a_process_group_the_launchers_first_rank_alone_speaks(
    launched: dict[str, str], says: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    Engine(Settings(), PROFILE, []).journal.say("a line")
    assert capsys.readouterr().out == ("kcd: a line\n" if says else "")


@pytest.mark.parametrize("task", ["SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "LOCAL_RANK"])
@pytest.mark.parametrize("rank", [0, 1])
def test_where_a_launcher_numbers_processes_they_speak_once_it_is_known_whether_those_are_ranks(
    task: str, rank: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "WORLD_SIZE", *TASKS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(task, "1")
    settings = Settings(history="h.json")
    engine, train = Engine(settings, PROFILE, []), hosted()
    engine._candidates.add(train)
    engine.journal.say("a line")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(
        distributed, "rank_announced", lambda: rank
    )  # by now, the script made a process group
    engine.start(train)
    engine.journal.say("another")
    assert capsys.readouterr().out == ("" if rank else "kcd: a line\nkcd: another\n")
    monkeypatch.setenv(task, "0")
    Engine(settings, PROFILE, []).journal.say("the first task waits for nobody")
    assert ("the first" in capsys.readouterr().out) == (rank == 0)


def test_a_history_that_can_not_be_written_later_does_not_stop_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    engine, train = Engine(Settings(history=str(tmp_path / "gone" / "h.json")), PROFILE, []), hosted()
    engine.choose(train)
    (tmp_path / "gone").rmdir()
    assert engine.close()
    assert "WARNING: the history can't be written" in capsys.readouterr().out


def test_prediction_and_labels_may_be_other_arguments_and_images_other_fields() -> None:
    def third_and_named(*args: Any, **named: Any) -> Any:
        return args[2], named["labels"]

    profile = replace(PROFILE, prediction=third_and_named, fields=(1,))
    engine = Engine(Settings(), profile, [])
    data = TensorDataset(torch.arange(8), torch.zeros(8, 1), torch.arange(8) % 3)
    loader = DataLoader(data, batch_size=8, shuffle=True)
    wrong = HostedLoader(loader, PROFILE, Settings(stages=1))
    next(wrong.start())
    assert "--mixing none, or let the profile name the images' `fields`" in str(wrong.unmixable)
    train = HostedLoader(loader, replace(profile, targets=lambda batch: batch[2]), Settings())
    engine._candidates.add(train)
    *_, y = next(train.start())
    predicted = profile.predicts(profile.observe)
    engine.observe(*predicted("epoch", None, torch.zeros(8, 3, requires_grad=True), labels=y))
    assert train.observed == 8


# -- profiles ------------------------------------------------------------------------------------------


def test_profiles_are_told_apart_by_their_files(tmp_path: Path) -> None:
    by_files = [
        profile for profile in profiles() if profile.script
    ]  # families are told by what their scripts use
    assert {profile.name for profile in by_files} >= {"sskd", "reviewkd", "timm"}
    for profile in by_files:
        root = tmp_path / profile.name
        for name in (profile.script, *profile.marks):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        assert find(root / profile.script) is profile
    with pytest.raises(ValueError, match="there is no profile 'nemo'; there are simkd, repdistiller"):
        find(tmp_path, "nemo")


def test_a_broken_profile_leaves_the_others_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kcd_adapters.profiles, "MODULES", ("nemo", "sskd"))
    assert [[profile.name for profile in profiles()] for _ in range(2)] == [["sskd"]] * 2
    warning = "kcd: WARNING: profile nemo is left out: ModuleNotFoundError: No module named"
    printed = capsys.readouterr()  # by the handler of the logger, which prints where print() does
    assert (printed.out.count(warning), printed.err) == (1, "")
    kcd_adapters.profiles._from_module.cache_clear()
    monkeypatch.setattr(kcd_adapters.profiles, "rank_announced", lambda: 1)
    assert [profile.name for profile in profiles()] == ["sskd"]
    assert "left out" not in capsys.readouterr().out


def test_a_profile_may_be_a_file_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from kcd_adapters.profiles import Profile\n"
        "PROFILE = Profile('mine', 'Mine', 'go.py', (), 'mine.acc', lambda arguments: 'kd')\n"
    )
    assert find(tmp_path / "go.py", str(path)).title == "Mine"
    whole = path.read_text()
    for code, reason in (
        ("import nemo", "can't be imported: ModuleNotFoundError"),
        ("", "must define PROFILE"),
        (
            whole.replace("'kd')", "'kd', ('wandd',))"),
            "there is no shim 'wandd'; there are tensorboard_logger, .*",
        ),
    ):
        path.write_text(code)
        with pytest.raises(ValueError, match=reason):
            find(tmp_path / "go.py", str(path))


def test_a_profile_brings_shims_of_its_own() -> None:
    def mended(say: Any) -> None:
        say("done")
        say("done")

    lines: list[str] = []
    profile = replace(PROFILE, shims=("torch_six", mended))
    shims.install(profile.shims, ("torch_six",), lines.append)
    assert lines == ["shim mended: done"]
    shims.install(profile.shims, ("all",), lines.append)
    assert len(lines) == 1


def test_options_of_a_command_line() -> None:
    assert option(["--distill", "kd", "--distill=crd"], "--distill") == "crd"
    assert option(["--distill"], "--distill", default="kd") == "kd"
    assert option([], "--distill", default="kd") == "kd"


def test_contrast_lists_hold_kept_samples_and_are_never_empty() -> None:
    class Data:
        cls_positive = np.array([[0, 1], [2, 3]])
        cls_negative = [np.array([2, 3]), np.array([0, 1])]  # noqa: RUF012

    view = contrast.restrict(Data(), np.array([0, 1, 2]))
    assert [x.tolist() for x in view.cls_positive] == [[0, 1], [2]]
    view = contrast.restrict(Data(), np.array([0]))
    assert [x.tolist() for x in view.cls_negative] == [[2, 3], [0]]
    assert Data.cls_positive.tolist() == [[0, 1], [2, 3]]
    other = object()
    assert contrast.restrict(other, np.array([0])) is other


class Contrasting(Dataset[Any]):
    """As CRD's: a sample, its label, its index, and those it is contrasted with."""

    def __init__(self) -> None:
        self.cls_negative = [np.flatnonzero(np.arange(40) % 3 != label) for label in range(3)]

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int, torch.Tensor]:
        negatives = np.resize(
            self.cls_negative[index % 3], 40
        )  # cut short or repeated: batches have one length
        return torch.tensor([float(index)]), index % 3, index, torch.from_numpy(negatives)


@pytest.mark.parametrize("negatives", ["kept", "full"])
@pytest.mark.parametrize("workers", [0, 1])
def test_from_a_stage_on_crd_draws_negatives_from_what_is_kept(workers: int, negatives: str) -> None:
    """Also where persistent workers hold a copy of the data set."""
    settings = Settings(ratio=0.5, stages=2, period=1, mixing="none", negatives=negatives)
    engine = Engine(settings, replace(PROFILE, condensed=contrast.restrict), [])
    loader = DataLoader(
        Contrasting(), batch_size=8, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    kept = []
    for _ in range(3):
        train = engine.hosted(loader)
        assert train is not None
        seen: set[int] = set()
        for x, y, _, others in engine.start(train):
            seen.update(others.flatten().tolist())
            engine.observe((x * torch.arange(3)).requires_grad_(), y)
        assert seen == (set(train.sampler.kept.tolist()) if negatives == "kept" else set(range(40)))
        kept.append(train.sampler.num_kept)
    assert kept == [40, 30, 20]


@pytest.mark.parametrize("negatives", ["kept", "full"])
@pytest.mark.parametrize("data", [Contrasting, Noise])
def test_negatives_of_data_without_any_are_warned_of(
    capsys: pytest.CaptureFixture[str], data: Any, negatives: str
) -> None:
    settings, profile = Settings(negatives=negatives), replace(PROFILE, condensed=contrast.restrict)
    Engine(settings, profile, []).choose(
        HostedLoader(DataLoader(data(), batch_size=8, shuffle=True), profile, settings)
    )
    warned = "WARNING: negatives full changes nothing: Noise has no lists" in capsys.readouterr().out
    assert warned == ((data, negatives) == (Noise, "full"))


# -- settings and patches ------------------------------------------------------------------------------


def test_settings_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(ratio=0.6, no_shims=("dali",), history="h.json")
    assert Settings.from_json(settings.to_json()) == settings
    monkeypatch.setenv("KCD_SETTINGS", "")
    assert Settings.from_environment() == Settings()
    settings.export()
    assert Settings.from_environment() == settings
    for wrong in ({"ratio": 0}, {"mixing": "often"}, {"rati": 1}, {"alpha": -1}, {"no_shims": ["dalli"]}):
        with pytest.raises(ValueError, match=r"ratio|mixing|rati|alpha|no shim 'dalli'"):
            Settings.from_dict(wrong)


def test_every_shim_that_settings_name_is_there() -> None:
    assert tuple(shims.SHIMS) == SHIMS


def test_functions_are_replaced_when_their_module_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kcd_late_host.py").write_text("def f(x):\n    return x + 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen: list[int] = []
    import_hooks.before_call("kcd_late_host.f", seen.append)
    assert "kcd_late_host" not in sys.modules
    from kcd_late_host import f  # type: ignore[import-not-found]

    assert f(1) == 2
    import_hooks.after_call("kcd_late_host.f", lambda result, x: seen.append(10 * result + x))
    assert sys.modules["kcd_late_host"].f(2) == 3
    assert seen == [1, 2, 32]
    monkeypatch.setitem(sys.modules, "kcd_late_empty", types.ModuleType("kcd_late_empty"))
    with pytest.raises(RuntimeError, match="has no function g"):
        import_hooks.before_call("kcd_late_empty.g", print)


def test_looking_for_a_module_does_not_use_up_its_patch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kcd_late_probed.py").write_text("def f(x):\n    return x + 1\n")
    monkeypatch.syspath_prepend(tmp_path)

    class Prober(importlib.abc.MetaPathFinder):
        """Looks for what it is asked for, by the machinery that asked it."""

        def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
            return (
                importlib.util.find_spec(fullname) if fullname == "kcd_late_probed" and self.busy() else None
            )

        def busy(self) -> bool:
            self.calls = getattr(self, "calls", 0) + 1
            return self.calls % 2 == 1

    seen: list[int] = []
    import_hooks.before_call("kcd_late_probed.f", seen.append)
    monkeypatch.setattr(sys, "meta_path", [sys.meta_path[0], Prober(), *sys.meta_path[1:]])
    assert importlib.util.find_spec("kcd_late_probed") is not None
    assert importlib.import_module("kcd_late_probed").f(1) == 2
    assert seen == [1]


def test_two_passes_that_are_over_at_once_are_two_epochs_without_a_warning() -> None:
    """A host that trains on two iterators in turns: nothing new is recorded between the two ends."""
    settings = Settings(ratio=0.5, stages=2, period=1)
    engine, train = Engine(settings, PROFILE, []), hosted(settings=settings)
    engine._candidates.add(train)
    for (x, y), (v, w) in zip(engine.start(train), engine.start(train), strict=True):
        engine.observe(x.expand(-1, 3).clone().requires_grad_(), y)
        engine.observe(v.expand(-1, 3).clone().requires_grad_(), w)
    engine.start(train)  # pytest makes an error of a warning
    assert engine.journal.epochs == 2
    assert [record["kept"] for record in train.history] == [30, 20]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (Settings(), "batches of 8; mixing samples after their transform, fresh"),
        (Settings(ratio=1), "batches of 8; no mixing"),
        (Settings(select="random"), "batches of 8; no mixing"),
        (Settings(mixing="none"), "batches of 8; no mixing"),
    ],
    ids=["paper's", "plain", "random", "none"],
)
def test_the_students_line_says_whether_anything_will_be_mixed(
    capsys: pytest.CaptureFixture[str], settings: Settings, told: str
) -> None:
    engine = Engine(settings, PROFILE, [])
    engine.choose(HostedLoader(DataLoader(Noise(), batch_size=8, shuffle=True), PROFILE, settings))
    assert capsys.readouterr().out.endswith(f"{told}\n")
