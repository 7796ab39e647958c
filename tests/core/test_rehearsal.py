"""What can't be mixed is an error at the first batch; what can be goes on as if nothing had been tried."""

import functools
import random

import numpy as np
import pytest
import torch
from helpers import Cifar, Mnist, Plain, run_epoch, wrap
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import kcd_core as kcd
from kcd_core.mixing import default_mixer, holds_pixels, mix_arrays, mix_samples
from kcd_core.rehearsal import rehearse

N = 40
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 5, 5), dtype=np.uint8)
ONCE = kcd.CondensationSchedule(ratio=0.5, stages=1, period=1)


class Made(Dataset):
    """(what ``sample`` makes of the data set and an index), with ``data``."""

    def __init__(self, sample, data=None):
        self.sample, self.data = sample, data

    def __len__(self):
        return N

    def __getitem__(self, index):
        return self.sample(self, index)


def first_batch(dataset, workers=0, mixer="auto", **options):
    loader = DataLoader(dataset, batch_size=8, shuffle=True, num_workers=workers, **options)
    return next(iter(kcd.wrap_loader(loader, schedule=ONCE, mixer=mixer)))


def refused(dataset, match, error=TypeError, **options):
    with pytest.raises(error, match=match):
        first_batch(dataset, **options)


# -- what a mixture leaves out --------------------------------------------------------------------------


@given(st.lists(st.integers(1, 3), min_size=2, max_size=9))
def test_shapes_that_differ_anywhere_in_the_first_batch(lengths):
    samples = {i: (torch.zeros(length), i) for i, length in enumerate(lengths)}
    if len(set(lengths)) == 1:
        rehearse(mix_samples, samples, samples)
    else:
        with pytest.raises(ValueError, match="can't be mixed: their shapes are"):
            rehearse(mix_samples, samples, samples)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_ragged_samples_are_refused_in_small_batches(batch_size):
    ragged = [(torch.zeros(i + 1), i) for i in range(N)]
    with pytest.raises(ValueError, match="can't be mixed: their shapes are"):
        next(iter(wrap(ragged, batch_size=batch_size, collate_fn=list)))


def teacher(image):
    return torch.as_tensor(np.asarray(image)).float().flatten()[:3] * 2.5 - 1


OUTPUTS = {
    "a tensor": teacher,
    "an array": lambda image: teacher(image).numpy(),
    "in a dict": lambda image: {"logits": teacher(image)},
    "in a tuple": lambda image: (3, teacher(image)),
    "a list": lambda image: teacher(image).tolist(),
    "a list of float32": lambda image: list(teacher(image).numpy()),
    "a list of float64": lambda image: list(teacher(image).double().numpy()),
    "a list of tensors": lambda image: list(teacher(image)),
}


@pytest.mark.parametrize("output", OUTPUTS)
def test_stored_outputs_of_the_unmixed_image_are_told(output):
    stored = [OUTPUTS[output](image) for image in IMAGES]
    floats = torch.from_numpy(IMAGES).float()
    after = Made(lambda _, i: (floats[i], i, stored[i]))
    before = Made(lambda self, i: (torch.from_numpy(self.data[i]).float(), i, stored[i]), IMAGES)
    for dataset in (after, before):
        refused(dataset, r"sample\[2\].* no part of the mixture", collate_fn=list)
    named = Made(lambda self, i: {"x": torch.from_numpy(self.data[i]).float(), "z": stored[i]}, IMAGES)
    refused(named, r"sample\['z'\]", collate_fn=list)
    first_batch(after, mixer=functools.partial(mix_samples, fields=[0]), collate_fn=list)


def test_stored_outputs_can_be_mixed_with_the_image():
    images = torch.from_numpy(IMAGES).float()
    dataset = TensorDataset(images, torch.arange(N), torch.stack([teacher(x) for x in images]))
    loader = wrap(
        dataset, schedule=ONCE, kcd_options={"mixer": functools.partial(mix_samples, fields=[0, -1])}
    )
    for _, y, _ in loader:
        loader.record(torch.stack([y / 9.0, 0 * y], 1))
    assert len(loader.end_epoch().tail) > 0
    for x, _, z in loader:
        torch.testing.assert_close(torch.stack([teacher(one) for one in x]), z)


