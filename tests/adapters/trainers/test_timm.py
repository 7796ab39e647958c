"""Loops around ``timm.data.create_loader``: real images, timm's own prefetcher, models and distillation task."""

from __future__ import annotations

import copy
import io
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("timm", reason="timm is not installed: run make test-trainers")

import torch
from common import check_asked, expected_sets, summed
from helpers import identical_state, join_ranks, leave_together, run_ranks
from PIL import Image
from reference import entropy
from timm.data import AugMixDataset, FastCollateMixup, Mixup, create_dataset, create_loader
from timm.data.loader import PrefetchLoader
from timm.models import create_model
from timm.task import LogitDistillationTask

import kcd_core as kcd
from kcd_adapters.trainers.timm import wrap_loader

# timm leaves the image files that it reads to be closed by the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

N, CLASSES, SIZE, BATCH = 203, 5, 32, 16
SCHEDULE = kcd.CondensationSchedule(ratio=0.4, stages=3, period=1)
EPOCHS = 5
STEPS = [
    12,
    10,
    7,
    5,
    5,
]  # of 203, 163, 123, 83 and 83 samples, since create_loader drops what doesn't fill a batch
CPU = torch.device("cpu")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def write_images(root: Path) -> Path:
    """PNG files in a folder for each class; the red channel says which sample it is, whatever is cropped or flipped."""
    rng = np.random.default_rng(0)
    for index in range(N):
        pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        pixels[..., 0] = index
        folder = root / f"class{index * CLASSES // N}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{index:04d}.png")
    return root


def make(root: Path, *, prefetcher: bool = True, **options: Any) -> Any:
    given: dict[str, Any] = {
        "batch_size": BATCH,
        "is_training": True,
        "no_aug": True,
        "num_workers": 0,
        "mean": MEAN,
        "std": STD,
    }
    given.update(options)
    return create_loader(
        create_dataset("", root=str(root)), (3, SIZE, SIZE), device=CPU, use_prefetcher=prefetcher, **given
    )


def which(images: torch.Tensor) -> list[int]:
    """The indices of a batch, from its pixels as timm normalizes them."""
    red = images[:, 0].flatten(1).median(1).values.double() * STD[0] + MEAN[0]
    return (red * 255).round().long().tolist()


class Student(torch.nn.Module):
    """A timm model, and a reading of its own of all that it says in training: (index, entropy), by epoch."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = create_model("test_resnet", num_classes=CLASSES)
        # What timm's tasks ask a student for.
        self.pretrained_cfg, self.num_classes, self.in_chans = self.model.pretrained_cfg, CLASSES, 3
        self.read: list[list[tuple[int, float]]] = [[]]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(images)
        if self.training and torch.is_grad_enabled():
            self.read[-1] += zip(which(images), map(entropy, logits.detach().double().tolist()), strict=True)
        return logits


class Run:
    """A student that is trained, and may be saved and loaded, by an ordinary loop."""

    def __init__(self, loader: Any, state: Any = None) -> None:
        self.loader, self.student = loader, Student()
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.02, momentum=0.9)
        total = loader.total_steps(EPOCHS)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, total)
        self.drawn: list[list[int]] = []
        self.sets: list[list[int]] = []
        if state is not None:
            state = torch.load(io.BytesIO(state), weights_only=True)
            self.student.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            loader.load_state_dict(state["loader"])

    def save(self, loader: Any) -> bytes:
        file = io.BytesIO()
        parts = {"model": self.student, "optimizer": self.optimizer, "schedule": self.schedule}
        torch.save({**{k: part.state_dict() for k, part in parts.items()}, "loader": loader}, file)
        return file.getvalue()

    def step(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        logits = self.student(images)
        torch.nn.functional.cross_entropy(logits, targets).backward()
        self.optimizer.step()
        self.schedule.step()
        self.loader.record(logits)

    def train(self, places: Any = ()) -> dict[tuple[int, int], bytes]:
        """To the end. Returns the states at ``places``: (epoch, batches done), (epoch, 0) being between epochs."""
        loader, states = self.loader, {}
        while loader.epoch <= EPOCHS:
            if (loader.epoch, 0) in places:
                states[loader.epoch, 0] = self.save(loader.state_dict())
            done = loader.batches_done
            for images, targets in loader:
                assert targets.tolist() == [index * CLASSES // N for index in which(images)]
                assert loader.indices.tolist() == which(images)
                self.drawn.append(which(images))
                self.step(images, targets)
                done += 1
                assert loader.batches_done == done
                if (loader.epoch, done) in places:
                    states[loader.epoch, done] = self.save(loader.state_dict())
            assert done == len(loader)
            self.sets.append(loader.end_epoch().kept.tolist())
            self.student.read.append([])
        return states

    def check(self) -> None:
        """V, F and the sets are those of the student's own reading, and the learning rate ends at 0."""
        value, count = summed(list(chain(*self.student.read)), N)
        np.testing.assert_array_equal(self.loader.tracker.count, count)
        np.testing.assert_allclose(self.loader.tracker.value[count > 0], value[count > 0], atol=3e-7)
        expected = expected_sets(self.student.read[:-1], N, SCHEDULE)
        assert [sorted(one) for one in self.sets] == [one.tolist() for one in expected]
        assert self.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


