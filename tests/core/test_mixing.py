"""Mixing: pixels against a naive, stage-by-stage mixing of a copy of all images."""

import functools
import hashlib
import pathlib

import numpy as np
import pytest
import torch
from helpers import (
    SCHEDULE,
    Cifar,
    Mnist,
    Naive,
    Pair,
    Plain,
    entropy_of,
    images_of,
    index_of,
    logits_of,
    run_epoch,
    wrap,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

import kcd_core as kcd
from kcd_core.mixing import default_mixer
from kcd_core.raw_images import has_arrays
from kcd_core.recipes import MixRecipes

N = 40
GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def digest(data):
    return hashlib.sha256(np.ascontiguousarray(data).tobytes()).hexdigest()


def train_and_compare(loader, images, read, *, epochs=8, fresh=False):
    """Every pixel of every batch is that of the naive mixing; gives how many drawn images were mixed."""
    naive = Naive(N, images=images, fresh=fresh)
    mixed = 0
    for epoch in range(1, epochs + 1):
        for batch in loader:
            indices = index_of(batch)
            pixels = read(batch)
            assert pixels.dtype == naive.images.dtype
            np.testing.assert_array_equal(pixels, naive.images[indices])
            mixed += int((naive.images[indices] != naive.original[indices]).any((1, 2)).sum())
            naive.record(indices, entropy_of(logits_of(indices, epoch)))
            loader.record(logits_of(indices, epoch))
        assert loader.end_epoch().stage == epoch
        naive.stage()
        assert loader.sampler.kept.tolist() == naive.kept
    return mixed


def flat(x):
    return np.asarray(x).reshape(len(x), -1, np.asarray(x).shape[-1])


# -- against the naive reference --------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mixing", ["cumulative", "fresh"])
def test_arrays_through_the_loader(mixing, workers):
    dataset = Cifar(N)
    before = digest(dataset.data)
    loader = wrap(dataset, num_workers=workers, kcd_options={"mixing": mixing})
    naive_images = flat(dataset.data)
    mixed = train_and_compare(loader, naive_images, lambda b: flat(b[0].numpy()), fresh=mixing == "fresh")
    assert mixed >= 16
    assert digest(dataset.data) == before


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mixing", ["cumulative", "fresh"])
@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_samples_through_the_loader(mixing, workers, kind):
    dataset = Plain(N, kind)
    before = digest(dataset.images.numpy())
    mixer = functools.partial(kcd.mix_samples, fields=["image"]) if kind == "dict" else "samples"
    loader = wrap(dataset, num_workers=workers, kcd_options={"mixing": mixing, "mixer": mixer})

    def read(batch):
        return (batch["image"] if kind == "dict" else batch[0]).numpy()

    assert train_and_compare(loader, dataset.images.numpy(), read, fresh=mixing == "fresh") >= 16
    assert digest(dataset.images.numpy()) == before


def test_mnist_through_the_loader():
    dataset = Mnist(N)
    before = digest(dataset.data.numpy())
    loader = wrap(dataset)
    assert train_and_compare(loader, dataset.data.numpy(), lambda b: b[0].numpy()) >= 16
    assert digest(dataset.data.numpy()) == before


def test_no_mixing():
    dataset = Cifar(N)
    loader = wrap(dataset, kcd_options={"mixing": None})
    for _ in range(5):
        run_epoch(loader, seen=lambda i, b: np.testing.assert_array_equal(b[0], dataset.data[i]))
    assert len(loader.sampler.recipes) == 0


def test_targets_are_the_tail_points_and_so_is_all_else():
    for kind in ("tuple", "list", "namedtuple", "nested"):
        dataset = Plain(N, kind)
        loader = wrap(dataset, kcd_options={"return_index": True})
        for _ in range(4):
            for indices, batch in loader:
                assert index_of(batch) == indices.tolist()
                assert type(batch) is type(default_collate([dataset[0]]))
                loader.record(logits_of(indices, loader.epoch))
            loader.end_epoch()


# -- the authors' recordings --------------------------------------------------------------------------------


class Recorded(Dataset):
    def __init__(self, images):
        self.data = images

    def __getitem__(self, index):
        return self.data[index], index

    def __len__(self):
        return len(self.data)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["v3_n300", "v3_n397_tau60"])
