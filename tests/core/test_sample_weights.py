"""Sets whose samples have weights: what their losses are multiplied by, wherever they are drawn."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Cifar, Plain, identical_state, index_of, logits_of
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import kcd_core as kcd

N = 40
SCHEDULE = kcd.CondensationSchedule(ratio=0.5, stages=4, period=1)
KEPT = np.setdiff1d(np.arange(N), [3, 11, 12, 25, 39])
WEIGHTS = np.random.default_rng(0).uniform(0.5, 3, N).astype(np.float32)  # of all samples, by index
WEIGHED = kcd.CondensedSet(KEPT, N, sample_weights=WEIGHTS[KEPT])
MIXED = kcd.CondensedSet(
    KEPT, N, dropped=[3, 11], tail=[0, 1], weights=[0.9, 0.8], sample_weights=WEIGHTS[KEPT]
)


def weighed(
    value: Any, count: Any, kept: Any, target: int, generator: Any, *, stage: int
) -> kcd.CondensedSet:
    """The first samples, with the weights above; without weights in every second stage."""
    first = np.arange(target)
    return kcd.CondensedSet(first, len(value), sample_weights=None if stage % 2 == 0 else WEIGHTS[first])


def wrapped(
    data: Any = None, workers: int = 0, size: int = 7, drop_last: bool = False, **options: Any
) -> Any:
    data = Plain(N) if data is None else data
    loader = DataLoader(data, batch_size=size, shuffle=True, num_workers=workers, drop_last=drop_last)
    return kcd.wrap_loader(loader, seed=3, **{"schedule": SCHEDULE, "select": weighed, **options})


def one_epoch(loader: Any, *, stop: int | None = None, end: bool = True) -> None:
    for place, batch in enumerate(loader):
        weights, indices = loader.sample_weights, loader.indices
        assert index_of(batch) == indices[indices >= 0].tolist() or (indices < 0).any()
        if loader.sampler.in_force.weights is None:
            assert weights is None
        else:
            assert (weights.dtype, weights.device.type) == (torch.float32, "cpu")
            np.testing.assert_array_equal(weights.numpy(), WEIGHTS[index_of(batch)])
        loader.record(logits_of(index_of(batch), loader.epoch))
        if stop is not None and place + 1 == stop:
            return
    if end:
        loader.end_epoch()


# -- the set -----------------------------------------------------------------------------------------


def test_a_set_holds_them_in_float32() -> None:
    assert WEIGHED.sample_weights is not None
    assert WEIGHED.sample_weights.dtype == np.float32
    assert "weighed" in repr(WEIGHED)
    assert kcd.CondensedSet(KEPT, N).sample_weights is None
    ones = kcd.CondensedSet([1, 2], N, sample_weights=torch.tensor([1, 2], dtype=torch.int16))
    assert ones.sample_weights.tolist() == [1.0, 2.0]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("wrong", "error"),
    {
        "short": ([1.0], ValueError),
        "nan": ([1.0, float("nan")], ValueError),
        "inf": ([1.0, float("inf")], ValueError),
        "inf in float32": ([1.0, 1e39], ValueError),
        "minus": ([1.0, -0.5], ValueError),
        "text": (["a", "b"], TypeError),
        "bools": ([True, False], TypeError),
        "square": ([[1.0, 2.0]], TypeError),
    }.values(),
)
def test_wrong_ones_are_refused(wrong: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="sample_weights must be"):
        kcd.CondensedSet([1, 2], N, sample_weights=wrong)


# -- the sampler -------------------------------------------------------------------------------------


def test_a_sampler_says_them_by_index() -> None:
    sampler = kcd.CondensedSampler(N)
    assert sampler.weights_of([1, 2]) is None
    sampler.install(WEIGHED)
    asked = np.array([5, 0, -1, 38, 3, 5, 39])
    expected = np.where(np.isin(asked, KEPT), WEIGHTS[asked], 0)
    np.testing.assert_array_equal(sampler.weights_of(torch.from_numpy(asked)), expected)
    sampler.install(
        kcd.CondensedSet(np.arange(N), N, sample_weights=WEIGHTS)
    )  # of all, without a list of them
    np.testing.assert_array_equal(sampler.weights_of(asked), np.where(asked < 0, 0, WEIGHTS[asked]))
    sampler.install(kcd.CondensedSet(KEPT, N))
    assert sampler.weights_of(asked) is None
    with pytest.raises(IndexError, match="indices must lie in"):
        sampler.weights_of([N])


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    "chosen", [WEIGHED, kcd.CondensedSet(np.arange(N), N, sample_weights=WEIGHTS)], ids=["some", "all"]
)
def test_a_samplers_state_holds_them(chosen: kcd.CondensedSet) -> None:
    sampler, other = kcd.CondensedSampler(N), kcd.CondensedSampler(N)
    assert "sample_weights" not in sampler.state_dict()
    sampler.install(chosen)
    other.load_state_dict(through_a_file(sampler.state_dict()))
    np.testing.assert_array_equal(other.weights_of(range(N)), sampler.weights_of(range(N)))
    assert other.fingerprint() == sampler.fingerprint()
    other.load_state_dict(kcd.CondensedSampler(N).state_dict())  # and one without takes them away
    assert other.weights_of(range(N)) is None
    for damaged in ([1.0], np.full(len(chosen.kept), -1, np.float32), None):
        with pytest.raises(ValueError, match="the sampler state is damaged: sample_weights"):
            other.load_state_dict({**sampler.state_dict(), "sample_weights": damaged})


def test_the_fingerprint_tells_weights_apart() -> None:
    names = set()
    for weights in (None, WEIGHTS[KEPT], 2 * WEIGHTS[KEPT]):
        sampler = kcd.CondensedSampler(N)
        sampler.install(kcd.CondensedSet(KEPT, N, sample_weights=weights))
        names.add(sampler.fingerprint())
    assert len(names) == 3


def test_putting_back_what_was_in_force_puts_back_weights() -> None:
    sampler = kcd.CondensedSampler(N)
    sampler.install(WEIGHED)
    before = sampler.in_force
    sampler.install(kcd.CondensedSet(KEPT, N))
    sampler.in_force = before
    np.testing.assert_array_equal(sampler.weights_of(KEPT), WEIGHTS[KEPT])


def test_a_set_that_is_changed_afterwards_changes_nothing() -> None:
    own = WEIGHTS[KEPT].copy()
    sampler = kcd.CondensedSampler(N)
    sampler.install(kcd.CondensedSet(KEPT, N, sample_weights=own))
    own[:] = 7
    np.testing.assert_array_equal(sampler.weights_of(KEPT), WEIGHTS[KEPT])


# -- the loader --------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_batch_has_the_weights_of_its_samples(workers: int, drop_last: bool) -> None:
    loader = wrapped(workers=workers, drop_last=drop_last)
    assert loader.sample_weights is None
    for _ in range(3):
        one_epoch(loader)


def test_a_last_batch_that_borrows_a_sample_has_its_weight() -> None:
    loader = wrapped(size=17)  # 35 kept: 17, 16 and 2
    one_epoch(loader)
    sizes = []
    for batch in loader:
        sizes.append(len(batch[1]))
        np.testing.assert_array_equal(loader.sample_weights, WEIGHTS[index_of(batch)])
    assert sizes == [17, 16, 2]


def test_mixed_rows_have_the_weight_of_their_sample() -> None:
    loader = wrapped(Cifar(N), select=lambda v, c, k, target, g: MIXED if target == len(KEPT) else 1 / 0)
    one_epoch(loader)
    assert len(loader.sampler.recipes) == 2
    seen = {}
    for _ in loader:
        seen.update(zip(loader.indices.tolist(), loader.sample_weights.tolist(), strict=True))
    assert seen == {index: WEIGHTS[index] for index in KEPT}


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_what_only_pads_has_the_weight_of_its_sample(rank: int) -> None:
    loader = wrapped(num_replicas=3, rank=rank, select=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no process group
        loader.sampler.install(WEIGHED)  # 35 of 3 ranks: one pads
        padding = 0
        for batch in loader:
            np.testing.assert_array_equal(loader.sample_weights, WEIGHTS[index_of(batch)])
            padding += int((loader.indices < 0).sum())
    assert padding == (rank == 2)


def test_samples_that_the_data_set_left_out_take_their_weights_with_them() -> None:
    class Holes(Plain):
        def __getitem__(self, index: int) -> Any:
            return None if index % 5 == 2 else super().__getitem__(index)

    data = Holes(N)
    loader = DataLoader(data, batch_size=7, shuffle=True, collate_fn=there)
    condensed = kcd.wrap_loader(loader, schedule=SCHEDULE, mixing=None)
    condensed.sampler.install(WEIGHED)
    for batch in condensed:
        np.testing.assert_array_equal(condensed.sample_weights, WEIGHTS[index_of(batch)])


def there(samples: list[Any]) -> Any:
    return torch.utils.data.default_collate([sample for sample in samples if sample is not None])


def test_a_run_that_is_resumed_within_an_epoch_has_them() -> None:
    loader = wrapped()
    one_epoch(loader)
    one_epoch(loader, stop=2)
    state = through_a_file(loader.state_dict())
    again = wrapped()
    again.load_state_dict(state)
    one_epoch(again, end=False)
    assert again.batches_done == len(again)
    assert identical_state(again.state_dict()["sampler"], loader.state_dict()["sampler"])


def test_a_pass_that_outlives_its_epoch_says_nothing_of_the_next() -> None:
    loader = wrapped(return_index=True)
    for indices, _ in loader:
        loader.record(logits_of(indices, 1), indices=indices)
    loader.end_epoch()
    late = iter(loader)
    indices, _ = next(late)
    np.testing.assert_array_equal(loader.sample_weights, WEIGHTS[indices])
    loader.record(logits_of(indices, 2), indices=indices)
    loader.end_epoch()  # into a set without weights
    next(late)
    assert loader.sample_weights is None  # nothing of this epoch was yielded


def test_ahead_of_a_loop_they_are_those_of_the_batch_that_it_is_at() -> None:
    def ahead(batches: Any) -> Any:
        yield from list(batches)

    loader = wrapped(prefetch=ahead)
    for _ in range(2):
        one_epoch(loader)


def test_an_end_that_fails_leaves_them(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = wrapped()
    one_epoch(loader)
    one_epoch(loader, end=False)
    before = loader.state_dict()
    monkeypatch.setattr(loader.sampler, "set_epoch", lambda epoch: 1 / 0)  # after the set was installed
    with pytest.raises(ZeroDivisionError):
        loader.end_epoch()
    assert identical_state(loader.state_dict(), before)
    np.testing.assert_array_equal(loader.sampler.weights_of(range(35)), WEIGHTS[:35])


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"]
)
def test_a_copy_has_them(copied: Callable[[Any], Any]) -> None:
    loader = wrapped()
    one_epoch(loader)
    one_epoch(copied(loader), end=False)


# -- nobody asked ------------------------------------------------------------------------------------


def without_a_look(loader: Any) -> None:
    for batch in loader:
        loader.record(logits_of(index_of(batch), loader.epoch))
    loader.end_epoch()


def test_weights_that_nobody_read_are_warned_of_once() -> None:
    loader = wrapped()
    without_a_look(loader)  # the first epoch has none
    with pytest.warns(UserWarning, match="the set has sample weights, and nobody asked"):
        without_a_look(loader)
    without_a_look(loader)
    without_a_look(loader)  # weights again, and told already


def test_weights_that_are_read_are_not_warned_of() -> None:
    for read in (
        lambda loader: loader.sample_weights,
        lambda loader: loader.sampler.weights_of(loader.indices),
    ):
        loader = wrapped()
        for _ in range(4):
            for batch in loader:
                read(loader)
                loader.record(logits_of(index_of(batch), loader.epoch))
            loader.end_epoch()


def test_a_run_that_is_resumed_where_no_batch_is_left_is_not_warned() -> None:
    loader = wrapped()
    one_epoch(loader)
    one_epoch(loader, end=False)
    again = wrapped()
    again.load_state_dict(loader.state_dict())
    without_a_look(again)


def test_by_hand() -> None:
    def run(read: bool) -> kcd.Condensation:
        made = kcd.Condensation(kcd.CondensedSampler(N), schedule=SCHEDULE, select=weighed)
        for epoch in (1, 2):
            indices = made.sampler.order()
            if read:
                made.sampler.weights_of(indices)
            made.record(logits_of(indices, epoch), indices=indices)
            made.end_epoch()
        return made

    run(read=True)
    with pytest.warns(UserWarning, match=r"sampler\.weights_of\(indices\)"):
        run(read=False)


# -- the loss ----------------------------------------------------------------------------------------

ASKED = [5, 0, 3, 38, 7, 5, 39, -1]
INSIDE = [0, 1, 3, 4, 5]


def loss(reduction: str = "mean") -> kcd.CondensedLoss:
    made = kcd.CondensedLoss(
        torch.nn.CrossEntropyLoss(reduction="none"), kcd.KnowledgeValueTracker(N), reduction=reduction
    )
    made.install(WEIGHED)
    return made


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_loss_multiplies(reduction: str) -> None:
    logits, targets = logits_of(ASKED, 1).requires_grad_(), torch.arange(8) % 5
    found = loss(reduction)(logits, targets, indices=ASKED)
    found.sum().backward()
    alone = logits.detach()[INSIDE].double().requires_grad_()
    weights = torch.from_numpy(WEIGHTS[np.array(ASKED)[INSIDE]]).double()
    each = cross_entropy(alone, targets[INSIDE], reduction="none") * weights
    expected = {"mean": each.mean(), "sum": each.sum(), "none": each}[reduction]
    expected.sum().backward()
    torch.testing.assert_close(found[INSIDE] if reduction == "none" else found, expected.float())
    torch.testing.assert_close(logits.grad[INSIDE], alone.grad.float())  # type: ignore[union-attr,index]
    assert not logits.grad[[2, 6, 7]].any()  # type: ignore[index]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_losses_keep_their_precision(dtype: torch.dtype) -> None:
    logits = logits_of(ASKED, 1).to(dtype)
    made = kcd.CondensedLoss(lambda z, _: z[:, 0], kcd.KnowledgeValueTracker(N), reduction="none")
    made.install(WEIGHED)
    assert made(logits, torch.zeros(8, dtype=torch.int64), indices=ASKED).dtype is dtype


def test_a_losss_state_holds_them() -> None:
    weighs, plain = (
        loss(),
        kcd.CondensedLoss(torch.nn.CrossEntropyLoss(reduction="none"), kcd.KnowledgeValueTracker(N)),
    )
    old = plain.state_dict()
    assert set(old) == {"keep", "installs"}  # as before
    assert plain.fingerprint() != weighs.fingerprint()
    plain.load_state_dict(through_a_file(weighs.state_dict()))
    torch.testing.assert_close(plain.sample_weights, weighs.sample_weights)
    assert plain.fingerprint() == weighs.fingerprint()
    plain.load_state_dict(old)
    assert plain.sample_weights is None
    weighs.load_state_dict(old)
    assert weighs.sample_weights is None


def test_a_state_of_others_leaves_a_losss_weights() -> None:
    model = torch.nn.ModuleDict({"student": torch.nn.Linear(2, 2), "loss": loss()})
    before = model["loss"].fingerprint()
    model.load_state_dict({"student.weight": torch.zeros(2, 2)}, strict=False)
    assert model["loss"].fingerprint() == before
    model["loss"].load_state_dict({}, strict=False)
    assert model["loss"].fingerprint() == before


def test_a_loss_puts_them_back() -> None:
    made = loss()
    before = made.in_force
    made.install(kcd.CondensedSet(KEPT, N))
    assert made.sample_weights is None
    made.in_force = before
    np.testing.assert_array_equal(made.sample_weights[KEPT], WEIGHTS[KEPT])  # type: ignore[index]


def test_a_run_at_the_loss_is_not_warned() -> None:
    made = kcd.CondensedLoss(torch.nn.CrossEntropyLoss(reduction="none"), kcd.KnowledgeValueTracker(N))
    run = kcd.Condensation(made, schedule=SCHEDULE, select=weighed)
    for epoch in (1, 2, 3):
        made(logits_of(range(N), epoch), torch.zeros(N, dtype=torch.int64), indices=np.arange(N))
        run.end_epoch()


# -- who refuses -------------------------------------------------------------------------------------


def test_what_can_not_weigh_refuses_a_set_with_weights() -> None:
    for target, why in (
        (kcd.TeacherGate(N), "a gate says of which samples to ask"),
        (kcd.ShardedSampler(N, num_replicas=2, rank=0), "a sampler of slices keeps none"),
    ):
        before = target.in_force
        with pytest.raises(ValueError, match=f"the set has sample_weights, but {why}"):
            target.install(WEIGHED)
        assert target.in_force is before
    stream = kcd.CondensedStream(range(N), key=int, slots=400, schedule=SCHEDULE, select=weighed)
    stream.record(logits_of(range(N), 1), ids=np.arange(N))
    with pytest.raises(ValueError, match="the set has sample_weights, but a stream keeps none"):
        stream.end_epoch()
    assert (stream.epoch, stream.stage) == (1, 0)
