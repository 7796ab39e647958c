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
    loader = wrap(Plain(N), batch_size=9, drop_last=True)  # 4 samples are left out of the first epoch
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


def test_the_cut_is_the_score_of_the_last_kept_sample(loader):
    history = kcd.CondensationHistory(4)
    chosen = kcd.condense(np.array([0.2, 0.9, 0.5, 0.7]), np.array([1, 1, 2, 1]), previous=4, target=3)
    history.append(chosen, np.array([0.2, 0.9, 0.5, 0.7]), np.array([1, 1, 2, 1]), epoch=7)
    assert history[0]["cut"] == pytest.approx(0.5 * 2**0.03)
    assert (history[0]["epoch"], history[0]["kept"], history[0]["dropped"]) == (7, 3, 1)


def test_tensors_and_samples_never_recorded():
    tracker = kcd.KnowledgeValueTracker(4, device="cpu")
    tracker.record([0, 1], torch.tensor([0.5, 0.25]))
    chosen = kcd.condense(tracker.value, tracker.count, previous=4, target=2)
    history = kcd.CondensationHistory(4)
    history.append(chosen, tracker.value, tracker.count, epoch=1)
    assert history[0]["cut"] is None  # the last kept sample was never recorded
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


def test_of_very_many_samples_every_kth_is_looked_at():
    n = (1 << 20) + 5
    value, count = np.linspace(0, 1, n), np.ones(n, np.int32)
    history = kcd.CondensationHistory(n)
    history.append(kcd.condense(value, count, previous=n, target=n - 10), value, count, epoch=1)
    assert history[0]["kept"] == n - 10
    assert n / 2 - 1 <= sum(history[0]["counts"]) <= n / 2 + 1
    assert history[0]["quantiles"][3] == pytest.approx(0.5, abs=1e-3)


def test_text(loader):
    *lines, cost = str(loader.history).splitlines()
    assert cost == str(loader.account)
    assert len(lines) == 6
    assert lines[0].split() == ["stage", "epoch", "kept", "share", "dropped", "mixed", "cut"]
    assert lines[2].split()[:6] == ["2", "2", "28", "70.0%", "6", "6"]
    assert len({len(line) for line in lines}) == 1
    assert str(kcd.CondensationHistory(3)).count("\n") == 0


def test_state_goes_through_json_and_torch(loader):
    state = loader.history.state_dict()
    told = json.loads(loader.history.to_json())
    assert told.pop("account") == loader.account.state_dict()
    assert kcd.CondensationHistory.from_state(told).settings == told.pop("settings")
    assert identical_state(told, state)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    again = kcd.CondensationHistory.from_state(torch.load(file, weights_only=True))
    assert again.state_dict() == state
    assert str(again) == str(loader.history).rpartition("\n")[0]  # the account is in to_json
    assert str(kcd.CondensationHistory.from_state(json.loads(loader.history.to_json()))) == str(
        loader.history
    )
    again.records.pop()
    assert len(loader.history) == 5


@pytest.mark.parametrize(
    ("given", "differ"),
    [
        ({}, {}),
        ({"mixing": "cumulative", "alpha": 0.1}, {"mixing": "cumulative", "alpha": 0.1}),
        ({"select": "random", "value": "margin"}, {"select": "random", "value": "margin", "mixing": "none"}),
        ({"ask": 0.25, "min_weight": 0.9}, {"ask": 0.25, "min_weight": 0.9}),
        (
            {"ask": kcd.CondensationSchedule(0.25, 2, 3, warmup=4)},
            {"ask": {"ratio": 0.25, "stages": 2, "period": 3, "warmup": 4}},
        ),
        ({"statistic": "last"}, {"statistic": "last"}),
    ],
    ids=lambda part: "-".join(part),
)
def test_the_json_says_what_the_run_was_given(given, differ):
    usual = {
        **{"ratio": 0.5, "stages": 3, "period": 1, "warmup": 0, "alpha": 0.03, "min_weight": 0.7},
        **{"mixing": "fresh", "value": "entropy", "statistic": "mean", "select": None},
    }
    loader = wrap(Plain(N), kcd_options=given)
    assert json.loads(loader.history.to_json())["settings"] == {**usual, **differ}


