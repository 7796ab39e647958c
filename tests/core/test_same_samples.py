"""That a data set which is reordered during a run is an error when a stage ends, and that what may change is none."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Plain, logits_of, run_epoch, wrap
from torch.utils.data import ConcatDataset, Subset

import kcd_core as kcd
from kcd_core.base.same_samples import SameSamples

N = 40
LATE = kcd.CondensationSchedule(0.5, 1, 2)


def with_(**attributes: Any) -> Plain:
    dataset = Plain(N)
    dataset.__dict__.update(attributes)
    return dataset


def names() -> list[str]:
    return [f"/data/{i % 7}/{i:04d}.jpg" for i in range(N)]


def rows() -> list[Any]:
    return [(name, i % 7) for i, name in enumerate(names())]


def shuffle(x: Any) -> None:
    (np.random.default_rng(0) if isinstance(x, np.ndarray) else random.Random(0)).shuffle(x)


#: A data set, what happens to it after an epoch, and the name of what has changed.
CHANGED: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], str]] = {
    "indices that are shuffled": (
        lambda: with_(indices=np.arange(N)),
        lambda dataset: shuffle(dataset.indices),
        "indices of Plain",
    ),
    "private indexes, as Keras has them": (
        lambda: with_(_indexes=list(range(N))),
        lambda dataset: shuffle(dataset._indexes),
        "_indexes of Plain",
    ),
    "indices that are drawn anew": (
        lambda: with_(indices=torch.arange(N)),
        lambda dataset: setattr(dataset, "indices", torch.arange(N) + 1000),
        "indices of Plain",
    ),
    "a subset": (
        lambda: Subset(Plain(60), list(range(N))),
        lambda dataset: shuffle(dataset.indices),
        "indices of Subset",
    ),
    "a part of a subset": (
        lambda: Subset(ConcatDataset([Plain(5), with_(files=names())]), range(N)),
        lambda dataset: shuffle(dataset.dataset.datasets[1].files),
        r"dataset.datasets\[1\].files of Subset",
    ),
    "files": (lambda: with_(image_paths=names()), lambda dataset: shuffle(dataset.image_paths), "image_paths of"),
    "paths": (
        lambda: with_(files=[*map(Path, names())]),
        lambda dataset: dataset.files.sort(key=lambda path: path.name[::-1]),
        "files of",
    ),
    "files and labels": (lambda: with_(samples=rows()), lambda dataset: shuffle(dataset.samples), "samples of"),
    "records": (
        lambda: with_(data=[{"label": label, "file": name} for name, label in rows()]),
        lambda dataset: shuffle(dataset.data),
        "data of",
    ),
    "files that are drawn with replacement": (
        lambda: with_(files=names()),
        lambda dataset: setattr(dataset, "files", random.Random(0).choices(dataset.files, k=N)),
        "files of",
    ),
}  # fmt: skip


def run_over(dataset: Any) -> kcd.Condensation:
    run = kcd.Condensation(kcd.CondensedSampler(N), schedule=LATE, dataset=dataset)
    record(run)
    run.end_epoch()
    return run


def record(run: kcd.Condensation) -> None:
    run.record(logits_of(range(N), run.epoch), indices=np.arange(N))


@pytest.mark.parametrize("kind", CHANGED)
def test_a_data_set_that_is_reordered_is_an_error_when_a_stage_ends(kind: str) -> None:
    make, change, text = CHANGED[kind]
    dataset = make()
    run = run_over(dataset)
    change(dataset)
    record(run)
    with pytest.raises(RuntimeError, match=rf"drawn anew.*: {text}.* since the first batch.*shuffle=True"):
        run.end_epoch()
    assert (run.epoch, len(run.history), run.sampler.num_kept) == (2, 0, N)


#: A data set, and what may happen to it.
ALLOWED: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "labels": (
        lambda: with_(targets=list(range(N)), labels=np.arange(N)),
        lambda dataset: (shuffle(dataset.targets), shuffle(dataset.labels)),
    ),
    "labels beside files": (
        lambda: with_(samples=rows()),
        lambda dataset: setattr(dataset, "samples", [(name, 6 - label) for name, label in dataset.samples]),
    ),
    "a counter and a transform": (
        lambda: with_(epoch=0, transform=None, order=list(range(N))),
        lambda dataset: (setattr(dataset, "epoch", 1), setattr(dataset, "transform", abs), shuffle(dataset.order)),
    ),
    "files that a cache replaces": (
        lambda: with_(files=names()),
        lambda dataset: setattr(dataset, "files", [f"{name}.npy" for name in dataset.files]),
    ),
    "a broken file that another replaces": (
        lambda: with_(files=names()),
        lambda dataset: setattr(dataset, "files", [dataset.files[1], *dataset.files[1:]]),
    ),
    "texts that are put in other words": (
        lambda: with_(data=[(name, f"a photo of {label}") for name, label in rows()], texts=names()),
        lambda dataset: (
            setattr(dataset, "data", [(name, f"a photo of {i % 7}") for i, (name, _) in enumerate(dataset.data, 1)]),
            shuffle(dataset.texts),
        ),
    ),
    "neighbours of each sample": (
        lambda: with_(indices=np.arange(3 * N).reshape(N, 3)),
        lambda dataset: shuffle(dataset.indices),
    ),
    "what was not there": (
        lambda: with_(files=None, indices=[]),
        lambda dataset: (setattr(dataset, "files", names()), setattr(dataset, "indices", list(range(N)))),
    ),
    "what is there no longer": (
        lambda: with_(files=names(), indices=list(range(N))),
        lambda dataset: (setattr(dataset, "files", None), delattr(dataset, "indices")),
    ),
    "a list that grows": (rows, lambda dataset: dataset.append(("/data/new.jpg", 0))),
    "pictures and numbers": (
        lambda: with_(data=torch.rand(N, 3), images=np.zeros((N, 4, 4))),
        lambda dataset: (setattr(dataset, "data", torch.rand(N, 3)), shuffle(dataset.images)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ALLOWED)
def test_what_does_not_say_which_samples_these_are_may_change(kind: str) -> None:
    make, change = ALLOWED[kind]
    dataset = make()
    run = run_over(dataset)
    change(dataset)
    record(run)
    assert run.end_epoch() is not None


def test_what_was_reordered_before_the_first_batch_is_no_error() -> None:
    dataset = with_(indices=np.arange(N))
    run = kcd.Condensation(kcd.CondensedSampler(N), schedule=LATE, dataset=dataset)
    shuffle(dataset.indices)
    for _ in range(2):
        record(run)
        run.end_epoch()
    assert len(run.history) == 1


def test_a_list_is_a_data_set_too() -> None:
    dataset = rows()
    run = run_over(dataset)
    shuffle(dataset)
    record(run)
    with pytest.raises(RuntimeError, match="the list of list changed"):
        run.end_epoch()


@pytest.mark.parametrize(
    "settings", [{"schedule": LATE}, {"schedule": None, "ask": LATE}], ids=["set", "gate"]
)
def test_a_loader_watches_its_data_set(settings: dict[str, Any]) -> None:
    schedule = settings.pop("schedule")
    loader = wrap(with_(indices=list(range(N))), schedule=schedule, kcd_options=settings)
    run_epoch(loader)
    run_epoch(loader, end=False)
    shuffle(loader.dataset.indices)
    with pytest.raises(RuntimeError, match="indices of Plain changed"):
        loader.end_epoch()
    loader.dataset.indices.sort()
    loader.end_epoch()
    assert loader.epoch == 3


def test_a_copy_of_a_run_does_not_take_the_data_set_along() -> None:
    run = run_over(with_(files=names(), traps=[lambda: None]))  # which can't be pickled
    for copied in (pickle.loads(pickle.dumps(run)), copy.deepcopy(run)):
        record(copied)
        assert copied.end_epoch() is not None


def test_all_of_a_long_list_is_looked_at() -> None:
    """Every k-th of it."""
    dataset = with_(files=[str(i) for i in range(600_000)])
    dataset.images = range(len(dataset.files))  # its length
    before = dataset.files
    for part in np.array_split(np.arange(len(before)), 3):
        samples = SameSamples(dataset)
        samples.note()
        samples.check()
        moved = before[part[0] : part[-1]]
        shuffle(moved)
        dataset.files = [*before[: part[0]], *moved, *before[part[-1] :]]
        with pytest.raises(RuntimeError, match="files of Plain changed"):
            samples.check()
        dataset.files = before
