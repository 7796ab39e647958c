"""``mixing_cache``: the same samples to the bit, whoever fetches them, and nothing that stays behind."""

from __future__ import annotations

import copy
import errno
import gc
import os
import pickle
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Cifar, Mnist, Plain, identical_state, index_of, logits_of, run_epoch, same, wrap
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Subset

import kcd_core as kcd
from kcd_core.base.arguments import checked_bytes
from kcd_core.loading import array_file, mixed_images
from kcd_core.recipes import MixRecipes, carry_out, carry_out_all

N = 48
IMAGE = 4 * 4 * 3
SCHEDULE = kcd.CondensationSchedule(ratio=0.4, stages=4, period=2)


class Writes(Cifar):
    """Images of the dtype given, to which ``__getitem__`` writes what it draws, where they are mixed."""

    def __init__(self, n: int, dtype: Any = np.uint8) -> None:
        super().__init__(n)
        tensor = isinstance(dtype, torch.dtype)
        self.data = torch.from_numpy(self.data).to(dtype) if tensor else self.data.astype(dtype)

    def __getitem__(self, index: int) -> Any:
        image, drawn = self.data[index], torch.randint(3, ()).item()
        if not isinstance(self.data, (np.ndarray, torch.Tensor)):
            image += drawn
        return torch.as_tensor(image).float(), index


def pixels(loader: Any, epochs: int) -> list[Any]:
    """All batches of some epochs, in which values are recorded."""
    found = []
    for _ in range(epochs):
        run_epoch(loader, seen=lambda _, batch: found.append(copy.deepcopy(batch)))
    return found


def pair(dataset: Any, *, cache: Any = "1 MB", **options: Any) -> tuple[Any, Any]:
    """A loader without a cache, and the same with one."""
    return tuple(  # type: ignore[return-value]
        wrap(copy.deepcopy(dataset), schedule=SCHEDULE, kcd_options={"mixing_cache": size}, **options)
        for size in (0, cache)
    )


def images_in(loader: Any) -> Any:
    return loader.batch_sampler.cache.of(loader.sampler.recipes, loader.sampler.kept)


# -- to the bit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dataset",
    [
        Cifar(N),
        Mnist(N),
        Subset(Subset(Cifar(2 * N), range(0, 2 * N, 2)), range(N - 1, -1, -1)),
    ],
    ids=["numpy", "tensor", "subset of a subset"],
)
@pytest.mark.parametrize("room", [10**6, 3], ids=["all", "three"])
def test_samples_are_the_same_over_all_stages(dataset: Any, room: int) -> None:
    base = dataset.dataset.dataset if isinstance(dataset, Subset) else dataset
    size = int(np.prod(base.data.shape[1:]))
    plain, cached = pair(dataset, cache=room * size, batch_size=7)
    for epoch in range(10):
        for a, b in zip(plain, cached, strict=True):
            assert same(a, b)
            for loader in (plain, cached):
                loader.record(logits_of(loader.indices.numpy(), epoch))
        images = images_in(cached)
        mixed = cached.sampler.kept[cached.sampler.recipes.contains(cached.sampler.kept)]
        assert (0 if images is None else len(images.targets)) == min(room, len(mixed))
        plain.end_epoch()
        cached.end_epoch()
    assert identical_state(plain.state_dict(), cached.state_dict())
    assert max(len(cached.sampler.steps(i)) for i in cached.sampler.kept) > 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, torch.float32, torch.bfloat16], ids=str)
def test_whatever_draws_and_writes_in_getitem(dtype: Any) -> None:
    runs = []
    for loader in pair(Writes(N, dtype)):
        torch.manual_seed(1)
        runs.append(pixels(loader, 9))
    assert same(*runs)


@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": 2},
        {"num_workers": 2, "persistent_workers": True},
        {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "spawn"},
        {"num_workers": 1, "multiprocessing_context": "forkserver"},
    ],
    ids=["fork", "persistent", "spawn", "forkserver"],
)
def test_workers_read_them(options: Any) -> None:
    plain, cached = pair(Cifar(N))
    pixels(plain, 4), pixels(cached, 4)
    (_, loader) = pair(Cifar(N), **options)
    loader.load_state_dict(cached.state_dict())
    epochs = 1 if options.get("multiprocessing_context") == "forkserver" else 5
    assert same(pixels(plain, epochs), pixels(loader, epochs))
    assert len(images_in(loader).targets)