def test_recorded_images_through_the_loader(name, workers):
    """Sets and pixels of the authors' code, at every stage, for every image that is drawn."""
    golden = np.load(GOLDEN / f"{name}.npz")
    n, period, stages = int(golden["N"]), int(golden["T"]), int(golden["stages_run"])
    schedule = kcd.CondensationSchedule(ratio=float(golden["tau"]), stages=6, period=period)
    loader = kcd.wrap_loader(
        DataLoader(Recorded(golden["images0"]), batch_size=64, shuffle=True, num_workers=workers,
                   persistent_workers=workers > 0),
        schedule=schedule, mixing="cumulative", value=lambda logits: logits[:, 0],
    )  # fmt: skip
    epoch = 0
    for stage in range(1, stages + 1):
        for _ in range(period):
            values = golden["entropy_record"][:, epoch]
            epoch += 1
            if epoch % period == 1:  # the drawn samples' values come in through the loop itself, now and then
                for batch in loader:
                    column = torch.from_numpy(values[batch[1].numpy()])
                    loader.record(torch.stack([column, column], 1))
            else:
                drawn = np.flatnonzero(values >= 0)
                loader.record(np.stack([values[drawn]] * 2, 1), indices=drawn)
            chosen = loader.end_epoch()
        assert chosen.stage == stage
        assert chosen.kept.tolist() == sorted(golden[f"kept_{stage}"].tolist())
        assert chosen.tail.tolist() == golden[f"tail_{stage}"].tolist()
        assert chosen.dropped.tolist() == golden[f"dropped_{stage}"].tolist()
        images, drawn = golden[f"images_{stage}"], 0
        for batch in loader:
            np.testing.assert_array_equal(batch[0], images[batch[1]])
            drawn += len(batch[1])
        assert drawn == len(chosen.kept)
        loader.load_state_dict({**loader.state_dict(), "position": 0})  # that was a look, not training
        # what the authors' code overwrote is the same for the samples that are not drawn, too
        for index in range(n):
            image, _ = kcd.mix_arrays(Recorded(golden["images0"]), index, loader.sampler.steps(index))
            np.testing.assert_array_equal(image, images[index])


class CountingArray(np.ndarray):
    reads = None

    def __getitem__(self, index):
        self.reads[index] += 1
        return np.asarray(self)[index]


def test_each_raw_image_is_read_once_by_a_fetch():
    dataset = Cifar(N)
    dataset.data = dataset.data.view(CountingArray)
    dataset.data.reads = np.zeros(N, int)
    recipes = MixRecipes([3, 3, 5, 7], [5, 6, 6, 8], [0.8, 0.8, 0.8, 0.9], [1, 2, 1, 1])
    kcd.mix_arrays(dataset, 3, recipes.steps(3))
    assert np.flatnonzero(dataset.data.reads).tolist() == [3, 5, 6]
    assert dataset.data.reads.max() == 1


# -- mix_arrays ---------------------------------------------------------------------------------------------

STEPS = ((2, 7, 0.75),)


def mixed_by_hand(data, weight=0.75):
    return (
        data[2].astype(np.float32) * np.float32(weight) + data[7].astype(np.float32) * np.float32(1 - weight)
    ).astype(data.dtype)


def test_mix_arrays_runs_the_users_getitem_on_the_mixed_image():
    class Mine(Cifar):
        """A subclass with an item of its own (as CRD's): the index, and random numbers."""

        def __getitem__(self, index):
            image, target = super().__getitem__(index)
            assert type(self) is Mine
            return image, target, index, len(self), np.random.default_rng(0).random()

    dataset = Mine(N, transform=lambda image: image.astype(np.float64) / 255)
    image, *rest = kcd.mix_arrays(dataset, 2, STEPS)
    np.testing.assert_array_equal(image, mixed_by_hand(dataset.data) / 255)
    assert rest == [2, 2, N, np.random.default_rng(0).random()]


def test_mix_arrays_on_a_tensor():
    dataset = Mnist(N)
    image, target = kcd.mix_arrays(dataset, 2, STEPS)
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(image, mixed_by_hand(dataset.data.numpy()))
    assert target == 2


def test_mix_arrays_through_subsets():
    base = Cifar(N)
    inner = Subset(base, list(range(N))[::-1])
    outer = Subset(inner, np.arange(0, N, 2))  # outer[i] is base[N - 1 - 2 i]
    image, target = kcd.mix_arrays(outer, 1, ((1, 3, 0.75),))
    a, b = base.data[N - 3].astype(np.float32), base.data[N - 7].astype(np.float32)
    np.testing.assert_array_equal(image, (a * np.float32(0.75) + b * np.float32(0.25)).astype(np.uint8))
    assert target == N - 3
    assert outer.dataset is inner
    assert inner.dataset is base


