"""Streams: tar shards of real images, read by several workers, against a dictionary keyed by id."""

import copy
import hashlib
import io
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import tarfile
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SECONDS, entropy_of, join_ranks, run_ranks
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import kcd_core as kcd
from kcd_core.base import distributed

SCHEDULE = kcd.CondensationSchedule(ratio=0.5, stages=3, period=1)
SHARDS, PER_SHARD = 5, 48
SLOTS = 1 << 20
KEYS = [f"shard{i // PER_SHARD}/digit{i:05d}" for i in range(SHARDS * PER_SHARD)]


# -- real images in tar files, and a reader as people write them ------------------------------------------


def digits():
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn ships the images")
    return datasets.load_digits().images[: len(KEYS)].astype(np.uint8)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Binary PGM files of scikit-learn's digits, 48 to a tar."""
    folder = tmp_path_factory.mktemp("shards")
    images, paths = digits(), []
    for number in range(SHARDS):
        paths.append(str(folder / f"{number}.tar"))
        with tarfile.open(paths[-1], "w") as tar:
            for i in range(number * PER_SHARD, (number + 1) * PER_SHARD):
                data = b"P5 8 8 16\n" + images[i].tobytes()
                info = tarfile.TarInfo(KEYS[i] + ".pgm")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return paths


class Shards(IterableDataset):
    """Yields (key, encoded image) as they come out of the tars; each worker of each rank reads its own."""

    def __init__(self, paths, rank=0, world=1):
        self.paths = paths[rank::world]

    def __iter__(self):
        worker = get_worker_info()
        mine = self.paths if worker is None else self.paths[worker.id :: worker.num_workers]
        for path in mine:
            with tarfile.open(path, "r|") as tar:
                for member in tar:
                    data = tar.extractfile(member).read()
                    yield {"__key__": member.name.removesuffix(".pgm"), "pgm": data}


class Decoded(IterableDataset):
    """The stage after the filter: what was dropped is never decoded."""

    def __init__(self, encoded):
        self.encoded = encoded

    def __iter__(self):
        for sample in self.encoded:
            header, _, pixels = sample["pgm"].partition(b"\n")
            assert header == b"P5 8 8 16"
            image = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).reshape(8, 8)
            yield {"__key__": sample["__key__"], "image": image.float()}


def student(images, epoch):
    """A pretended student that is another one each epoch; computed from the pixels that came through."""
    weight = np.random.default_rng(epoch).normal(0, 0.03, (64, 10))
    return torch.from_numpy(np.asarray(images, np.float64).reshape(-1, 64) @ weight)


def loader_of(stream, workers=0, method=None, persistent=False, **options):
    return DataLoader(
        Decoded(stream), batch_size=16, num_workers=workers, multiprocessing_context=method,
        persistent_workers=persistent, **options,
    )  # fmt: skip


def run_epoch(stream, loader):
    """One epoch as in docs/streams.md; gives the ids in the order they came."""
    drawn = []
    for batch in loader:
        drawn += batch["__key__"]
        stream.record(student(batch["image"], stream.epoch), ids=batch["__key__"])
    stream.end_epoch()
    return drawn


def condensed(dataset=None, **options):
    settings = {"key": "__key__", "slots": SLOTS, "schedule": SCHEDULE, **options}
    return kcd.CondensedStream(dataset, **settings)


class Reference:
    """The method in float64, on a dictionary of all values ever recorded."""

    def __init__(self, schedule=SCHEDULE, alpha=0.03):
        self.recorded, self.dropped = defaultdict(list), set()
        self.schedule, self.alpha = schedule, alpha

    def record(self, ids, values):
        for i, value in zip(ids, values, strict=True):
            self.recorded[i].append(float(value))

    def stage(self, tie=lambda i: i):
        scores = {i: math.fsum(v) / len(v) * len(v) ** self.alpha for i, v in self.recorded.items()}
        ranking = sorted(scores, key=lambda i: (-scores[i], tie(i)))
        target = self.schedule.target(len(ranking), len(ranking) - len(self.dropped))
        self.dropped = set(ranking[target:])


def reference_epochs(epochs):
    """The ids that each epoch should draw."""
    images, reference = dict(zip(KEYS, digits(), strict=True)), Reference()
    for epoch in range(1, epochs + 1):
        drawn = [key for key in KEYS if key not in reference.dropped]
        yield set(drawn)
        reference.record(drawn, entropy_of(student([images[key] for key in drawn], epoch)))
        reference.stage()


def test_no_two_of_these_ids_share_a_slot():
    """What the comparisons by id below rest on."""
    assert len(set(condensed().slots_of(KEYS).tolist())) == len(KEYS)


