"""Every kind of loader and data set that can be wrapped gives the plain loader's batches; the rest is refused."""

import copy
import functools
import inspect
import pickle
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import Batched, Cifar, Mnist, Plain, index_of, run_epoch, same, wrap
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    MapDataPipe,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
    get_worker_info,
    random_split,
)

import kcd_core as kcd
from kcd_core.loading.keys import KeyedDataset
from kcd_core.loading.rebuild import OWN_ARGUMENTS

# Ranks are simulated here, without a process group.
pytestmark = pytest.mark.filterwarnings("ignore:the sampler draws for one of num_replicas")

N = 22
ONCE = kcd.CondensationSchedule(ratio=0.5, stages=2, period=1)


def collate_with_size(samples):
    """A collate function of the user's own: not what default_collate would give."""
    return {"batch": default_collate(samples), "size": len(samples)}


def assert_as_plain(dataset, mixing="cumulative", **options):
    """The batches of the wrapped loader, shuffled, are those that a plain one gives for the same indices."""
    loader = DataLoader(dataset, batch_size=5, shuffle=True, **options)
    batches = list(kcd.wrap_loader(loader, schedule=ONCE, mixing=mixing, return_index=True))
    assert sorted(i for indices, _ in batches for i in indices.tolist()) == list(range(len(dataset)))
    for indices, batch in batches:
        assert indices.dtype == torch.int64
        (expected,) = DataLoader(
            dataset, batch_sampler=[indices.tolist()], collate_fn=options.get("collate_fn")
        )
        assert same(batch, expected)


@pytest.mark.parametrize("kind", ["tuple", "list", "tensor", "dict", "namedtuple", "nested"])
@pytest.mark.parametrize("make", [Plain, Batched])
def test_batches_are_those_of_the_plain_loader(kind, make):
    assert_as_plain(make(N, kind), mixing=None)
    if kind != "dict":
        assert_as_plain(make(N, kind))


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_batches_through_workers(kind):
    assert_as_plain(Plain(N, kind), num_workers=2, mixing=None)


def test_custom_collate():
    assert_as_plain(Plain(N), collate_fn=collate_with_size)
    assert_as_plain(Plain(N), collate_fn=collate_with_size, num_workers=1)


def test_arrays_tensors_and_subsets():
    assert_as_plain(Cifar(N))
    assert_as_plain(Mnist(N))
    assert_as_plain(TensorDataset(torch.arange(N), torch.rand(N, 2)), mixing=None)
    assert_as_plain(Subset(Cifar(N), range(3, 15)))
    assert_as_plain(random_split(Batched(N), [15, 7], torch.Generator().manual_seed(0))[0])
    assert_as_plain(Subset(Subset(Plain(N), [9, 3, 5, 1, 0, 7]), [5, 0, 2]))
    assert_as_plain([(torch.tensor([float(i)]), i) for i in range(9)])  # a list is a data set, too


def test_a_batched_fetch_is_used_for_what_is_not_mixed():
    dataset = Batched(N)
    loader = wrap(dataset, batch_size=6)
    run_epoch(loader)
    assert dataset.calls == 4
    drawn = [i for batch in run_epoch(loader) for i in batch]
    assert sorted(drawn) != list(range(N))
    assert 4 < dataset.calls <= 8  # a batch may be mixed altogether
    list(wrap(Plain(N), batch_size=6))  # and needs not be there


def test_a_batched_fetch_that_returns_no_samples_is_refused():
    class Whole(Plain):
        def __getitems__(self, indices):
            return self.images[indices], indices  # a batch, not a list of samples

    with pytest.raises(TypeError, match=r"Whole.__getitems__ must return one sample per index"):
        list(wrap(Whole(N), batch_size=5, collate_fn=tuple))


class OneByOne(Plain):
    __getitems__ = None


def test_a_batched_fetch_set_to_none_is_none():
    assert_as_plain(OneByOne(N))


def mark_worker(worker_id):
    dataset = get_worker_info().dataset
    assert isinstance(dataset, Plain)
    assert not isinstance(dataset, Batched)
    assert len(dataset) == N
    assert dataset[3][1] == 3  # a sample of the user's, not what kcd makes of it
    dataset.kind = "list"  # set on the user's data set, read by its __getitem__
    dataset.images = dataset.images + 1000


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_every_start_method(method):
    loader = wrap(
        Cifar(N, transform=to_float), batch_size=6, num_workers=1, multiprocessing_context=method,
        persistent_workers=True,
    )  # fmt: skip
    for _ in range(2):  # the second epoch mixes in the workers
        drawn = [i for batch in run_epoch(loader) for i in batch]
        assert len(drawn) == len(set(drawn))
    assert len(drawn) == N - 3


