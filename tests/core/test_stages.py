"""The owner of a run's state: by hand, whole or not at all, and the same as the loader's."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SCHEDULE, Plain, entropy_of, identical_state, logits_of, run_epoch, wrap
from torch.utils.data import DataLoader, TensorDataset

import kcd_core as kcd
from kcd_core.progress import EpochProgress

SEED = 3  # of the helpers' loaders
PACKAGE, N = Path(kcd.__file__).parent, 40


def through_a_file(state: Any) -> Any:
    """As ``torch.save`` and a careful ``torch.load`` leave it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def by_hand(**given: Any) -> kcd.Condensation:
    return kcd.Condensation(kcd.CondensedSampler(N, seed=SEED), **{"schedule": SCHEDULE, **given})


def epoch_of(run: kcd.Condensation, epoch: int) -> list[int]:
    """One epoch of a loop that owns its index; returns what it drew."""
    drawn: list[int] = []
    for indices in np.array_split(run.sampler.order(), 4):
        run.record(logits_of(indices, epoch), indices=indices)
        drawn += indices.tolist()
    return drawn


# -- by hand -----------------------------------------------------------------------------------------------


def test_by_hand_is_the_method() -> None:
    """The same sets as ``condense`` on means that are kept in float64, epoch by epoch."""
    run, total, count = by_hand(), np.zeros(N), np.zeros(N, np.int32)
    kept = np.arange(N)
    for epoch in range(1, 6):
        drawn = epoch_of(run, epoch)
        assert sorted(drawn) == kept.tolist()
        total[drawn] += entropy_of(logits_of(drawn, epoch))
        count[drawn] += 1
        chosen = run.end_epoch()
        with np.errstate(invalid="ignore"):
            expected = kcd.condense(
                total / count, count, previous=len(kept), target=SCHEDULE.target(N, len(kept))
            )
        assert chosen.kept.tolist() == expected.kept.tolist()
        kept = chosen.kept
        assert (run.epoch, run.sampler.epoch, run.sampler.stage, len(run.history)) == (
            epoch + 1,
            epoch + 1,
            epoch,
            epoch,
        )


def spoil(part: Any) -> None:
    """Change everything in a state in place."""
    if isinstance(part, dict):
        for inner in part.values():
            spoil(inner)
        part["spoilt"] = True
    elif isinstance(part, list):
        for inner in part:
            spoil(inner)
        part.append("spoilt")
    elif isinstance(part, torch.Tensor):
        part.zero_()


def test_a_state_and_its_run_share_nothing() -> None:
    run, other = by_hand(dataset=Plain(N)), by_hand(dataset=Plain(N))
    epoch_of(run, 1)
    run.end_epoch()
    state, untouched = run.state_dict(), run.state_dict()
    other.load_state_dict(state)
    spoil(state)
    for each in (run, other):
        assert identical_state(each.state_dict(), untouched)


def test_by_hand_is_the_loaders_run() -> None:
    loader = wrap(Plain(N))
    run = kcd.Condensation(kcd.CondensedSampler(N, seed=SEED), schedule=SCHEDULE)
    for epoch in range(1, 4):
        run_epoch(loader)
        for indices in np.array_split(run.sampler.order(), 3):
            run.record(logits_of(indices, epoch), indices=indices)
        run.end_epoch()
    assert loader.sampler.kept.tolist() == run.sampler.kept.tolist()
    assert loader.history.records == run.history.records


@pytest.mark.filterwarnings("ignore:the sampler draws for one of")
@pytest.mark.parametrize(("ranks", "n"), [(2, 203), (3, 400)])
def test_a_share_that_a_trainer_shares_out_again_is_told(ranks: int, n: int) -> None:
    schedule = kcd.CondensationSchedule(ratio=0.5, stages=1, period=9)

    def epoch(step: int, first: int = 0) -> kcd.Condensation:
        """Every so many batches of a rank's share, from a batch on."""
        run = kcd.Condensation(kcd.CondensedSampler(n, num_replicas=ranks, rank=0), schedule=schedule)
        mine = list(run.sampler)
        for at in range(16 * first, len(mine), 16 * step):
            run.record(logits_of(mine[at : at + 16], 1), indices=mine[at : at + 16])
        return run

    for first in range(ranks):
        with pytest.warns(UserWarning, match=f"as if the share were shared out to {ranks} ranks again"):
            epoch(ranks, first).end_epoch()
    resumed = epoch(1)
    resumed.load_state_dict(epoch(ranks).state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "the sampler draws for one of")
        epoch(1).end_epoch()
        resumed.end_epoch()