# -- drawing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "method", "persistent"),
    [
        (0, None, False),
        (2, "fork", False),
        (2, "fork", True),
        (2, "spawn", True),
    ],
)
def test_each_epoch_draws_what_a_dictionary_of_all_values_says(shards, workers, method, persistent):
    stream = condensed(Shards(shards))
    loader = loader_of(stream, workers, method, persistent)
    for expected in reference_epochs(5):
        drawn = run_epoch(stream, loader)
        assert len(drawn) == len(set(drawn))
        assert set(drawn) == expected
    assert [r["kept"] for r in stream.history] == [200, 160, 120, 120, 120]
    assert [r["dropped"] for r in stream.history] == [40, 40, 40, 0, 0]
    assert stream.share == 0.5


def test_a_stage_within_an_iteration_is_seen_after_the_batches_already_asked_for(shards):
    stream = condensed(Shards(shards[:1] * 10), schedule=kcd.CondensationSchedule(0.2, 1, 1))
    batches = iter(loader_of(stream, 1, "fork", prefetch_factor=3))
    for _ in range(4):
        batch = next(batches)
        stream.record(student(batch["image"], 1), ids=batch["__key__"])
    chosen = stream.end_epoch()
    assert len(chosen.kept) == 48 - int(48 * 0.8)
    for _ in range(3):
        next(batches)
    rest = [key for batch in batches for key in batch["__key__"]]
    assert rest
    assert set(chosen.kept.tolist()) == set(stream.slots_of(rest).tolist())


def test_a_killed_worker_leaves_no_harm(shards):
    stream = condensed(Shards(shards))
    run_epoch(stream, loader_of(stream))
    _, expected = reference_epochs(2)
    loader = loader_of(stream, 2, "fork", persistent=True)
    batches = iter(loader)
    next(batches)

    def kill_and_read_on(loader, batches):
        worker = loader._iterator._workers[0]
        os.kill(worker.pid, signal.SIGKILL)
        worker.join(SECONDS)
        list(batches)

    with pytest.raises((RuntimeError, EOFError)):  # torch's, from wherever SIGCHLD finds it
        kill_and_read_on(loader, batches)
    del batches, loader
    assert set(run_epoch(stream, loader_of(stream, 2, "fork"))) == expected


def test_keep_is_a_filter_of_its_own_and_sees_the_same_set():
    stream = condensed(schedule=kcd.CondensationSchedule(0.5, 1, 1))
    samples = [{"__key__": i} for i in range(6)]
    assert list(filter(stream.keep, samples)) == samples
    logits = np.zeros((6, 2))
    logits[:, 0] = [0, 9, 1, 8, 2, 7]
    stream.record(logits, ids=range(6))
    stream.end_epoch()
    assert [s["__key__"] for s in samples if stream.keep(s)] == [0, 2, 4]
    assert stream.is_kept(range(6)).tolist() == [True, False] * 3
    assert stream.is_kept(["never", b"seen", 77]).all()
    with pytest.raises(TypeError, match="given no dataset"):
        iter(stream)


@pytest.mark.parametrize("key", [1, "name", len])
def test_keys(key):
    samples = {1: [("a", 5), ("b", 6)], "name": [{"name": 5}, {"name": 6}], len: ["x" * 5, "x" * 6]}[key]
    stream = condensed(samples, key=key, schedule=kcd.CondensationSchedule(0.5, 1, 1))
    assert list(stream) == samples
    stream.record([[0.0, 9.0], [0.0, 0.0]], ids=[5, 6])
    stream.end_epoch()
    assert list(stream) == samples[1:]


# -- ids and slots ----------------------------------------------------------------------------------------

IDS = ["", "a", "größe", "\udc80", b"a", b"\x00\xff", 0, 1, -1, 2**63 - 1, -(2**63), 2**64 - 1]


def splitmix(x):
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def slot_of(i, slots, seed=0):
    """The same from the description alone."""
    salt = hashlib.blake2b(str(seed).encode(), digest_size=16).digest()
    if isinstance(i, int):
        return splitmix(i % 2**64 ^ int.from_bytes(salt[:8], "little")) % slots
    data = i if isinstance(i, bytes) else i.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(data, digest_size=8, salt=salt).digest()
    return int.from_bytes(digest, "little") % slots


ids_of_any_kind = st.text() | st.binary() | st.integers(-(2**63), 2**64 - 1)


@given(st.lists(ids_of_any_kind), st.integers(1, 10**12), st.integers(0, 2**70))
def test_a_slot_is_a_function_of_id_seed_and_size_alone(ids, slots, seed):
    # Not the stream itself, whose table would be as large as it says.
    from kcd_core.streaming.stream import StreamFilter

    stream = StreamFilter(
        None, len, slots, seed, torch.zeros(1, dtype=torch.uint8), torch.zeros((), dtype=torch.int64)
    )
    assert stream.slots_of(ids).tolist() == [slot_of(i, slots, seed) for i in ids]


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1), st.integers(1, 10**6))
def test_integers_are_hashed_alike_whatever_holds_them(ids, slots):
    stream = condensed(slots=slots)
    expected = stream.slots_of(ids).tolist()
    held = [np.array(ids, np.int64), np.array(ids, np.int32), np.array(ids).astype(np.uint64)]
    held += [torch.tensor(ids), torch.tensor(ids, dtype=torch.int32), np.array(ids, object), tuple(ids)]
    held += [list(np.array(ids)), list(torch.tensor(ids)), iter(ids)]
    for one in held:
        assert stream.slots_of(one).tolist() == expected


