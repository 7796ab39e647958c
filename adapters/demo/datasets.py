"""The demo's data sets: raw uint8 images in ``.data``, transformed on access, so that `mix_arrays` applies."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, get_worker_info

from ..extras import need
from .dataset_files import read_idx, read_pickle

__all__ = ["DEBIAN", "Images", "Split", "cifar100", "digits", "fashion_mnist"]

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

#: Where Debian's dataset-fashion-mnist puts its files.
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
CLOTHES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


class Images(Dataset[tuple[torch.Tensor, int]]):
    """Labelled images in memory.

    Parameters
    ----------
    data : uint8 [N, H, W] or [N, H, W, C]
    targets : int64 [N]
    mean, std : [C]
        Of the training set's pixels, as shares of 255.
    augment : bool
        Random crop after a padding of 4, and random horizontal flip, from a generator of its own.
    """

    def __init__(self, data: Pixels, targets: Labels, mean: Any, std: Any, *, augment: bool = False) -> None:
        self.data, self.targets, self.augment = data, targets, augment
        self.mean, self.std = (torch.as_tensor(x).float().view(-1, 1, 1) for x in (mean, std))
        self.generator = torch.Generator().manual_seed(0)

    def __getstate__(self) -> dict[str, Any]:
        # As an array: torch can't hand a generator to a process that was not forked (pytorch issue 146828).
        return vars(self) | {"generator": self.generator.get_state().numpy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, generator=torch.Generator())
        self.generator.set_state(torch.from_numpy(state["generator"]))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = self.transform(torch.from_numpy(self.data[index]))
        if self.augment:
            image = self._crop_and_flip(image)
        return image, int(self.targets[index])

    def transform(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels, of one image or of many, to normalised floats with the channels first."""
        images = pixels.float() / 255
        images = images.movedim(-1, -3) if self.data.ndim == 4 else images.unsqueeze(-3)
        return (images - self.mean) / self.std

    def _crop_and_flip(self, image: torch.Tensor) -> torch.Tensor:
        worker = get_worker_info()
        if worker is not None and self.generator.initial_seed() != worker.seed:
            self.generator.manual_seed(worker.seed)  # else every worker would draw the same crops
        top, left, flip = (int(torch.randint(n, (), generator=self.generator)) for n in (9, 9, 2))
        height, width = image.shape[-2:]
        padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
        cropped = padded[..., top : top + height, left : left + width]
        return cropped.flip(-1) if flip else cropped


@dataclass(frozen=True)
class Split:
    """What to train on, what to test on, and what the classes are called."""

    train: Images
    test: Images
    classes: Sequence[str]

    def first(self, samples: int | None) -> Split:
        """With the first so many samples to train on; None is all. They are normalised as all are."""
        if samples is None:
            return self
        train = copy.copy(self.train)
        train.data, train.targets = train.data[:samples], train.targets[:samples]
        return replace(self, train=train)


def digits(folder: Path | None = None) -> Split:
    """1,797 handwritten digits, 8 by 8 pixels, which come with scikit-learn.

    The last third is for testing. The order is that of the writers: a random split would put the
    same hands into both parts.
    """
    if folder is not None:
        raise ValueError("--data-dir is not for --data digits, which come with scikit-learn: leave it out")
    bunch = need("sklearn.datasets").load_digits()
    data = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # levels are 0 .. 16
    targets = bunch.target.astype(np.int64)
    cut = len(data) * 2 // 3
    return _split((data[:cut], targets[:cut]), (data[cut:], targets[cut:]), [str(d) for d in range(10)])


