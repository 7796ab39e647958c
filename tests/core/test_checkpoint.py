"""Training states on disk: whole or not at all, and nothing read that was not written."""

import hashlib
import itertools
import json
import os
import pickle
import random
import signal
import stat
import struct
import subprocess
import sys
import time
from collections import Counter, OrderedDict, defaultdict, namedtuple

import numpy as np
import pytest
import torch
from helpers import SECONDS, Plain, examples, same, wrap
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import kcd_core as kcd


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.ckpt"


def back(path, state):
    kcd.save_checkpoint(path, state)
    return kcd.load_checkpoint(path)


def equal(a, b):
    """Type, dtype, shape, order of keys and every bit, NaNs too."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        a, b = a.detach(), b.detach()
        return a.dtype == b.dtype and a.shape == b.shape and bytes_of(a) == bytes_of(b)
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return len(a) == len(b) and all(equal(k, q) and equal(a[k], b[q]) for k, q in zip(a, b, strict=True))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return repr(a) == repr(b)


def bytes_of(tensor):
    tensor = tensor.resolve_conj().resolve_neg().contiguous()
    return bytes(tensor.reshape(-1).view(torch.uint8).tolist()) if tensor.numel() else b""


# -- what goes in comes out -------------------------------------------------------------------------------

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.int64, torch.int32,
          torch.int16, torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn]  # fmt: skip

numbers = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
arrays = npst.arrays(
    st.one_of(npst.integer_dtypes(), npst.floating_dtypes(), npst.complex_number_dtypes(), npst.boolean_dtypes()).map(
        lambda dtype: dtype.newbyteorder("=")
    ),
    npst.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=3),
)  # fmt: skip
tensors = st.builds(
    lambda x, dtype: torch.from_numpy(np.array(x)).to(dtype),
    npst.arrays(np.float32, npst.array_shapes(min_dims=0, min_side=0, max_side=4), elements=st.floats(-9, 9, width=16)),
    st.sampled_from(DTYPES),
)  # fmt: skip
keys = st.one_of(st.text(max_size=4), st.integers(-3, 99), st.booleans(), st.none(), st.floats())
states = st.recursive(
    st.one_of(numbers, arrays, arrays.filter(lambda x: x.ndim == 0).map(lambda x: x[()]), tensors),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4).map(OrderedDict),
    ),
    max_leaves=12,
)


@examples(150)
@given(state=states)
def test_round_trip(tmp_path_factory, state):
    path = tmp_path_factory.getbasetemp() / "round-trip.ckpt"
    assert equal(back(path, state), state)


@pytest.mark.parametrize(
    "x",
    [
        torch.arange(12.0).reshape(3, 4).t(),
        torch.arange(12.0)[::3],
        torch.arange(4.0).expand(3, 4),
        torch.ones(1).expand(3)[:1],
        torch.ones(1).expand(3)[:0],
        torch.randn(3, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)).conj(),
        torch.nn.Parameter(torch.ones(2, 2)),
        (torch.ones(3, requires_grad=True) * 2),
    ],
)
def test_tensors_of_any_layout(path, x):
    loaded = back(path, x)
    assert type(loaded) is torch.Tensor
    assert not loaded.requires_grad
    assert torch.equal(loaded, x)


def test_arrays_of_any_layout(path):
    for x in (np.arange(12).reshape(3, 4).T, np.arange(12)[::-5], np.asfortranarray(np.ones((2, 3)))):
        assert same(back(path, x), x)
    other = np.arange(5, dtype=">i4" if sys.byteorder == "little" else "<i4")
    assert back(path, other).tolist() == [0, 1, 2, 3, 4]


def test_what_is_loaded_is_writable_and_nobody_elses(path):
    kcd.save_checkpoint(path, {"a": np.zeros(2), "t": torch.zeros(2)})
    first, second = kcd.load_checkpoint(path), kcd.load_checkpoint(path)
    first["a"] += 1
    first["t"] += 1
    assert equal(second, {"a": np.zeros(2), "t": torch.zeros(2)})


def test_random_states(path):
    random.seed(0)
    rng = np.random.default_rng(0)
    state = {
        "python": random.getstate(),
        "numpy": rng.bit_generator.state,
        "legacy": np.random.RandomState(3).get_state(),
        "torch": torch.Generator().manual_seed(2**63).get_state(),
    }
    loaded = back(path, state)
    assert equal(loaded, state)
    random.setstate(loaded["python"])
    again = np.random.default_rng(1)
    again.bit_generator.state = loaded["numpy"]
    assert again.random() == rng.random()


def parts(seed=0):
    """A run's: model, optimizer, learning-rate schedule and scaler, whose states are of many shapes."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, amsgrad=True)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 3, 5])
    scaler = torch.cuda.amp.GradScaler(enabled=False) if not hasattr(torch.amp, "GradScaler") else torch.amp.GradScaler("cpu")  # fmt: skip
    return {"model": model, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}


