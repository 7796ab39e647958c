"""What V is of a sample's recordings, against lists of them that are read by index in float64."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Plain, examples, identical_state, index_of, join_ranks, leave_together, run_ranks
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler

import kcd_core as kcd

Tracker = kcd.KnowledgeValueTracker
N = 13
STATISTICS = ["mean", "stage_mean", "last", "variance"]
WINDOWED = ["stage_mean", "last"]
DEVICES = [None, "cpu"]
EVERY_EPOCH = kcd.CondensationSchedule(ratio=0.5, stages=3, period=1)
EVERY_OTHER = kcd.CondensationSchedule(ratio=0.5, stages=3, period=2)


class Listed:
    """Every recording in a list, with the epoch and the stage of which it was."""

    def __init__(self, statistic: str) -> None:
        self.statistic, self.epoch, self.stage = statistic, 1, 1
        self.made: list[tuple[int, float, int, int]] = []

    def record(self, indices: Any, values: Any) -> None:
        self.made += [
            (int(i), float(v), self.epoch, self.stage) for i, v in zip(indices, values, strict=True)
        ]

    def value(self, index: int) -> float:
        mine = [(v, epoch, stage) for i, v, epoch, stage in self.made if i == index]
        if not mine:
            return np.nan
        if self.statistic == "last":
            mine = [x for x in mine if x[1] == mine[-1][1]]
        if self.statistic == "stage_mean":
            mine = [x for x in mine if x[2] == mine[-1][2]]
        values = np.array([v for v, *_ in mine])
        return float(values.var() if self.statistic == "variance" else values.mean())

    @property
    def values(self) -> Any:
        return np.array([self.value(i) for i in range(N)])

    @property
    def counts(self) -> list[int]:
        return np.bincount([i for i, *_ in self.made], minlength=N).tolist()

    def top(self, size: int, alpha: float = 0.03) -> list[int]:
        """The samples of highest score; those that were never recorded first."""
        score = [v * c**alpha if c else np.inf for v, c in zip(self.values, self.counts, strict=True)]
        return sorted(sorted(range(N), key=lambda i: (-score[i], i))[:size])


def host(x: Any) -> Any:
    return torch.as_tensor(x).cpu().numpy()


def assert_reads(tracker: Any, listed: Listed) -> None:
    np.testing.assert_allclose(host(tracker.value), listed.values, atol=1e-9, rtol=1e-12)
    assert host(tracker.count).tolist() == listed.counts
    assert tracker.statistic == listed.statistic


def made(statistic: Any, schedule: Any = EVERY_OTHER, device: Any = None, **more: Any) -> Any:
    return kcd.Condensation(
        kcd.CondensedSampler(N, mixing=None), schedule=schedule, statistic=statistic, device=device, **more
    )


BATCH = st.lists(
    st.tuples(st.integers(0, N - 1), st.integers(-4000, 4000).map(lambda x: x / 8)), min_size=1, max_size=9
)


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.filterwarnings("ignore:nothing was recorded in epoch")
@given(steps=st.lists(st.one_of(BATCH, st.sampled_from(["epoch", "save", "copy"])), max_size=30))
@examples(20)
def test_a_run_against_lists(statistic: str, device: Any, steps: list[Any]) -> None:
    """Whatever is recorded, ended, saved and loaded, in whatever order."""
    run, listed = made(statistic, device=device), Listed(statistic)
    run.record(values=np.arange(N) * 1.0, indices=np.arange(N))
    listed.record(range(N), range(N))
    for step in steps:
        if step == "epoch":
            chosen = run.end_epoch()
            if chosen is not None:
                if statistic != "variance":  # of which many are 0, but for rounding
                    assert chosen.kept.tolist() == listed.top(len(chosen.kept))
                listed.stage += 1
            listed.epoch += 1
        elif step == "save":
            run, state = made(statistic, device=device), run.state_dict()
            run.load_state_dict(state)
        elif step == "copy":
            run = pickle.loads(pickle.dumps(run))
        else:
            indices, values = (np.array(x) for x in zip(*step, strict=True))
            run.record(values=values, indices=indices)
            listed.record(indices, values)
        assert_reads(run.tracker, listed)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_default_holds_nothing_more(statistic: str) -> None:
    arrays = {
        k for k, x in Tracker(N, statistic=statistic).state_dict().items() if isinstance(x, torch.Tensor)
    }
    more = {"variance": {"squares"}, "mean": set()}.get(statistic, {"held", "held_count"})
    assert arrays == {"total", "count"} | more


def test_a_state_without_the_key_is_of_means() -> None:
    old = Tracker(N)
    old.record([1, 2, 1], [0.5, 1.0, 2.0])
    state = old.state_dict()
    del state["statistic"]
    new = Tracker(N)
    new.load_state_dict(state)
    assert identical_state(new.state_dict(), old.state_dict())
    for statistic in STATISTICS[1:]:
        with pytest.raises(ValueError, match=f"saved with statistic = 'mean', here it is '{statistic}'"):
            Tracker(N, statistic=statistic).load_state_dict(state)


@pytest.mark.parametrize(
    ("statistic", "key", "wrong"),
    [
        ("variance", "squares", torch.zeros(N)),
        ("variance", "squares", torch.full((N,), -1)),
        ("variance", "squares", torch.ones(N, dtype=torch.int64)),  # of what was never recorded
        ("last", "held", torch.zeros(N)),
        ("last", "held", torch.zeros(N, dtype=torch.float64)),  # with no count
        ("last", "held_count", torch.ones(N, dtype=torch.int32)),
        ("last", "held_count", torch.ones(N - 1, dtype=torch.int32)),
    ],
)
def test_a_damaged_state_is_refused(statistic: Any, key: str, wrong: Any) -> None:
    tracker = Tracker(N, statistic=statistic)
    tracker.record([0], [1.0])
    tracker.end_epoch()
    before = tracker.state_dict()
    with pytest.raises(ValueError, match="tracker state is damaged"):
        tracker.load_state_dict({**before, key: wrong})
    del before[key]
    with pytest.raises(ValueError, match=f"not a tracker state: it has no '{key}'"):
        tracker.load_state_dict(before)


# -- the variance ------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_values_whose_squares_are_too_large(device: Any) -> None:
    tracker = Tracker(N, statistic="variance", device=device)
    tracker.record([0, 0, 1, 2, 3], [2.0**10, -(2.0**10), 2.0**10 + 1, 1e300, np.nan])
    with pytest.warns(RuntimeWarning, match=r"3 values were not finite .* or larger than 2\*\*10 in size"):
        value = host(tracker.value)
    assert value[0] == 2.0**20
    assert host(tracker.count).tolist() == [2] + [0] * (N - 1)
    refusing = Tracker(N, statistic="variance", device=device, on_nonfinite="raise")
    call: Callable[[], Any] = lambda: (refusing.record([0], [1025.0]), refusing.report())  # noqa: E731
    with pytest.raises(ValueError, match=r"1 values .* larger than 2\*\*10"):
        call()


@pytest.mark.parametrize("device", DEVICES)
def test_a_sample_whose_squares_are_full_is_not_recorded_any_further(device: Any) -> None:
    tracker = Tracker(2, statistic="variance", device=device)

    def recorded() -> Any:
        for _ in range(9):
            tracker.record([0, 1], [1000.0, 0.5])
            assert tracker.skipped["out_of_range"] == 0  # which adds what waits
        return tracker.sums()

    with pytest.warns(RuntimeWarning, match="add up to more than"):
        total, count, squares = recorded()
    assert count.tolist() == [5, 9]
    assert total.tolist() == [5 * 1000 * 2**40, 9 * 2**39]
    assert squares.tolist() == [5 * 10**6 * 2**40, 9 * 2**38]
    assert host(tracker.value)[0] == 0


def test_equal_recordings_have_no_variance() -> None:
    tracker = Tracker(N, statistic="variance")
    for _ in range(50):
        tracker.record(np.arange(N), np.linspace(0, 12, N) / 3)
    assert (tracker.value >= 0).all()
    assert tracker.value.max() < 1e-10


# -- windows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistic", WINDOWED)
def test_an_epoch_that_could_not_end_is_undone(statistic: Any) -> None:
    """In whatever moment it failed: what is recorded, and what is held, is as it was."""

    class Failing(kcd.CondensedSampler):
        fail = False

        def set_epoch(self, epoch: int) -> None:
            if self.fail and epoch > 2:
                raise KeyboardInterrupt
            super().set_epoch(epoch)

    run = kcd.Condensation(Failing(N, mixing=None), schedule=EVERY_EPOCH, statistic=statistic)
    listed = Listed(statistic)
    for epoch in (1, 2):
        indices = np.arange(epoch, N - epoch)
        run.record(values=indices / epoch, indices=indices)
        listed.record(indices, indices / epoch)
        if epoch == 1:
            run.end_epoch()
            listed.epoch = listed.stage = 2
    before = copy.deepcopy(run.state_dict())
    run.sampler.fail = True
    with pytest.raises(KeyboardInterrupt):
        run.end_epoch()
    assert identical_state(run.state_dict(), before)
    assert_reads(run.tracker, listed)
    run.sampler.fail = False
    assert run.end_epoch().kept.tolist() == listed.top(9)
    assert_reads(run.tracker, listed)


def test_what_was_skipped_outlives_its_window() -> None:
    tracker = Tracker(N, statistic="last")
    tracker.record([0, 1], [1.0, np.nan])
    with pytest.warns(RuntimeWarning, match="1 values were not finite"):
        tracker.end_epoch()
    assert tracker.skipped == {"nonfinite": 1, "out_of_range": 0}


def test_states_whose_held_counts_differ_are_not_joined() -> None:
    tracker = Tracker(N, statistic="last")
    tracker.record([0], [1.0])
    tracker.end_epoch()
    one, other = tracker.state_dict(), tracker.state_dict()
    other["held_count"][0] = 2
    with pytest.raises(ValueError, match="not saved at one step"):
        tracker.load_state_dict([one, other])


def test_what_is_recorded_while_a_window_ends_is_of_the_next() -> None:
    tracker = Tracker(N, statistic="last")
    tracker.record([0, 1], [1.0, 2.0])
    ended = tracker.settled()
    tracker.record([1, 2], [5.0, 7.0])
    tracker.settle(ended)
    tracker.record([1], [9.0])
    np.testing.assert_array_equal(tracker.value[:4], [1.0, 7.0, 7.0, np.nan])
    assert tracker.count[:4].tolist() == [1, 3, 1, 0]


def test_stages_by_hand() -> None:
    """`condense_step` ends a stage, and nothing else does."""
    tracker, sampler, listed = (
        Tracker(N, statistic="stage_mean"),
        kcd.CondensedSampler(N, mixing=None),
        Listed("stage_mean"),
    )
    for epoch in range(1, 7):
        indices = np.arange(epoch % 3, N)
        tracker.record(indices, np.cos(indices * epoch) + 2)
        listed.record(indices, np.cos(indices * epoch) + 2)
        tracker.end_epoch()  # of no matter
        if epoch % 2 == 0:
            chosen = kcd.condense_step(tracker, sampler, EVERY_OTHER)
            assert chosen.kept.tolist() == listed.top(len(chosen.kept))
            listed.stage += 1
        assert_reads(tracker, listed)


def test_epochs_by_hand_have_to_be_ended() -> None:
    tracker, sampler = Tracker(N, statistic="last"), kcd.CondensedSampler(N, mixing=None)
    listed = Listed("last")
    for epoch in range(1, 5):
        indices = np.arange(epoch - 1, N)
        tracker.record(indices, np.sin(indices * epoch) + 2)
        listed.record(indices, np.sin(indices * epoch) + 2)
        before = tracker.state_dict(), sampler.state_dict()
        with pytest.raises(RuntimeError, match=r"needs tracker.end_epoch\(\) at the end of every epoch"):
            kcd.condense_step(tracker, sampler, EVERY_EPOCH)
        assert identical_state(
            {"t": tracker.state_dict(), "s": sampler.state_dict()}, dict(zip("ts", before, strict=True))
        )
        tracker.end_epoch()
        listed.epoch += 1
        if epoch % 2 == 0:
            assert kcd.condense_step(tracker, sampler, EVERY_EPOCH).kept.tolist() == listed.top(
                len(sampler.kept)
            )
        assert_reads(tracker, listed)


@pytest.mark.parametrize("statistic", WINDOWED)
@pytest.mark.parametrize("device", DEVICES)
def test_moving_and_copying(statistic: Any, device: Any) -> None:
    tracker, listed = Tracker(N, statistic=statistic), Listed(statistic)
    tracker.record([0, 1, 1], [1.0, 2.0, 3.0])
    listed.record([0, 1, 1], [1.0, 2.0, 3.0])
    kcd.condense_step(
        tracker, kcd.CondensedSampler(N), EVERY_EPOCH
    ) if statistic == "stage_mean" else tracker.end_epoch()
    listed.epoch = listed.stage = 2
    for other in (copy.copy(tracker), copy.deepcopy(tracker)):
        other.to(device).record([1, 4], [8.0, 9.0])
        other.to(None if device else "cpu")
        assert host(other.value)[[1, 4]].tolist() == [8.0, 9.0]
        assert host(other.count)[[1, 4]].tolist() == [3, 1]
        assert_reads(tracker, listed)


# -- loaders -----------------------------------------------------------------------------------------


def value_of(indices: Any, epoch: int) -> Any:
    return np.cos(np.asarray(indices) * (1.0 + epoch)) + 2


def epoch_of(loader: Any, listed: Listed | None = None) -> None:
    epoch = loader.epoch
    for batch in loader:
        loader.record(values=value_of(index_of(batch), epoch))
        if listed is not None:
            listed.record(index_of(batch), value_of(index_of(batch), epoch))


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize(
    "settings", [{"schedule": EVERY_OTHER}, {"schedule": None, "ask": EVERY_OTHER}], ids=["draws", "asks"]
)
def test_a_loader(statistic: Any, settings: Any) -> None:
    """Also where the stages are a gate's."""
    loader = kcd.wrap_loader(
        DataLoader(Plain(N), batch_size=4, shuffle=True), statistic=statistic, mixing=None, **settings
    )
    listed, stages = Listed(statistic), loader.history if loader.gate is None else loader.gate_history
    for epoch in range(1, 8):
        epoch_of(loader, listed)
        loader.end_epoch()
        if len(stages) == listed.stage:
            kept = loader.sampler.kept if loader.gate is None else loader.gate.kept
            if statistic != "variance" or epoch > 2:
                assert kept.tolist() == listed.top(len(kept))
            listed.stage += 1
        listed.epoch += 1
        assert_reads(loader.tracker, listed)
    assert len(stages) == 3