def test_text_is_hashed_alike_whatever_holds_it():
    stream = condensed()
    words = ["one", "two", "größe"]
    expected = stream.slots_of(words).tolist()
    for held in (np.array(words), np.array(words, object), [w.encode() for w in words], map(np.str_, words)):
        assert stream.slots_of(held).tolist() == expected
    assert stream.slots_of(["5"]) != stream.slots_of([5])


def test_slots_are_those_of_every_process():
    code = (
        "import kcd_core as kcd\n"
        f"s = kcd.CondensedStream(key='k', slots=10**6, schedule=kcd.CondensationSchedule(), seed=3)\n"
        f"print(s.slots_of({IDS!r}).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "12345", "PYTHONIOENCODING": "utf-8:surrogatepass"},
        capture_output=True,
        check=True,
        timeout=SECONDS,
    )
    assert json.loads(done.stdout) == [slot_of(i, 10**6, 3) for i in IDS]


@pytest.mark.parametrize("load", [0.02, 0.1, 1.0, 3.0])
@pytest.mark.parametrize(
    "ids",
    [
        [f"n{i // 100:08d}/{i}.jpg" for i in range(20_000)],
        np.arange(20_000),
        np.arange(20_000) << 32,
    ],
    ids=["text", "integers", "multiples of 2**32"],
)
def test_as_many_ids_share_a_slot_as_the_formula_says(ids, load):
    n = len(ids)
    slots = round(n / load)
    stream = condensed(slots=slots)
    taken = Counter(stream.slots_of(ids).tolist())
    sharing = sum(many for many in taken.values() if many > 1) / n
    formula = 1 - math.exp(-n / slots)
    margin = 6 * math.sqrt(
        formula * (1 - formula) / n
    )  # collisions come in pairs: somewhat wider than n coins
    assert abs(sharing - formula) < margin
    assert abs(len(taken) / slots - formula) < margin  # so how full the table is says how many share


@pytest.mark.parametrize(
    ("ids", "error", "text"),
    [
        ([1.0, 2.0], TypeError, "str, bytes or integer"),
        ([None, 1], TypeError, "None"),
        ([True, False], TypeError, "bool"),
        ([("a",), ("b",)], TypeError, "tuple"),
        (np.array([1.0, 2.0]), TypeError, "float"),
        (torch.tensor([1.0, 2.0], requires_grad=True), TypeError, "float"),
        (torch.tensor([True, False]), TypeError, "bool"),
        ("ab", TypeError, "one id per sample"),
        (7, TypeError, "one id per sample"),
        ({7, 8}, TypeError, "one id per sample"),
        (torch.tensor(7), ValueError, r"\[B\]"),
        (torch.tensor([[1, 2]]), ValueError, r"\[B\]"),
        ([2**64, 1], ValueError, "64 bits"),
        ([1], ValueError, "2 rows for 1 ids"),
        ([1, 2, 3], ValueError, "2 rows for 3 ids"),
        (torch.zeros(2, dtype=torch.int64, device="meta"), TypeError, "ids are on meta"),
    ],
)
def test_wrong_ids_raise_and_nothing_is_recorded(ids, error, text):
    stream = condensed(slots=100)
    with pytest.raises(error, match=text):
        stream.record(torch.zeros(2, 5), ids=ids)
    assert stream.tracker.count.sum() == 0


def test_a_sample_with_a_wrong_id_raises_where_it_is_read():
    with pytest.raises(TypeError, match="got None"):
        list(condensed([{"__key__": None}]))


