"""Loops that nobody here has written: values are booked on the samples they belong to, or it is told before."""

import itertools
import queue
import threading
import warnings

import numpy as np
import pytest
import torch
from helpers import Plain, entropy_of, index_of, logits_of, run_epoch, wrap
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Subset, default_collate

import kcd_core as kcd

N = 64
LONG = kcd.CondensationSchedule(ratio=0.5, stages=1, period=100)


def make(dataset=None, **options):
    settings = {"mixing": None, **options.pop("kcd_options", {})}
    return wrap(Plain(N) if dataset is None else dataset, schedule=LONG, kcd_options=settings, **options)


def record(loader, batch, **options):
    loader.record(logits_of(index_of(batch), 1), **options)


def train(loader, batches=None):
    for batch in loader if batches is None else batches:
        record(loader, batch)


def assert_right(loader):
    seen = np.flatnonzero(loader.tracker.count)
    np.testing.assert_allclose(loader.tracker.value[seen], entropy_of(logits_of(seen, 1)), atol=1e-6)


# -- loops that look ahead from some batch on -------------------------------------------------------------


def generator_that_looks_ahead(loader, level):
    waiting = None
    for number, batch in enumerate(loader):
        if number < level:
            yield batch
            continue
        if waiting is not None:
            yield waiting
        waiting = batch
    yield waiting


def queue_that_grows(loader, level):
    iterator, waiting, depth = iter(loader), [], 1
    for number in itertools.count():
        depth = 1 if number < level else 3
        while len(waiting) < depth and (batch := next(iterator, None)) is not None:
            waiting.append(batch)
        if not waiting:
            return
        yield waiting.pop(0)


class Prefetcher:
    """As NVIDIA's: the next batch is fetched while this one is trained on."""

    def __init__(self, iterator):
        self.iterator = iterator
        self.preload()

    def preload(self):
        self.batch = next(self.iterator, None)

    def next(self):
        batch = self.batch
        self.preload()
        return batch


def prefetcher_after_a_warm_up(loader, level):
    iterator = iter(loader)
    yield from itertools.islice(iterator, level)
    prefetcher = Prefetcher(iterator)
    while (batch := prefetcher.next()) is not None:
        yield batch


@pytest.mark.parametrize("kind", ["tuple", "list", "tensor", "dict", "nested"])
@pytest.mark.parametrize("level", [1, 3])
@pytest.mark.parametrize("ahead", [generator_that_looks_ahead, queue_that_grows, prefetcher_after_a_warm_up])
def test_look_ahead_that_begins_late(ahead, level, kind):
    loader = make(Plain(N, kind))
    with pytest.raises(RuntimeError, match=r"can't tell which batch.*looks ahead.*indices="):
        train(loader, ahead(loader, level))
    assert loader.tracker.count.sum() == 8 * level
    assert_right(loader)


@pytest.mark.parametrize("ahead", [generator_that_looks_ahead, queue_that_grows, prefetcher_after_a_warm_up])
def test_look_ahead_with_indices(ahead):
    loader = make(kcd_options={"return_index": True})
    for indices, batch in ahead(loader, 1):
        record(loader, batch, indices=indices)
    assert (loader.tracker.count == 1).all()
    assert_right(loader)


def test_a_pass_that_was_seen_to_look_ahead_needs_indices():
    loader = make()
    copies = (tuple(x.clone() for x in batch) for batch in loader)
    batches = generator_that_looks_ahead(copies, 0)
    batch = next(batches)
    record(loader, batch, indices=index_of(batch))
    batch = next(batches)
    with pytest.raises(RuntimeError, match="a prefetcher"):
        record(loader, batch)


def test_look_ahead_whose_batches_are_copied_is_told_at_the_end():
    loader = make()
    copies = (tuple(x.clone() for x in batch) for batch in loader)
    with pytest.raises(
        RuntimeError, match="keeps copies of its batches alone, 1 batches were never recorded"
    ):
        train(loader, generator_that_looks_ahead(copies, 2))