def train(parts, loader, steps=None):
    for images, targets in itertools.islice(loader, steps):
        logits = parts["model"](images[:, 0] / 255 + torch.randn(len(images), 4) / 9)
        loss = torch.nn.functional.cross_entropy(logits, targets % 5)
        parts["optimizer"].zero_grad()
        parts["scaler"].scale(loss).backward()
        parts["scaler"].step(parts["optimizer"])
        parts["scaler"].update()
        parts["schedule"].step()
        loader.record(logits)


def test_a_whole_run_goes_on_to_the_bit(path):
    with torch.random.fork_rng():
        run, loader = parts(), wrap(Plain(40))
        train(run, loader, 3)
        state = {name: part.state_dict() for name, part in run.items()}
        kcd.save_checkpoint(path, {**state, "loader": loader.state_dict(), "rng": torch.get_rng_state()})
        assert equal(kcd.load_checkpoint(path)["optimizer"], state["optimizer"])
        again, fresh = parts(seed=1), wrap(Plain(40))
        state = kcd.load_checkpoint(path)
        for name, part in again.items():
            part.load_state_dict(state[name])
        fresh.load_state_dict(state["loader"])
        for one, its_loader in ((run, rest_of(loader)), (again, fresh)):
            torch.set_rng_state(state["rng"])
            train(one, its_loader)
    for name, part in run.items():
        assert equal(part.state_dict(), again[name].state_dict()), name


def rest_of(loader):
    """The same loader, its epoch gone on with as after a resume."""
    fresh = wrap(Plain(40))
    fresh.load_state_dict(loader.state_dict())
    return fresh


def test_types_of_dicts_are_kept(path):
    state = {"od": OrderedDict(b=1, a=2), "counter": Counter([3, 3, 5]), "plain": {2: 1, 1: 2, None: 0}}
    assert equal(back(path, state), state)


def test_the_versions_of_a_models_parts_are_kept(path):
    """Without them torch takes a state for an old one, and lets some parts change what they read."""
    read = []

    class Versioned(torch.nn.Linear):
        _version = 7

        def _load_from_state_dict(self, state, prefix, metadata, *rest):
            read.append(metadata["version"])
            super()._load_from_state_dict(state, prefix, metadata, *rest)

    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), Versioned(2, 2))
    state = model.state_dict()
    loaded = back(path, [state])[0]
    assert equal(loaded._metadata, state._metadata)
    assert loaded._metadata["0"] == {"version": 2}
    model.load_state_dict(loaded)
    assert read == [7]


def test_lone_surrogates_make_no_pair(path):
    pair = "\ud83d" + "\ude00"
    assert back(path, [pair, "\udcff", "\U0001f600"]) == [pair, "\udcff", "\U0001f600"]
    assert back(path, {pair: 1, "\U0001f600": 2}) == {pair: 1, "\U0001f600": 2}