@pytest.mark.parametrize(
    ("key", "sample", "has"),
    [
        ("__key__", {"url": "a", "cls": 1}, "a dict of 'url', 'cls'"),
        (2, ("a", 1), "a tuple of 2"),
        ("__key__", ("a", 1), "a tuple of 2"),
        ("__key__", 7, "a int"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_without_its_id_says_what_it_has(key, sample, has, workers):
    stream = kcd.CondensedStream([sample], key=key, slots=10, schedule=kcd.CondensationSchedule())
    read = DataLoader(stream, batch_size=None, num_workers=workers)
    with pytest.raises(
        LookupError, match=rf"key={key!r} says where a sample has its id, and this sample, {has}, has nothing"
    ):
        list(read)


def test_an_error_of_a_key_of_ones_own_stays_what_it_is():
    stream = kcd.CondensedStream([{}], key=own_key, slots=10, schedule=kcd.CondensationSchedule())
    with pytest.raises(KeyError, match=r"^'own'$"):
        list(stream)


def own_key(sample):
    return sample["own"]


# -- condensing -------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 60), st.integers(0, 1000)), max_size=40), min_size=1, max_size=5
    ),
    st.integers(1, 50),
    st.floats(0.05, 1.0),
)
def test_ids_in_one_slot_share_mean_and_fate(epochs, slots, ratio):
    """Any recordings, collisions and ties: the reference is keyed by slot here. New ids come at any time."""
    schedule = kcd.CondensationSchedule(ratio=ratio, stages=2, period=1)
    stream, reference = condensed(slots=slots, schedule=schedule), Reference(schedule)
    for recordings in epochs:
        recordings = [(i, v) for i, v in recordings if stream.keep({"__key__": i})]
        ids, values = [i for i, _ in recordings], [v / 1024 for _, v in recordings]  # exact in fixed point
        stream.tracker.record(stream.slots_of(ids), values)
        reference.record([slot_of(i, slots) for i in ids], values)
        if not reference.recorded:
            continue
        with warnings.catch_warnings():  # of nothing recorded, or of ids that share their slot
            warnings.simplefilter("ignore")
            stream.end_epoch()
        reference.stage()
        for i in range(80):
            assert stream.keep({"__key__": i}) == (slot_of(i, slots) not in reference.dropped)
        assert stream.history.num_samples == len(reference.recorded)
        kept = len(reference.recorded) - len(reference.dropped)
        assert (stream.history[-1]["kept"], stream.share) == (kept, kept / len(reference.recorded))


def test_what_was_never_recorded_is_kept_and_not_counted():
    stream = condensed(slots=10**6, schedule=kcd.CondensationSchedule(0.5, 1, 1))
    logits = np.zeros((10, 3))
    logits[:, 0] = range(1, 11)
    stream.record(logits, ids=[f"id{i}" for i in range(10)])
    chosen = stream.end_epoch()
    assert len(chosen.kept) == len(chosen.dropped) == 5
    assert chosen.num_samples == 10**6
    assert stream.is_kept([f"id{i}" for i in range(1000)]).tolist() == [True] * 5 + [False] * 5 + [True] * 990
    # Newcomers count from then on, and push out what they outrank.
    stream.record(np.zeros((10, 3)), ids=[f"id{i}" for i in range(10, 20)])
    stream.end_epoch()
    assert stream.is_kept([f"id{i}" for i in range(20)]).tolist() == [False] * 10 + [True] * 10
    assert [(r["kept"], r["dropped"], r["unseen"]) for r in stream.history] == [(5, 5, 0), (10, 5, 0)]
    assert stream.share == 0.5


def test_a_selection_of_ones_own():
    def lowest(value, count, kept, target, generator):
        assert len(value) == 4  # the recorded ones
        assert (count == 1).all()
        assert kept.tolist() == [0, 1, 2, 3]
        assert generator.integers(100) == np.random.default_rng([0, 1]).integers(100)
        return kcd.CondensedSet(kept=np.sort(np.argsort(value)[:target]), num_samples=4)

    stream = condensed(slots=1000, schedule=kcd.CondensationSchedule(0.5, 1, 1), select=lowest)
    stream.record(np.array([[0.0, 1], [0.0, 2], [0.0, 3], [0.0, 4]]), ids=range(4))
    stream.end_epoch()
    assert stream.is_kept(range(4)).tolist() == [False, False, True, True]


def test_values_and_what_they_need():
    stream = condensed(slots=100, value="cross_entropy")
    logits = torch.tensor([[0.0, 3.0], [1.0, 0.0]])
    stream.record(logits, ids=["a", "b"], targets=torch.tensor([0, 1]))
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1]), reduction="none")
    assert stream.tracker.value[stream.slots_of(["a", "b"])] == pytest.approx(expected.numpy(), abs=1e-6)


def test_warnings_come_once_and_after_all_is_done():
    stream = condensed(slots=4, schedule=kcd.CondensationSchedule(0.5, 1, 2))
    with pytest.warns(UserWarning, match="nothing was recorded"):
        stream.end_epoch()
    stream.record(np.zeros((20, 2)), ids=range(20))
    with pytest.warns(UserWarning, match="more than 50% of the 4 slots are taken"):
        stream.end_epoch()
    # The number of ids is estimated: 100 that are known, in the slots that they take.
    crowded = condensed(slots=128, schedule=kcd.CondensationSchedule(0.5, 1, 1))
    crowded.record(np.zeros((100, 2)), ids=range(100))
    with pytest.warns(UserWarning, match=r"the 128 slots are taken, by about \d+ ids so far") as told:
        crowded.end_epoch()
    ids, slots = map(int, re.search(r"about (\d+) ids .* slots=(\d+)", str(told[0].message)).groups())
    assert 85 < ids < 115
    assert abs(slots - 10 * ids) <= 5
    assert (stream.epoch, stream.stage) == (3, 1)
    for _ in range(4):
        stream.end_epoch()