@pytest.mark.parametrize("every", [2, 3])
@pytest.mark.parametrize("kind", ["tuple", "dict", "nested"])
def test_batches_may_be_skipped(every, kind):
    """Not finite, or only some are recorded. What people keep of a batch are its labels."""
    loader, labels, expected = make(Plain(N, kind)), [], []
    for number, batch in enumerate(loader):
        labels.append(batch["target"] if kind == "dict" else batch[1])
        if number % every:
            continue
        record(loader, batch)
        expected += index_of(batch)
    assert np.flatnonzero(loader.tracker.count).tolist() == sorted(expected)
    assert_right(loader)


def test_a_batch_that_is_skipped_for_its_loss_is_held_by_no_graph():
    loader, network = make(), torch.nn.Linear(12, 5)
    for number, (images, targets) in enumerate(loader):
        loss = torch.nn.functional.cross_entropy(network(images.flatten(1)), targets % 5)
        if number in (2, 5, 6):
            continue
        loss.backward()
        loader.record(logits_of(targets, 1))
    assert loader.tracker.count.sum() == N - 3 * 8
    assert_right(loader)


def test_one_buffer_for_all_batches_says_nothing():
    buffer = torch.zeros(8, 3, 4)

    def collate(samples):
        images, targets = default_collate(samples)
        return buffer.copy_(images), targets

    loader = make(collate_fn=collate)
    for number, batch in enumerate(loader):
        if number != 3:
            record(loader, batch)
    assert_right(loader)


@pytest.mark.parametrize("level", [0, 1, 3])
def test_a_thread_that_fetches(level):
    loader = make()
    fetched = queue.Queue(1)

    def fetch(iterator):
        for batch in iterator:
            fetched.put(batch)

    iterator = iter(loader)
    for batch in itertools.islice(iterator, level):
        record(loader, batch)
    thread = threading.Thread(target=fetch, args=(itertools.islice(iterator, 1),), daemon=True)
    thread.start()
    batch = fetched.get()
    thread.join()
    with pytest.raises(RuntimeError, match=r"another thread fetched.*indices="):
        record(loader, batch)
    record(loader, batch, indices=index_of(batch))
    assert_right(loader)


# -- passes within an epoch -------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [{}, {"num_workers": 1}, {"num_workers": 2, "persistent_workers": True}])
@pytest.mark.parametrize(
    "accuracy", [lambda loader: next(iter(loader)), list, lambda loader: sum(1 for _ in loader)]
)
def test_looks_and_passes_between_batches(accuracy, workers):
    loader, states = make(**workers), []
    accuracy(loader)
    for number, batch in enumerate(loader):
        record(loader, batch)
        if number in (0, 3):
            before = loader.state_dict()["position"]
            accuracy(loader)
            assert loader.state_dict()["position"] == before == 8 * (number + 1)
            assert loader.batches_done == number + 1
            states.append(loader.state_dict())
    accuracy(loader)
    assert loader.state_dict()["position"] == N
    assert (loader.tracker.count == 1).all()
    assert_right(loader)
    for state, left in zip(states, (7, 4), strict=True):
        resumed = make()
        resumed.load_state_dict(state)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(run_epoch(resumed, end=False)) == left
        assert (resumed.tracker.count == 1).all()


def test_an_iterator_that_was_kept_disturbs_nothing():
    """``dataiter = iter(loader); images, labels = next(dataiter)``, as in torch's tutorial."""
    loader = make()
    kept = iter(loader)
    next(kept)
    run_epoch(loader)
    assert (loader.tracker.count == 1).all()
    assert_right(loader)


@pytest.mark.parametrize("looks", [1, 2])
@pytest.mark.parametrize("at", [0, 4, 7])
def test_a_look_whose_iterator_is_kept_disturbs_nothing(at, looks):
    loader, kept = make(), []
    for number, batch in enumerate(loader):
        record(loader, batch)
        if number == at:
            next(iter(loader))
            kept += [iter(loader) for _ in range(looks)]
            images = [next(look) for look in kept]
    assert len(images) == looks
    assert (loader.tracker.count == 1).all()
    assert_right(loader)