NEVER_MIXED = {
    "ratio 1": ({"schedule": kcd.CondensationSchedule(ratio=1, stages=3, period=1)}, "mixing", "fresh"),
    "less than one a stage": ({"schedule": kcd.CondensationSchedule(0.99, stages=6)}, "mixing", "cumulative"),
    "a gate alone": ({"schedule": None}, "ask", 0.5),
    "all to the end": ({"schedule": kcd.FreeSchedule(3, until=3)}, "select", "keep_all"),
}


@pytest.mark.filterwarnings("ignore:the schedule will drop nothing")
@pytest.mark.parametrize("name", NEVER_MIXED)
def test_a_run_in_which_nothing_is_dropped_says_that_nothing_is_mixed(name):
    given, setting, value = NEVER_MIXED[name]
    loader = wrap(
        Plain(N),
        schedule=given["schedule"],
        kcd_options={setting: keep_all if value == "keep_all" else value},
    )
    assert loader.sampler.mixing is not None
    assert json.loads(loader.history.to_json())["settings"]["mixing"] == "none"


def test_a_run_by_hand_whose_rule_mixes_nothing_says_so_whatever_its_sampler_would_do():
    for select, mixing in ((None, "cumulative"), ("random", "none"), (keep_all, "cumulative")):
        run = kcd.Condensation(kcd.CondensedSampler(N), schedule=kcd.CondensationSchedule(0.5), select=select)
        assert run.history.settings["mixing"] == mixing


def test_the_json_of_a_resumed_run_says_it_too_and_names_another_schedule():
    loader = wrap(Plain(N), schedule=kcd.FreeSchedule(period=2), kcd_options={"select": keep_all})
    run_epoch(loader)
    resumed = wrap(Plain(N), schedule=kcd.FreeSchedule(period=2), kcd_options={"select": keep_all})
    resumed.load_state_dict(loader.state_dict())
    settings = json.loads(resumed.history.to_json())["settings"]
    assert settings == json.loads(loader.history.to_json())["settings"]
    assert (settings["schedule"], settings["period"], settings["select"]) == ("FreeSchedule", 2, "keep_all")


def keep_all(value, count, kept, target, generator):
    return kcd.CondensedSet(np.arange(N), N)


def test_settings_that_are_none_are_refused(loader):
    state = {**loader.history.state_dict(), "settings": ["ratio", 0.5]}
    with pytest.raises(ValueError, match="not a history state: settings must be an object, got"):
        kcd.CondensationHistory.from_state(state)


@pytest.mark.parametrize(
    "change", ["stage", "epoch", "kept", "dropped", "mixed", "cut", "unseen", "quantiles", "edges", "counts"]
)
@pytest.mark.parametrize("garbage", ["text", [[1], [2, 3]], {}, True, 1.5e300, 10**400, "missing"])
def test_damage_is_refused_and_named(loader, change, garbage):
    state = json.loads(loader.history.to_json())
    if garbage == "missing":
        del state["records"][2][change]
    elif (change, garbage) == ("cut", 1.5e300):
        state["records"][2][change] = float("nan")  # any finite number may be a cut
    else:
        state["records"][2][change] = garbage
    with pytest.raises(
        ValueError, match=rf"not a history state: records\[2\]\.{change}(\[0\])? must be"
    ) as error:
        kcd.CondensationHistory.from_state(state)
    assert len(str(error.value)) < 300