def test_a_stage_without_a_recording_raises_and_changes_nothing():
    stream = condensed(slots=10)
    with pytest.raises(RuntimeError, match="no value was ever recorded"):
        stream.end_epoch()
    assert (stream.epoch, stream.stage, len(stream.history)) == (1, 0, 0)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"dataset": (x for x in [1])}, TypeError, "iterated anew each epoch, got generator"),
        ({"dataset": torch.utils.data.TensorDataset(torch.zeros(3))}, TypeError, "use wrap_loader"),
        ({"schedule": 0.7}, TypeError, "schedule must be"),
        ({"slots": 0}, ValueError, "slots must be at least 1"),
        ({"slots": 2.0}, TypeError, "slots must be an integer"),
        ({"seed": -1}, ValueError, "seed must be"),
        ({"key": None}, TypeError, "key must be"),
        ({"alpha": -1}, ValueError, "alpha must be"),
        ({"value": "loss"}, ValueError, "value"),
        ({"on_nonfinite": "stop"}, ValueError, "on_nonfinite"),
    ],
)
def test_wrong_settings_raise(options, error, text):
    with pytest.raises(error, match=text):
        condensed(**options)


# -- ids that look wrong ----------------------------------------------------------------------------------


class Numbered(IterableDataset):
    """Shards of samples that each worker reads all of, or its own; the whole ``times`` over."""

    def __init__(self, shards, times=1, shared=True):
        self.shards, self.times, self.shared = shards, times, shared

    def __iter__(self):
        worker = get_worker_info() if self.shared else None
        mine = self.shards if worker is None else self.shards[worker.id :: worker.num_workers]
        for _ in range(self.times):
            for shard in mine:
                yield from shard


def draw(stream, workers=0, passes=1, batch_size=8):
    """An epoch, with the warnings at its end."""
    loader = DataLoader(
        stream, batch_size, num_workers=workers, multiprocessing_context="fork" if workers else None
    )
    for _ in range(passes):
        for ids in loader:
            stream.record(torch.zeros(len(ids), 3), ids=ids)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stream.end_epoch()
    assert all(one.filename == __file__ for one in caught)
    return [str(one.message) for one in caught]


def unique(shards=10, each=12):
    return [[f"{shard}/{i}" for i in range(each)] for shard in range(shards)]


def reused(shards=10, each=12):
    return [[f"{i:06d}" for i in range(each)] for _ in range(shards)]


LATE = kcd.CondensationSchedule(0.5, 1, 3)


@pytest.mark.parametrize("schedule", [LATE, kcd.CondensationSchedule(0.5, 1, 1)])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shards", [3, 10, 100])
def test_ids_that_begin_anew_in_every_shard_are_told_in_the_first_epoch(shards, workers, schedule):
    stream = condensed(Numbered(reused(shards)), key=str, slots=10_000, schedule=schedule)
    (text,) = draw(stream, workers)
    assert (
        f"{12 * shards} recordings were of about 12 ids: each was recorded {shards} times in one pass" in text
    )
    assert "sample['__url__']" in text
    assert draw(stream, workers) == []  # once


def test_shards_that_every_worker_reads_are_told():
    stream = condensed(Numbered(unique(), shared=False), key=str, slots=10_000, schedule=LATE)
    (text,) = draw(stream, workers=3)
    assert "each was recorded 3 times in one pass" in text
    assert "every worker or every rank reads all shards" in text


def test_shards_that_both_of_two_workers_read_are_told_and_two_views_of_each_sample_are_not():
    both = condensed(Numbered(unique(), shared=False), key=str, slots=10_000, schedule=LATE)
    (text,) = draw(both, workers=2)
    assert "240 recordings were of about 12" in text
    assert "each was recorded 2 times in one pass" in text
    views = condensed(Numbered(unique(), times=2), key=str, slots=10_000, schedule=LATE)
    assert [draw(views, workers=2) for _ in range(3)] == [[], [], []]


@pytest.mark.parametrize("n", [10, 1000, 20_000])
@pytest.mark.parametrize("load", [0.01, 0.1, 0.6, 1.0, 5.0])
def test_ids_that_share_a_slot_are_no_repeated_ids(n, load):
    stream = condensed(slots=math.ceil(n / load), schedule=LATE)
    stream.tracker.record(stream.slots_of([f"{i}.jpg" for i in range(n)]), np.zeros(n))
    stream.end_epoch()


def test_what_is_repeated_on_purpose_is_no_repeated_id():
    schedule = kcd.CondensationSchedule(0.5, 1, 2)

    def make():
        return condensed(Numbered(unique()), key=str, slots=10_000, schedule=schedule)

    for workers in (0, 2):
        several = make()
        assert [draw(several, workers, passes=4) for _ in range(2)] == [[], []]  # an epoch of four passes
    two = condensed(Numbered(unique(), times=2), key=str, slots=10_000, schedule=schedule)
    assert [draw(two), draw(two)] == [[], []]  # two views of each sample
    parts = make()
    batches = iter(DataLoader(parts, 8))
    for _ in range(5):  # epochs that are parts of a pass
        ids = next(batches)
        parts.record(torch.zeros(len(ids), 3), ids=ids)
        parts.end_epoch()
    resumed = make()
    first = make()
    draw(first)
    resumed.load_state_dict(first.state_dict())
    assert [draw(resumed), draw(resumed)] == [[], []]