def test_a_second_pass_that_goes_on_is_no_look():
    loader = make()
    first, second = iter(loader), iter(loader)
    record(loader, next(first))
    next(second)
    record(loader, next(first))
    next(second)
    batch = next(first)
    with pytest.raises(RuntimeError, match="read in turns"):
        record(loader, batch)
    assert_right(loader)


@pytest.mark.parametrize("at", [1, 4])
def test_a_look_between_a_batch_and_its_record(at):
    loader = make()
    batches = (batch for number, batch in enumerate(loader) if number != at or next(iter(loader)))
    with pytest.raises(RuntimeError, match="a second iteration was started"):
        train(loader, batches)
    assert loader.tracker.count.sum() == 8 * at
    assert_right(loader)


# -- explicit indices -------------------------------------------------------------------------------------


class Indexed(Plain):
    def __getitem__(self, index):
        return (*super().__getitem__(index), index)


@pytest.mark.parametrize("chosen", [range(N - 1, -1, -1), np.roll(range(N), 20), range(16, 56)])
@pytest.mark.parametrize("batch_size", [4, 8])
def test_indices_of_what_a_subset_is_of(chosen, batch_size):
    loader = make(Subset(Indexed(N), list(chosen)), batch_size=batch_size)
    with pytest.raises((ValueError, IndexError), match=r"no batch has held.*Subset|indices must lie in"):
        [loader.record(torch.zeros(len(index), 5), indices=index) for *_, index in loader]
    assert loader.tracker.count.sum() <= batch_size


def test_indices_that_are_right_however_late():
    """Fetched far ahead, in groups, from a buffer of epochs ago, with padding, in parts and in another order."""
    loader = wrap(Plain(N), kcd_options={"return_index": True})
    buffer, count = [], np.zeros(N, int)

    def book(indices):
        count[indices[indices >= 0]] += 1
        loader.record(logits_of(indices, 1), indices=indices)

    for _ in range(3):
        buffer += [indices.numpy() for indices, _ in loader]
        for group in (buffer[-4:], buffer[-1:], buffer[:1]):
            book(np.concatenate(group))
        book(np.array([-1, *buffer[0][:3], -1]))
        book(buffer[1][::-1].copy())
        loader.end_epoch()
    assert loader.tracker.count.tolist() == count.tolist()
    assert_right(loader)


def test_indices_that_nothing_can_be_said_about_are_the_trackers_business():
    loader = make()
    batch = next(iter(loader))
    logits = logits_of(index_of(batch), 1)
    strangers = sorted(set(range(N)) - set(index_of(batch)))[:8]
    with pytest.raises(ValueError, match=r"no batch has held yet.*tracker\.update"):
        loader.record(logits, indices=strangers)
    loader.tracker.update(strangers, logits_of(strangers, 1))
    record(loader, batch)
    assert_right(loader)


# -- what a data set and a collate function do to a batch -------------------------------------------------


class Files(Plain):
    broken = (3, 17, 18)

    def __getitem__(self, index):
        return None if index in self.broken else super().__getitem__(index)


def without_none(samples):
    return default_collate([sample for sample in samples if sample is not None])


def refilled(samples):
    there = [sample for sample in samples if sample is not None]
    return default_collate(there + there[: len(samples) - len(there)])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("return_index", [False, True])
def test_samples_that_are_none(return_index, workers):
    options = {
        "collate_fn": without_none,
        "num_workers": workers,
        "kcd_options": {"return_index": return_index},
    }
    loader = make(Files(N), **options)
    for number, batch in enumerate(loader, 1):
        if return_index:
            indices, batch = batch
            assert indices.tolist() == index_of(batch)
        assert loader.indices.tolist() == index_of(batch)
        if return_index and number % 2:
            record(loader, batch, indices=indices)
        else:
            record(loader, batch)
        assert loader.state_dict()["position"] == 8 * number  # all that were drawn
    assert np.flatnonzero(loader.tracker.count == 0).tolist() == sorted(Files.broken)
    assert_right(loader)


