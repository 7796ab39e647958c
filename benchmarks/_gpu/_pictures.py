"""What `distil` distils: images that lie on the device whole, and a teacher trained on them there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from kcd_adapters.demo.datasets import Images, Split, digits, fashion_mnist
from kcd_adapters.demo.models import ResNet, build

from .part import Part

#: Where Debian's package dataset-fashion-mnist puts the files.
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
#: Below ``--data-dir``: the folder itself, and where torchvision puts them.
BELOW = (".", "FashionMNIST/raw", "fashion-mnist")


@dataclass(frozen=True)
class Size:
    """How much is distilled into what. Models are (blocks, width) of a `ResNet`."""

    images: int | None  # the first ones; None: all
    tests: int | None
    batch: int
    teacher: tuple[int, int]
    student: tuple[int, int]
    teacher_epochs: int  # at most
    periods: tuple[int, ...]  # epochs that a stage may last, most first
    seeds: int  # at most
    every: int = 1  # pixels: 2 is every second one of every second line


# All 60,000 images in batches of 500: no stage of either ratio leaves a smaller batch, for which cuDNN
# would choose its kernels anew while the clock runs.
SIZES = {
    ("cuda", False): Size(None, None, 500, (2, 32), (1, 16), 10, (4, 3, 2, 1), 30),
    ("cuda", True): Size(6_000, None, 500, (2, 32), (1, 16), 6, (1,), 2),
    ("cpu", False): Size(3_000, 1_000, 50, (1, 8), (1, 4), 6, (2, 1), 5, every=2),
    ("cpu", True): Size(200, 200, 50, (1, 4), (1, 4), 2, (1,), 1, every=2),
}


@dataclass(frozen=True)
class Pictures:
    """Images and labels on the device, as bytes; the models see them normalised."""

    name: str
    images: torch.Tensor  # uint8 [N, H, W]
    targets: torch.Tensor  # int64 [N]
    test: tuple[torch.Tensor, torch.Tensor]
    classes: int
    mean: float
    std: float

    def inputs(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 1, H, W], normalised."""
        return ((images.float() / 255 - self.mean) / self.std).unsqueeze(1)


def pictures_of(part: Part, size: Size) -> tuple[Pictures, Size]:
    """Fashion-MNIST, or the digits where its files are not: then a row says what to pass."""
    split, name = found(part), "Fashion-MNIST"
    if split is None:
        split, name = digits(), "scikit-learn's digits"
        size = replace(size, images=None if size.images is None else 600, batch=50, every=1)
    train, test = split.train, split.test
    part.add(f"images of {name}", f"{len(train):,} to train on, {len(test):,} to test")
    count = min(len(train), size.images or len(train))
    name = f"the first {count:,} images of {name}" if count < len(train) else f"{name}, all {count:,} images"
    pictures = Pictures(
        name if size.every == 1 else f"{name}, every second pixel of every second line",
        *on(part.device, train, count, size.every),
        test=on(part.device, test, size.tests, size.every),
        classes=len(split.classes),
        mean=float(train.mean),
        std=float(train.std),
    )
    return pictures, size


def found(part: Part) -> Split | None:
    """Fashion-MNIST from ``--data-dir`` or from Debian's package; None if it is at neither place."""
    what = "the folder of Fashion-MNIST's four files (train-images-idx3-ubyte.gz and so on)"
    if part.data_dir is None and not DEBIAN.is_dir():
        part.leave_out("Fashion-MNIST", f"digits instead: pass --data-dir, {what}")
        return None
    where = part.data_dir or DEBIAN
    folders = [where / below for below in BELOW if any((where / below).glob("train-images-idx3-ubyte*"))]
    try:
        return fashion_mnist(folders[0] if folders else where)
    except (OSError, ValueError) as error:
        part.fail("data", f"{error}; digits instead. --data-dir takes {what}")
        return None


def on(
    device: torch.device, images: Images, count: int | None, every: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first ``count`` images and their labels."""
    pixels = np.ascontiguousarray(images.data[:count, ::every, ::every])
    return torch.from_numpy(pixels).to(device), torch.from_numpy(images.targets[:count]).to(device)


def model_of(shape: tuple[int, int], pictures: Pictures, seed: int) -> nn.Module:
    """A `ResNet` for grey images, where the images are."""

    def make(classes: int) -> nn.Module:
        model = ResNet(*shape, classes)
        width = shape[1]
        model[0] = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        return model

    model: Any = build(make, pictures.classes, seed).to(pictures.images.device)
    # On the CPU, torch 2.13 corrupts its heap in the backward of such narrow convolutions in this format.
    moved: nn.Module = model.to(memory_format=torch.channels_last) if pictures.images.is_cuda else model
    return moved


def seconds_of(call: Callable[[], Any], part: Part, *, first: int, times: int) -> float:
    """Seconds of one call, after the ``first`` ones, for which a device chooses its kernels."""
    for _ in range(first):
        call()
    part.sync()
    start = time.perf_counter()
    for _ in range(times):
        call()
    part.sync()
    return (time.perf_counter() - start) / times


def teacher_of(pictures: Pictures, size: Size, part: Part) -> tuple[nn.Module, int]:
    """The teacher, trained for ``size.teacher_epochs`` or for a seventh of the time left, and the steps it took.

    On CUDA it is trained under bfloat16 autocast, and speaks bfloat16 in the end: it is run live.
    """
    device, count = pictures.images.device, len(pictures.targets)
    cuda, generator = device.type == "cuda", torch.Generator(device).manual_seed(0)

    def learner() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = model_of(size.teacher, pictures, seed=0)
        return model, torch.optim.SGD(
            model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
        )

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, at: torch.Tensor) -> None:
        inputs = pictures.inputs(pictures.images[at])
        if inputs.shape[-1] > 8:  # digits, mirrored, are other digits
            mirror = torch.rand(len(at), 1, 1, 1, generator=generator, device=device) < 0.5
            inputs = torch.where(mirror, inputs.flip(-1), inputs)
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            loss = F.cross_entropy(model(inputs), pictures.targets[at])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    batch = torch.arange(min(size.batch, count), device=device)
    trial = learner()
    each = seconds_of(lambda: step(*trial, batch), part, first=5 if cuda else 1, times=10 if cuda else 2)
    parts = math.ceil(count / size.batch)
    most = max(2, min(size.teacher_epochs * parts, int(part.left() / 7 / each)))
    model, optimizer = learner()
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=most)
    done = 0
    while done < most:
        order = torch.randperm(count, generator=generator, device=device)
        for at in order.tensor_split(parts)[: most - done]:
            step(model, optimizer, at)
            rates.step()
            done += 1
    model.eval().requires_grad_(False)
    return (model.bfloat16() if cuda else model), most


@torch.no_grad()
def accuracy_of(model: nn.Module, pictures: Pictures) -> float:
    """Share of the test images that a model gets right."""
    model.eval()
    kind, (images, targets) = next(model.parameters()).dtype, pictures.test
    right = [
        (model(pictures.inputs(some).to(kind)).argmax(-1) == labels).sum()
        for some, labels in zip(images.split(1000), targets.split(1000), strict=True)
    ]
    return int(torch.stack(right).sum()) / len(targets)