def to_float(image):
    return torch.from_numpy(image.astype(np.float32))


class Copied(Plain):
    def __deepcopy__(self, memo):
        return Copied(N)


def test_what_has_the_type_of_the_users_data_set_is_copied_and_pickled_as_what_it_is():
    inner = KeyedDataset(Copied(N), kcd.mix_samples)
    for twin in (copy.copy(inner), copy.deepcopy(inner), pickle.loads(pickle.dumps(inner))):
        assert type(twin) is KeyedDataset
        assert isinstance(twin, Copied)
        assert len(twin) == N
    for loader in (copy.deepcopy(wrap(Copied(N))), pickle.loads(pickle.dumps(wrap(Copied(N))))):
        assert sorted(i for batch in run_epoch(loader) for i in batch) == list(range(N))


class Pipe(MapDataPipe):
    def __init__(self):
        self.data = [(torch.full((2,), float(i)), i) for i in range(N)]

    def __getitem__(self, index):
        return self.data[index]

    def __len__(self):
        return N


@pytest.mark.parametrize("workers", [0, 1])
def test_a_map_data_pipe(workers):
    assert_as_plain(Pipe(), num_workers=workers)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_init_fn_reaches_the_users_data_set(method):
    dataset = Plain(N)
    loader = wrap(dataset, num_workers=1, worker_init_fn=mark_worker, multiprocessing_context=method)
    for batch in loader:
        assert isinstance(batch, list)
        assert (batch[0] >= 1000).all()
    assert dataset.kind == "tuple"  # the worker's copy was changed, not this one
    assert (dataset.images < 1000).all()


def test_pin_memory_without_an_accelerator_warns_only_as_torch_does():
    if not hasattr(torch, "accelerator") or torch.accelerator.is_available():
        pytest.skip("there is an accelerator, or this torch is too old to say")

    def told(loader):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert len(list(loader)) == 3
        return [str(w.message) for w in caught]

    plain = told(DataLoader(Plain(N), batch_size=8, pin_memory=True))
    assert plain
    assert told(wrap(Plain(N), pin_memory=True)) == plain


# -- settings ------------------------------------------------------------------------------------------


class Marked(DataLoader):
    """A subclass that only adds, and so can be rebuilt."""

    extra = 1


def every_setting():
    return {
        "num_workers": 2, "pin_memory": True, "timeout": 30.0, "worker_init_fn": mark_worker,
        "multiprocessing_context": "spawn", "generator": torch.Generator().manual_seed(1), "prefetch_factor": 3,
        "persistent_workers": True, "pin_memory_device": "cpu", "in_order": False,
    }  # fmt: skip


def accepted():
    return set(inspect.signature(DataLoader.__init__).parameters) - {"self"}


def test_every_setting_is_carried_over():
    """Fails where torch gets a keyword that nobody has thought about."""
    known = set(every_setting()) | set(OWN_ARGUMENTS)
    assert accepted() <= known, "DataLoader has a new keyword: is it carried over?"
    options = {name: value for name, value in every_setting().items() if name in accepted()}
    loader = Marked(Plain(N), shuffle=True, batch_size=4, collate_fn=collate_with_size, **options)
    inner = kcd.wrap_loader(loader, schedule=ONCE)._reader.inner
    for name in options:
        assert getattr(inner, name) == getattr(loader, name), name
        default = inspect.signature(DataLoader.__init__).parameters[name].default
        assert getattr(inner, name) != default, f"{name} was not put to the test"
    assert inner.collate_fn.collate is collate_with_size
    assert loader.batch_size == 4  # and the user's loader is as it was
    assert type(loader.sampler) is RandomSampler


def test_settings_of_a_loader_without_workers():
    loader = DataLoader(Plain(N), batch_size=4)
    inner = kcd.wrap_loader(loader, schedule=ONCE)._reader.inner
    for name in accepted() - set(OWN_ARGUMENTS):
        assert getattr(inner, name) == getattr(loader, name), name