def test_a_batch_that_was_refilled_is_told():
    loader = make(Files(N), collate_fn=refilled, shuffle=False)
    with pytest.raises(
        ValueError, match=r"8 rows for a batch of 7 .*collate_fn may leave out samples that are None"
    ):
        train(loader)


class Sequences(Plain):
    """Sequences with classes, and an index: as ``kind`` packs them."""

    def __getitem__(self, index):
        sequence = torch.full((2 + index * 7 % 11,), float(index))
        label = index % 3
        return {
            "pair": (sequence, label),
            "names": (sequence, f"name {index}"),
            "dict": {"x": sequence, "label": label, "index": index},
            "tensor": (torch.full((4,), index / 7), torch.zeros(2)),
        }[self.kind]


def packed(samples, kind):
    if kind == "dict":
        stacked = {key: torch.tensor([sample[key] for sample in samples]) for key in ("label", "index")}
        return {"x": pad_sequence([sample["x"] for sample in samples]), "labels": stacked}
    if kind == "tensor":
        return default_collate(samples)
    labels = [label for _, label in samples]
    padded = pad_sequence([x for x, _ in samples], batch_first=True)
    return padded, labels if kind == "names" else torch.tensor(labels)


def length(sample):
    return -float(sample["label"] if isinstance(sample, dict) else sample[0].flatten()[0] % 5)


ORDERS = {
    "sorted": lambda samples: sorted(samples, key=length),
    "sorted in place": lambda samples: samples.sort(key=length) or samples,
    "reversed": lambda samples: samples[::-1],
}


class Collate:
    def __init__(self, kind, order=None):
        self.kind, self.order = kind, order

    def __call__(self, samples):
        return packed(ORDERS[self.order](samples) if self.order else samples, self.kind)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["pair", "names", "dict", "tensor"])
def test_a_collate_function_that_moves_rows(kind, order, workers):
    if workers and (kind, order) != ("pair", "sorted"):
        pytest.skip("one is enough")
    loader = make(Sequences(N, kind), collate_fn=Collate(kind, order), num_workers=workers, seed=1)
    with pytest.raises(RuntimeError, match=r"collate_fn puts .*same order.*indices="):
        [loader.record(torch.zeros(8, 5)) for _ in loader]
    with pytest.raises(RuntimeError, match="collate_fn"):
        loader.indices.tolist()
    indexed = make(
        Sequences(N, kind), collate_fn=Collate(kind, order), kcd_options={"return_index": True}, seed=1
    )
    with pytest.raises(RuntimeError, match="collate_fn"):
        list(indexed)
    for rows, _ in zip(loader.sampler.order(1).reshape(-1, 8), loader, strict=True):
        loader.record(logits_of(rows, 1), indices=rows)  # the way on
    assert_right(loader)


class Holder:
    def __init__(self, **parts):
        self.__dict__.update(parts)


def lists(index):
    length = 1 + index * 7 % 23
    return {"ids": [101, *[index + 1] * length], "mask": [1] * (length + 1)}


def padded_lists(samples):
    longest = max(len(sample["ids"]) for sample in samples)
    pad = [{key: row + [0] * (longest - len(row)) for key, row in sample.items()} for sample in samples]
    return {key: torch.tensor([sample[key] for sample in pad]) for key in pad[0]}