class Renamed(IterableDataset):
    """Samples of which each pass gives ``share`` a name that no other pass does, and ``fresh`` ones come in addition."""

    def __init__(self, share=1.0, fresh=0):
        self.share, self.fresh, self.passes = share, fresh, 0

    def __iter__(self):
        self.passes += 1
        for i in range(200):
            yield f"{i}" if i >= 200 * self.share else f"{i} in pass {self.passes}"
        for i in range(self.fresh):
            yield f"fresh {i} in pass {self.passes}"


@pytest.mark.parametrize(("ratio", "period", "when"), [(0.5, 1, 2), (0.95, 1, 2), (0.5, 3, 3), (0.1, 2, 2)])
def test_ids_that_no_epoch_repeats_are_told(ratio, period, when):
    schedule = kcd.CondensationSchedule(ratio, 1, period)
    stream = condensed(Renamed(), key=str, slots=10_000, schedule=schedule)
    told = [draw(stream) for _ in range(4)]
    assert [len(texts) for texts in told] == [epoch == when for epoch in range(1, 5)]
    assert f"recordings of {when} epochs were of about" in told[when - 1][0]
    assert "The id of a sample must be the same in every epoch" in told[when - 1][0]


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("period", [1, 2])
def test_a_stream_that_grows_or_is_cut_short_is_not_said_to_repeat_no_id(period, ratio):
    schedule = kcd.CondensationSchedule(ratio, 1, period)
    for samples in (Renamed(share=0.0), Renamed(share=0.0, fresh=20)):
        stream = condensed(samples, key=str, slots=20_000, schedule=schedule)
        assert [draw(stream) for _ in range(5)] == [[]] * 5


def test_ranks_that_all_read_the_same_are_told_when_they_meet(monkeypatch):
    stream = condensed(Numbered(unique()), key=str, slots=10_000, schedule=LATE)

    def four_of_each(*arrays, group=None):
        return tuple(4 * array for array in arrays)

    monkeypatch.setattr(distributed, "sum_over_ranks", four_of_each)
    assert [draw(stream), draw(stream)] == [[], []]
    (text,) = draw(stream)
    assert "each was recorded 4 times in one pass" in text


@pytest.mark.parametrize("ratio", [0.5, 0.95])
@pytest.mark.parametrize("mistake", ["no filter", "other ids"])
def test_dropped_samples_that_are_recorded_still_are_told(mistake, ratio):
    schedule = kcd.CondensationSchedule(ratio, 1, 2)
    samples = Numbered([list(range(200))])
    stream = condensed(samples, key=int, slots=10_000, schedule=schedule)
    told = []
    for _ in range(6):
        read = samples if mistake == "no filter" else stream
        for ids in DataLoader(read, 10):
            stream.record(
                torch.zeros(len(ids), 3),
                ids=ids if mistake == "no filter" else [str(i) for i in ids.tolist()],
            )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            stream.end_epoch()
        told.append([str(one.message) for one in caught])
    assert [len(texts) for texts in told] == [0, 0, 0, 1, 0, 0]
    assert re.match(
        r"\d+ of (200|19\d) recordings of this epoch were of samples that are dropped", told[3][0]
    )


def test_what_was_read_ahead_is_no_dropped_sample():
    """A loader that reads a whole epoch ahead: what it yields is of the set before."""
    stream = condensed(
        Numbered(unique()), key=str, slots=10_000, schedule=kcd.CondensationSchedule(0.3, 3, 2)
    )
    ahead = None
    for _ in range(10):
        ahead = ahead or list(DataLoader(stream, 8))
        now, ahead = ahead, list(DataLoader(stream, 8))
        for ids in now:
            stream.record(torch.arange(3.0 * len(ids)).reshape(-1, 3).square(), ids=ids)
        stream.end_epoch()
    assert stream.stage == 5


def test_minus_one_is_an_id_like_any_other():
    stream = condensed(slots=100)
    stream.record(torch.zeros(3, 5), ids=[-1, 4, -1])
    assert stream.tracker.count[stream.slots_of([-1, 4])].tolist() == [2, 1]


# -- states and copies ------------------------------------------------------------------------------------