def test_last_goes_with_both_schedules_and_stage_means_do_not() -> None:
    plain = DataLoader(Plain(N), batch_size=4, shuffle=True)
    both: dict[str, Any] = {"schedule": EVERY_OTHER, "ask": 0.5}
    for schedule in (EVERY_OTHER, kcd.CondensationSchedule(ratio=1.0)):  # whose stages end, and drop nothing
        with pytest.raises(
            ValueError, match=r'statistic="stage_mean" can\'t be of the stages of schedule= and of ask='
        ):
            kcd.wrap_loader(plain, statistic="stage_mean", schedule=schedule, ask=0.5)
    loader, listed = kcd.wrap_loader(plain, statistic="last", mixing=None, **both), Listed("last")
    for _ in range(5):
        epoch_of(loader, listed)
        loader.end_epoch()
        assert loader.gate.kept.tolist() == listed.top(len(loader.gate.kept))
        listed.epoch += 1
        assert_reads(loader.tracker, listed)


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("cut", [0, 2])
def test_resumed_within_a_window(statistic: Any, cut: int) -> None:
    def wrapped() -> Any:
        return kcd.wrap_loader(
            DataLoader(Plain(N), batch_size=3, shuffle=True),
            schedule=EVERY_OTHER,
            statistic=statistic,
            seed=4,
        )

    whole, loader = wrapped(), wrapped()
    for _ in range(3):
        epoch_of(whole)
        whole.end_epoch()
    for epoch in range(1, 4):
        batches = iter(loader)
        for _ in range(cut):
            loader.record(values=value_of(index_of(next(batches)), epoch))
        loader, state = wrapped(), loader.state_dict()
        loader.load_state_dict(state)
        epoch_of(loader)
        loader.end_epoch()
    assert identical_state(loader.state_dict(), whole.state_dict())


