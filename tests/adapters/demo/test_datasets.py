"""The demo's data sets. Files are written here byte by byte, by the formats' definitions."""

import gzip
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import kcd_core as kcd
from kcd_adapters.demo import datasets
from kcd_adapters.demo.dataset_files import read_idx, read_pickle
from kcd_adapters.demo.datasets import Images, cifar100, digits, fashion_mnist

RNG = np.random.default_rng(5)


# -- IDX -------------------------------------------------------------------------------------------------


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_fashion(folder, *, zipped=True, train=30, test=20):
    arrays = {}
    for part, n in (("train", train), ("t10k", test)):
        images = RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = RNG.integers(0, 10, n).astype(np.uint8)
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            content = gzip.compress(idx(array)) if zipped else idx(array)
            (folder / (name + (".gz" if zipped else ""))).write_bytes(content)
            arrays[name] = array
    return arrays


@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_mnist_reads_what_was_written(tmp_path, zipped):
    arrays = write_fashion(tmp_path, zipped=zipped)
    split = fashion_mnist(tmp_path)
    np.testing.assert_array_equal(split.train.data, arrays["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(split.train.targets, arrays["train-labels-idx1-ubyte"])
    np.testing.assert_array_equal(split.test.data, arrays["t10k-images-idx3-ubyte"])
    assert len(split.classes) == 10
    pixels = arrays["train-images-idx3-ubyte"] / 255.0
    image, target = split.train[3]
    assert image.shape == (1, 28, 28)
    assert target == arrays["train-labels-idx1-ubyte"][3]
    expected = (pixels[3] - pixels.mean()) / pixels.std()
    np.testing.assert_allclose(image[0].numpy(), expected, atol=1e-4)


def test_fashion_mnist_is_found_where_debian_puts_it(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "DEBIAN", tmp_path)
    arrays = write_fashion(tmp_path)
    split = fashion_mnist()
    np.testing.assert_array_equal(split.train.data, arrays["train-images-idx3-ubyte"])
    other = tmp_path / "other"
    other.mkdir()
    arrays = write_fashion(other)
    np.testing.assert_array_equal(fashion_mnist(other).test.data, arrays["t10k-images-idx3-ubyte"])


def test_the_first_samples_of_a_split(tmp_path):
    write_fashion(tmp_path)
    split = fashion_mnist(tmp_path)
    few = split.first(7)
    assert (len(few.train), len(few.test), len(split.train)) == (7, 20, 30)
    np.testing.assert_array_equal(few.train.data, split.train.data[:7])
    assert torch.equal(few.train[6][0], split.train[6][0])
    assert few.train[6][1] == split.train[6][1]
    assert split.first(None) is split


GOOD = idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
ZIPPED = gzip.compress(GOOD, mtime=0)  # a test's name has to be the same in all of the tests' processes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (GOOD[:3], "00 00 08"),
        (GOOD[:10], "truncated"),
        (GOOD[:-1], "truncated or damaged"),
        (GOOD + b"x", "truncated or damaged"),
        (b"\x00\x00\x09" + GOOD[3:], "no IDX file of unsigned bytes"),
        (idx(np.zeros(24, np.uint8)), "no IDX file of unsigned bytes in 3"),
        (idx(np.zeros((0, 3, 4), np.uint8)), "empty"),
        (bytes([0, 0, 8, 3]) + b"\xff" * 12 + b"0", "truncated or damaged"),
        (ZIPPED[:-6], "can't be unzipped"),
        (ZIPPED[:20] + b"\x00" * 20, "can't be unzipped"),
    ],
)
def test_damaged_idx_files_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "some-images"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path, dimensions=3)
    assert str(path) in str(caught.value)


def test_images_and_labels_must_belong_together(tmp_path):
    write_fashion(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(idx(np.zeros(29, np.uint8)))
    with pytest.raises(ValueError, match="29 labels for 30 images"):
        fashion_mnist(tmp_path)
    labels.write_bytes(idx(np.full(30, 10, np.uint8)))
    with pytest.raises(ValueError, match=r"labels must lie in 0 \.\. 9"):
        fashion_mnist(tmp_path)
    labels.unlink()
    with pytest.raises(FileNotFoundError, match="neither train-labels"):
        fashion_mnist(tmp_path)


def test_the_folder_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "DEBIAN", tmp_path / "absent")
    for load in (fashion_mnist, cifar100):
        with pytest.raises(ValueError, match="needs --data-dir"):
            load(None)
        with pytest.raises(ValueError, match="must be a folder"):
            load(tmp_path / "absent")
    with pytest.raises(ValueError, match="not for --data digits"):
        digits(tmp_path)