PLACES = [(1, 4), (2, 1), (2, 9), (2, 10), (3, 0), (5, 5)]


@pytest.fixture(scope="module")
def whole(root: Path) -> tuple[Run, dict[tuple[int, int], bytes]]:
    run = Run(wrap_loader(make(root), schedule=SCHEDULE, mixing=None, seed=3))
    return run, run.train(PLACES)


# -- what is recorded -----------------------------------------------------------------------------


def test_values_are_those_of_an_independent_reading(whole: tuple[Run, Any]) -> None:
    run, _ = whole
    run.check()
    assert [len(one) for one in run.drawn] == [BATCH] * sum(STEPS)
    assert [run.loader.history[k]["kept"] for k in range(3)] == [163, 123, 83]


@pytest.mark.parametrize("place", PLACES)
def test_an_interrupted_run_ends_as_the_other(
    root: Path, whole: tuple[Run, dict[tuple[int, int], bytes]], place: tuple[int, int]
) -> None:
    one, states = whole
    again = Run(wrap_loader(make(root), schedule=SCHEDULE, mixing=None, seed=3), states[place])
    again.train()
    before = sum(STEPS[: place[0] - 1]) + place[1]
    assert again.drawn == one.drawn[before:]
    assert identical_state(again.student.state_dict(), one.student.state_dict())
    assert identical_state(again.loader.state_dict(), one.loader.state_dict())
    assert again.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("prefetcher", "workers"), [(False, 0), (True, 2)])
def test_without_the_prefetcher_and_with_workers(
    root: Path, whole: tuple[Run, Any], prefetcher: bool, workers: int
) -> None:
    loader = make(root, prefetcher=prefetcher, num_workers=workers)
    run = Run(wrap_loader(loader, schedule=SCHEDULE, mixing=None, seed=3))
    run.train()
    run.check()
    same = sum(STEPS) if prefetcher else STEPS[0]  # normalized elsewhere, images differ in the last bit
    assert run.drawn[:same] == whole[0].drawn[:same]


