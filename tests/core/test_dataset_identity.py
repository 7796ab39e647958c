"""What a data set is: equal for copies, another for other samples, and none of the user's code is run for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, StackDataset, Subset, TensorDataset

from kcd_core.base.dataset_identity import dataset_identity

N = 50
LABELS = np.random.default_rng(0).integers(0, 7, N)
PATHS = [f"class{label}/{place:04d}.jpg" for place, label in enumerate(LABELS)]


class Holder:
    """A data set with these attributes, whose code must not run."""

    def __init__(self, length: int = N, **attributes: Any) -> None:
        self.__dict__.update(attributes)
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("a sample was read")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")

    @property
    def targets(self) -> Any:
        raise AssertionError("a property was read")

    labels = samples = targets


def folder(root: str = "/data", separator: str = "/", order: Any = range(N)) -> Holder:
    """As an ImageFolder keeps its files."""
    path = [separator.join([root, *PATHS[i].split("/")]) for i in order]
    samples = [(path, int(LABELS[i])) for path, i in zip(path, order, strict=True)]
    return Holder(root=root, samples=samples, imgs=samples, targets=[label for _, label in samples])


class Table:
    """As much of a pandas frame as is looked at."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self._columns, self.columns = columns, list(columns)

    def __len__(self) -> int:
        return N

    def __getitem__(self, name: str) -> Any:
        return Series(self._columns[name])

    def to_numpy(self) -> Any:
        raise AssertionError("columns of several types are not one array")


class Series:
    def __init__(self, values: Any) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def to_numpy(self) -> Any:
        return np.asarray(self.values, object)


SAME: dict[str, list[Callable[[], Any]]] = {
    "labels, whatever holds them": [
        lambda: Holder(targets=LABELS),
        lambda: Holder(targets=LABELS.tolist()),
        lambda: Holder(targets=tuple(LABELS)),
        lambda: Holder(targets=torch.from_numpy(LABELS)),
        lambda: Holder(targets=torch.from_numpy(LABELS).to(torch.uint8)),
        lambda: Holder(targets=LABELS.astype(">i2")),
        lambda: Holder(targets=Series(LABELS)),
    ],
    "files under another root, on another system": [
        lambda: folder(),
        lambda: folder("/mnt/node 7/somewhere/else"),
        lambda: folder("D:\\data", "\\"),
    ],
    "paths and text": [
        lambda: Holder(paths=[f"/a/{path}" for path in PATHS]),
        lambda: Holder(paths=[Path("/b") / path for path in PATHS]),
        lambda: Holder(paths=np.array(PATHS)),
    ],
    "rows and tables": [
        lambda: Holder(
            annotations=[{"file": a, "label": int(b)} for a, b in zip(PATHS, LABELS, strict=True)]
        ),
        lambda: Holder(annotations=Table({"file": PATHS, "label": LABELS})),
    ],
    "subsets": [
        lambda: Subset(folder(), [*range(0, N, 2)]),
        lambda: Subset(folder("/elsewhere"), torch.arange(0, N, 2)),
        lambda: Subset(folder(), np.arange(0, N, 2)),
        lambda: Subset(folder(), range(0, N, 2)),
    ],
    "what may differ in a last bit, or says nothing": [
        lambda: Holder(targets=np.linspace(0, 1, N), data=[None] * N, ids=[object()] * N),
        lambda: Holder(targets=np.linspace(0, 1, N) + 1e-12, samples=torch.zeros(N, 3)),
    ],
    "caches and counters, which are called something else": [
        lambda: Holder(targets=LABELS, cache=[0] * N, fetched=list(range(N)), seeds=np.arange(N)),
        lambda: Holder(targets=LABELS, cache=[1] * N, fetched=list(range(N))[::-1], seeds=np.arange(N) + 1),
    ],
}


@pytest.mark.parametrize("kind", SAME)
def test_copies_are_equal(kind: str) -> None:
    about = [dataset_identity(make()) for make in SAME[kind]]
    assert all(one == about[0] for one in about), about
    assert about[0]["length"] == len(SAME[kind][0]())


def swapped(x: Any) -> Any:
    """With two samples in each other's place, which are unlike."""
    places = np.arange(N)
    other = int(np.flatnonzero(LABELS[0] != LABELS)[0])
    places[[0, other]] = places[[other, 0]]
    return [x[i] for i in places] if isinstance(x, list) else x[places]