def test_what_the_wrapped_loader_says_about_itself():
    loader = wrap(Plain(N), batch_size=4, drop_last=True)
    assert (loader.batch_size, loader.drop_last, loader.num_workers, len(loader)) == (4, True, 0, 5)
    assert not isinstance(loader, DataLoader)
    assert "kept=22 of 22" in repr(loader)
    assert wrap(Plain(N), num_workers=2).num_workers == 2


@pytest.mark.parametrize(
    "options", [{"prefetch_factor": 1}, {"persistent_workers": True}, {"timeout": 60}, {"in_order": False}]
)
def test_worker_options_at_work(options):
    if not set(options) <= accepted():
        pytest.skip("this torch has no such option")
    loader = wrap(Cifar(N, to_float), batch_size=3, num_workers=2, **options)
    for epoch in range(1, 4):
        drawn = [i for batch in run_epoch(loader) for i in batch]
        assert len(drawn) == len(set(drawn)) == {1: 22, 2: 19, 3: 16}[epoch]


def test_generator_is_the_users():
    """Workers are seeded from the user's generator, and it is left as the plain loader leaves it."""
    mine, theirs = (torch.Generator().manual_seed(5) for _ in range(2))
    list(DataLoader(Plain(N), generator=mine))
    list(kcd.wrap_loader(DataLoader(Plain(N), generator=theirs), schedule=ONCE))
    assert torch.equal(mine.get_state(), theirs.get_state())
    assert not torch.equal(mine.get_state(), torch.Generator().manual_seed(5).get_state())


@pytest.mark.filterwarnings(r"ignore:epoch \d+ will have no batch")
@pytest.mark.parametrize(
    ("batch_size", "drop_last", "sizes"),
    [(5, False, [5, 5, 5, 5, 2]), (5, True, [5] * 4), (100, False, [22]), (100, True, []), (22, True, [22]), (1, False, [1] * 22)],
)  # fmt: skip
def test_batch_sizes(batch_size, drop_last, sizes):
    loader = wrap(Plain(N), batch_size=batch_size, drop_last=drop_last)
    assert [len(index_of(batch)) for batch in loader] == sizes
    assert len(loader) == loader.steps(1) == len(sizes)


