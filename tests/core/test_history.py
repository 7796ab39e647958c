"""What each stage did: as data, as text, as a picture."""

import io
import json

import numpy as np
import pytest
import torch
from helpers import Plain, identical_state, run_epoch, wrap

import kcd_core as kcd

N = 40


@pytest.fixture(scope="module")
def loader():
    loader = wrap(Plain(N), batch_size=9, drop_last=True)  # 4 points are left out of the first epoch
    for _ in range(5):
        run_epoch(loader)
    return loader


def test_a_record_says_what_the_stage_did(loader):
    history = loader.history
    assert len(history) == 5
    assert list(history) == [history[i] for i in range(5)] == history.records
    assert [r["stage"] for r in history] == [r["epoch"] for r in history] == [1, 2, 3, 4, 5]
    assert [r["kept"] for r in history] == [34, 28, 22, 20, 20]
    assert [r["dropped"] for r in history] == [r["mixed"] for r in history] == [6, 6, 6, 2, 0]
    assert history[0]["unseen"] == 4
    assert history[-1]["unseen"] <= 4
    for r in history:
        assert sum(r["counts"]) == N - r["unseen"]
        assert len(r["edges"]) == len(r["counts"]) + 1
        assert r["edges"][0] == r["quantiles"][0]
        assert r["edges"][-1] == r["quantiles"][-1]
        assert r["quantiles"] == sorted(r["quantiles"])
        assert len(r["quantiles"]) == 7


def test_the_cut_is_the_score_of_the_last_kept_point(loader):
    history = kcd.CondensationHistory(4)
    chosen = kcd.condense(np.array([0.2, 0.9, 0.5, 0.7]), np.array([1, 1, 2, 1]), previous=4, target=3)
    history.append(chosen, np.array([0.2, 0.9, 0.5, 0.7]), np.array([1, 1, 2, 1]), epoch=7)
    assert history[0]["cut"] == pytest.approx(0.5 * 2**0.03)
    assert (history[0]["epoch"], history[0]["kept"], history[0]["dropped"]) == (7, 3, 1)


def test_tensors_and_points_never_recorded():
    tracker = kcd.KnowledgeValueTracker(4, device="cpu")
    tracker.record([0, 1], torch.tensor([0.5, 0.25]))
    chosen = kcd.condense(tracker.value, tracker.count, previous=4, target=2)
    history = kcd.CondensationHistory(4)
    history.append(chosen, tracker.value, tracker.count, epoch=1)
    assert history[0]["cut"] is None  # the last kept point was never recorded
    assert history[0]["unseen"] == 2
    assert sum(history[0]["counts"]) == 2
    assert str(history).endswith(" -")


def test_all_values_equal_or_none_at_all():
    history = kcd.CondensationHistory(3)
    value, count = np.zeros(3), np.ones(3, int)
    history.append(kcd.condense(value, count, previous=3, target=2), value, count, epoch=1)
    value, count = np.full(3, np.nan), np.zeros(3, int)
    history.append(kcd.condense(value, count, previous=2, target=2), value, count, epoch=2)
    assert [sum(r["counts"]) for r in history] == [3, 0]
    assert history[1]["unseen"] == 3
    pytest.importorskip("matplotlib")
    history.plot()


def test_a_long_list_of_points_is_sampled():
    n = (1 << 20) + 5
    value, count = np.linspace(0, 1, n), np.ones(n, np.int32)
    history = kcd.CondensationHistory(n)
    history.append(kcd.condense(value, count, previous=n, target=n - 10), value, count, epoch=1)
    assert history[0]["kept"] == n - 10
    assert n / 2 - 1 <= sum(history[0]["counts"]) <= n / 2 + 1
    assert history[0]["quantiles"][3] == pytest.approx(0.5, abs=1e-3)


def test_text(loader):
    lines = str(loader.history).splitlines()
    assert len(lines) == 6
    assert lines[0].split() == ["stage", "epoch", "kept", "share", "dropped", "mixed", "cut"]
    assert lines[2].split()[:6] == ["2", "2", "28", "70.0%", "6", "6"]
    assert len({len(line) for line in lines}) == 1
    assert str(kcd.CondensationHistory(3)).count("\n") == 0