def test_resumed_runs_end_in_the_same_set(shards, tmp_path):
    stream = condensed(Shards(shards))
    loader = loader_of(stream)
    run_epoch(stream, loader)
    run_epoch(stream, loader)
    torch.save(stream.state_dict(), tmp_path / "state.pt")
    resumed = condensed(Shards(shards))
    resumed_loader = loader_of(resumed, 2, "fork", persistent=True)
    next(iter(resumed_loader))  # its workers run before the state is there
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(2):
        assert sorted(run_epoch(resumed, resumed_loader)) == sorted(run_epoch(stream, loader))
    assert resumed.history.state_dict() == stream.history.state_dict()
    assert resumed.account.total[:3] == stream.account.total[:3]
    assert (resumed.tracker.value == stream.tracker.value)[resumed.tracker.count > 0].all()


def test_another_number_of_ranks_goes_on_with_all_ranks_states(monkeypatch):
    """Three ranks' recordings, taken over by one and by two, give the set of one process that saw it all."""
    logits = np.random.default_rng(0).normal(size=(30, 5))

    def as_rank(rank, world):
        monkeypatch.setattr(distributed, "rank", lambda group=None: rank)
        monkeypatch.setattr(distributed, "world_size", lambda group=None: world)

    alone, states = condensed(), []
    alone.record(logits, ids=range(30))
    for rank in range(3):
        as_rank(rank, 3)
        stream = condensed()
        stream.record(logits[rank::3], ids=range(rank, 30, 3))
        states.append(stream.state_dict())
    with pytest.raises(ValueError, match="give every rank a list of what all 3 ranks saved"):
        condensed().load_state_dict(states[0])
    counts = []
    for world in (1, 2):
        for rank in range(world):
            as_rank(rank, world)
            resumed = condensed()
            resumed.load_state_dict([states[2], states[0], states[1]])
            counts.append(int(resumed.tracker.count.sum()))
    assert counts == [30, 30, 0]
    as_rank(0, 1)
    resumed.load_state_dict(states)
    np.testing.assert_array_equal(resumed.end_epoch().kept, alone.end_epoch().kept)
    for wrong, text in (
        (states[:2], r"states of all 3 ranks are needed, each once: missing are those of \[2\]"),
        ([*states[:2], states[0]], "each once"),
        ([*states[:2], {**states[2], "epoch": 2}], "rank 2 has another epoch than rank 0"),
        ([], "an empty list"),
    ):
        with pytest.raises(ValueError, match=text):
            resumed.load_state_dict(wrong)
    assert resumed.epoch == 2


def test_a_state_is_a_copy():
    stream = condensed(slots=16)
    stream.record(np.eye(4), ids=range(4))
    stream.end_epoch()
    state = stream.state_dict()
    before = copy.deepcopy(state)
    stream.record(np.eye(4), ids=range(4, 8))
    stream.end_epoch()
    assert torch.equal(state["dropped"], before["dropped"])
    assert torch.equal(state["tracker"]["total"], before["tracker"]["total"])
    assert state["history"] == before["history"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": 0}, "version"),
        ({"slots": 17}, "slots"),
        ({"seed": 1}, "seed"),
        ({"key": "itemgetter('id')"}, "key"),
        ({"alpha": 0.5}, "alpha"),
        ({"rank": 1}, "rank"),
        ({"schedule": {}}, "schedule"),
        ({"epoch": 0}, "epoch"),
        ({"stage": -1}, "stage"),
        ({"stage": 2}, "stage 2 with a history of 1"),
        ({"dropped": torch.zeros(3, dtype=torch.uint8)}, "dropped must be uint8"),
        ({"dropped": torch.zeros(2, dtype=torch.int64)}, "dropped must be uint8"),
        ({"tracker": {}}, "not a tracker state"),
        ({"history": {}}, "not a history state"),
        ({"history": {"num_samples": 99, "records": []}}, "history"),
    ],
)
def test_what_is_no_state_is_refused_and_changes_nothing(change, text):
    stream = condensed(slots=16)
    stream.record(np.eye(3), ids=range(3))
    stream.end_epoch()
    state = stream.state_dict()
    with pytest.raises(ValueError, match=text):
        stream.load_state_dict({**copy.deepcopy(state), **change})
    with pytest.raises(ValueError, match=text if text in state else "dropped|tracker|history|stage"):
        stream.load_state_dict({k: v for k, v in state.items() if k not in change})
    after = stream.state_dict()
    assert repr(after) == repr(state)


def test_a_copy_is_the_filter_alone():
    stream = condensed(slots=10**6, schedule=kcd.CondensationSchedule(0.5, 1, 1))
    stream.record(np.array([[0.0, 9], [0.0, 0]]), ids=["a", "b"])
    stream.end_epoch()
    data = pickle.dumps(stream)
    assert len(data) < 10**6 // 8 + 10_000  # the bits, and not the values
    for other in (
        pickle.loads(data),
        copy.deepcopy(stream),
        pickle.loads(pickle.dumps(stream.keep)).__self__,
    ):
        assert [other.keep({"__key__": i}) for i in "abc"] == [False, True, True]
        assert not hasattr(other, "record")
    same = (
        copy.deepcopy(stream),
        copy.deepcopy(stream.keep).__self__,
    )  # of one set, so that they see a new one
    for _ in range(9):
        stream.record(np.array([[0.0, 0], [0.0, 9]]), ids=["a", "b"])
    stream.end_epoch()
    for other in same:
        assert [other.keep({"__key__": i}) for i in "ab"] == [True, False]
        assert not hasattr(other, "record")