@pytest.mark.parametrize("workers", [0, 1])
def test_subset_through_the_loader(workers):
    base = Cifar(2 * N)
    subset = Subset(base, list(range(1, 2 * N, 2)))
    loader = wrap(subset, num_workers=workers, kcd_options={"return_index": True})
    naive = Naive(N, images=base.data[1::2])
    for epoch in range(1, 5):
        for indices, batch in loader:
            np.testing.assert_array_equal(batch[0], naive.images[indices])
            assert batch[1].tolist() == (2 * indices + 1).tolist()
            naive.record(indices.tolist(), entropy_of(logits_of(indices, epoch)))
            loader.record(logits_of(indices, epoch))
        loader.end_epoch()
        naive.stage()
    assert len(loader.sampler.recipes) > 0


def test_mix_arrays_leaves_the_data_set_alone():
    class Handle(Cifar):
        """Loses what can't go to another process when it is pickled or copied."""

        def __getstate__(self):
            return {**self.__dict__, "targets": None}

    class Slots:
        __slots__ = ("data",)

        def __getitem__(self, index):
            return self.data[index], index

        def __len__(self):
            return len(self.data)

    for dataset in (Handle(N), Slots()):
        dataset.data = data = images_of(N)
        image, target = kcd.mix_arrays(dataset, 2, STEPS)
        np.testing.assert_array_equal(image, mixed_by_hand(data))
        assert target == 2
        assert dataset.data is data
    subset = Subset(Cifar(N), range(N))
    base = subset.dataset
    kcd.mix_arrays(subset, 2, STEPS)
    assert subset.dataset is base
    assert type(base.data) is np.ndarray


@pytest.mark.parametrize(
    "key", [lambda i: i, np.int64, torch.tensor, lambda i: i - N, lambda i: (i, ...), lambda i: (i - N,)]
)
def test_mix_arrays_reads_any_spelling_of_the_index(key):
    class Mine(Cifar):
        def __getitem__(self, index):
            return self.data[key(index)]

    np.testing.assert_array_equal(kcd.mix_arrays(Mine(N), 2, STEPS), mixed_by_hand(Mine(N).data))


def test_mix_arrays_leaves_other_images_as_they_are():
    class Neighbours(Cifar):
        def __getitem__(self, index):
            return self.data[index], self.data[index + 1], self.data.shape, len(self.data)

    dataset = Neighbours(N)
    image, neighbour, shape, length = kcd.mix_arrays(dataset, 2, STEPS)
    np.testing.assert_array_equal(image, mixed_by_hand(dataset.data))
    np.testing.assert_array_equal(neighbour, dataset.data[3])
    assert (shape, length) == (dataset.data.shape, N)


class NeverReads(Cifar):
    def __init__(self, n):
        super().__init__(n)
        self.images = self.data

    def __getitem__(self, index):
        return self.images[index]


class ReadsSlices(Cifar):
    def __getitem__(self, index):
        return self.data[index : index + 1]


class Fixed(Cifar):
    data = property(lambda self: self._data, lambda self, x: self._set(x))

    def _set(self, x):
        if "_data" in self.__dict__:
            raise AttributeError("read only")
        self._data = x


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        (NeverReads(N), r"NeverReads.__getitem__ did not read its image as self.data\[index\]"),
        (ReadsSlices(N), r"reads one image as self.data\[index\], got self.data\[slice"),
        (Fixed(N), r"Fixed.data in a copy, and it can't be set"),
        (Plain(N), "Plain has none; use mixer=mix_samples"),
        ([1, 2, 3, 4, 5, 6, 7, 8], "list has none"),
    ],
)
def test_mix_arrays_refuses_what_it_would_get_wrong(dataset, reason):
    with pytest.raises(TypeError, match=reason):
        kcd.mix_arrays(dataset, 2, STEPS)


def test_a_data_set_that_never_reads_its_data_is_a_type_error_at_the_first_fetch():
    loader = wrap(NeverReads(N))
    with pytest.raises(TypeError, match=r"did not read its image as self.data\[index\]"):
        list(loader)
    assert len(list(wrap(NeverReads(N), kcd_options={"mixing": None}))) == len(loader)