@pytest.mark.parametrize(("prefetcher", "workers"), [(False, 0), (True, 0), (True, 2)])
def test_the_teacher_is_asked_for_some_rows_of_the_batch_at_hand(
    root: Path, prefetcher: bool, workers: int
) -> None:
    # create_loader drops what doesn't fill a batch
    loader: Any = make(root, prefetcher=prefetcher, num_workers=workers, batch_size=N // 7)
    loader = wrap_loader(loader, schedule=None, ask=0.25, mixing=None)
    student, told = Student(), []
    for _ in range(3):
        told.append([])
        for images, _targets in loader:
            student.read.append([])
            loader.record(student(images))
            told[-1].append((student.read[-1], loader.asked_rows.tolist()))
        loader.end_epoch()
    check_asked([told], N, None, 0.25)


def test_timms_loops_find_what_they_ask_for(root: Path) -> None:
    """As ``train.py`` does at the start of an epoch, and a loop that evaluates with the training loader."""
    inner = make(root)
    loader = wrap_loader(inner, schedule=SCHEDULE, mixing=None, seed=3)
    order = [which(images) for images, _ in loader]
    assert loader.dataset is inner.dataset
    assert not hasattr(loader.batch_sampler, "set_epoch")
    loader.sampler.set_epoch(7)
    assert not loader.mixup_enabled
    loader.mixup_enabled = False
    assert [which(images) for images, _ in loader] == order
    assert (len(loader), loader.steps(2), loader.total_steps(EPOCHS)) == (STEPS[0], STEPS[1], sum(STEPS))
    assert inner.loader.dataset is inner.dataset  # the prefetcher that was given still has its loader
    assert len(list(inner)) == len(inner)
    assert loader.tracker.count.sum() == 0


def test_erasing_and_augmentation_stay(root: Path) -> None:
    """At random, so only what they are made of is compared: zeros in each image, and the sample still told by its pixels."""
    options: dict[str, Any] = {"no_aug": False, "re_prob": 1.0, "color_jitter": None, "hflip": 0.5}
    loader = wrap_loader(make(root, **options), schedule=SCHEDULE, mixing=None)
    for images, _ in loader:
        assert (images == 0).flatten(1).any(1).all()
        assert loader.indices.tolist() == which(images)
        loader.record(torch.randn(BATCH, CLASSES))


@pytest.mark.parametrize("prefetcher", [True, False])
def test_samples_are_mixed(root: Path, prefetcher: bool) -> None:
    """uint8 with the prefetcher, floats without: what is drawn is the mixture of the two images."""
    loader = wrap_loader(make(root, prefetcher=prefetcher), schedule=SCHEDULE, seed=3)
    values = torch.linspace(0, 1, N)
    chosen = None
    for _ in range(2):
        for images, _ in loader:
            indices = loader.indices
            if chosen is not None:
                mixed = dict(
                    zip(chosen.tail.tolist(), zip(chosen.dropped, chosen.weights, strict=True), strict=True)
                )
                red = (images[:, 0].flatten(1).median(1).values.double() * STD[0] + MEAN[0]) * 255
                for index, shown in zip(indices.tolist(), red.tolist(), strict=True):
                    source, weight = mixed.get(index, (index, 1))
                    assert abs(weight * index + (1 - weight) * int(source) - shown) < 1.01
            loader.record(values=values[indices])
        chosen = chosen or loader.end_epoch()
        assert len(chosen.tail)


def test_it_is_pickled_and_copied(root: Path) -> None:
    loader = wrap_loader(make(root), schedule=SCHEDULE, mixing=None, seed=3)
    again = copy.deepcopy(loader)
    assert [which(images) for images, _ in again] == [which(images) for images, _ in loader]


# -- the prefetcher's copies on a device ----------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_device(root: Path, whole: tuple[Run, Any]) -> None:
    device = torch.device("cuda")
    inner = create_loader(
        create_dataset("", root=str(root)), (3, SIZE, SIZE), BATCH, is_training=True, no_aug=True, num_workers=0,
        mean=MEAN, std=STD, device=device, pin_memory=True,
    )  # fmt: skip
    loader = wrap_loader(inner, schedule=SCHEDULE, mixing=None, seed=3)
    drawn = []
    for _ in range(2):
        for images, _ in loader:
            assert images.is_cuda
            assert loader.indices.tolist() == which(images)
            drawn.append(which(images))
            loader.record(torch.randn(BATCH, CLASSES, device=device))
        loader.end_epoch()
    assert drawn[: STEPS[0]] == whole[0].drawn[: STEPS[0]]


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"use_multi_epochs_loader": True}, "use_multi_epochs_loader=True .*persistent_workers"),
        ({"collate_fn": FastCollateMixup(num_classes=CLASSES)}, "FastCollateMixup.*Leave out mixup"),
        ({"input_size_choices": [16, 32]}, "batch sampler of its own, ScheduledBatchSampler"),
    ],
)
@pytest.mark.parametrize("prefetcher", [True, False])
def test_loaders_that_are_refused(root: Path, options: Any, told: str, prefetcher: bool) -> None:
    loader = make(root, prefetcher=prefetcher, **options)
    with pytest.raises(TypeError, match=told):
        wrap_loader(loader, schedule=SCHEDULE)


def test_augmentation_splits_are_refused(root: Path) -> None:
    dataset = AugMixDataset(create_dataset("", root=str(root)), num_splits=2)
    loader = create_loader(
        dataset, SIZE, BATCH, is_training=True, auto_augment="augmix-m5-w4-d2", num_aug_splits=2, num_workers=0, device=CPU
    )  # fmt: skip
    with pytest.raises(TypeError, match="leave out num_aug_splits"):
        wrap_loader(loader, schedule=SCHEDULE)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("prefetcher", [True, False])
def test_mixup_in_the_loop_is_told(root: Path, mode: str, prefetcher: bool) -> None:
    loader = wrap_loader(make(root, prefetcher=prefetcher), schedule=SCHEDULE)
    mixup = Mixup(mode=mode, num_classes=CLASSES)
    batches = iter(loader)
    images, targets = next(batches)
    images, targets = mixup(images, targets)
    with pytest.raises(
        RuntimeError, match=r"the loop wrote to the images of the last batch.*timm.data.Mixup"
    ):
        next(batches)


def test_images_of_ones_own_are_no_mixup(root: Path) -> None:
    loader = wrap_loader(make(root), schedule=SCHEDULE)
    for images, _ in loader:
        images = images + torch.rand_like(images)
        images.mul_(2)
        loader.record(torch.randn(BATCH, CLASSES))
    with torch.inference_mode():
        assert len(list(loader)) == STEPS[0]