def test_where_it_is_refused() -> None:
    plain = DataLoader(Plain(N), batch_size=4)
    for statistic in STATISTICS[1:]:
        with pytest.raises(ValueError, match=f"statistic='{statistic}' .* not with sharded=True"):
            kcd.wrap_loader(plain, schedule=EVERY_OTHER, statistic=statistic, sharded=True)
        with pytest.raises(ValueError, match="tracker must be of statistic 'mean'"):
            kcd.condense_sharded(Tracker(N, statistic=statistic), kcd.ShardedSampler(N), EVERY_OTHER)
    with pytest.raises(
        ValueError, match="statistic must be 'mean', 'stage_mean', 'last' or 'variance', got 'median'"
    ):
        Tracker(N, statistic="median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="statistic must be given to the tracker that is there already"):
        made("last", tracker=Tracker(N))


class ByLast:
    """A selection that wants the last values."""

    statistic = "last"

    def __call__(self, value: Any, count: Any, kept: Any, target: int, generator: Any) -> kcd.CondensedSet:
        return kcd.CondensedSet(np.sort(np.argsort(value)[:target]), len(value))


def test_a_selection_says_what_it_wants() -> None:
    plain = DataLoader(Plain(N), batch_size=4)
    settings: dict[str, Any] = {"schedule": EVERY_OTHER, "select": ByLast(), "mixing": None}
    assert kcd.wrap_loader(plain, **settings).tracker.statistic == "last"
    assert kcd.wrap_loader(plain, statistic="variance", **settings).tracker.statistic == "variance"
    assert made(None, select=ByLast()).tracker.statistic == "last"
    assert made("mean", select=ByLast()).tracker.statistic == "mean"
    assert made(None, select=ByLast(), tracker=Tracker(N, statistic="last")).tracker.statistic == "last"
    wrong = "is for values of statistic 'last', and the tracker's is 'mean'"
    with pytest.raises(ValueError, match=wrong):
        made(None, select=ByLast(), tracker=Tracker(N))
    tracker = Tracker(N)
    tracker.record(np.arange(N), np.ones(N))
    with pytest.raises(ValueError, match=wrong):
        kcd.condense_step(tracker, kcd.CondensedSampler(N), EVERY_OTHER, select=ByLast())
    with pytest.raises(ValueError, match=wrong):
        kcd.CondensedStream(range(N), key=int, slots=64, schedule=EVERY_OTHER, select=ByLast())


# -- several ranks -----------------------------------------------------------------------------------


def rank_loader(statistic: Any, world: int, rank: int) -> Any:
    sampler: Any = DistributedSampler(range(N), num_replicas=world, rank=rank, shuffle=True, seed=5)
    loader = DataLoader(Plain(N), batch_size=2, sampler=sampler)
    return kcd.wrap_loader(loader, schedule=EVERY_OTHER, statistic=statistic, mixing=None)


def ranks_work(rank: int, world: int, folder: Path) -> None:
    join_ranks(rank, world, folder)
    result: dict[str, Any] = {}
    for statistic in STATISTICS:
        loader, log = rank_loader(statistic, world, rank), []
        for epoch in range(1, 6):
            epoch_of(loader)
            if epoch == 5:
                torch.save(loader.state_dict(), folder / f"{statistic}-{rank}.pt")
            loader.end_epoch()
            log.append(
                [
                    loader.sampler.kept.tolist(),
                    loader.tracker.state_dict().get("held", torch.zeros(1)).nan_to_num(-1).tolist(),
                ]
            )
        # by hand
        tracker, sampler = Tracker(N, statistic=statistic), kcd.CondensedSampler(N, mixing=None)
        for epoch in range(1, 4):
            mine = np.arange(rank, N, world)[epoch - 1 :]
            tracker.record(mine, value_of(mine, epoch))
            tracker.end_epoch()
        kcd.condense_step(tracker, sampler, EVERY_OTHER)
        result[statistic] = {"log": log, "hand": sampler.kept.tolist()}
    refused: dict[str, Callable[[], Any]] = {}
    unlike = Tracker(N, statistic="stage_mean" if rank else "variance")
    unlike.record(np.arange(N), np.ones(N))
    refused["statistics"] = lambda: kcd.condense_step(
        unlike, kcd.CondensedSampler(N, num_replicas=1, rank=0), EVERY_OTHER
    )
    other = Tracker(N, statistic="last")
    if rank:  # a state that one rank alone loaded
        before = Tracker(N, statistic="stage_mean").state_dict()
        held = {"held": torch.ones(N, dtype=torch.float64), "held_count": torch.ones(N, dtype=torch.int32)}
        other.load_state_dict({**before, "statistic": "last", **held})
    refused["held"] = other.end_epoch
    open_on_one = Tracker(N, statistic="last")
    open_on_one.record([0], [1.0])
    open_on_one.end_epoch()
    if rank:
        open_on_one.record([0], [1.0])
    refused["open"] = lambda: kcd.condense_step(open_on_one, kcd.CondensedSampler(N), EVERY_OTHER)
    for name, call in refused.items():
        try:
            call()
            result[name] = "nothing"
        except RuntimeError as error:
            result[name] = str(error)
    leave_together(folder / f"rank{rank}.json", result, world)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("statistics")
    return folder, run_ranks(ranks_work, 2, folder)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_two_ranks_find_what_one_would(two: Any, statistic: Any) -> None:
    """What they recorded, read by index: the samples of both, each once, however they were shared out."""
    first, second = (each[statistic] for each in two[1])
    assert first == second
    listed = Listed(statistic)
    kept, hand = list(range(N)), Listed(statistic)
    for epoch, (now, held) in enumerate(first["log"], 1):
        listed.record(kept, value_of(kept, epoch))
        if epoch % 2 == 0:
            if statistic != "variance" or epoch > 2:
                assert now == listed.top(len(now))
            listed.stage += 1
        listed.epoch += 1
        if statistic == "last" or (statistic == "stage_mean" and epoch % 2 == 0):
            np.testing.assert_allclose(held, np.nan_to_num(listed.values, nan=-1), atol=1e-9)
        kept = now
    for epoch in range(1, 4):
        for rank in range(2):
            mine = np.arange(rank, N, 2)[epoch - 1 :]
            hand.record(mine, value_of(mine, epoch))
        hand.epoch += 1
    assert first["hand"] == hand.top(len(first["hand"]))


@pytest.mark.parametrize("statistic", STATISTICS)
def test_one_process_goes_on_with_the_states_of_two(two: Any, statistic: Any) -> None:
    """Within a window, before its end."""
    folder, results = two
    states = [torch.load(folder / f"{statistic}-{rank}.pt", weights_only=True) for rank in range(2)]
    loader = rank_loader(statistic, 1, 0)
    loader.load_state_dict(states)
    listed = Listed(statistic)
    kept = list(range(N))
    for epoch in range(1, 6):
        listed.epoch, listed.stage = epoch, (epoch + 1) // 2
        listed.record(kept, value_of(kept, epoch))
        kept = results[0][statistic]["log"][epoch - 1][0]
    assert_reads(loader.tracker, listed)
    loader.end_epoch()
    listed.epoch += 1
    assert_reads(loader.tracker, listed)
    again = rank_loader(statistic, 2, 1)  # and back on two, of which this is the second
    again.load_state_dict(states[::-1])
    state = again.tracker.state_dict()
    assert not state["count"].any()
    if statistic in WINDOWED:
        torch.testing.assert_close(
            state["held"], states[0]["tracker"]["held"], equal_nan=True, rtol=0, atol=0
        )
        changed = copy.deepcopy(states)
        changed[1]["tracker"]["held"][:] += 1
        with pytest.raises(ValueError, match="not saved at one step"):
            rank_loader(statistic, 1, 0).load_state_dict(changed)


def test_ranks_that_differ_are_told(two: Any) -> None:
    for result in two[1]:
        assert "statistic" in result["statistics"]
        assert "held values" in result["held"]
        assert "end_epoch" in result["open"] or "rank(s) [1] could not continue" in result["open"]