def test_random_transforms_run_once_a_sample():
    calls = []

    def transform(image):
        calls.append(image.copy())
        return (
            image[:, ::-1].astype(np.float32)
            if np.random.default_rng(len(calls)).random() < 0.5
            else image.astype(np.float32)
        )

    dataset = Cifar(N, transform)
    kcd.mix_arrays(dataset, 2, STEPS)
    assert len(calls) == 1
    np.testing.assert_array_equal(calls[0], mixed_by_hand(dataset.data))


def test_which_mixer_is_the_default():
    assert default_mixer(Cifar(N)) is kcd.mix_arrays
    assert default_mixer(Mnist(N)) is kcd.mix_arrays
    assert default_mixer(Subset(Subset(Cifar(N), [1, 2]), [0])) is kcd.mix_arrays
    assert default_mixer(Plain(N)) is kcd.mix_samples
    assert default_mixer(list(range(5))) is kcd.mix_samples
    short = Cifar(N)
    short.targets, short.data = short.targets, short.data[:7]
    assert has_arrays(short)
    listed = Cifar(N)
    listed.data = list(listed.data)  # of paths, say
    assert default_mixer(listed) is kcd.mix_samples
    masks, labels = Cifar(N), Cifar(N)
    masks.data = masks.data // 128 * 255  # 0 and 255
    labels.data = np.where(
        labels.data < 200, labels.data % 19, 255
    )  # of a segmentation, and 255 for "ignore"
    assert default_mixer(masks) is kcd.mix_arrays
    assert default_mixer(labels) is kcd.mix_samples
    scalars = Cifar(N)
    scalars.data = np.arange(N)
    assert default_mixer(scalars) is kcd.mix_samples


class PassesOn(Dataset):
    """Has no images of its own, though it looks so."""

    def __init__(self, inner):
        self.inner = inner

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        image, label = self.inner[index]
        return torch.as_tensor(np.asarray(image)).float(), label

    def __getattr__(self, name):
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.rand(N, 3),
        lambda: torch.randint(0, 255, (N, 3, 4), dtype=torch.uint8),
        lambda: np.random.default_rng(0).random((N, 3)),
        lambda: PassesOn(Cifar(N)),
        lambda: Subset(PassesOn(Cifar(N)), range(N)),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_data_of_another_kind_is_no_store_of_images(make, workers):
    dataset = make()
    assert default_mixer(dataset) is kcd.mix_samples
    loader = wrap(dataset, num_workers=workers)
    for epoch in range(2):
        for _ in loader:
            loader.record(logits_of(loader.indices, epoch))
        loader.end_epoch()
    assert len(loader.sampler.recipes)
    assert len(list(loader)) == len(loader)


def test_wrapping_fetches_nothing():
    class Untouchable(Plain):
        def __getitem__(self, index):
            raise AssertionError("fetched")

    wrap(Untouchable(N)).state_dict()


# -- mix_samples --------------------------------------------------------------------------------------------


def blended(a, b, weight=0.75):
    return a * weight + b * (1 - weight)


def test_mix_samples_of_every_form():
    dataset = Plain(N)
    expected = blended(dataset.images[2], dataset.images[7])
    for kind in ("tuple", "list", "namedtuple"):
        sample = kcd.mix_samples(Plain(N, kind), 2, STEPS)
        assert torch.equal(sample[0], expected)
        assert sample[1] == 2
        assert type(sample) is {"tuple": tuple, "list": list, "namedtuple": Pair}[kind]
    bare = kcd.mix_samples(Plain(N, "tensor"), 2, STEPS)
    assert torch.equal(bare, blended(Plain(N, "tensor")[2], Plain(N, "tensor")[7]))
    named = kcd.mix_samples(Plain(N, "dict"), 2, STEPS, fields=["image"])
    assert torch.equal(named["image"], expected)
    assert (named["target"], named["name"]) == (2, "sample 2")
    arrays = [np.full((2, 2), i, np.float32) for i in range(9)]
    np.testing.assert_array_equal(kcd.mix_samples(arrays, 2, STEPS), np.full((2, 2), 3.25, np.float32))