def test_state_goes_through_json_and_torch(loader):
    state = loader.history.state_dict()
    assert identical_state(json.loads(loader.history.to_json()), state)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    again = kcd.CondensationHistory.from_state(torch.load(file, weights_only=True))
    assert again.state_dict() == state
    assert str(again) == str(loader.history)
    again.records.pop()
    assert len(loader.history) == 5


@pytest.mark.parametrize(
    "change", ["stage", "epoch", "kept", "dropped", "mixed", "cut", "unseen", "quantiles", "edges", "counts"]
)
@pytest.mark.parametrize("garbage", ["text", [[1], [2, 3]], {}, "missing"])
def test_damage_is_refused(loader, change, garbage):
    state = json.loads(loader.history.to_json())
    if garbage == "missing":
        del state["records"][2][change]
    else:
        state["records"][2][change] = garbage
    with pytest.raises(ValueError, match="not a history state"):
        kcd.CondensationHistory.from_state(state)
    fresh = wrap(Plain(N), batch_size=9, drop_last=True)
    before = fresh.state_dict()
    with pytest.raises(ValueError, match="not a history state"):
        fresh.load_state_dict({**loader.state_dict(), "history": state})
    assert identical_state(fresh.state_dict(), before)


def test_a_history_of_another_data_set_is_refused(loader):
    fresh = wrap(Plain(N), batch_size=9, drop_last=True)
    with pytest.raises(ValueError, match="its history is of 41 samples"):
        fresh.load_state_dict({**loader.state_dict(), "history": kcd.CondensationHistory(41).state_dict()})


def test_a_history_needs_points():
    with pytest.raises(ValueError, match="num_samples"):
        kcd.CondensationHistory(0)


def test_picture(loader):
    pytest.importorskip("matplotlib")
    axes = loader.history.plot()
    assert len(axes.get_yticks()) == 5
    assert [label.get_text().split("\n")[0] for label in axes.get_yticklabels()] == [
        f"stage {i}" for i in range(1, 6)
    ]
    assert axes.get_xlabel()
    file = io.BytesIO()
    axes.figure.savefig(file)
    assert file.getvalue().startswith(b"\x89PNG")
    assert loader.history.plot(axes) is axes


def test_nothing_counts_as_mixed_where_nothing_is():
    loader = kcd.wrap_loader(
        torch.utils.data.DataLoader(range(20), batch_size=5),
        schedule=kcd.CondensationSchedule(0.5, 1, 1),
        mixing=None,
    )
    loader.tracker.record(range(20), np.arange(20.0))
    with pytest.warns(UserWarning, match="nothing was recorded"):
        chosen = loader.end_epoch()
    assert len(chosen.tail) == 10
    assert loader.history[0]["mixed"] == 0


def test_scores_that_hardly_differ_have_a_histogram():
    value, count = np.array([1, 1, 1, 1 + 2e-16]), np.ones(4, int)
    history = kcd.CondensationHistory(4)
    history.append(kcd.condense(value, count, previous=4, target=2), value, count, epoch=1)
    assert sum(history[0]["counts"]) == 4


def test_an_entry_is_what_append_adds_and_changes_nothing():
    value, count = np.array([0.2, 0.9, 0.5, 0.7]), np.array([1, 1, 2, 0])
    first, second = (kcd.condense(value, count, previous=4 - i, target=3 - i, stage=1 + i) for i in range(2))
    history, other = kcd.CondensationHistory(4), kcd.CondensationHistory(4)
    history.append(first, value, count, epoch=1)
    before = history.state_dict()
    entry = history.entry(second, value, count, epoch=2, mixing=False)
    assert history.state_dict() == before
    assert (entry["kept"], entry["dropped"], entry["mixed"], entry["unseen"]) == (2, 1, 0, 1)
    history.append(second, value, count, epoch=2, mixing=False)
    other.records = [*before["records"], entry]
    assert history.state_dict() == other.state_dict()