def test_a_damaged_history_leaves_a_loader_as_it_was(loader):
    state = json.loads(loader.history.to_json())
    state["records"][4]["epoch"] = 4
    fresh = wrap(Plain(N), batch_size=9, drop_last=True)
    before = fresh.state_dict()
    with pytest.raises(
        ValueError, match=r"records\[4\]: epochs must rise .*epoch 4 after stage 4 at epoch 4"
    ):
        fresh.load_state_dict({**loader.state_dict(), "history": state})
    assert identical_state(fresh.state_dict(), before)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stage": 0}, r"records\[1\].stage must be a whole number from 1 to 2147483648, got 0"),
        ({"epoch": 0}, r"records\[1\].epoch must be a whole number from 1 to 2147483648, got 0"),
        ({"kept": 0}, r"records\[1\].kept must be a whole number from 1 to 40, got 0"),
        ({"kept": 41}, "kept must be a whole number from 1 to 40, got 41"),
        ({"dropped": 13}, "dropped must be a whole number from 0 to 12, got 13"),
        ({"mixed": 29}, "mixed must be a whole number from 0 to 28, got 29"),
        ({"unseen": 41}, "unseen must be a whole number from 0 to 40, got 41"),
        ({"epoch": 1 << 32}, "epoch must be a whole number from 1 to 2147483648"),
        ({"epoch": 1}, r"records\[1\]: epochs must rise"),
        ({"epoch": 3}, r"records\[2\]: epochs must rise"),
        (
            {"stage": 4},
            r"records\[2\]: .* stages must not fall, got stage 3 at epoch 3 after stage 4 at epoch 2",
        ),
        ({"cut": 2e300}, "cut must be a number of size at most 1e.300, got 2e.300"),
        ({"quantiles": [0.0] * 6}, "quantiles must be a list of 0 or 7 numbers"),
        (
            {"quantiles": [0.0] * 6 + [float("nan")]},
            r"quantiles\[6\] must be a number of size at most 1e.300, got nan",
        ),
        ({"edges": [0.0] * 1002}, "edges must be a list of 2 to 1001 numbers"),
        ({"edges": [0.0, 0.0], "counts": [1]}, "edges must rise"),
        ({"edges": [0.0, 1.0], "counts": [1, 2]}, "counts must be a list of 1 numbers"),
        ({"edges": [0.0, 1.0], "counts": [-1]}, r"counts\[0\] must be a whole number from 0 to 40, got -1"),
        ({"edges": [0.0, 1.0], "counts": [1.0]}, r"counts\[0\] must be a whole number from 0 to 40, got 1.0"),
    ],
)
def test_what_no_run_records_is_refused(loader, changes, reason):
    state = loader.history.state_dict()
    state["records"][1].update(changes)
    with pytest.raises(ValueError, match=f"not a history state: .*{reason}"):
        kcd.CondensationHistory.from_state(state)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (None, "it must be an object"),
        ([], "it must be an object"),
        ({"records": []}, "it must be an object"),
        ({"num_samples": 4}, "it must be an object"),
        ({"num_samples": 0, "records": []}, "num_samples must be a whole number from 1"),
        ({"num_samples": True, "records": []}, "num_samples must be a whole number"),
        ({"num_samples": 4, "records": {}}, "records must be a list of at most 100000 stages"),
        ({"num_samples": 4, "records": [0] * 100_001}, "records must be a list of at most 100000 stages"),
        ({"num_samples": 4, "records": [None]}, r"records\[0\] must be an object, got None"),
    ],
)
def test_what_is_no_history_is_refused(state, reason):
    with pytest.raises(ValueError, match=f"not a history state: {reason}"):
        kcd.CondensationHistory.from_state(state)


def test_a_state_shares_nothing_with_the_history(loader):
    history = kcd.CondensationHistory.from_state(loader.history.state_dict())
    text = history.to_json()
    state = history.state_dict()
    again = kcd.CondensationHistory.from_state(state)
    for record in state["records"]:
        record["kept"] = 1
        for name in ("quantiles", "edges", "counts"):
            record[name].clear()
    assert history.to_json() == again.to_json() == text


def test_records_come_in_order():
    """Else a state could be saved that can't be loaded."""
    value, count = np.array([0.2, 0.9]), np.array([1, 1])
    history = kcd.CondensationHistory(2)
    history.append(kcd.condense(value, count, previous=2, target=1, stage=3), value, count, epoch=7)
    for stage, epoch in ((4, 7), (4, 1), (2, 8)):
        chosen = kcd.condense(value, count, previous=1, target=1, stage=stage)
        with pytest.raises(
            ValueError, match=f"next record: .* got stage {stage} at epoch {epoch} after stage 3"
        ):
            history.append(chosen, value, count, epoch=epoch)
    assert len(history) == 1
    history.append(kcd.condense(value, count, previous=1, target=1, stage=3), value, count, epoch=8)
    assert kcd.CondensationHistory.from_state(history.state_dict()).records == history.records
    with pytest.raises(ValueError, match="epoch must be at least 1"):
        kcd.CondensationHistory(2).append(chosen, value, count, epoch=0)


def test_a_history_of_another_data_set_is_refused(loader):
    fresh = wrap(Plain(N), batch_size=9, drop_last=True)
    with pytest.raises(ValueError, match="its history is of 41 samples"):
        fresh.load_state_dict({**loader.state_dict(), "history": kcd.CondensationHistory(41).state_dict()})