@given(st.integers(1, 5), st.data())
def test_fields_are_counted_from_either_end(size, data):
    samples = [tuple(torch.full((2,), 10.0 * i + place) for place in range(size)) for i in range(9)]
    places = data.draw(st.sets(st.integers(0, size - 1), min_size=1))
    fields = [place - size * data.draw(st.booleans()) for place in places]
    mixed = kcd.mix_samples(samples, 2, STEPS, fields=fields)
    for place in range(size):
        expected = 20 * 0.75 + 70 * 0.25 if place in places else 20
        assert mixed[place].tolist() == [expected + place] * 2


@given(hnp.arrays(np.uint8, (2, 3, 4)), st.floats(0.0625, 1, width=32))
def test_uint8_images_after_the_transform_are_mixed_as_raw_ones(images, weight):
    class Raw:
        data = images

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return self.data[index]

    steps = ((0, 1, weight),)
    expected = kcd.mix_arrays(Raw(), 0, steps)
    np.testing.assert_array_equal(kcd.mix_samples(Raw(), 0, steps), expected)
    tensors = [(torch.from_numpy(image), 7) for image in images]
    mixed, label = kcd.mix_samples(tensors, 0, steps)
    assert (mixed.dtype, label) == (torch.uint8, 7)
    np.testing.assert_array_equal(mixed, expected)


def test_mix_samples_mixes_the_fields_named():
    dataset = [(torch.full((2,), float(i)), i, torch.full((3,), 10.0 * i)) for i in range(9)]
    sample = kcd.mix_samples(dataset, 2, STEPS, fields=[0, 2])
    assert sample[0].tolist() == [3.25] * 2
    assert sample[1] == 2
    assert sample[2].tolist() == [32.5] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_mix_samples_keeps_the_dtype(dtype):
    dataset = [torch.full((3,), i / 3, dtype=dtype) for i in range(9)]
    mixed = kcd.mix_samples(dataset, 2, STEPS)
    assert mixed.dtype == dtype
    assert mixed.double().tolist() == pytest.approx([3.25 / 3] * 3, rel=1e-2)


def test_mix_samples_fetches_each_sample_once():
    calls = []

    class Calls(Plain):
        def __getitem__(self, index):
            calls.append(index)
            return super().__getitem__(index)

    kcd.mix_samples(Calls(N), 2, ((7, 9, 0.8), (2, 7, 0.8), (2, 9, 0.9)))
    assert sorted(calls) == [2, 7, 9]


def test_mix_samples_writes_nothing_to_what_the_data_set_gave():
    samples = [{"image": torch.full((2,), float(i))} for i in range(9)]
    kcd.mix_samples(samples, 2, STEPS, fields=["image"])
    assert [s["image"].tolist() for s in samples] == [[float(i)] * 2 for i in range(9)]
    lists = [[torch.full((2,), float(i)), i] for i in range(9)]
    kcd.mix_samples(lists, 2, STEPS)
    assert [s[0].tolist() for s in lists] == [[float(i)] * 2 for i in range(9)]


@pytest.mark.parametrize(
    ("dataset", "options", "error", "reason"),
    [
        (Plain(N, "dict"), {}, TypeError, "can't tell what to mix in a dict"),
        (Plain(N, "dict"), {"fields": ["target"]}, TypeError, "field 'target' can't be mixed: .*got int"),
        (Plain(N, "dict"), {"fields": ["name"]}, TypeError, "got str"),
        (Plain(N, "dict"), {"fields": ["picture"]}, ValueError,
         r"fields names 'picture', .* a dict with the keys \['image', 'target', 'name'\]"),
        (Plain(N), {"fields": [2]}, ValueError, "fields names 2, .* a tuple of 2"),
        (Plain(N), {"fields": [-3]}, ValueError, "fields names -3"),
        (Plain(N), {"fields": ["image"]}, ValueError, "fields names 'image'"),
        (Plain(N, "tensor"), {"fields": [0]}, ValueError, "fields names 0, .* one array"),
        (Plain(N, "dict"), {"fields": "image"}, TypeError, "fields must be a list of places or keys"),
        (Plain(N), {"fields": 0}, TypeError, r"as in fields=\[0\], got 0"),
        (Plain(N), {"fields": []}, ValueError, "fields is empty"),
        (Plain(N), {"fields": [1]}, TypeError, "field 1 can't be mixed"),
        ([(torch.zeros(3, dtype=torch.uint8), 1)] * 9, {}, TypeError, "integers are never mixed.*, got dtype uint8"),
        ([(torch.zeros(3, 3, dtype=torch.int16), 1)] * 9, {}, TypeError, "integers are never mixed.*, got dtype int16"),
        ([torch.zeros(3, dtype=torch.int64)] * 9, {}, TypeError, "integers are never mixed"),
        ([torch.zeros(3, dtype=torch.complex64)] * 9, {}, TypeError, "expected a floating-point.*, got dtype complex64"),
        ([np.zeros(3, bool)] * 9, {}, TypeError, "dtype bool"),
        ([("an image", 1)] * 9, {}, TypeError, "got str"),
        ([1.0] * 9, {}, TypeError, "can't tell what to mix in a float"),
        ([torch.zeros(i) for i in range(9)], {}, ValueError, r"samples 2 and 7 .* \(2,\) and \(7,\)"),
    ],
)  # fmt: skip
def test_mix_samples_refuses(dataset, options, error, reason):
    with pytest.raises(error, match=reason):
        kcd.mix_samples(dataset, 2, STEPS, **options)