# -- without this module --------------------------------------------------------------------------


def test_the_plain_wrap_loader_is_right_or_refused(root: Path) -> None:
    plain = partial(kcd.wrap_loader, schedule=SCHEDULE, mixing=None, seed=3)
    with pytest.raises(TypeError, match="PrefetchLoader"):
        plain(make(root))
    behind = PrefetchLoader(plain(make(root).loader), device=CPU)

    def train() -> None:
        for _ in behind:
            behind.loader.record(torch.randn(BATCH, CLASSES))

    with pytest.raises(RuntimeError, match="1 batches were never recorded, and values belong to other"):
        train()
    run = Run(plain(make(root, prefetcher=False)))
    run.train()
    run.check()


# -- real processes -------------------------------------------------------------------------------


def train_rank(rank: int, world: int, folder: Path, root: Path) -> None:
    join_ranks(rank, world, folder)
    result: dict[str, Any] = {}
    try:
        wrap_loader(make(root, distributed=True, num_aug_repeats=3), schedule=SCHEDULE)
    except TypeError as error:
        result["repeats"] = str(error)

    def fresh() -> Any:
        return wrap_loader(make(root, distributed=True), schedule=SCHEDULE, mixing=None)

    def ranks_loader(loader: Any, state: Any = None) -> tuple[torch.nn.Module, Student, list[Any], list[Any]]:
        student = Student()
        model = torch.nn.parallel.DistributedDataParallel(student)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.02)
        if state is not None:
            student.load_state_dict(state["model"])
            loader.load_state_dict(state["loader"])
        drawn, saved = [], []
        while loader.epoch <= EPOCHS:
            for images, targets in loader:
                optimizer.zero_grad()
                logits = model(images)
                torch.nn.functional.cross_entropy(logits, targets).backward()
                optimizer.step()
                loader.record(logits)
                drawn.append(which(images))
                if state is None and (loader.epoch, loader.batches_done) == (2, 2):
                    saved.append(
                        copy.deepcopy({"model": student.state_dict(), "loader": loader.gather_state_dict()})
                    )
            result.setdefault("sets", []).append(loader.end_epoch().kept.tolist())
            student.read.append([])
        return model, student, drawn, saved

    loader = fresh()
    steps = [loader.steps(epoch) for epoch in range(1, EPOCHS + 1)]
    _, student, drawn, saved = ranks_loader(loader)
    result.update(
        read=student.read, drawn=drawn, steps=steps, value=loader.tracker.value.tolist(), count=loader.tracker.count.tolist()
    )  # fmt: skip
    other = fresh()
    _, twin, rest, _ = ranks_loader(other, saved[0])
    result["same"] = identical_state(twin.state_dict(), student.state_dict())
    result["rest"] = rest == drawn[steps[0] + 2 :]
    result["sets again"] = result["sets"][EPOCHS:]
    del result["sets"][EPOCHS:]
    leave_together(folder / f"rank{rank}.json", result, world)


def test_two_processes(root: Path, tmp_path: Path) -> None:
    ranks = run_ranks(train_rank, 2, tmp_path, root)
    first, second = ranks
    assert first["sets"] == second["sets"]
    assert first["sets again"] == first["sets"][1:]
    read = [a + b for a, b in zip(first["read"], second["read"], strict=True)]
    expected = expected_sets(read[:-1], N, SCHEDULE)
    assert [sorted(one) for one in first["sets"]] == [one.tolist() for one in expected]
    for rank in ranks:
        assert "num_aug_repeats" in rank["repeats"]
        assert rank["same"]
        assert rank["rest"]
        assert len(rank["drawn"]) == sum(rank["steps"])
    one, other = ({i for batch in rank["drawn"][: rank["steps"][0]] for i in batch} for rank in ranks)
    assert not one & other


# -- timm's distillation task ---------------------------------------------------------------------


def test_with_timms_distillation_task(root: Path) -> None:
    loader = wrap_loader(make(root), schedule=SCHEDULE, mixing=None)
    student, teacher = Student(), create_model("test_resnet", num_classes=CLASSES)
    task = LogitDistillationTask(
        student, teacher, torch.nn.CrossEntropyLoss(), temperature=4.0, verbose=False
    )
    task.train()
    for images, targets in loader:
        result = task(images, targets)
        result["loss"].backward()
        loader.record(result["output"])
    value, count = summed(student.read[0], N)
    np.testing.assert_array_equal(loader.tracker.count, count)
    np.testing.assert_allclose(loader.tracker.value[count > 0], value[count > 0], atol=3e-7)
