"""Teachers and students for the demo: what they are, how they are trained and tested."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from .datasets import Images

__all__ = ["ConvNet", "Perceptron", "ResNet", "accuracy", "build", "conv", "recipe", "train"]


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A 3 by 3 convolution without bias, then batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs)
    )


class ConvNet(nn.Sequential):
    """Three convolutions and a linear layer, for small grey images of any size."""

    def __init__(self, width: int, classes: int, stride: int = 1) -> None:
        super().__init__(
            *(conv(1, width, stride), nn.ReLU()),
            *(conv(width, 2 * width, stride=2), nn.ReLU()),
            *(conv(2 * width, 2 * width, stride=2), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes)),
        )


class Perceptron(nn.Sequential):
    """Linear layers of these ``widths``, for vectors of ``inputs`` numbers."""

    def __init__(self, inputs: int, widths: tuple[int, ...], classes: int) -> None:
        hidden = [
            layer
            for size in zip((inputs, *widths), widths, strict=False)
            for layer in (nn.Linear(*size), nn.ReLU())
        ]
        super().__init__(*hidden, nn.Linear(widths[-1], classes))


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(inputs, outputs, stride), nn.ReLU(), conv(outputs, outputs))
        same = inputs == outputs and stride == 1
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Sequential):
    """Three groups of ``blocks`` residual blocks (6 * blocks + 2 layers), for 32 by 32 colour images."""

    def __init__(self, blocks: int, width: int, classes: int) -> None:
        layers: list[nn.Module] = [conv(3, width), nn.ReLU()]
        inputs = width
        for group in range(3):
            outputs = width * 2**group
            for block in range(blocks):
                layers.append(Residual(inputs, outputs, stride=2 if group and not block else 1))
                inputs = outputs
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def build(model: Callable[[int], nn.Module], classes: int, seed: int) -> nn.Module:
    """A model with the weights that ``seed`` gives; the global random numbers stay as they were."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed(), which would seed the accelerators' generators, too.
        torch.default_generator.manual_seed(seed)
        return model(classes)


def recipe(
    model: nn.Module, epochs: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """The paper's optimiser, its 240 epochs scaled to ``epochs``."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    milestones = [math.ceil(epochs * of_240 / 240) for of_240 in (150, 180, 210)]
    return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)


def train(
    model: nn.Module,
    loader: DataLoader[Any],
    *,
    epochs: int,
    device: torch.device,
    on_epoch: Callable[[], None],
) -> None:
    """Train a teacher on the labels."""
    model.train()
    optimizer, rates = recipe(model, epochs)
    for _ in range(epochs):
        for images, targets in loader:
            loss = F.cross_entropy(model(images.to(device)), targets.to(device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        rates.step()
        on_epoch()


def accuracy(model: nn.Module, images: Images, device: torch.device) -> float:
    """Share of ``images`` that ``model`` gets right."""
    model.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(images), 500):
            part = slice(start, start + 500)
            logits = model(images.transform(torch.from_numpy(images.data[part])).to(device))
            right += int((logits.argmax(-1).cpu().numpy() == images.targets[part]).sum())
    return right / len(images)