@pytest.mark.parametrize(
    "rest",
    [
        lambda i: i / 7,  # a value to be regressed
        lambda i: torch.tensor([i / 7]),
        lambda i: torch.nn.functional.one_hot(torch.tensor(i), N).float(),
        lambda i: torch.arange(i, i + 3),  # indices of negatives
        lambda i: torch.full((4,), 0.5),  # the same for all
        lambda i: {"name": f"sample {i}", "box": None},
    ],
)
def test_labels_stay_those_of_the_sample(rest):
    floats = torch.from_numpy(IMAGES).float()
    for dataset in (
        Made(lambda _, i: (floats[i], rest(i))),
        Made(lambda self, i: (torch.from_numpy(self.data[i]).float(), rest(i)), IMAGES),
    ):
        assert torch.equal(first_batch(dataset, collate_fn=list)[0][0], floats[first_drawn(dataset)])


def first_drawn(dataset):
    loader = DataLoader(dataset, batch_size=8, shuffle=True, collate_fn=list)
    return int(kcd.wrap_loader(loader, schedule=ONCE).sampler.order(1)[0])


def test_two_views_of_one_raw_image_are_both_mixed():
    def views(self, i):
        image = torch.from_numpy(self.data[i]).float()
        return image, image.flip(0), i

    first_batch(Made(views, IMAGES))
    floats = torch.from_numpy(IMAGES).float()
    refused(Made(lambda _, i: (floats[i], floats[i].flip(0), i)), r"sample\[1\]")


# -- ids, labels and images -----------------------------------------------------------------------------


def values(shape, levels, dtype=np.uint8):
    return np.random.default_rng(1).choice(np.asarray(levels, dtype), (N, *shape))


ARE_IMAGES = {
    "photos": IMAGES,
    "colour": values((3, 4, 4), range(256)),
    "two levels": values((6, 6), [0, 255]),
    "four levels": values((6, 6), [0, 85, 170, 255]),
    "nearly black": np.where(np.arange(36).reshape(6, 6) == 7, IMAGES[:, :1, :1], 0).astype(np.uint8),
    "floats": np.random.default_rng(0).normal(size=(N, 7)),
}
ARE_NONE = {
    "bytes of a text": values((12,), range(256)),
    "GPT-2's tokens": values((12,), range(50257), np.uint16),
    "sound": values((12,), range(-3000, 3000), np.int16),
    "codes of 16 bits": values((4, 6), range(1024), np.uint16),
    "one-hot DNA": np.eye(4, dtype=np.uint8)[values((12,), range(4))],
    "a mask": values((6, 6), [0, 1]),
    "a label map": values((6, 6), [*range(21), 255]),
    "a mask with void": values((6, 6), [0, 1, 255]),
    "a board": values((8, 8), range(13)),
    "int64": values((6, 6), range(256), np.int64),
}


@pytest.mark.parametrize("as_tensor", [False, True])
def test_what_is_mixed_before_the_transform_by_itself(as_tensor):
    def made(data):
        if as_tensor and data.dtype == np.uint16:
            return default_mixer(Made(None, torch.from_numpy(data.astype(np.int16))))
        return default_mixer(Made(None, torch.from_numpy(data) if as_tensor else data))

    assert {name: made(data) is mix_arrays for name, data in ARE_IMAGES.items()} == dict.fromkeys(
        ARE_IMAGES, True
    )
    assert {name: made(data) is mix_samples for name, data in ARE_NONE.items()} == dict.fromkeys(
        ARE_NONE, True
    )


@given(st.sets(st.integers(0, 255), min_size=1), st.integers(32, 254))
def test_one_level_that_no_label_has_makes_an_image(levels, bright):
    image = np.array(sorted(levels | {bright}), np.uint8)[None]
    assert holds_pixels([image])
    assert holds_pixels([torch.from_numpy(image)])
    assert not holds_pixels([image % 32, image[:, :1] % 32])


@pytest.mark.parametrize("name", ARE_NONE)
def test_ids_are_refused_where_they_are_handed_out_as_ids(name):
    refused(
        Made(lambda self, i: (self.data[i].astype(np.int64), i), ARE_NONE[name]), "integers are never mixed"
    )


def test_ids_that_look_like_images_are_refused_where_they_are_handed_out_as_ids():
    def sample(self, i):
        return torch.from_numpy(self.data[i]).long().flatten()

    for pack in (lambda x: x, lambda x: (x, 3), lambda x: {"ids": x, "labels": 3}):
        codes = Made(lambda self, i, pack=pack: pack(sample(self, i)), IMAGES)
        assert default_mixer(codes) is mix_arrays
        refused(codes, "of dtype int64: ids")