@given(st.data())
def test_all_at_once_is_one_by_one(data: Any) -> None:
    n, shape = data.draw(st.integers(2, 12)), data.draw(st.sampled_from([(1,), (2, 3)]))
    wide = [np.uint16] if hasattr(torch, "uint16") else []
    dtype: Any = data.draw(st.sampled_from([np.uint8, np.int16, *wide, np.float16, np.float64]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    images: Any = rng.integers(0, 256, (n, *shape)).astype(dtype)
    recipes = MixRecipes()
    for stage in range(1, data.draw(st.integers(1, 5)) + 1):
        order = rng.permutation(n)
        size = rng.integers(0, n // 2 + 1)
        recipes = recipes.with_stage(
            order[:size], order[size : 2 * size], rng.random(size, np.float32), stage
        )
    wanted = np.sort(rng.choice(n, rng.integers(1, n + 1), replace=False))
    if data.draw(st.booleans()):
        images = torch.from_numpy(images)
    found = carry_out_all(
        wanted, recipes, lambda i: images[torch.from_numpy(i) if torch.is_tensor(images) else i]
    )
    for index, image in zip(wanted.tolist(), found, strict=True):
        assert same(
            np.asarray(image), np.asarray(carry_out(index, recipes.steps(index), lambda i: images[i]))
        )


# -- one run, saved, copied, on several ranks --------------------------------------------------------------


def test_a_run_goes_on_and_makes_them_anew() -> None:
    plain, cached = pair(Cifar(N))
    pixels(plain, 5), pixels(cached, 5)
    again = wrap(Cifar(N), schedule=SCHEDULE, kcd_options={"mixing_cache": "1 MB"})
    again.load_state_dict(cached.state_dict())
    for other in (again, pickle.loads(pickle.dumps(cached)), copy.deepcopy(cached)):
        assert other.batch_sampler.cache is not cached.batch_sampler.cache
        assert len(images_in(other).targets) == len(images_in(cached).targets)
        assert same([*plain], [*other])


@pytest.mark.filterwarnings("ignore:the sampler draws for one of num_replicas")
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_each_rank_has_those_it_draws(sharded: bool) -> None:
    for rank in range(2):
        share: Any = {"num_replicas": 2, "rank": rank, "sharded": sharded, "schedule": SCHEDULE, "seed": 3}
        loaders = [
            kcd.wrap_loader(DataLoader(Cifar(N), batch_size=5, shuffle=True), mixing_cache=size, **share)
            for size in (0, "1 MB")
        ]
        even = np.arange(0, N, 2)
        weights = np.linspace(0.7, 0.9, 16, dtype=np.float32)
        whole = kcd.CondensedSet(even, N, dropped=even + 1, tail=even[:16], weights=weights)
        for loader in loaders:
            loader.sampler.install(whole)
        mine = loaders[1].sampler.kept
        assert images_in(loaders[1]).targets.tolist() == mine[mine < 32].tolist()
        assert same(*[[*loader] for loader in loaders])


def test_the_users_images_are_those_of_the_stages_first_pass() -> None:
    _, cached = pair(Cifar(N))
    pixels(cached, 3)
    before = [*cached]
    cached.dataset.data[:] = 0
    mixed = set(images_in(cached).targets.tolist())
    for was, now in zip(before, cached, strict=True):
        for index, a, b in zip(index_of(was), was[0], now[0], strict=True):
            assert same(a, b) == (index in mixed)


# -- memory, and processes that end ------------------------------------------------------------------------


def files() -> list[str]:
    """The memory that this process holds for mixed images."""
    links = [Path(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    maps = Path("/proc/self/maps").read_text().splitlines()
    found = [os.readlink(link) for link in links if link.is_symlink()] + maps
    return [text for text in found if "kcd_core" in text and "memfd" in text]


def in_worker(index: int, where: Any) -> None:
    where[index] = len(files())


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux")
@pytest.mark.parametrize("persistent", [False, True], ids=["anew", "persistent"])
def test_nothing_is_held_longer_than_a_stage(persistent: bool) -> None:
    gc.collect()
    before = len(files())  # of other tests'
    _, cached = pair(Cifar(N))
    held = torch.zeros(2, dtype=torch.int64).share_memory_()
    pixels(cached, 5)
    state = cached.state_dict()
    del cached
    gc.collect()
    assert len(files()) == before
    loader = wrap(
        Cifar(N), schedule=SCHEDULE, kcd_options={"mixing_cache": "1 MB"}, num_workers=2, persistent_workers=persistent,
        worker_init_fn=partial(in_worker, where=held),
    )  # fmt: skip
    loader.load_state_dict(state)
    pixels(loader, 4)
    assert len(images_in(loader).targets) > 0
    assert held.tolist() == [before] * 2  # what a worker inherits, it lets go of
    assert len(files()) == before + 1
    del loader
    gc.collect()
    assert len(files()) == before


class Deadly(Cifar):
    """The process that fetches one sample is killed."""

    def __getitem__(self, index: int) -> Any:
        if torch.utils.data.get_worker_info() is not None and index == self.targets[-1]:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_killed_worker_leaves_whole_images() -> None:
    plain, cached = pair(Deadly(N), num_workers=2)
    for loader in (plain, cached):
        loader.tracker.record(np.arange(N), np.arange(N, dtype=float))  # the last sample is kept to the end
        loader._run.end_epoch()
        loader.tracker.record(np.arange(N), np.arange(N, dtype=float))
        loader._run.end_epoch()
    with pytest.raises(RuntimeError, match=r"exited unexpectedly|killed by signal"):
        list(cached)
    main = wrap(Cifar(N), schedule=SCHEDULE)
    main.load_state_dict(cached.state_dict() | {"dataset": main.state_dict()["dataset"]})
    cached.dataset.targets[-1] = -1
    for a, b in zip(main, cached, strict=True):
        assert same(a[0], b[0])


def test_memory_that_is_too_small_is_told_and_not_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, cached = pair(Cifar(N))
    pixels(plain, 5), pixels(cached, 4)
    monkeypatch.setattr(mixed_images, "CHUNK", IMAGE)
    write, room = os.write, [5 * IMAGE + 7]  # in the middle of the sixth image

    def scarce(fd: int, data: Any) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = write(fd, data[: room[0]])
        room[0] -= done
        return done

    monkeypatch.setattr(os, "write", scarce)
    with pytest.warns(
        UserWarning, match=r"mixing_cache: there is no memory for all of \d+ mixed images .*No space left"
    ):
        pixels(cached, 1)
    assert len(images_in(cached).targets) == 5
    assert same([*plain], [*cached])


def test_where_memory_needs_a_name_it_is_a_temporary_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(array_file.tempfile, "tempdir", str(tmp_path))
    plain, cached = pair(Cifar(N), num_workers=1)
    assert same(pixels(plain, 5), pixels(cached, 5))
    assert len(list(tmp_path.iterdir())) == 1
    del cached
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_another_file_in_its_place_is_no_image() -> None:
    file = array_file.ArrayFile((2,), np.dtype(np.uint8))
    file.append(np.arange(4, dtype=np.uint8).reshape(2, 2))
    place = file.place()
    assert array_file.opened(place).tolist() == [[0, 1], [2, 3]]
    for wrong in (place._replace(file=(0, 0)), place._replace(path="/nowhere")):
        with pytest.raises(
            RuntimeError, match=r"mixing_cache: .* can't open the mixed images .* use mixing_cache=0"
        ):
            array_file.opened(wrong)


# -- what is refused ---------------------------------------------------------------------------------------


def own(dataset: Any, index: int, steps: Any) -> Any:
    return dataset[index]


@pytest.mark.parametrize(
    ("dataset", "options", "why"),
    [
        (Plain(N), {}, "mixed by mix_samples"),
        (Cifar(N), {"mixer": "samples"}, "mixed by mix_samples"),
        (Cifar(N), {"mixer": partial(kcd.mix_samples, fields=[0])}, "mixed by mix_samples"),
        (Cifar(N), {"mixer": own}, "mixed by own"),
        (Cifar(N), {"mixing_cache": IMAGE - 1}, f"room for no image, which takes {IMAGE} bytes"),
    ],
    ids=["samples", "asked for samples", "fields", "own mixer", "too small"],
)
def test_a_cache_that_would_not_be_used_is_refused(dataset: Any, options: Any, why: str) -> None:
    given = {"mixing_cache": "1 GB", **options}
    with pytest.raises(ValueError, match=f"mixing_cache would not be used: .*{why}.*mixing_cache=0"):
        wrap(dataset, kcd_options=given)
    wrap(dataset, kcd_options={**given, "mixing_cache": None})


def test_bytes() -> None:
    known: Any = {
        "1 GB": 10**9,
        "512 MiB": 2**29,
        "1.5kb": 1500,
        "7": 7,
        " 2 TB ": 2 * 10**12,
        "3B": 3,
        5: 5,
        None: 0,
    }
    for text, size in {**known, np.int64(9): 9}.items():
        assert checked_bytes(text, "x") == size
    for wrong, kind in ((-1, ValueError), ("-1 GB", ValueError), ("much", ValueError), ("1 GHz", ValueError)):
        with pytest.raises(
            kind, match='x must be a number of bytes, at least 0, or a text such as "1 GB", got'
        ):
            checked_bytes(wrong, "x")
    for wrong in (True, 1.5, []):
        with pytest.raises(TypeError, match="x must be a number of bytes"):
            checked_bytes(wrong, "x")
