"""What the error of a refused state says: all that differs, and what to do about it."""

import re
from pathlib import Path

import pytest
from helpers import Cifar, wrap

import kcd_core as kcd

N = 40
ROOT = Path(__file__).resolve().parents[2]


def loader_with(schedule=None, *, n=N, **options):
    schedule = schedule or kcd.CondensationSchedule(ratio=0.5, stages=2, period=2)
    return wrap(Cifar(n), schedule=schedule, kcd_options=options)


def refusal(loader, state):
    with pytest.raises(ValueError, match="state") as error:
        loader.load_state_dict(state)
    return str(error.value)


def test_all_settings_that_differ_are_named_at_once():
    # Two of them are the tracker's, whose state is a part of the loader's.
    settings = {
        "alpha": (0.03, 0.1),
        "min_weight": (0.7, 0.5),
        "mixing": ("cumulative", "fresh"),
        "statistic": ("mean", "last"),
        "value": ("entropy", "margin"),
    }
    saved, here = ({name: pair[i] for name, pair in settings.items()} for i in (0, 1))
    state = loader_with(**saved).state_dict()
    other = kcd.CondensationSchedule(ratio=0.6, stages=2, period=2)
    named = {
        **settings,
        "schedule": (loader_with().schedule.state_dict(), other.state_dict()),
    }
    for states in (state, [state]):
        why = refusal(loader_with(other, **here), states)
        assert set(re.findall(r"with (\w+) = ", why)) == set(named)
        for name, (one, two) in named.items():
            assert f"with {name} = {one!r}, here it is {two!r}" in why
    assert "with" not in refusal(loader_with(**{**saved, "alpha": 0.1}), state).split("alpha")[1]
    loader_with(**saved).load_state_dict(state)


def test_another_number_of_samples_is_not_named_as_another_data_set_too():
    why = refusal(loader_with(n=N + 1), loader_with().state_dict())
    assert "num_samples = 40, here it is 41" in why
    assert "dataset" not in why


def test_what_is_no_state_is_said_in_a_line():
    state = loader_with().state_dict()
    needed = len(state) - 1  # all but the account, which older ones lack
    why = refusal(loader_with(), {})
    shown = re.findall("'(\\w+)'", why)
    assert len(shown) == 3
    assert set(shown) < set(state)
    assert why.startswith("not a loader state: ")
    assert f"nor {needed - 3} other things" in why
    several = {key: value for key, value in state.items() if key not in ("alpha", "epoch", "history")}
    assert "other things" not in refusal(loader_with(), several)


def test_a_run_for_more_epochs_is_told_to_keep_its_schedule():
    saver = loader_with(kcd.CondensationSchedule.for_epochs(30))
    for batch in saver:
        saver.record(values=batch[1].float())
    saver.end_epoch()
    state = saver.state_dict()
    why = refusal(loader_with(kcd.CondensationSchedule.for_epochs(40)), state)
    keep = re.search(r"more epochs, keep the schedule, (CondensationSchedule\(.*?\)):", why)
    resumed = loader_with(eval(keep[1], {"CondensationSchedule": kcd.CondensationSchedule}))
    resumed.load_state_dict(state)
    assert (resumed.epoch, resumed.schedule) == (2, saver.schedule)
    # The guide writes the same one.
    text = (ROOT / "docs/guide.md").read_text()
    written = re.search(
        r"keep the saved schedule, such as `(.*?)` for a run that\s+began with `for_epochs\(30\)`", text
    )
    assert eval(written[1], {"CondensationSchedule": kcd.CondensationSchedule}) == saver.schedule


class Alternating(kcd.CondensationSchedule):
    """Another kind of schedule, with the settings of its parent."""


def test_only_a_schedule_of_the_same_kind_is_advised():
    saved, here = kcd.CondensationSchedule.for_epochs(30), Alternating.for_epochs(40)
    for one, two in [(saved, here), (here, saved)]:
        assert "more epochs" not in refusal(loader_with(two), loader_with(one).state_dict())
    damaged = {**loader_with(saved).state_dict(), "schedule": {"ratio": 3}}
    assert "more epochs" not in refusal(loader_with(saved), damaged)


def test_a_state_without_mixing_is_refused_by_auto_which_says_what_to_give():
    state = loader_with(mixing=None).state_dict()
    why = refusal(loader_with(), state)
    assert "with mixing = None, here it is 'cumulative'" in why
    assert 'mixing="auto" takes over' in why
    assert "give mixing=None" in why
    loader_with(mixing=None).load_state_dict(state)
    # A mode that was written is not "auto".
    assert "auto" not in refusal(loader_with(mixing="fresh"), state)
    for mixing in ("cumulative", "fresh"):
        resumed = loader_with()
        resumed.load_state_dict(loader_with(mixing=mixing).state_dict())
        assert resumed.sampler.mixing == mixing
    # Neither is the sampler's own state, which some adapters load alone.
    sampler = loader_with().sampler
    with pytest.raises(ValueError, match="give mixing=None, or --mixing none"):
        sampler.load_state_dict(state["sampler"])