def test_tensors_of_a_file_read_where_torch_is_not_installed(path):
    kcd.save_checkpoint(path, {"t": torch.arange(3), "a": np.ones(2), "b": torch.tensor(True)})
    code = f"""
import sys
sys.modules["torch"] = None
import kcd_core as kcd
state = kcd.load_checkpoint({str(path)!r})
print(type(state["t"]).__name__, state["t"].tolist(), state["a"].tolist(), state["b"].tolist())
kcd.save_checkpoint({str(path)!r}, kcd.KnowledgeValueTracker(3).state_dict())
kcd.KnowledgeValueTracker(3).load_state_dict(kcd.load_checkpoint({str(path)!r}))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "ndarray [0, 1, 2] [1.0, 1.0] True"


# -- what does not go in ----------------------------------------------------------------------------------

Point = namedtuple("Point", "x y")


def holding_itself(kind):
    x = kind()
    x.update(a=x) if isinstance(x, dict) else x.append(x)
    return x


def nested(levels):
    x = 0
    for _ in range(levels):
        x = {"k": x}
    return x


def with_attribute(x):
    x.lr = 0.1
    return x


@pytest.mark.parametrize(
    ("x", "where"),
    [
        (object(), r"state\['run'\]\[1\] can't be saved: it is a builtins.object"),
        ({1, 2}, "builtins.set"),
        (b"bytes", "builtins.bytes"),
        (print, "builtin_function_or_method"),
        (Point(1, 2), "Point"),
        (defaultdict(list), "collections.defaultdict"),
        (np.array([None, {}]), "numpy.ndarray"),
        (np.array(["text"]), "numpy.ndarray"),
        (np.ma.masked_array([1, 2], [True, False]), "MaskedArray"),
        (torch.zeros(2, device="meta"), "torch.Tensor"),
        (torch.eye(2).to_sparse(), "torch.Tensor"),
        (torch.device("cpu"), "torch.device"),
        ({"a": {(1, 2): 3}}, r"state\['run'\]\[1\]\['a'\] has a key that can't be saved: \(1, 2\)"),
        ({"a": (0, {"b": [lambda: 0]})}, r"\[1\]\['a'\]\[1\]\['b'\]\[0\] can't be saved"),
        (with_attribute(OrderedDict(a=1)), r"\[1\] can't be saved: this OrderedDict has the attributes \['lr'\]"),
        (with_attribute(torch.nn.Linear(1, 1).state_dict()), r"\['_metadata', 'lr'\]"),
    ],
)  # fmt: skip
def test_other_types_are_refused_by_place_and_nothing_is_written(path, x, where):
    kcd.save_checkpoint(path, {"epoch": 1})
    before = path.read_bytes()
    with pytest.raises(TypeError, match=where):
        kcd.save_checkpoint(path, {"run": [0, x]})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    ("x", "where"),
    [
        (holding_itself(list), r"^state\['run'\]\[1\](\[0\]){99} can't be saved: it is more than 100 levels"),
        (holding_itself(dict), r"^state\['run'\]\[1\](\['a'\]){99} can't be saved"),
        (nested(5000), r"^state\['run'\]\[1\](\['k'\]){99} can't be saved"),
        ([10**4300], r"^state\['run'\]\[1\]\[0\] can't be saved: an integer of 14285 bits"),
        ({"a": {-(10**4300): 0}}, r"^a key of state\['run'\]\[1\]\['a'\] can't be saved: an integer"),
    ],
)  # fmt: skip
def test_what_json_can_not_hold_is_refused_by_place(path, x, where):
    with pytest.raises(ValueError, match=where):
        kcd.save_checkpoint(path, {"run": [0, x]})
    assert os.listdir(path.parent) == []


def test_all_that_is_saved_can_be_loaded(path):
    assert equal(back(path, nested(100)), nested(100))
    with pytest.raises(ValueError, match="can't be saved"):
        kcd.save_checkpoint(path, nested(101))
    assert back(path, [2**14284 - 1, {-(2**14284) + 1: 0}]) == [2**14284 - 1, {-(2**14284) + 1: 0}]


# -- the file ---------------------------------------------------------------------------------------------


def forge(text, data=b"", *, magic=b"\x93KCDCKPT", version=1, lengths=None):
    """A file by the description of the format, checksum and all."""
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    fields = struct.pack("<8sQQQ", magic, version, *(lengths or (len(text), len(data))))
    return fields + hashlib.sha256(text + data + fields + bytes(32)).digest() + text + data


def test_the_format(path):
    kcd.save_checkpoint(path, {"a": [1, (2.5, None)], "b": torch.tensor([1, 2], dtype=torch.int16)})
    tree = {"dict": [["a", {"list": [1, {"tuple": [2.5, None]}]}], ["b", {"tensor": ["int16", [2]]}]]}
    text = json.dumps({"byteorder": sys.byteorder, "state": tree}, separators=(",", ":"))
    assert path.read_bytes() == forge(text.encode(), struct.pack("=hh", 1, 2))


SMALL = {"epoch": 3, "lr": 0.5, "w": torch.arange(3.0), "a": np.arange(2)}


def refused(path, content, reason):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught:
        kcd.load_checkpoint(path)
    assert repr(str(path)) in str(caught.value)


def test_truncated_anywhere(path):
    kcd.save_checkpoint(path, SMALL)
    whole = path.read_bytes()
    for length in range(len(whole)):
        refused(path, whole[:length], "truncated" if length >= 8 else "not a kcd checkpoint")
    refused(path, whole + b"\0", "too long")


def test_any_bit_flipped(path):
    kcd.save_checkpoint(path, SMALL)
    whole = path.read_bytes()
    places = [
        *range(0, 8 * len(whole), 3),
        *range(0, 8 * len(whole), 8),
    ]  # for time, a third and one of every byte
    for place in places:
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        refused(path, flipped, "not a kcd checkpoint|of version|truncated|too long|damaged: the checksum")


def test_foreign_files(path, tmp_path):
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(ran),)

    refused(path, pickle.dumps(Evil()), "not a kcd checkpoint")
    refused(path, b"\x93KCDCKPT" + pickle.dumps(Evil()), "truncated|version")
    torch.save({"model": torch.ones(2)}, path)
    refused(path, path.read_bytes(), "not a kcd checkpoint")
    refused(path, b"", "not a kcd checkpoint")
    refused(
        path,
        forge({"byteorder": sys.byteorder, "state": 1}, version=2),
        "of version 2, and this .* version 1",
    )
    other = "big" if sys.byteorder == "little" else "little"
    refused(path, forge({"byteorder": other, "state": 1}), f"another byte order: '{other}'")
    assert not ran.exists()


def forged(node, data=b""):
    return forge({"byteorder": sys.byteorder, "state": node}, data)


@pytest.mark.parametrize(
    ("node", "data"),
    [
        ({"object": []}, b""),
        ({"set": [1]}, b""),
        ({"dict": [["a", 1]], "list": []}, b""),
        ({}, b""),
        ([1, 2], b""),
        ({"dict": 3}, b""),
        ({"metadata": [{"dict": []}, 1]}, b""),
        ({"metadata": [{"list": []}, 1]}, b""),
        ({"metadata": [{"OrderedDict": []}]}, b""),
        ({"metadata": 3}, b""),
        ({"metadata": [{"tensor": ["int8", [1]]}, 1]}, b"1"),
        ({"dict": "abcd"}, b""),
        ({"list": "abcd"}, b""),
        ({"list": [[1]]}, b""),
        ([["list", [1]]], b""),
        ({"dict": [["a", 1], ["a", 2]]}, b""),
        ({"dict": [[1, 1], [True, 2]]}, b""),
        ({"dict": [[float("inf"), 1], [float("inf"), 2]]}, b""),
        ({"dict": [1]}, b""),
        ({"dict": [[["a"], 1]]}, b""),
        ({"dict": [[{}, 1]]}, b""),
        ({"list": None}, b""),
        ({"array": ["O", [1]]}, b"12345678"),
        ({"array": ["object", [1]]}, b"12345678"),
        ({"array": ["S8", [1]]}, b"12345678"),
        ({"array": ["i4,i4", [1]]}, b"12345678"),
        ({"array": ["datetime64[s]", [1]]}, b"12345678"),
        ({"array": ["float64", [-1]]}, b"12345678"),
        ({"array": ["float64", [-1, -1]]}, b"12345678"),
        ({"array": ["float64", [2]]}, b"12345678"),
        ({"array": ["float64", []]}, b"123"),
        ({"array": ["float64", [10**30]]}, b"12345678"),
        ({"array": ["float64", [0, 10**30]]}, b""),
        ({"array": ["float64", [2**62, 2**62, 0]]}, b""),
        ({"tensor": ["float32", [2**62, 2**62, 0]]}, b""),
        ({"array": ["float64", [float("nan")]]}, b"12345678"),
        ({"array": ["float64", {}]}, b"12345678"),
        ({"tensor": ["float64", [1] * 65]}, b"12345678"),
        ({"scalar": ["float64", [1]]}, b"12345678"),
        ({"array": ["f8", [1]]}, b"12345678"),
        ({"array": ["float64", [1.0]]}, b"12345678"),
        ({"array": ["float64", [True]]}, b"12345678"),
        ({"array": ["float64", "1"]}, b"12345678"),
        ({"array": ["float64", [1] * 1000]}, b"12345678"),
        ({"array": ["float64"]}, b"12345678"),
        ({"array": None}, b""),
        ({"tensor": ["load", [1]]}, b"12345678"),
        ({"tensor": ["qint8", [8]]}, b"12345678"),
        ({"tensor": ["float32", [3]]}, b"12345678"),
        ({"tensor": ["float32", [10**30, 0]]}, b""),
        ({"tensor": [["float32"], [2]]}, b"12345678"),
        ({"scalar": ["float64", [0]]}, b"12345678"),
        (None, b"more than is described"),
    ],
)  # fmt: skip
def test_descriptions_that_make_no_sense(path, node, data):
    refused(path, forged(node, data), "can't load the checkpoint")


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"3", b'{"byteorder": "little"}', b"\xff\xfe\xfd", b'{"state": {}}',
     b'{"byteorder":"little","state":' + b'{"list":[' * 50_000 + b"]}" * 50_000 + b"}",
     b'{"byteorder":"little","state":' + b"9" * 10_000 + b"}",
     b'{"byteorder":"little","state":-' + b"9" * 4301 + b"}",
     b'{"byteorder":"little","state":{"dict":[[{},1]]}}',
     b'{"byteorder":"little","state":{"list":[],"list":[]}}',
     b'{"byteorder":"little","state":1,"state":2}',
     b'{"state":1,"byteorder":"little"}',
     '{"byteorder":"little","state":1}'.encode("utf-16"),
     b'{"byteorder":"little","state":' + b'{"list":[' * 101 + b"1" + b"]}" * 101 + b"}",
     b'{"byteorder":"little","state":' + b'{"dict":[["k",' * 101 + b"1" + b"]]}" * 101 + b"}"],
)  # fmt: skip
def test_texts_that_make_no_sense(path, text):
    refused(path, forge(text), "makes no sense|no description|nested|more than 4300 digits|no plain values")


@pytest.mark.skipif(not hasattr(sys, "set_int_max_str_digits"), reason="Python 3.10.7 and later")
def test_integers_are_bounded_also_where_python_reads_all(path):
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        refused(path, forge(b'{"byteorder":"little","state":-' + b"9" * 4301 + b"}"), "more than 4300 digits")
    finally:
        sys.set_int_max_str_digits(before)


def test_no_part_of_torch_is_imported_for_a_forged_file(path):
    """``torch.onnx`` and others are imported when they are first asked for."""
    path.write_bytes(forged({"tensor": ["onnx", [1]]}, b"12345678"))
    code = f"""