DEEP = {
    "lists": (lists, padded_lists, lambda sample: -len(sample["ids"])),
    "ragged": (lambda i: torch.full((2 + i * 7 % 11,), i + 1), lambda s: pad_sequence(s, batch_first=True), len),
    "nested": (lambda i: {"a": {"ids": torch.full((32,), i)}, "b": {"label": i % 7}}, default_collate,
               lambda sample: sample["b"]["label"]),
    "object": (lambda i: (float(i), i % 7), lambda s: Holder(both=default_collate(s)), lambda s: s[1]),
    "objects": (lambda i: Holder(x=float(i), n=i % 7), lambda s: {"x": torch.tensor([one.x for one in s])},
                lambda sample: sample.n),
    "boxes": (lambda i: (torch.zeros(3, 4 + i % 5), {"boxes": torch.ones(i % 3, 4), "id": i}),
              lambda s: tuple(zip(*s, strict=True)), lambda s: s[0].shape[1]),
}  # fmt: skip


@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize("name", DEEP)
def test_rows_that_move_are_seen_in_lists_objects_and_padded_sequences(name, moved):
    sample, collate, key = DEEP[name]
    loader = make(
        [sample(i) for i in range(N)],
        collate_fn=lambda samples: collate(sorted(samples, key=key) if moved else samples),
    )
    if not moved:
        for _ in loader:
            loader.record(torch.zeros(8, 5))
        return
    with pytest.raises(RuntimeError, match="collate_fn puts"):
        [loader.record(torch.zeros(8, 5)) for _ in loader]