def test_uint8_samples_are_images_if_their_values_are():
    batch = first_batch(Made(lambda _, i: (torch.from_numpy(IMAGES[i]), i)))
    np.testing.assert_array_equal(batch[0], IMAGES[batch[1]])
    masks = ARE_NONE["a label map"]
    for sample, mixer in (
        (lambda _, i: (masks[i], i), "samples"),
        (lambda _, i: masks[i], "samples"),
        (lambda _, i: {"x": masks[i]}, functools.partial(mix_samples, fields=["x"])),
    ):
        refused(Made(sample), "whole numbers below 32", mixer=mixer)


def test_arrays_of_ids_are_mixed_where_the_user_says_so():
    dark = values((6, 6), range(17))
    first_batch(Made(lambda self, i: self.data[i] / np.float32(16), dark), mixer="arrays")
    first_batch(
        Made(lambda self, i: self.data[i], values((12,), range(-3000, 3000), np.int16)), mixer="arrays"
    )


# -- labels in .data ------------------------------------------------------------------------------------


LABELS = {
    "a number": lambda x: int(x),
    "a float": lambda x: float(x) + 0.5,
    "a flag": lambda x: bool(x > 3),
    "a tensor": lambda x: torch.tensor(int(x)),
    "text": lambda x: f"class {x:.2f}",
    "a map": lambda x: torch.full((3, 3), float(x)),
    "a map of int64": lambda x: torch.full((3, 3), int(x)),
    "codes": lambda x: [float(x), 2.0, float(x)],
}


def beside_labels(label, place=-1, classes=5):
    """Rows that hold a label, and an image."""
    data = np.random.default_rng(3).normal(size=(N, 7)).astype(np.float32)
    data[:, place] = np.arange(N) % classes

    def sample(self, i):
        row = self.data[i]
        return torch.from_numpy(np.delete(row, place)), LABELS[label](row[place])

    return Made(sample, data)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("within", [False, True])
def test_labels_that_rows_of_data_hold_are_told(label, place, within):
    dataset = beside_labels(label, place)
    inside = Subset(dataset, range(N - 1)) if within else dataset
    order = torch.Generator().manual_seed(1)  # both flags are in the first batch
    refused(inside, r"sample\[1\] is a label .* in a mixture", collate_fn=list, generator=order)
    first_batch(dataset, mixer=lambda *a: mix_arrays(*a), collate_fn=list)
    if label not in ("a map", "codes"):
        (image, y), *_ = first_batch(dataset, mixer="samples", collate_fn=list)
        assert image.dtype is torch.float32
        assert type(y) is type(LABELS[label](1.0))


def test_a_label_alone_in_data_is_told():
    table = np.stack([np.arange(N) % 5, np.random.default_rng(0).normal(size=N)], 1)
    dataset = Made(lambda self, i: (IMAGES[i], int(self.data[i][0])), table)
    refused(dataset, r"sample\[1\] is a label", collate_fn=list)


@pytest.mark.parametrize("own", [False, True])
def test_what_is_drawn_at_random_is_no_label_that_was_mixed(own):
    rng = np.random.default_rng(0)

    def turned(self, i):
        quarter = int(rng.integers(4)) if own else int(torch.randint(4, ()))
        return torch.from_numpy(np.rot90(self.data[i], quarter).copy()).float(), quarter, rng.random()

    for _ in range(20):
        first_batch(Made(turned, IMAGES), collate_fn=list)


# -- data sets that cache -------------------------------------------------------------------------------


def cached(self, i):
    cache = vars(self).setdefault("cache", {})
    if i not in cache:
        cache[i] = torch.from_numpy(self.data[i]).float()
    return cache[i], i


def decoded_into_data(self, i):
    loaded = vars(self).setdefault("loaded", set())
    if i not in loaded:
        self.data[i] = IMAGES[i]
        loaded.add(i)
    return torch.from_numpy(self.data[i]).float(), i


def decoded_at_every_access(self, i):
    self.data[i] = IMAGES[i]
    return torch.from_numpy(self.data[i]).float(), i


@pytest.mark.parametrize("workers", [0, 1])
def test_caches_that_a_mixture_would_miss_are_told(workers):
    refused(
        Made(cached, IMAGES.copy()),
        r"did not read its image as self.data\[index\] \(has it a cache",
        workers=workers,
    )
    for sample in (decoded_into_data, decoded_at_every_access):
        refused(Made(sample, IMAGES[::-1].copy()), "writes to (its .data|it)", workers=workers)
    batch = first_batch(Made(cached, IMAGES.copy()), workers=workers, mixer="samples")
    np.testing.assert_array_equal(batch[0], IMAGES[batch[1]])


# -- how plain samples are fetched ----------------------------------------------------------------------