import torch, kcd_core as kcd
vars(torch).pop("onnx", None)
asked = []
torch.__getattr__ = asked.append
try:
    kcd.load_checkpoint({str(path)!r})
except ValueError as error:
    print("refused", asked)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS)
    assert done.stdout == "refused []\n", done.stderr


words = st.sampled_from(
    [
        "dict",
        "list",
        "tuple",
        "OrderedDict",
        "Counter",
        "array",
        "tensor",
        "scalar",
        "float64",
        "int8",
        "bool",
        "O",
    ]
)
junk = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 9), st.floats(), words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=2)),
    max_leaves=10,
)


@examples(200)
@given(node=junk, data=st.binary(max_size=32))
def test_forged_files_load_plain_values_or_are_refused(tmp_path_factory, node, data):
    path = tmp_path_factory.getbasetemp() / "forged.ckpt"
    path.write_bytes(forged(node, data))
    try:
        state = kcd.load_checkpoint(path)
    except ValueError:
        return
    kcd.save_checkpoint(path, state)


@examples(200)
@given(
    content=st.binary(max_size=200),
    prefix=st.sampled_from([b"", b"\x93KCDCKPT", b"\x93KCDCKPT\1" + bytes(7)]),
)
def test_random_bytes_are_refused(tmp_path_factory, content, prefix):
    refused(tmp_path_factory.getbasetemp() / "random.ckpt", prefix + content, "can't load the checkpoint")