@pytest.mark.parametrize("mixer", [kcd.mix_samples, kcd.mix_arrays])
def test_a_source_that_is_gone_is_named_and_an_own_image_fails_as_without_kcd(mixer):
    class Gone(Mnist):
        """Sample 7 was deleted: its image can't be read, as of a memory map on a disk that failed."""

        def __getitem__(self, index):
            return self.data[index], 0

    class Data(np.ndarray):
        def __getitem__(self, key):
            if isinstance(key, int) and key == 7:
                raise OSError("the disk failed")
            return super().__getitem__(key)

    dataset = Gone(N)
    dataset.data = images_of(N).view(Data)
    with pytest.raises(
        RuntimeError, match=r"sample 7 .*, to be mixed into sample 2: OSError: the disk failed"
    ) as caught:
        mixer(dataset, 2, STEPS)
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(OSError, match=r"^the disk failed$"):
        mixer(dataset, 7, ((7, 9, 0.8),))


def test_a_source_that_is_none_is_named_and_a_sample_that_is_none_stays_none():
    samples = [None if i == 7 else torch.full((2,), float(i)) for i in range(10)]
    with pytest.raises(
        RuntimeError, match=r"sample 7 could not be read, .* sample 2: ValueError: it is None"
    ):
        kcd.mix_samples(samples, 2, STEPS)
    assert kcd.mix_samples(samples, 7, ((7, 9, 0.8),)) is None


@pytest.mark.parametrize("num_workers", [0, 1])
def test_dict_without_fields_is_a_type_error_at_the_first_fetch(num_workers):
    """And not in the epoch in which something is mixed for the first time."""
    with pytest.raises(TypeError, match=r"fields=\[...\]"):
        next(iter(wrap(Plain(N, "dict"), num_workers=num_workers)))
    never = kcd.CondensationSchedule(ratio=1.0, stages=1, period=1)
    list(wrap(Plain(N, "dict"), schedule=never))


# -- a mixer of one's own -----------------------------------------------------------------------------------


def test_own_mixer():
    got = []

    def mixer(dataset, index, steps):
        got.append((index, steps))
        return dataset[index]

    loader = wrap(Plain(N), kcd_options={"mixer": mixer})
    run_epoch(loader, end=False)
    chosen = loader.end_epoch()
    got.clear()  # of the rehearsal
    run_epoch(loader)
    pairs = zip(chosen.tail.tolist(), chosen.dropped.tolist(), chosen.weights.tolist(), strict=True)
    assert dict(got) == {a: ((a, b, w),) for a, b, w in pairs}
    assert len(got) == 6


def test_weights_run_from_one_to_just_over_the_least():
    loader = wrap(Plain(N), kcd_options={"min_weight": 0.4}, schedule=SCHEDULE)
    run_epoch(loader, end=False)
    weights = loader.end_epoch().weights
    np.testing.assert_allclose(weights, 0.4 + 0.6 * (6 - np.arange(6)) / 6, rtol=1e-6)
    assert weights[0] == 1


def test_token_ids_in_data_are_never_mixed():
    class Tokens:
        data = torch.arange(80).reshape(8, 10)

        def __len__(self):
            return 8

        def __getitem__(self, index):
            return self.data[index]

    with pytest.raises(TypeError, match="integers are never mixed"):
        next(iter(wrap(Tokens())))
    with pytest.raises(TypeError, match="integers of at most 16 bits"):
        next(iter(wrap(Tokens(), kcd_options={"mixer": "arrays"})))