def fashion_mnist(folder: Path | None = None) -> Split:
    """60,000 + 10,000 pieces of clothing, 28 by 28 pixels, from IDX files, gzipped or not.

    Without a folder, from where Debian's package has them.
    """
    where = _checked_folder(
        DEBIAN if folder is None and DEBIAN.is_dir() else folder,
        "fashion-mnist",
        "train-images-idx3-ubyte and its three companions, with or without .gz "
        "(Debian: apt-get install dataset-fashion-mnist, whose files are found by themselves)",
    )
    parts = []
    for part in ("train", "t10k"):
        images_path = _with_or_without_gz(where, f"{part}-images-idx3-ubyte")
        labels_path = _with_or_without_gz(where, f"{part}-labels-idx1-ubyte")
        images = read_idx(images_path, dimensions=3)
        labels = read_idx(labels_path, dimensions=1)
        parts.append((images, _checked_labels(labels, len(images), len(CLOTHES), labels_path)))
    if parts[0][0].shape[1:] != parts[1][0].shape[1:]:
        raise ValueError(f"the training and the test images in {where} differ in size")
    return _split(parts[0], parts[1], CLOTHES)


def cifar100(folder: Path | None = None) -> Split:
    """50,000 + 10,000 things of 100 kinds, 32 by 32 pixels in colour, from the Python version's pickles."""
    where = _checked_folder(folder, "cifar100", "the files of cifar-100-python: train, test and meta")
    if (where / "cifar-100-python").is_dir():
        where = where / "cifar-100-python"
    (names,) = _fields(where / "meta", "fine_label_names")
    if not isinstance(names, list) or not names:
        raise ValueError(f"{where / 'meta'}: fine_label_names must be a list, got {_what(names)}")
    parts = []
    for path in (where / "train", where / "test"):
        data, labels = _fields(path, "data", "fine_labels")
        if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3072 or len(data) == 0:
            raise ValueError(f"{path}: data must be bytes [N, 3072], got {_what(data)}")
        if not isinstance(labels, list) or not all(type(label) is int for label in labels):
            raise ValueError(f"{path}: fine_labels must be a list of integers, got {_what(labels)}")
        images = np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        parts.append((images, _checked_labels(np.array(labels), len(images), len(names), path)))
    classes = [_text(name).replace("_", " ") for name in names]
    return _split(parts[0], parts[1], classes, augment=True)


def _split(
    train: tuple[Pixels, Labels],
    test: tuple[Pixels, Labels],
    classes: Sequence[str],
    *,
    augment: bool = False,
) -> Split:
    """Both parts, normalised by the training images' mean and standard deviation per channel."""
    channels = np.moveaxis(train[0], -1, 0) if train[0].ndim == 4 else train[0][None]
    levels = np.arange(256) / 255
    # By way of the histogram, since a float copy of all images is big.
    shares = np.stack([np.bincount(c.ravel(), minlength=256) / c.size for c in channels])
    mean = shares @ levels
    std = np.sqrt(np.maximum(shares @ levels**2 - mean**2, 1e-6))
    return Split(Images(*train, mean, std, augment=augment), Images(*test, mean, std), classes)


def _checked_folder(folder: Path | None, data: str, content: str) -> Path:
    if folder is None:
        raise ValueError(f"--data {data} needs --data-dir, the folder with {content}")
    if not folder.is_dir():
        raise ValueError(f"--data-dir must be a folder with {content}, and {folder} is none")
    return folder


def _with_or_without_gz(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"--data-dir {folder} has neither {name} nor {name}.gz")


def _fields(path: Path, *names: str) -> list[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"--data-dir {path.parent} has no file {path.name}")
    content = {_text(key): x for key, x in read_pickle(path).items()}
    missing = [name for name in names if name not in content]
    if missing:
        raise ValueError(f"{path} has no field {missing[0]!r}, only {sorted(content)}")
    return [content[name] for name in names]


def _checked_labels(labels: npt.NDArray[Any], images: int, classes: int, path: Path) -> Labels:
    if len(labels) != images:
        raise ValueError(f"{path} has {len(labels)} labels for {images} images")
    if not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(
            f"{path}: labels must lie in 0 .. {classes - 1}, got {labels.min()} .. {labels.max()}"
        )
    return labels.astype(np.int64)


def _text(x: Any) -> str:
    """Keys and names are str as Python 2 wrote them, bytes in some copies made with Python 3."""
    return x.decode("latin1") if isinstance(x, bytes) else str(x)


def _what(x: Any) -> str:
    shape = getattr(x, "shape", None)
    return type(x).__name__ if shape is None else f"shape {shape}"
