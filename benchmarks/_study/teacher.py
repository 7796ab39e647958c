"""The study's images and its teacher: trained once, kept with what it says about all training images."""

from __future__ import annotations

import hashlib
import io
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from kcd_adapters.demo.datasets import Images, Split
from kcd_adapters.demo.models import accuracy, build
from kcd_core.base.files import write_whole

from .data import DATA, teacher_of
from .material import Material, flipped_and_shifted, look
from .runs import Setting, StudyError

if TYPE_CHECKING:
    from rich.progress import Progress


@cache
def split_of(setting: Setting) -> Split:
    """All images; a StudyError if they can't be read or are too few."""
    try:
        split = DATA[setting.data].read(setting.folder)
    except (ValueError, OSError) as error:
        raise StudyError(str(error)) from error
    if setting.samples > len(split.train):
        raise StudyError(
            f"--samples must be at most {len(split.train)}, all there are, got {setting.samples}"
        )
    return split


@cache
def digest_of(setting: Setting) -> str:
    """Of all images and targets."""
    parts, made = split_of(setting), hashlib.sha256()
    for array in (parts.train.data, parts.train.targets, parts.test.data, parts.test.targets):
        made.update(array.tobytes())
    return made.hexdigest()[:16]


def train_teacher(setting: Setting, progress: Progress) -> None:
    """Train the teacher on all images, once, and keep it and what it says about them."""
    path = setting.teacher
    if path.exists():
        return
    split = split_of(setting)
    images, targets = tensors(split.train)
    teacher: Any = build(teacher_of(setting.data, split.train.data.shape[1:]), len(split.classes), seed=0)
    steps = -(-len(images) // 128)
    optimizer = DATA[setting.data].optimizer(teacher.parameters())
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=optimizer.defaults["lr"], epochs=setting.teacher_epochs, steps_per_epoch=steps
    )
    generator = torch.Generator().manual_seed(0)
    task = progress.add_task("teacher", total=setting.teacher_epochs * steps)
    for _ in range(setting.teacher_epochs):
        for indices in torch.randperm(len(images), generator=generator).tensor_split(steps):
            batch = images[indices]
            if DATA[setting.data].mirrored:
                batch = flipped_and_shifted(batch, generator)
            loss = F.cross_entropy(teacher(batch), targets[indices])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            rates.step()
            progress.advance(task)
    features, logits = look(teacher, images)
    kept = io.BytesIO()
    torch.save(
        {
            "model": teacher.state_dict(),
            "features": features,
            "logits": logits,
            "accuracy": accuracy(teacher, split.test, torch.device("cpu")),
            "digest": digest_of(setting),
        },
        kept,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():  # else another study was faster, and its runs may have begun
        write_whole(path, kept.getvalue())


def kept_teacher(setting: Setting) -> tuple[Any, dict[str, Any]]:
    """The teacher and what was kept with it; a StudyError if it can't be read or is of other images."""
    split, path = split_of(setting), setting.teacher
    teacher: Any = build(teacher_of(setting.data, split.train.data.shape[1:]), len(split.classes), seed=0)
    try:
        kept: dict[str, Any] = torch.load(path, weights_only=True)
        teacher.load_state_dict(kept["model"])
        whole = (
            len(kept["features"]) == len(kept["logits"]) == len(split.train) and 0 <= kept["accuracy"] <= 1
        )
    except Exception:  # whatever torch says of a broken file
        whole = False
    if not whole:
        raise StudyError(
            f"{path} is no teacher of these images, or is broken: delete it, and it is trained again"
        )
    # A teacher made before teachers had a digest is taken to be of these images.
    if kept.get("digest", digest_of(setting)) != digest_of(setting):
        raise StudyError(f"{path} was trained on other images: give an --out of its own for each --data-dir")
    return teacher, kept


def tensors(images: Images) -> tuple[torch.Tensor, torch.Tensor]:
    """All of them, normalised, and their targets."""
    return images.transform(torch.from_numpy(images.data)), torch.from_numpy(images.targets)


@cache
def material_of(setting: Setting) -> tuple[Material, float]:
    """The first ``samples`` training images with what the teacher says; and its test accuracy."""
    split, (teacher, kept) = split_of(setting), kept_teacher(setting)
    n, whole = setting.samples, split.train
    train = type(whole)(whole.data[:n], whole.targets[:n], whole.mean, whole.std)
    material = Material(
        setting.data,
        train,
        split.test,
        len(split.classes),
        teacher,
        setting.live,
        setting.augmented,
        *tensors(train),
        kept["features"][:n].clone(),
        kept["logits"][:n].clone(),
    )
    return material, kept["accuracy"]