def test_a_history_needs_samples():
    with pytest.raises(ValueError, match="num_samples"):
        kcd.CondensationHistory(0)


def areas(axes, color):
    """(left, right) of every area of one colour."""
    matplotlib = pytest.importorskip("matplotlib.colors")
    found = [c for c in axes.collections if c.get_facecolor().tolist()[0] == list(matplotlib.to_rgba(color))]
    return [tuple(c.get_paths()[0].get_extents().intervalx) for c in found]


def test_picture(loader):
    pytest.importorskip("matplotlib")
    axes = loader.history.plot()
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [f"stage {i}, epoch {i}" for i in range(1, 6)]
    assert [text.get_text() for text in axes.texts] == [
        f"keeps {share}%" for share in (85.0, 70.0, 55.0, 50.0, 50.0)
    ]
    assert "ranking score" in axes.get_xlabel()
    keys = {text.get_text(): handle for text, handle in zip(*keys_of(axes), strict=True)}
    assert list(keys) == ["kept", "below the cut: left out", "cut"]
    for record, left, right in zip(
        loader.history,
        areas(axes, keys["below the cut: left out"].get_facecolor()),
        areas(axes, keys["kept"].get_facecolor()),
        strict=True,
    ):
        assert left == pytest.approx((record["edges"][0], record["cut"]))
        assert right == pytest.approx((record["cut"], record["edges"][-1]))
    file = io.BytesIO()
    axes.figure.savefig(file)
    assert file.getvalue().startswith(b"\x89PNG")
    assert loader.history.plot(axes) is axes


def keys_of(axes):
    legend = axes.get_legend()
    return legend.get_texts(), legend.legend_handles


def test_the_colours_of_a_picture_differ_in_grey(loader):
    pytest.importorskip("matplotlib")
    texts, handles = keys_of(loader.history.plot())
    grey = {
        text.get_text(): float(np.dot(handle.get_facecolor()[:3], [0.299, 0.587, 0.114]))
        for text, handle in zip(texts[:2], handles[:2], strict=True)
    }
    assert abs(grey["kept"] - grey["below the cut: left out"]) > 0.3


def test_a_picture_without_a_cut_says_so():
    """A selection of one's own has no cut, and so no side of it that was kept."""
    pytest.importorskip("matplotlib")
    history = kcd.CondensationHistory(4)
    history.append(kcd.CondensedSet(np.array([0, 2]), 4), np.arange(4.0), np.ones(4, int), epoch=1)
    axes = history.plot()
    texts, handles = keys_of(axes)
    assert texts[-1].get_text() == "no cut"
    assert areas(axes, handles[-1].get_facecolor()) == [(0.0, 3.0)]
    assert areas(axes, handles[0].get_facecolor()) == []


def test_a_picture_of_no_stage_and_of_many():
    pytest.importorskip("matplotlib")
    history = kcd.CondensationHistory(4)
    history.plot().figure.savefig(io.BytesIO())
    value, count = np.arange(4.0), np.ones(4, int)
    for epoch in range(1, 42):
        history.append(
            kcd.condense(value, count, previous=4, target=4, stage=epoch), value, count, epoch=epoch
        )
    axes = history.plot()
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(names) == 20
    assert (names[0], names[-1]) == ("stage 1, epoch 1", "stage 41, epoch 41")
    assert "20 of 41 stages" in axes.get_xlabel()


def test_a_long_thin_tail_does_not_squeeze_the_picture():
    pytest.importorskip("matplotlib")
    value, count = np.append(np.linspace(0, 1, 9999), 1000.0), np.ones(10_000, int)
    history = kcd.CondensationHistory(10_000)
    history.append(kcd.condense(value, count, previous=10_000, target=7000), value, count, epoch=1)
    axes = history.plot()
    assert axes.get_xlim()[1] == pytest.approx(1000 / 60)  # the first bin
    assert "at most 0.01% of a row lies above" in axes.get_xlabel()


def test_nothing_counts_as_mixed_where_nothing_is():
    loader = kcd.wrap_loader(
        torch.utils.data.DataLoader(range(20), batch_size=5),
        schedule=kcd.CondensationSchedule(0.5, 1, 1),
        mixing=None,
    )
    loader.tracker.record(range(20), np.arange(20.0))
    chosen = loader.end_epoch()  # without a warning: something was recorded, in whatever way
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