@pytest.mark.parametrize(
    ("ranks", "batches", "told"),
    [
        (2, [8, 8, 4], True),
        (2, [8, 4], True),  # one batch less
        (2, [8, 3], False),
        (2, [8, 8, 8], True),  # one more, and two batches were left
        (2, [8, 8, 8, 1], False),
        (2, [8] * 5, False),
        (2, [40], False),
        (2, [], False),
        (1, [8, 8, 4], False),
        (4, [8, 2], True),
        (4, [8, 8, 2], True),
        (4, [8, 8, 3], False),
    ],
)
def test_what_is_taken_for_a_share_that_was_shared_out_again(
    ranks: int, batches: list[int], told: bool
) -> None:
    """Of a share of 40, to a batch, and never where less than two batches were left."""
    progress = EpochProgress(batches=0)
    for rows in batches:
        progress = progress.with_batch(rows)
    text = progress.why_shared_out_twice(3, 40, ranks)
    if told:
        assert f"share of epoch 3 is 40 samples, and {sum(batches)} were recorded" in text
    else:
        assert not text
    assert not progress._replace(seen_before=True).why_shared_out_twice(3, 40, ranks)


def test_a_loss_can_be_what_a_set_is_installed_in() -> None:
    tracker = kcd.KnowledgeValueTracker(N)
    loss = kcd.CondensedLoss(torch.nn.CrossEntropyLoss(reduction="none"), tracker)
    run = kcd.Condensation(loss, schedule=SCHEDULE, tracker=tracker)
    run.record(logits_of(np.arange(N), 1), indices=np.arange(N))
    chosen = run.end_epoch()
    assert loss.kept.tolist() == chosen.kept.tolist()
    state = through_a_file(run.state_dict())
    other = kcd.CondensedLoss(torch.nn.CrossEntropyLoss(reduction="none"), kcd.KnowledgeValueTracker(N))
    resumed = kcd.Condensation(other, schedule=SCHEDULE, tracker=other.tracker)
    with pytest.raises(ValueError, match="load its own state first"):
        resumed.load_state_dict(state)
    other.load_state_dict(loss.state_dict())
    resumed.load_state_dict(state)
    assert resumed.epoch == 2
    np.testing.assert_array_equal(resumed.tracker.value, tracker.value)


def test_a_resumed_run_is_the_one_that_went_on() -> None:
    whole, first = by_hand(), by_hand()
    for run in (whole, first):
        epoch_of(run, 1)
        run.end_epoch()
        epoch_of(run, 2)
    second = by_hand()
    second.load_state_dict(through_a_file(first.state_dict()))
    for run in (whole, second):
        run.end_epoch()
    assert epoch_of(second, 3) == epoch_of(whole, 3)
    assert identical_state(second.state_dict(), whole.state_dict())