class Scaled(Subset):
    def __init__(self, dataset, indices):  # torch itself refuses such a class since 2.13
        self.dataset, self.indices = dataset, indices

    def __getitem__(self, i):
        x, y = self.dataset[self.indices[i]]
        return x * 1000.0, y


class ScaledTogether(Scaled):
    def __getitems__(self, indices):
        return [self[i] for i in indices]


class Delegating:
    """Passes on what it does not have."""

    def __init__(self, dataset):
        self.inner = dataset

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, i):
        x, y = self.inner[i]
        return x * 1000.0, y

    def __getattr__(self, name):
        if name == "inner":
            raise AttributeError
        return getattr(self.inner, name)


def test_a_getitem_that_a_batched_fetch_passes_by_is_told():
    plain = Plain(N)
    for dataset in (
        Scaled(plain, range(N)),
        Subset(Scaled(plain, range(N)), range(N)),
        Delegating(Subset(plain, range(N))),
    ):
        refused(dataset, "has a __getitem__ of its own")
        loader = wrap(dataset, kcd_options={"mixing": None})
        assert len(list(loader)) == len(loader)


@pytest.mark.parametrize("make", [Plain, Cifar])
def test_a_subset_with_a_transform_of_its_own_is_mixed_before_or_after_it(make):
    dataset = Subset(ScaledTogether(make(N), range(N)), range(N))
    loader = wrap(dataset, schedule=ONCE)
    base = make(N)
    run_epoch(loader, seen=lambda i, b: None)
    recipes = loader.sampler.recipes
    assert len(recipes)
    for x, y in loader:
        for image, i in zip(x, y.tolist(), strict=True):
            expected = base[i][0]
            for target, source, weight in loader.sampler.steps(i):
                assert target == i
                own, other = (torch.as_tensor(base[j][0]).float() for j in (i, source))
                expected = own * weight + other * (1 - weight)
                expected = expected.trunc() if make is Cifar else expected
            torch.testing.assert_close(image.float(), torch.as_tensor(expected).float() * 1000)


# -- mixers of one's own --------------------------------------------------------------------------------


def good(dataset, index, steps):
    return dataset[index]


@pytest.mark.parametrize(
    "mixer",
    [
        lambda dataset, index: None,
        lambda index: None,
        lambda dataset, index, steps, more: None,
        lambda dataset, index, steps, *, needed: None,
        functools.partial(mix_samples, field=[0]),
        functools.partial(good, None),
        functools.partial(good, steps=()),
    ],
)
@pytest.mark.parametrize("mixing", ["cumulative", None])
def test_a_mixer_that_can_t_be_called_is_told_at_wrapping(mixer, mixing):
    with pytest.raises(TypeError, match=r"mixer must be a callable .* takes other arguments"):
        wrap(Plain(N), kcd_options={"mixer": mixer, "mixing": mixing})