@pytest.mark.parametrize("change", ["refill", "noise", "flip", "coarse", "none"])
def test_a_batch_whose_broken_samples_are_left_out_and_filled_up_again(change):
    """And labels that a collate function changes where they are."""

    def collate(samples):
        labels = np.array([sample.n for sample in samples])
        if change == "refill":
            there = [sample.n for sample in samples if not sample.broken]
            labels = np.array((there + there)[: len(samples)])
        elif change == "noise":
            labels[::5] = (labels[::5] + 3) % 10
        elif change != "none":
            labels = 1 - labels % 2 if change == "flip" else labels // 2
        return torch.from_numpy(labels)

    samples = [Holder(image=Holder(), n=(i * 7 + i // 10) % 10, broken=i % 17 == 3) for i in range(200)]
    loader = make(samples, collate_fn=collate, batch_size=20)
    if change == "refill":
        with pytest.raises(RuntimeError, match="collate_fn puts"):
            [loader.record(torch.zeros(20, 5)) for _ in loader]
        return
    for _ in loader:
        loader.record(torch.zeros(20, 5))


def test_rows_that_are_in_order_by_chance_at_first():
    loader = make(Sequences(N, "pair"), collate_fn=ByLabel(), shuffle=False, batch_size=8)
    with pytest.raises(RuntimeError, match="collate_fn puts"):
        [loader.record(torch.zeros(8, 5)) for _ in loader]
    assert loader.tracker.count.sum() == 8


class ByLabel:
    """Moves nothing in the first batch."""

    def __call__(self, samples):
        first = samples[0][0][0] == 0
        return packed(samples if first else samples[::-1], "pair")


def mixed_up(samples):
    images, targets = default_collate(samples)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    return 0.5 * images + 0.5 * images[order], targets, targets[order], 0.5


def soft(samples):
    images, targets = default_collate(samples)
    return images.flip(0) + images, torch.nn.functional.one_hot(targets, N).float().roll(1, 0)


@pytest.mark.parametrize("collate", [default_collate, mixed_up, soft, lambda samples: samples, Collate("pair"),
                                     lambda samples: default_collate(samples)[0], lambda samples: len(samples)])  # fmt: skip
def test_no_false_alarm_of_a_collate_function(collate):
    kinds = ["pair"] if isinstance(collate, Collate) else ["tuple", "list"]
    for kind in kinds:
        dataset = Sequences(N, kind) if isinstance(collate, Collate) else Plain(N, kind)
        loader = make(dataset, collate_fn=collate)
        for _ in loader:
            loader.record(logits_of(loader.indices.numpy(), 1))
        assert_right(loader)


def test_no_false_alarm_of_two_classes_that_are_swapped():
    """With as many samples of one as of the other, it is a permutation."""
    loader = make([(Holder(), i % 2) for i in range(N)], shuffle=False,
                  collate_fn=lambda samples: (None, 1 - torch.tensor([label for _, label in samples])))  # fmt: skip
    for _ in loader:
        loader.record(torch.zeros(8, 5))


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_no_false_alarm_of_small_batches(batch_size):
    """Lengths that happen to be the labels of the other samples."""

    def collate(samples):
        labels = [label for _, label in samples]
        return {"x": torch.zeros(len(samples)), "length": torch.tensor(labels[::-1])}

    loader = make(batch_size=batch_size, collate_fn=collate)
    for _ in loader:
        loader.record(logits_of(loader.indices.numpy(), 1))
    assert_right(loader)


# -- indices and values -----------------------------------------------------------------------------------


def test_indices_of_the_batch_yielded_last():
    loader = make()
    assert loader.indices is None
    for batch in loader:
        indices = loader.indices
        assert indices.dtype == torch.int64
        assert indices.tolist() == index_of(batch)
        indices.fill_(-7)  # a copy
        record(loader, batch)
    assert_right(loader)
    loader.end_epoch()
    assert loader.indices is None


def test_a_pass_that_goes_on_after_the_epochs_end_knows_its_indices():
    loader = make(kcd_options={"return_index": True})
    passes = iter(loader)
    for number, (indices, batch) in enumerate(passes):
        assert indices.tolist() == index_of(batch)
        if number == 2:
            loader.record(logits_of(indices, 1), indices=indices)
            loader.end_epoch()
            next(iter(loader))
    assert number == 7
    assert loader.state_dict()["position"] == 0


def test_values_of_ones_own():
    loader, run = make(), kcd.Condensation(kcd.CondensedSampler(N), schedule=LONG)
    for batch in loader:
        values = torch.tensor(index_of(batch)) / 3
        loader.record(values=values)
        run.record(indices=[-1, *index_of(batch)], values=np.array([7.0, *values]))
    for tracker in (loader.tracker, run.tracker):
        np.testing.assert_allclose(tracker.value, np.arange(N) / 3, atol=1e-6)
        assert (tracker.count == 1).all()
    loader = make()
    batch = next(iter(loader))
    with pytest.raises(TypeError, match="one of student_logits and values"):
        loader.record()
    with pytest.raises(TypeError, match="one of student_logits and values"):
        loader.record(logits_of(index_of(batch), 1), values=torch.zeros(8))
    with pytest.raises(ValueError, match="values has 7 rows for a batch of 8"):
        loader.record(values=torch.zeros(7))
    assert loader.tracker.count.sum() == 0
    loader.record(values=torch.zeros(8))


# -- what is asked of a loader, and what can't be set -----------------------------------------------------


def test_what_trainers_look_for():
    loader = make(batch_size=5, drop_last=True)
    assert loader.batch_sampler.sampler is loader.sampler
    assert (loader.batch_sampler.batch_size, loader.batch_sampler.drop_last) == (5, True)
    assert len(loader.batch_sampler) == len(loader)


@pytest.mark.parametrize("name", ["dataset", "sampler", "batch_sampler", "batch_size", "collate_fn", "num_workers",
                                  "epoch", "tracker", "generator"])  # fmt: skip
def test_what_a_loader_is_made_of_is_not_set(name):
    loader = make()
    with pytest.raises(AttributeError, match=rf"^{name} can't be set.*wrap_loader"):
        setattr(loader, name, None)
    loader.name_of_my_own = 3
    assert len(run_epoch(loader)) == 8


def test_a_data_set_that_grew_or_shrank():
    data = [(torch.full((2,), float(i)), i) for i in range(16)]
    loader = kcd.wrap_loader(DataLoader(data, 4, shuffle=True), schedule=LONG, mixing=None)
    run_epoch(loader)
    data.append(data[0])
    with pytest.raises(RuntimeError, match="has 17 samples now, and had 16"):
        next(iter(loader))
    data[:] = data[:10]
    with pytest.raises(RuntimeError, match="has 10 samples now"):
        run_epoch(loader)
    assert loader.tracker.count.sum() == 16