# -- CIFAR-100 -------------------------------------------------------------------------------------------


def python2(x):
    """What Python 2's ``cPickle.dumps(x, 2)`` writes, opcode by opcode: its strings are bytes."""
    if isinstance(x, bytes):
        return b"T" + struct.pack("<I", len(x)) + x
    if isinstance(x, int):
        return b"J" + struct.pack("<i", x)
    if isinstance(x, list):
        return b"](" + b"".join(map(python2, x)) + b"e"
    if isinstance(x, dict):
        return b"}(" + b"".join(python2(k) + python2(v) for k, v in x.items()) + b"u"
    shape = b"".join(map(python2, x.shape)) + b"\x86"
    new = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + python2(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + python2(b"u1") + b"K\x00K\x01\x87R(K\x03" + python2(b"|")
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return new + b"(K\x01" + shape + dtype + b"\x89" + python2(x.tobytes()) + b"tb"


def dumps(content, protocol):
    if protocol == "python 2":
        return b"\x80\x02" + python2(content) + b"."
    return pickle.dumps(content, protocol)


def write_cifar(folder, protocol, *, train=40, test=20, **changes):
    written = {}
    for name, n in (("train", train), ("test", test)):
        written[name] = {
            b"data": RNG.integers(0, 256, (n, 3072), dtype=np.uint8),
            b"fine_labels": RNG.integers(0, 100, n).tolist(),
            b"filenames": [b"caf\xe9.png"] * n,
        }
        (folder / name).write_bytes(dumps({**written[name], **changes}, protocol))
    names = [b"kind_%d" % i for i in range(100)]
    (folder / "meta").write_bytes(dumps({b"fine_label_names": names}, protocol))
    return written


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")
def test_the_file_written_here_is_a_pickle_like_the_original(tmp_path):
    written = write_cifar(tmp_path, "python 2")
    content = pickle.loads((tmp_path / "train").read_bytes(), encoding="bytes")
    np.testing.assert_array_equal(content[b"data"], written["train"][b"data"])
    assert content[b"fine_labels"] == written["train"][b"fine_labels"]


@pytest.mark.parametrize("protocol", ["python 2", 2, 4, 5])
@pytest.mark.parametrize("nested", [False, True])
def test_cifar100_reads_what_was_written(tmp_path, protocol, nested):
    folder = tmp_path / "cifar-100-python" if nested else tmp_path
    folder.mkdir(exist_ok=True)
    written = write_cifar(folder, protocol)
    split = cifar100(tmp_path)
    assert split.classes[7] == "kind 7"
    for images, name in ((split.train, "train"), (split.test, "test")):
        assert images.targets.tolist() == written[name][b"fine_labels"]
        row, pixel = written[name][b"data"][5], images.data[5, 2, 9]
        assert pixel.tolist() == [row[channel * 1024 + 2 * 32 + 9] for channel in range(3)]
    image, _ = split.test[5]
    assert image.shape == (3, 32, 32)
    channel = written["train"][b"data"].reshape(-1, 3, 1024)[:, 1] / 255.0
    expected = (split.test.data[5, :, :, 1] / 255.0 - channel.mean()) / channel.std()
    np.testing.assert_allclose(image[1].numpy(), expected, atol=1e-4)


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_hostile_pickle_is_refused_and_does_not_run(tmp_path, protocol):
    proof = tmp_path / "it-ran"
    write_cifar(tmp_path, 2)
    (tmp_path / "train").write_bytes(pickle.dumps({"data": Hostile(proof)}, protocol))
    with pytest.raises(ValueError, match=r"train can't be read .*refused to load posix\.system"):
        cifar100(tmp_path)
    assert not proof.exists()
    pickle.loads((tmp_path / "train").read_bytes())
    assert proof.exists()  # the pickle would have run


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"c__builtin__\ngetattr\n(S'1'\nS'x'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.",
        b"\x80\x04\x8c\x05numpy\x8c\x0bndarray.dump\x93.",  # a dotted name
        b"Pid\n.",
        b"",
        b"not a pickle",
        pickle.dumps([1, 2]),
        pickle.dumps({"data": np.arange(3)}),  # int64: not bytes
        pickle.dumps({"data": np.array([object], object)}),
    ],
)
def test_everything_else_in_a_pickle_is_refused(tmp_path, content):
    path = tmp_path / "train"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="train"):
        read_pickle(path)