def test_padding_is_left_out_and_counted() -> None:
    run = by_hand()
    assert run.record(logits_of(np.array([4, 5, 6]), 1), indices=[4, -1, 6]) == 2
    assert np.flatnonzero(run.tracker.count).tolist() == [4, 6]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"schedule": 3}, TypeError, "schedule must be a CondensationSchedule, got int"),
        ({"schedule": "paper"}, TypeError, "schedule must be a CondensationSchedule, got str"),
        ({"alpha": -1}, ValueError, "alpha must be"),
        ({"min_weight": 2}, ValueError, "min_weight must be"),
        ({"value": "entropie"}, ValueError, "value must be 'entropy', "),
        ({"tracker": kcd.KnowledgeValueTracker(N + 1)}, ValueError, f"num_samples = {N + 1} and {N}"),
    ],
)
def test_wrong_settings_are_named_at_once(change: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        by_hand(**change)


@pytest.mark.parametrize("wrong", [None, 3, [1, 2], object()])
def test_what_can_take_no_set_is_refused_at_once(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"sampler must be a CondensedSampler, .* it has no num_samples"):
        kcd.Condensation(wrong, schedule=SCHEDULE)


def test_a_sampler_of_slices_is_refused_with_the_way_out() -> None:
    with pytest.raises(TypeError, match=r"draws from a slice: .* wrap_loader"):
        kcd.Condensation(kcd.ShardedSampler(N, num_replicas=2, rank=0), schedule=SCHEDULE)


# -- whole or not at all -----------------------------------------------------------------------------------


def lines_of(call: Callable[[], Any], interrupt: int = 0) -> int:
    """How many lines of the package ``call`` runs, with a KeyboardInterrupt at the n-th of them if one is named."""
    lines = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.startswith(str(PACKAGE)):
            return None
        if event == "line":
            lines += 1
            if lines == interrupt:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return lines


class Stream:
    """A stream that records each epoch what it lets pass."""

    def __init__(self) -> None:
        self.run = kcd.CondensedStream(range(N), key=int, slots=64, schedule=SCHEDULE)

    def epoch(self, epoch: int) -> None:
        ids = np.array(list(self.run))
        self.run.record(logits_of(ids, epoch), ids=ids)


class Loader:
    def __init__(self, **options: Any) -> None:
        data = TensorDataset(torch.arange(N).float()[:, None], torch.arange(N))
        self.run = kcd.wrap_loader(DataLoader(data, batch_size=8, shuffle=True), schedule=SCHEDULE, **options)

    def epoch(self, epoch: int) -> None:
        for _, y in self.run:
            self.run.record(logits_of(y, epoch))


class ByHand:
    def __init__(self) -> None:
        self.run = by_hand()

    def epoch(self, epoch: int) -> None:
        epoch_of(self.run, epoch)


class Loss:
    """What a set is installed in is a loss."""

    def __init__(self) -> None:
        tracker = kcd.KnowledgeValueTracker(N)
        self.loss = kcd.CondensedLoss(torch.nn.CrossEntropyLoss(reduction="none"), tracker)
        self.run = kcd.Condensation(self.loss, schedule=SCHEDULE, tracker=tracker)

    def epoch(self, epoch: int) -> None:
        self.loss(logits_of(np.arange(N), epoch), torch.zeros(N, dtype=torch.int64), indices=np.arange(N))


KINDS: dict[str, Callable[[], Any]] = {
    "loss": Loss,
    "by hand": ByHand,
    "loader": Loader,
    "sharded": lambda: Loader(sharded=True),
    "stream": Stream,
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_at_any_line_leaves_all_as_it_was(kind: str) -> None:
    """And the run then ends this epoch as the uninterrupted one does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the stream's slots are crowded
        for _ in range(2):  # the first call of all runs more lines
            twin = KINDS[kind]()
            twin.epoch(1)
            twin.run.state_dict()  # adds what waits, as below
            lines = lines_of(twin.run.end_epoch)
        after = twin.run.state_dict()
        # The first check, the last change; the many in between only compute.
        for line in [*range(1, 40), *range(40, lines - 80, 13), *range(lines - 80, lines + 1)]:
            made = KINDS[kind]()
            made.epoch(1)
            before = made.run.state_dict()
            with pytest.raises(KeyboardInterrupt):
                lines_of(made.run.end_epoch, interrupt=line)
            assert identical_state(made.run.state_dict(), before), f"after an interrupt at line {line}"
            made.run.end_epoch()
            assert identical_state(made.run.state_dict(), after), f"after an interrupt at line {line}, and on"


@pytest.mark.parametrize("kind", KINDS)
def test_a_warning_that_is_an_error_leaves_all_as_it_was(kind: str) -> None:
    made = KINDS[kind]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.epoch(1)
        made.run.end_epoch()
    before = made.run.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="nothing was recorded in epoch 2"):
            made.run.end_epoch()
        assert identical_state(made.run.state_dict(), before)
        made.run.end_epoch()
    assert made.run.epoch == 3


def test_a_selection_that_raises_leaves_all_as_it_was() -> None:
    def select(*_: Any) -> Any:
        raise ZeroDivisionError("mine")

    run = by_hand(select=select)
    epoch_of(run, 1)
    before = run.state_dict()
    with pytest.raises(ZeroDivisionError):
        run.end_epoch()
    assert identical_state(run.state_dict(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_that_are_all_nan_are_said_to_be(kind: str) -> None:
    made = KINDS[kind]()
    logits = np.full((3, 5), np.nan, np.float32)
    ids = {"ids": [1, 2, 3]} if kind == "stream" else {"indices": [1, 2, 3]}
    made.run.record(torch.from_numpy(logits), **ids)
    with (
        pytest.warns(RuntimeWarning, match="3 values were not finite"),
        pytest.raises(RuntimeError, match="all 3 predictions of the student were not finite"),
    ):
        made.run.end_epoch()


def test_masked_classes_are_named_with_a_way_out_that_records_the_same_entropies() -> None:
    run, indices = by_hand(schedule=kcd.CondensationSchedule(0.5, 1, 1)), np.arange(6)
    logits = logits_of(indices, 1)
    masked = torch.nn.functional.pad(logits, (0, 2), value=-np.inf)
    run.record(masked, indices=indices)
    with (
        pytest.warns(
            RuntimeWarning, match="6 values were not finite .*classes masked with -inf, where -1e4 would do"
        ),
        pytest.raises(
            RuntimeError, match=r"masked with -inf\? Mask them with a finite number such as -1e4, or record"
        ),
    ):
        run.end_epoch()
    run.record(masked.clamp(min=-1e4), indices=indices)
    np.testing.assert_allclose(run.tracker.value[:6], entropy_of(logits), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_warning_names_the_users_own_line(kind: str) -> None:
    made = KINDS[kind]()
    made.epoch(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the stream's slots are crowded
        made.run.end_epoch()
    with pytest.warns(UserWarning, match="nothing was recorded") as caught:
        made.run.end_epoch()
    assert [warning.filename for warning in caught] == [__file__]


# -- parts that were saved within another's state -------------------------------------------------------------


def parts_of(run: kcd.Condensation) -> dict[str, Any]:
    state = through_a_file(run.state_dict())
    return {name: state[name] for name in ("epoch", "seen", "tracker", "sampler", "history")}


def test_a_run_goes_on_from_its_parts() -> None:
    run = by_hand()
    for epoch in (1, 2):
        epoch_of(run, epoch)
        run.end_epoch()
    epoch_of(run, 3)
    again = by_hand()
    again.restore(**parts_of(run))
    assert identical_state(again.state_dict(), run.state_dict())
    run.end_epoch()
    again.end_epoch()  # without a warning: this epoch was recorded in
    assert identical_state(again.state_dict(), run.state_dict())


def test_of_an_epoch_that_was_not_recorded_in_a_restored_run_says_so() -> None:
    run = by_hand()
    epoch_of(run, 1)
    run.end_epoch()
    again = by_hand()
    again.restore(**parts_of(run))
    with pytest.warns(UserWarning, match="nothing was recorded in epoch 2"):
        again.end_epoch()


def test_of_summed_recordings_the_first_rank_takes_all_and_the_others_none() -> None:
    run = by_hand()
    epoch_of(run, 1)
    for rank in range(2):
        sampler = kcd.CondensedSampler(N, seed=SEED, num_replicas=2, rank=rank)
        for summed in (False, True):
            again = kcd.Condensation(sampler, schedule=SCHEDULE)
            again.restore(**parts_of(run), summed=summed)
            assert again.tracker.count.sum() == (0 if summed and rank else N)
            assert again.tracker.value_name == "entropy"


@pytest.mark.parametrize(
    ("part", "of"),
    [
        ("tracker", {"tracker": None}),
        ("tracker", kcd.KnowledgeValueTracker(N + 1).state_dict()),
        ("sampler", kcd.CondensedSampler(N, seed=SEED + 1).state_dict()),
        ("history", kcd.CondensationHistory(N + 1).state_dict()),
        ("history", {"records": []}),
    ],
)
def test_parts_of_another_run_change_nothing(part: str, of: Any) -> None:
    run, again = by_hand(), by_hand()
    epoch_of(run, 1)
    run.end_epoch()
    epoch_of(again, 2)
    before = again.state_dict()
    with pytest.raises(ValueError, match=part):
        again.restore(**{**parts_of(run), part: of})
    assert identical_state(again.state_dict(), before)


def test_a_losss_own_tracker_is_the_runs() -> None:
    loss = kcd.CondensedLoss(torch.nn.CrossEntropyLoss(reduction="none"), kcd.KnowledgeValueTracker(N))
    assert kcd.Condensation(loss, schedule=SCHEDULE).tracker is loss.tracker


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_version_1_is_refused_with_a_sentence(kind: str) -> None:
    """Whatever else it lacks."""
    run = KINDS[kind]().run
    state = {key: part for key, part in run.state_dict().items() if key not in ("seen", "min_weight")}
    with pytest.raises(
        ValueError, match="is of version 1, and this kcd_core reads version 2: finish the run"
    ):
        run.load_state_dict({**state, "version": 1})


# -- values that are not finite -------------------------------------------------------------------------------


@pytest.mark.parametrize("device", [None, "cpu"])
def test_values_that_are_not_finite_are_told_in_their_epoch(device: Any) -> None:
    """Also where no stage is due, and nothing else has looked at what a device holds: once, and of each kind."""
    run = by_hand(schedule=kcd.CondensationSchedule(0.7, 6, 40), device=device)
    for epoch in (1, 2, 3):
        run.record(torch.full((4, 5), torch.nan if epoch > 1 else 0.0), indices=range(4))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run.end_epoch()
        assert [str(w.message)[:24] for w in caught] == ["4 values were not finite"] * (epoch == 2)
        assert run.epoch == epoch + 1
    assert run.tracker.skipped["nonfinite"] == 8


def test_values_on_a_device_that_are_not_finite_raise_at_their_epochs_end() -> None:
    run = by_hand(schedule=kcd.CondensationSchedule(0.7, 6, 40), device="cpu", on_nonfinite="raise")
    run.record(torch.full((4, 5), torch.nan), indices=range(4))
    with pytest.raises(ValueError, match="4 values were not finite"):
        run.end_epoch()
    assert run.epoch == 1  # nothing was changed
    run.end_epoch()  # what was told is told once
    assert run.epoch == 2


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ((torch.zeros(4, 5), torch.zeros(4, 9)), r"got a tuple of 2: .*output\[0\]"),
        (type("Output", (), {"logits": torch.zeros(4, 5)})(), r"got a Output: pass its \.logits"),
        ({"logits": torch.zeros(4, 5)}, r'got a dict: pass its \["logits"\]'),
        (torch.tensor(0.5), "got a Tensor: one row a sample"),  # the loss
        (0.5, "got a float"),
    ],
)
def test_a_models_whole_output_is_refused_before_its_rows_are_counted(output: Any, message: str) -> None:
    run, loader = by_hand(), wrap(Plain(4), batch_size=4)
    stream = kcd.CondensedStream(key=0, slots=8, schedule=SCHEDULE)
    batches = iter(loader)
    next(batches)
    for record in (
        lambda: stream.record(output, ids=range(4)),
        lambda: run.record(output, indices=range(4)),
        lambda: loader.record(output),
        lambda: loader.record(output, indices=range(4)),
    ):
        with pytest.raises(TypeError, match=f"student_logits must have a row for each sample, {message}"):
            record()
    assert not run.seen
    assert not loader.tracker.batches


class Own:
    """A sampler of the user's."""

    def __init__(self, num_samples: int, **also: Any) -> None:
        self.num_samples, self.kept = num_samples, np.arange(num_samples)
        vars(self).update(also)

    def install(self, condensed_set: kcd.CondensedSet) -> None:
        self.kept = condensed_set.kept


@pytest.mark.parametrize(
    "also", [{"seed": None}, {"stage": None}, {"sizes": (32, 32)}, {"seed": 3, "stage": 2}]
)
def test_what_a_sampler_of_ones_own_may_have_besides(also: dict[str, Any]) -> None:
    run = kcd.Condensation(Own(8, **also), schedule=kcd.CondensationSchedule(0.5, 1, 1), select="random")
    run.record(values=np.arange(8.0), indices=np.arange(8))
    assert len(run.end_epoch().kept) == len(run.sampler.kept) == 4


@pytest.mark.parametrize("name", ["stage", "seed"])
def test_a_sampler_of_ones_own_whose_stage_or_seed_is_no_number_is_refused_at_once(name: str) -> None:
    with pytest.raises(TypeError, match=rf"^sampler\.{name} must be an integer, got 'train'"):
        kcd.Condensation(Own(8, **{name: "train"}), schedule=SCHEDULE)