PAIRS = [(image, label) for image, label in zip(torch.rand(N, 2), LABELS.tolist(), strict=True)]
IMAGES = np.random.default_rng(1).integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)
OTHERS: dict[str, tuple[Any, Any]] = {
    "length": (Holder(N), Holder(N - 1)),
    "labels": (Holder(labels=LABELS), Holder(labels=swapped(LABELS))),
    "private labels": (Holder(_labels=LABELS), Holder(_labels=swapped(LABELS))),
    "yes and no": (Holder(y=LABELS > 3), Holder(y=LABELS < 4)),
    "files": (folder(), folder(order=swapped(np.arange(N)))),
    "a folder that is listed in another order": (Holder(files=PATHS), Holder(files=PATHS[::-1])),
    "tensors": (TensorDataset(torch.rand(N, 2), torch.tensor(LABELS)), TensorDataset(torch.rand(N, 2), swapped(torch.tensor(LABELS)))),
    "encodings": (Holder(encodings={"ids": IMAGES[:, 0, 0]}), Holder(encodings={"ids": IMAGES[::-1, 0, 0]})),
    "a list of samples": (PAIRS, swapped(PAIRS)),
    "a list of dicts": ([{"y": y} for _, y in PAIRS], [{"y": y} for _, y in swapped(PAIRS)]),
    "an array": (LABELS, swapped(LABELS)),
    "a random split": (Subset(PAIRS, [1, 2, 3]), Subset(PAIRS, [1, 2, 4])),
    "a split of a split": (Subset(Subset(PAIRS, [5, 6, 7]), [0, 1]), Subset(Subset(PAIRS, [5, 6, 7]), [0, 2])),
    "a split of other data": (Subset(folder(), range(9)), Subset(folder(order=swapped(np.arange(N))), range(9))),
    "parts": (ConcatDataset([folder(), PAIRS]), ConcatDataset([PAIRS, folder()])),
    "a stack": (StackDataset(a=folder(), b=PAIRS), StackDataset(a=folder(), b=swapped(PAIRS))),
    "a wrapper": (Holder(dataset=folder()), Holder(dataset=folder(order=swapped(np.arange(N))))),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_other_samples_are_told_apart(kind: str) -> None:
    one, other = map(dataset_identity, OTHERS[kind])
    assert one != other
    assert one == dataset_identity(OTHERS[kind][0])


def test_pictures_are_left_out_since_they_may_be_a_cache_that_fills() -> None:
    for empty, full in ((np.zeros_like(IMAGES), IMAGES), (torch.zeros(IMAGES.shape), torch.tensor(IMAGES))):
        for name in ("images", "data"):
            one, other = Holder(labels=LABELS, **{name: empty}), Holder(labels=LABELS, **{name: full})
            assert dataset_identity(one) == dataset_identity(other)


class Hostile:
    """Every attribute is a trap."""

    def __len__(self) -> int:
        return 3

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no")


def around_itself() -> Holder:
    holder = Holder()
    holder.__dict__.update(dataset=holder)
    return holder


@pytest.mark.parametrize(
    "dataset",
    [
        Holder(targets=[1, "two", None] * (N // 2), _length=N),
        Holder(samples=[[1], [], *[[2]] * (N - 2)]),
        Holder(samples=["a", None] * (N // 2)),
        Holder(targets=torch.empty(N, device="meta", dtype=torch.int64)),
        Holder(targets=torch.eye(N).to_sparse().long()),
        Holder(dataset=3, indices=None, datasets=7),
        Hostile(),
        range(N),
        around_itself(),
    ],
    ids=lambda dataset: type(dataset).__name__,
)
def test_what_can_not_be_read_is_left_out(dataset: Any) -> None:
    about = dataset_identity(dataset)
    assert about["length"] == len(dataset)
    assert all(isinstance(x, (int, str)) for x in about.values())
    assert len(about) < 20


def test_of_what_is_long_all_places_are_looked_at() -> None:
    """Every k-th of them."""
    labels = np.zeros(3 << 20, np.int8)
    before = dataset_identity(Holder(len(labels), targets=labels))
    for part in np.array_split(np.arange(len(labels)), 5):
        other = labels.copy()
        other[part] = 1
        assert dataset_identity(Holder(len(labels), targets=other)) != before