def test_a_lie_about_an_arrays_type_is_refused(tmp_path):
    """NumPy itself would take the bytes of this one for pointers."""
    array = np.zeros((2, 3072), np.uint8)
    lie = dumps({b"data": array}, "python 2").replace(python2(b"u1"), python2(b"O8"))
    (tmp_path / "train").write_bytes(lie)
    with pytest.raises(ValueError, match="only bytes"):
        read_pickle(tmp_path / "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({b"data": np.zeros((40, 100), np.uint8)}, r"must be bytes \[N, 3072\]"),
        ({b"data": [1]}, "must be bytes"),
        ({b"fine_labels": [1, 2]}, "2 labels for 40 images"),
        ({b"fine_labels": [100] * 40}, r"must lie in 0 \.\. 99"),
        ({b"fine_labels": ["x"] * 40}, "list of integers"),
    ],
)
def test_wrong_fields_are_named(tmp_path, changes, message):
    write_cifar(tmp_path, 2, **{k.decode(): v for k, v in changes.items()})
    content = pickle.loads((tmp_path / "train").read_bytes())
    content = {k: v for k, v in content.items() if isinstance(k, str) or k.decode() not in content}
    (tmp_path / "train").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(ValueError, match=message):
        cifar100(tmp_path)


def test_missing_files_and_fields_are_named(tmp_path):
    write_cifar(tmp_path, 2)
    (tmp_path / "train").write_bytes(pickle.dumps({"labels": []}, 2))
    with pytest.raises(ValueError, match=r"no field 'data', only \['labels'\]"):
        cifar100(tmp_path)
    (tmp_path / "meta").unlink()
    with pytest.raises(FileNotFoundError, match="no file meta"):
        cifar100(tmp_path)


# -- Images ----------------------------------------------------------------------------------------------


def colour_images(n=12, augment=True):
    data = RNG.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    return Images(data, np.arange(n), [0.0] * 3, [1 / 255] * 3, augment=augment)


def test_augmentation_is_a_crop_of_the_padded_image_or_its_mirror():
    images = colour_images()
    seen = set()
    for index in list(range(12)) * 20:
        crop = images[index][0].numpy().round()
        padded = np.pad(images.data[index].astype(np.float32).transpose(2, 0, 1), [(0, 0), (4, 4), (4, 4)])
        places = [
            (top, left, flip)
            for top in range(9)
            for left in range(9)
            for flip in (1, -1)
            if np.array_equal(padded[:, top : top + 32, left : left + 32][:, :, ::flip], crop)
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(9))
    assert {flip for *_, flip in seen} == {1, -1}


@pytest.mark.parametrize(("method", "passes"), [("fork", 2), ("spawn", 1)])  # a spawned worker imports torch
def test_workers_draw_different_crops_and_the_seed_repeats_them(method, passes):
    images = colour_images(n=2)
    images.data[1] = images.data[0]

    def epochs(seed):
        generator = torch.Generator().manual_seed(seed)
        loader = DataLoader(images, 1, num_workers=2, generator=generator, multiprocessing_context=method)
        return [x for _ in range(passes) for x, _ in loader]

    first = epochs(1)  # worker 0, worker 1, and so on: of one and the same image
    assert not all(torch.equal(first[0], x) for x in first[1:])
    assert all(map(torch.equal, first, epochs(1)))


def test_mixing_applies_before_the_transform():
    images = colour_images(augment=False)
    mixed, target = kcd.mix_arrays(images, 2, ((2, 7, 0.75),))
    expected = np.trunc(0.75 * images.data[2].astype(np.float32) + 0.25 * images.data[7])
    np.testing.assert_array_equal(mixed.numpy().round(), expected.transpose(2, 0, 1))
    assert target == 2


def test_digits_are_whole_and_of_other_writers():
    split = digits()
    assert len(split.train) + len(split.test) == 1797
    assert split.train.data.dtype == np.uint8
    assert split.train.data.max() == 255
    stack = torch.stack([split.train[i][0] for i in range(len(split.train))])
    assert abs(float(stack.mean())) < 1e-4
    assert abs(float(stack.std()) - 1) < 1e-3
    torch.testing.assert_close(split.train.transform(torch.from_numpy(split.train.data)), stack)


def test_a_missing_extra_is_named():
    code = (
        "import sys; sys.modules['sklearn'] = None; from kcd_adapters.demo.datasets import digits; digits()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (
        "ImportError: sklearn is not installed: pip install '.[demo]' in a checkout of kcd_core"
        in done.stderr
    )


def test_a_small_file_that_unzips_to_much_more_than_its_header_says_is_not_unzipped(tmp_path):
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 4]) + bytes(200_000_000), 1))
    tracemalloc.start()
    with pytest.raises(ValueError, match="truncated or damaged"):
        read_idx(path, dimensions=1)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