# -- several ranks ----------------------------------------------------------------------------------------


def work(rank, world, folder, paths):
    import warnings

    warnings.simplefilter("error")
    join_ranks(rank, world, folder)
    stream, drawn = condensed(Shards(paths, rank, world)), []
    loader = loader_of(stream)
    drawn = [run_epoch(stream, loader) for _ in range(4)]
    errors = []
    for options in ({"seed": 1}, {"slots": SLOTS + 1}, {"value": "margin"}, {"key": "id"}):
        other = condensed(**(options if rank else {}))
        other.record(np.eye(3), ids=range(3))
        with pytest.raises(RuntimeError, match="ranks disagree") as caught:
            other.end_epoch()
        errors.append([str(caught.value), other.epoch, other.stage])
    result = {"drawn": drawn, "errors": errors, "rank": stream.state_dict()["rank"]}
    (folder / f"rank{rank}.json").write_text(json.dumps(result))
    torch.distributed.barrier()  # torch 2.2 can wait forever for a rank that left first
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_ranks_draw_what_one_process_does(shards, tmp_path):
    """Five shards for two ranks: they read different numbers of samples, and meet once a stage."""
    ranks = run_ranks(work, 2, tmp_path, shards)
    for epoch, expected in enumerate(reference_epochs(4)):
        first, second = (rank["drawn"][epoch] for rank in ranks)
        assert len(first) != len(second)
        assert sorted(first + second) == sorted(expected)
    for number, rank in enumerate(ranks):
        assert rank["rank"] == number
        for message, epoch, stage in rank["errors"]:
            assert "rank(s) [1] differ from rank 0" in message
            assert (epoch, stage) == (1, 0)


# -- the documentation ------------------------------------------------------------------------------------


def test_the_plain_reader_in_the_documentation_reads_every_sample_once(shards):
    text = (Path(__file__).parents[2] / "docs" / "streams.md").read_text(encoding="utf-8")
    reader = re.search(r"^```python\n(class Shards.*?)^```", text, re.MULTILINE | re.DOTALL).group(1)
    names = {"IterableDataset": IterableDataset, "get_worker_info": get_worker_info, "tarfile": tarfile}
    exec(compile(reader, "streams.md", "exec"), names)
    read = [
        key
        for rank in range(2)
        for batch in DataLoader(
            names["Shards"](shards, rank, 2), num_workers=2, multiprocessing_context="fork"
        )
        for key in batch["__key__"]
    ]
    assert sorted(read) == [f"{key}.pgm" for key in KEYS]


# -- webdataset's own classes -----------------------------------------------------------------------------


def pgm(data):
    return torch.frombuffer(bytearray(data.partition(b"\n")[2]), dtype=torch.uint8).float()


# webdataset leaves the closing of its shards to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("workers", "method"), [(0, None), (2, "fork"), (2, "spawn")])
def test_webdataset(shards, workers, method):
    wds = pytest.importorskip("webdataset", reason="webdataset is not installed; kcd does not need it")
    stream = condensed()
    pipeline = wds.WebDataset(shards, shardshuffle=False).select(stream.keep).map_dict(pgm=pgm)
    pipeline = pipeline.to_tuple("__key__", "pgm").batched(16)
    loader = wds.WebLoader(
        pipeline, batch_size=None, num_workers=workers, multiprocessing_context=method,
        persistent_workers=workers > 0,
    )  # fmt: skip
    for expected in reference_epochs(4):
        drawn = []
        for keys, images in loader:
            drawn += keys
            stream.record(student(images, stream.epoch), ids=keys)
        stream.end_epoch()
        assert len(drawn) == len(set(drawn))
        assert set(drawn) == expected


class InTurn(kcd.CondensationSchedule):
    """Half of the samples, then all of them, then half again."""

    def target(self, num_samples, previous):
        return num_samples // 2 if previous == num_samples else num_samples


def test_a_set_that_grows_drops_nothing_and_is_resumed():
    def made():
        return kcd.CondensedStream(KEYS, key=str, slots=SLOTS, schedule=InTurn(period=1))

    stream = made()
    for drawn in (len(KEYS), len(KEYS) // 2, len(KEYS)):
        ids = list(stream)
        assert len(ids) == drawn
        stream.record(torch.rand(len(ids), 5, generator=torch.Generator().manual_seed(drawn)), ids=ids)
        stream.end_epoch()
    assert [stage["dropped"] for stage in stream.history] == [len(KEYS) // 2, 0, len(KEYS) // 2]
    resumed = made()
    resumed.load_state_dict(stream.state_dict())
    assert list(resumed) == list(stream)