@pytest.mark.parametrize("sampler", [SequentialSampler, RandomSampler])
def test_explicit_plain_batch_sampler(sampler):
    dataset = Plain(N)
    inner = BatchSampler(sampler(dataset), batch_size=4, drop_last=True)
    loader = kcd.wrap_loader(DataLoader(dataset, batch_sampler=inner), schedule=ONCE)
    drawn = [index_of(batch) for batch in loader]
    assert [len(b) for b in drawn] == [4] * 5
    assert (drawn == [list(range(i, i + 4)) for i in range(0, 20, 4)]) == (sampler is SequentialSampler)


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
def test_distributed_sampler_is_taken_over(shuffle, drop_last):
    dataset = Plain(N)
    drawn = []
    for rank in range(4):
        sampler = DistributedSampler(dataset, 4, rank, shuffle=shuffle, seed=11, drop_last=drop_last)
        loader = kcd.wrap_loader(DataLoader(dataset, batch_size=2, sampler=sampler), schedule=ONCE)
        mine = loader.sampler
        assert (mine.num_replicas, mine.rank, mine.shuffle, mine.seed, mine.drop_last) == (
            4, rank, shuffle, 11, drop_last,
        )  # fmt: skip
        drawn.append([i for batch in loader for i in index_of(batch)])
        assert len(loader) == -(-len(sampler) // 2)
        if not shuffle:
            assert drawn[-1] == list(sampler)  # torch's own shards, to the index
    assert {len(d) for d in drawn} == {5 if drop_last else 6}
    every = sorted(i for d in drawn for i in d)
    if drop_last:
        assert len(set(every)) == 20
    else:
        assert set(every) == set(range(N))
        assert len(every) == 24


# -- refusals ------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(9))


class Unsized(Plain):
    __len__ = None


class OwnSampler(SequentialSampler):
    pass


class OwnBatches(BatchSampler):
    pass


class OwnIter(DataLoader):
    def __iter__(self):
        return super().__iter__()


class OwnLen(DataLoader):
    def __len__(self):
        return 3


class OwnIterator(DataLoader):
    def _get_iterator(self):
        return super()._get_iterator()


data = Plain(N)
REFUSED = {
    "unbatched": (lambda: DataLoader(data, batch_size=None), "batch_size=None"),
    "batch sampler": (lambda: DataLoader(data, batch_sampler=OwnBatches(range(N), 4, False)), "OwnBatches"),
    "list of batches": (lambda: DataLoader(data, batch_sampler=[[0, 1], [2, 3]]), "batch sampler of its own"),
    "sampler": (lambda: DataLoader(data, sampler=OwnSampler(data)), "OwnSampler"),
    "list of indices": (lambda: DataLoader(data, sampler=[3, 1]), "sampler of its own, list"),
    "weighted": (lambda: DataLoader(data, sampler=WeightedRandomSampler([1.0] * N, N)), "WeightedRandomSampler, and not shuffle=True"),
    "replacement": (lambda: DataLoader(data, sampler=RandomSampler(data, replacement=True)), "replacement"),
    "fewer": (lambda: DataLoader(data, sampler=RandomSampler(data, num_samples=7)), "7 samples of a data set of 22"),
    "another": (lambda: DataLoader(data, sampler=SequentialSampler(range(9))), "9 samples of a data set of 22"),
    "another, distributed": (lambda: DataLoader(data, sampler=DistributedSampler(range(9), 2, 0)), "9 samples of"),
    "own __iter__": (lambda: OwnIter(data), "OwnIter overrides DataLoader.__iter__"),
    "own __len__": (lambda: OwnLen(data), "OwnLen overrides DataLoader.__len__"),
    "own iterator": (lambda: OwnIterator(data), "OwnIterator overrides DataLoader._get_iterator"),
    "a list": (lambda: [1, 2], "list"),
    "a data set": (lambda: data, "Plain"),
    "none": (lambda: None, "NoneType"),
    "unsized": (lambda: DataLoader(Unsized(N), sampler=SequentialSampler(range(N))), "Unsized has no len"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_manual_route(name):
    make, reason = REFUSED[name]
    with pytest.raises(TypeError, match="by hand") as caught:
        kcd.wrap_loader(make(), schedule=ONCE)
    assert reason in str(caught.value)
    assert "Condensation" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "way"),
    [
        ({"dataset": Stream()}, r"use kcd.CondensedStream\(dataset, key=..., slots=..., schedule=...\)$"),
        (
            {"dataset": data, "sampler": SubsetRandomSampler([3, 1])},
            r"Subset\(dataset, indices\) and shuffle=True",
        ),
    ],
    ids=["iterable", "subset"],
)
def test_refused_with_the_one_way_that_there_is(options, way):
    with pytest.raises(TypeError, match=way) as caught:
        kcd.wrap_loader(DataLoader(**options, batch_size=2), schedule=ONCE)
    assert "by hand" not in str(caught.value)


def test_refused_otherwise():
    with pytest.raises(TypeError, match="wrapped already: use it as it is, or wrap the DataLoader"):
        kcd.wrap_loader(wrap(Plain(N)), schedule=ONCE)
    with pytest.raises(ValueError, match="data set is empty"):
        kcd.wrap_loader(DataLoader([]), schedule=ONCE)
    good = DataLoader(Plain(N))
    with pytest.raises(
        TypeError, match=r"a SimpleNamespace around one: wrap that one, loader.loader, .* as prefetch="
    ):
        kcd.wrap_loader(SimpleNamespace(loader=good), schedule=ONCE)
    with pytest.raises(TypeError, match="CondensationSchedule, got float"):
        kcd.wrap_loader(good, schedule=0.7)
    for option, value in [
        ("mixing", "mixup"), ("mixer", "pictures"), ("mixer", 3), ("alpha", -1), ("alpha", float("nan")),
        ("min_weight", 1.5), ("min_weight", -0.1), ("value", "size"), ("on_nonfinite", "ignore"), ("seed", -1),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=option):
            kcd.wrap_loader(good, schedule=ONCE, **{option: value})


def test_a_partial_and_a_device_are_accepted():
    loader = kcd.wrap_loader(
        DataLoader(Plain(N, "dict"), batch_size=4),
        schedule=ONCE,
        mixer=functools.partial(kcd.mix_samples, fields=["image"]),
        device="cpu",
    )
    run_epoch(loader)
    run_epoch(loader)
    assert loader.tracker.device == torch.device("cpu")
    assert loader.tracker.count.sum() == N + N - 5