def test_a_mixer_that_can_be_called():
    class Mixer:
        def __call__(self, dataset, index, *rest):
            return dataset[index]

    for mixer in (good, Mixer(), functools.partial(lambda *a, more: a[0][a[1]], more=1)):
        loader = wrap(Plain(N), kcd_options={"mixer": mixer})
        assert len(list(loader)) == len(loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mixer_that_fails_or_returns_nothing_does_so_at_the_first_batch(workers):
    refused(Plain(N), "returned nothing as sample", mixer=returns_nothing, workers=workers)
    refused(Plain(N), "neither", mixer=fails, error=ZeroDivisionError, workers=workers)


FORMS = {
    "the image alone": lambda x, y: x,
    "a field less": lambda x, y: (x,),
    "a field more": lambda x, y: (x, y, 1.0),
    "a dict": lambda x, y: {"x": x, "y": y},
    "another dtype": lambda x, y: (x.double(), y),
    "another shape": lambda x, y: (x.flatten()[:-1], y),
    "an array": lambda x, y: (x.numpy(), y),
    "a mixed label": lambda x, y: (x, float(y)),
    "no label": lambda x, y: (x, None),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_mixer_that_returns_another_form_does_so_at_the_first_batch(form):
    refused(
        Plain(N), r"as sample.* must return dataset\[index\], mixed", mixer=lambda d, i, _: FORMS[form](*d[i])
    )


def test_a_mixer_may_return_what_samples_have_in_no_common_form():
    ragged = Made(lambda _, i: (torch.zeros(i + 1), [i, 0.5] if i % 2 else None, np.int64(i)))
    first_batch(ragged, mixer=lambda d, i, _: [torch.zeros(999), "text", int(i)], collate_fn=list)


def returns_nothing(dataset, index, steps):
    dataset[index]


def fails(dataset, index, steps):
    raise ZeroDivisionError("neither")


# -- a rehearsal leaves no trace --------------------------------------------------------------------------


class Augmented(Made):
    """Noise from all three global generators, and one of its own."""

    def __init__(self, data=None):
        super().__init__(None, data)
        self.own = np.random.default_rng(0)

    def __getitem__(self, i):
        image = torch.from_numpy((IMAGES if self.data is None else self.data)[i]).float()
        noise = random.random() + np.random.rand() + torch.rand(())  # noqa: NPY002
        return image + noise, i, float(self.own.random())


def seed():
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)


@pytest.mark.parametrize("mixer", ["samples", "arrays", good])
@pytest.mark.parametrize("workers", [0, 1])
def test_augmentation_is_as_if_nothing_had_been_tried(mixer, workers):
    def epoch(mixing):
        seed()
        dataset = Augmented(IMAGES)
        options = {"mixing": mixing, "mixer": mixer} if mixing else {"mixing": None}
        images = torch.cat([b[0] for b in wrap(dataset, num_workers=workers, kcd_options=options)])
        return images, (random.random(), np.random.rand(), torch.rand(()).item())  # noqa: NPY002

    (images, after), (expected, as_before) = epoch("cumulative"), epoch(None)
    assert torch.equal(images, expected)
    assert after == as_before


@pytest.mark.parametrize("mixer", ["samples", "arrays"])
def test_a_run_resumed_within_an_epoch_has_the_random_numbers_of_the_data_set_too(mixer):
    def run(stop):
        loader = wrap(Augmented(IMAGES), kcd_options={"mixer": mixer})
        seen = []
        for epoch in range(3):
            for batch in loader:
                seen += batch[2].tolist()
                loader.record(torch.zeros(len(batch[1]), 2))
                if (epoch, len(seen) % N) == (0, stop):
                    state, own = loader.state_dict(), loader.dataset.own.bit_generator.state
                    loader = wrap(Augmented(IMAGES), kcd_options={"mixer": mixer})
                    loader.load_state_dict(state)
                    loader.dataset.own.bit_generator.state = own
                    for rest in loader:
                        seen += rest[2].tolist()
                        loader.record(torch.zeros(len(rest[1]), 2))
                    break
            loader.end_epoch()
        return seen

    assert run(stop=24) == run(stop=None)


@pytest.mark.parametrize("make", [Plain, Cifar, Mnist])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_batch_comes_unmixed(make, workers):
    batch, dataset = first_batch(make(N), workers=workers), make(N)
    for image, i in zip(*batch, strict=True):
        assert torch.equal(torch.as_tensor(image), torch.as_tensor(dataset[int(i)][0]))


def test_a_single_sample_and_broken_ones_are_no_reason_to_complain():
    assert len(list(wrap([(torch.zeros(2), 1)]))) == 1

    def broken(_, i):
        return None if i % 3 else (torch.full((2,), float(i)), i)

    loader = wrap(Made(broken), collate_fn=lambda samples: [s for s in samples if s is not None])
    assert sorted(i for batch in loader for _, i in batch) == list(range(0, N, 3))
    assert rehearse(mix_samples, Made(lambda *_: None), {0: None, 1: None}) is None


# -- sources that are gone ------------------------------------------------------------------------------


class Gone(np.ndarray):
    """An array on a disk that fails."""

    def __getitem__(self, index):
        if index in self.gone:
            raise OSError("no such disk")
        return np.asarray(self)[index]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("mixer", ["samples", "arrays", "none", "own"])
def test_a_source_that_is_gone_is_named(mixer, workers):
    gone = set()
    data = np.random.default_rng(0).normal(size=(N, 3)).view(Gone)
    data.gone = gone

    def sample(self, i):
        if mixer == "none" and i in gone:
            return None
        return torch.from_numpy(self.data[i]), i

    dataset = Made(sample, data)
    how = {"none": "samples", "own": own_mixer}.get(mixer, mixer)
    loader = wrap(dataset, num_workers=workers, kcd_options={"mixer": how})
    run_epoch(loader, end=False)
    chosen = loader.end_epoch()
    gone.add(int(chosen.dropped[0]))
    with pytest.raises(RuntimeError, match="mixed") as caught:
        list(loader)
    assert all(str(x[0]) in str(caught.value) for x in (chosen.dropped, chosen.tail))
    assert ("it is None" if mixer == "none" else "no such disk") in str(caught.value)


def own_mixer(dataset, index, steps):
    (image, i), (other, _) = dataset[index], dataset[steps[0][1]]
    return (image + other) / 2, i