# -- what a hostile file can cost --------------------------------------------------------------------------


def pairs(keys):
    return b'{"dict":[' + b",".join(b"[%d,0]" % key for key in keys) + b"]}"


def cluster(size=4096):
    """Keys that have hashes of their own, and yet search a dict's table of this size for long."""
    place, taken, keys = 0, bytearray(size), {}
    for _ in range(size // 3):  # along the way that every search takes at last
        keys[place] = taken[place] = 1
        place = (5 * place + 1) & (size - 1)
    rng = random.Random(0)
    while len(keys) < size * 2 // 3:  # those that come upon no free place before they are on that way
        key = rest = rng.getrandbits(25)
        place = key & (size - 1)
        while rest and taken[place]:
            rest >>= 5
            place = (5 * place + rest + 1) & (size - 1)
        if rest == 0 and taken[place]:
            keys[key] = 1
    return list(keys)


HOSTILE = {
    "one hash": pairs(i * (2**61 - 1) for i in range(1, 80_000)),
    "many dicts of one hash": b'{"list":['
    + b",".join([pairs(i * (2**61 - 1) for i in range(1, 251))] * 350)
    + b"]}",
    "one way through the table": b'{"list":[' + b",".join([pairs(cluster())] * 50) + b"]}",
    "digits": b'{"list":[' + b",".join([b"9" * 4300] * 460) + b"]}",
    "one integer": b"9" * 2_000_000,
    "nested lists": b"[" * 2_000_000,
    "nested nodes": b'{"list":[' * 200_000,
    "empty lists": b'{"list":[' + b",".join([b'{"list":[]}'] * 160_000) + b"]}",
    "empty arrays": b'{"list":[' + b",".join([b'{"array":["int8",[0]]}'] * 80_000) + b"]}",
    "empty tensors": b'{"list":[' + b",".join([b'{"tensor":["int8",[0]]}'] * 40_000) + b"]}",
    "dimensions": b'{"array":["int8",[' + b",".join([b"1"] * 1_000_000) + b"]]}",
    "a long dtype": b'{"array":["' + b"f8," * 600_000 + b'",[1]]}',
    "a long name": b'{"' + b"x" * 2_000_000 + b'":[]}',
    "surrogates": b'{"' + b"\xed\xa0\x80" * 600_000 + b'":[]}',
}


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc to see a peak")
def test_time_and_memory_are_in_proportion_to_the_file(tmp_path):
    paths = [tmp_path / name for name in HOSTILE]
    for path, node in zip(paths, HOSTILE.values(), strict=True):
        path.write_bytes(forge(b'{"byteorder":"' + sys.byteorder.encode() + b'","state":' + node + b"}"))
        assert path.stat().st_size < 2_500_000
    done = subprocess.run(
        [sys.executable, "-c", COST, *paths], capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    costs = dict(
        zip(HOSTILE, (tuple(map(float, line.split())) for line in done.stdout.splitlines()), strict=True)
    )
    for name, (seconds, mebibytes, length) in costs.items():
        assert seconds < 30, name  # of a process; out of proportion, it takes minutes
        assert mebibytes < 250, name
        assert length < 500, name  # of the message


COST = """
import re, sys, time
import torch, kcd_core as kcd
def memory():  # at the peak; what getrusage() tells is no less than the test's own process has
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\\s*(\\d+)", status.read()).group(1))
before = memory()
for path in sys.argv[1:]:
    began, message = time.process_time(), ""
    try:
        kcd.load_checkpoint(path)
    except ValueError as error:
        message = str(error).replace(path, "")
        message.encode()
    print(time.process_time() - began, (memory() - before) / 1024, len(message))
"""


def test_keys_that_collide_are_neither_read_nor_written(path):
    keys = cluster()
    assert len(set(map(hash, keys))) == len(keys)
    for hostile in (keys, [i * (2**61 - 1) for i in range(300)]):
        text = b'{"byteorder":"' + sys.byteorder.encode() + b'","state":' + pairs(hostile) + b"}"
        refused(path, forge(text), "collide")
        with pytest.raises(
            ValueError, match=r"^state\['a'\] can't be saved: the hashes of its \d+ keys collide"
        ):
            kcd.save_checkpoint(path, {"a": dict.fromkeys(hostile)})


@pytest.mark.parametrize("count", [250, 3000, 20_000])
def test_keys_of_honest_states_are_read(path, count):
    """The ids of an optimizer's parameters, ids of samples, times in nanoseconds, multiples of a power of two."""
    kinds = [
        range(count),
        range(count, 0, -1),
        range(0, 10**7 * count, 10**7),
        range(1_700_000_000 * 10**9, 1_700_000_000 * 10**9 + count * 10**9, 10**9),
        (key * 2.0**-30 for key in range(count)),
        (f"layer.{key}.weight" for key in range(count)),
        (random.Random(0).getrandbits(64) for _ in range(count)),
    ]
    for state in (
        *map(dict.fromkeys, kinds),
        *(dict.fromkeys(i << k for i in range(count)) for k in (10, 30, 60)),
    ):
        assert equal(back(path, state), state)


def test_what_is_more_than_is_read_is_not_written(path, monkeypatch):
    assert back(path, np.zeros((1,) * 32)).ndim == 32
    assert back(path, torch.zeros((1,) * 64)).ndim == 64
    with pytest.raises(ValueError, match=r"^state\['a'\] can't be saved: an array of 65 dimensions"):
        kcd.save_checkpoint(path, {"a": torch.zeros((1,) * 65)})
    monkeypatch.setattr("kcd_core.base.description.TEXT", 1000)
    kcd.save_checkpoint(path, ["x" * 900])
    with pytest.raises(ValueError, match="without its arrays it takes 1157 bytes, and at most 1000 are read"):
        kcd.save_checkpoint(path, ["x" * 1113])
    monkeypatch.setattr("kcd_core.base.checkpoint.TEXT", 900)
    with pytest.raises(ValueError, match="description is of 944 bytes; at most 900"):
        kcd.load_checkpoint(path)


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    code = """
import sys, kcd_core as kcd
for path in sys.argv[1:]:
    try:
        kcd.load_checkpoint(path)
    except OSError as error:
        print(path in str(error))
"""
    names = [str(tmp_path / "pipe"), str(tmp_path / "link"), "/dev/null", "/dev/zero", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, timeout=SECONDS
    )
    assert done.stdout == "True\n" * len(names), done.stderr


def test_a_file_that_shrinks_while_it_is_read(path, monkeypatch):
    """What is not there any more must not be made up from memory."""
    kcd.save_checkpoint(path, {"w": np.arange(10**6)})
    restored = kcd.checkpoint.restored

    def shrink_first(text, file):
        os.truncate(path, 10**6)
        monkeypatch.setattr(
            "kcd_core.base.description.os.fstat", lambda _: os.stat_result((0,) * 6 + (10**7,) + (0,) * 3)
        )
        return restored(text, file)

    monkeypatch.setattr(kcd.checkpoint, "restored", shrink_first)
    with pytest.raises(ValueError, match="changed while it was read"):
        kcd.load_checkpoint(path)


# -- on disk ----------------------------------------------------------------------------------------------


def test_a_link_stays_one_and_the_umask_counts(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link, target = tmp_path / "latest.ckpt", tmp_path / "elsewhere" / "run.ckpt"
    link.symlink_to(target)
    before = os.umask(0o027)
    try:
        assert back(link, {"epoch": 1}) == {"epoch": 1}
    finally:
        os.umask(before)
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert os.listdir(target.parent) == ["run.ckpt"]


def test_permissions_are_kept(path):
    for mode in (0o600, 0o664, 0o444):  # 0664 is more than a usual umask leaves
        path.touch()
        path.chmod(mode)
        assert back(path, {"epoch": 1}) == {"epoch": 1}
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_what_is_no_regular_file_is_left(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("pipe", "link", "loop"):
        with pytest.raises(OSError, match=r"not a regular file|symbolic links"):
            kcd.save_checkpoint(tmp_path / name, {})
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert (tmp_path / "loop").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["link", "loop", "pipe"]


def test_names_as_long_as_the_file_system_takes(tmp_path):
    for name in ("x" * 255, "é" * 127):  # of 254 bytes
        assert back(tmp_path / name, {"epoch": 1}) == {"epoch": 1}


def test_a_folder_that_is_missing_or_in_the_way(tmp_path):
    with pytest.raises(FileNotFoundError):
        kcd.save_checkpoint(tmp_path / "missing" / "run.ckpt", {})
    with pytest.raises(FileNotFoundError):
        kcd.load_checkpoint(tmp_path / "run.ckpt")
    (tmp_path / "run.ckpt").mkdir()
    with pytest.raises(IsADirectoryError):
        kcd.save_checkpoint(tmp_path / "run.ckpt", {})
    assert os.listdir(tmp_path) == ["run.ckpt"]


def test_everything_reaches_the_disk_before_the_rename(path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        true = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, true=true: (calls.append(name), true(*a))[1])
    kcd.save_checkpoint(path, {})
    assert calls == ["fsync", "replace", "fsync"]


FULL = """
import resource, signal, sys
import numpy as np
import kcd_core as kcd
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
kcd.save_checkpoint(sys.argv[1], {"w": np.ones(100)})
try:
    kcd.save_checkpoint(sys.argv[1], {"w": np.ones(100_000)})
except OSError as error:
    print("refused:", error)
"""


def test_a_write_that_does_not_fit_leaves_the_old_file(path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, timeout=SECONDS
    )
    assert done.stdout.startswith("refused:"), done.stderr
    assert np.array_equal(kcd.load_checkpoint(path)["w"], np.ones(100))
    assert os.listdir(path.parent) == [path.name]


SAVING = """
import sys
import numpy as np
import kcd_core as kcd
for number in range(10**9):
    kcd.save_checkpoint(sys.argv[1], {"number": number, "w": np.full(500_000, number)})
    if number == 0:
        print("saved", flush=True)
"""


def test_killed_while_it_writes(path):
    """At ten moments, most of them within a write; nothing but whole files is ever seen."""
    rng, within, times = np.random.default_rng(0), 0, 0
    while times < 10 or not within:  # until it is killed where it matters
        times += 1
        process = subprocess.Popen([sys.executable, "-c", SAVING, str(path)], stdout=subprocess.PIPE)
        try:
            assert process.stdout.readline() == b"saved\n"
            deadline = time.monotonic() + rng.uniform(0, 0.1)
            while time.monotonic() < deadline:
                assert whole(kcd.load_checkpoint(path))
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert whole(kcd.load_checkpoint(path))
        for stray in path.parent.glob(".run.ckpt.kcd-*.tmp"):
            within += 1
            stray.unlink()
    assert os.listdir(path.parent) == [path.name]


def whole(state):
    return (state["w"] == state["number"]).all() and len(state["w"]) == 500_000
