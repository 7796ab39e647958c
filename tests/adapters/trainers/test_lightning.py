"""KCDCallback in Lightning's Trainer: what is recorded, drawn, counted, saved and refused, in both of Lightning's packages."""

from __future__ import annotations

import pickle
import warnings
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

pytest.importorskip("lightning.pytorch", reason="run make test-trainers")

import lightning.pytorch as pl
from common import WIDTH, Samples, Student, check_asked, expected_sets, on_ranks, summed, which
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities import CombinedLoader
from reference import entropy

import kcd_core as kcd
from kcd_adapters.trainers.lightning import KCDCallback
from kcd_adapters.trainers.lightning_loader import check_resumable

N, BATCH, EPOCHS = 203, 16, 5
SCHEDULE = kcd.CondensationSchedule(ratio=0.4, stages=3, period=1)
SIZES = [203, 163, 123, 83, 81]
STEPS = [13, 11, 8, 6, 6]

pytestmark = pytest.mark.filterwarnings("ignore")


class Data(pl.LightningDataModule):  # type: ignore[misc]
    """An ordinary DataModule, whose data is there once setup() was called."""

    def setup(self, stage: str) -> None:
        self.train = Samples(N)

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, batch_size=BATCH, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(Samples(20), batch_size=10)


class Lit(pl.LightningModule):  # type: ignore[misc]
    """An ordinary LightningModule, and what it saw."""

    def __init__(self, *, linear: bool = True, out: bool = False) -> None:
        super().__init__()
        self.student, self.linear, self.out = Student(), linear, out
        self.drawn: list[list[int]] = []
        self.validated: list[tuple[int, int]] = []
        self.lengths: list[int] = []
        self.estimated: Any = None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, labels = batch
        self.drawn.append(which(x))
        logits = self.student(x)
        loss = cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits} if self.out else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        with torch.enable_grad():  # as careless a validation as there is
            self.student(batch[0])
        if batch_idx == 0 and not self.trainer.sanity_checking:
            self.validated.append((self.trainer.current_epoch, self.trainer.fit_loop.batch_idx))
        self.log("val", float(self.global_step))

    def on_train_epoch_start(self) -> None:
        self.lengths.append(self.trainer.num_training_batches)

    def on_train_epoch_end(self) -> None:
        self.student.new_epoch()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.student.parameters(), lr=0.1, momentum=0.9)
        if not self.linear:
            return optimizer
        self.estimated = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=self.estimated)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def trainer_of(folder: Path, *callbacks: Any, package: Any = pl, **settings: Any) -> Any:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    saves = any(isinstance(each, ModelCheckpoint) for each in callbacks)
    settings = {"max_epochs": EPOCHS, "accelerator": "cpu", "devices": 1, **quiet, **settings}
    return package.Trainer(
        default_root_dir=folder, callbacks=list(callbacks), enable_checkpointing=saves, **settings
    )


def callback(**settings: Any) -> KCDCallback:
    where = {} if "outputs" in settings else {"student": "student"}
    return KCDCallback(**{"schedule": SCHEDULE, "mixing": None, **where, **settings})


def fit(
    folder: Path, *more: Any, resume: Any = None, lit: Any = None, kcd_callback: Any = None, **settings: Any
) -> Any:
    pl.seed_everything(5)
    lit = lit or Lit()
    lit.kcd = kcd_callback or callback()
    trainer = trainer_of(folder, lit.kcd, *more, **settings)
    lit.metrics = []
    trainer.fit(lit, Data(), ckpt_path=resume, weights_only=True if resume else None)
    return lit


def check_recorded(lit: Any, epochs: int = EPOCHS) -> None:
    """V, F and every stage's set are those of the independent reading."""
    read = [one for one in lit.student.read if one]
    loader = lit.kcd.loader
    value, count = summed([pair for epoch in read for pair in epoch], N)
    assert np.array_equal(np.asarray(loader.tracker.count), count)
    np.testing.assert_allclose(np.asarray(loader.tracker.value)[count > 0], value[count > 0], atol=3e-7)
    sets = expected_sets(read, N, SCHEDULE)
    assert np.array_equal(np.sort(np.asarray(loader.sampler.kept)), sets[-1])
    assert [stage["kept"] for stage in loader.history] == [len(one) for one in sets]


def state_of(lit: Any) -> dict[str, Any]:
    loader = lit.kcd.loader
    count = np.asarray(loader.tracker.count)
    return {
        "weights": torch.cat([value.flatten() for value in lit.state_dict().values()]).numpy(),
        "sums": (np.nan_to_num(np.asarray(loader.tracker.value)) * count, count),
        "kept": np.asarray(loader.sampler.kept),
        "history": str(list(loader.history)),
    }


def same(one: Any, other: Any) -> bool:
    """Whether weights, recordings, sets and history of two runs are equal, to the bit."""
    mine, theirs = state_of(one), state_of(other)
    return all(np.array_equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture(scope="module")
def twin(tmp_path_factory: Any) -> Any:
    """The uninterrupted run."""
    return fit(tmp_path_factory.mktemp("twin"))


def test_whole_run(twin: Any) -> None:
    assert twin.lengths == STEPS
    assert len(twin.drawn) == twin.estimated == sum(STEPS)
    check_recorded(twin)
    assert twin.validated == [(epoch, steps - 1) for epoch, steps in enumerate(STEPS)]
    (group,) = twin.optimizers().param_groups
    assert group["lr"] == pytest.approx(0.0, abs=1e-12)
    metrics = twin.trainer.callback_metrics
    assert float(metrics["kcd/kept"]) == 81
    assert float(metrics["kcd/saved"]) == pytest.approx(1 - sum(STEPS) / (13 * EPOCHS))
    assert float(metrics["kcd/cut"]) == pytest.approx(twin.kcd.loader.history[-1]["cut"])
    assert type(twin.trainer) is pl.Trainer
    assert "dataloader" not in vars(twin.trainer.fit_loop._data_source)
    assert not twin.student._forward_hooks


EVERY: dict[str, Any] = {"every_n_train_steps": 1, "save_top_k": -1}
MONITOR: dict[str, Any] = {"monitor": "val", "mode": "max", "save_top_k": -1}
AT_END: dict[str, Any] = {"save_on_train_epoch_end": True, "save_top_k": -1}
BY_STEPS = {"max_steps": sum(STEPS)}
KINDS: dict[
    str, tuple[Any, Any, list[int]]
] = {  # how it is saved, how it is run, after which steps it goes on
    "steps": (EVERY, {}, [5, 13, 24, 40]),
    "steps, max_steps": (EVERY, BY_STEPS, [13, 40]),
    "last": ({"save_last": True, "save_top_k": -1}, {}, [13]),
    "last, max_steps": ({"save_last": True, "save_top_k": -1}, BY_STEPS, [13, 32]),
    "monitor": (MONITOR, {}, [13, 24]),
    "monitor, max_steps": (MONITOR, BY_STEPS, [24]),
    "train epoch end": (AT_END, {"val_check_interval": 0.4}, [13, 24]),
    "no validation": (EVERY, {"limit_val_batches": 0}, [13, 30]),
    "no validation, max_steps": (AT_END, {"limit_val_batches": 0, **BY_STEPS}, [13, 32]),
    "within the epoch": (MONITOR, {"val_check_interval": 5}, [10, 18]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_resumed(twin: Any, tmp_path: Path, kind: str) -> None:
    saving, settings, at = KINDS[kind]

    def saver(folder: str) -> Any:
        return ModelCheckpoint(dirpath=tmp_path / folder, filename="{step}", **saving)

    whole = fit(tmp_path, saver("whole"), **settings)
    assert whole.drawn == twin.drawn
    assert same(whole, twin)
    path = tmp_path / "whole" / f"step={at[0]}.ckpt"
    for step, after in zip(
        at, [*at[1:], None], strict=True
    ):  # each goes on from what the one before has saved
        resumed = fit(tmp_path / "again", saver(f"{step}"), resume=path, **settings)
        assert resumed.drawn == twin.drawn[step:], step
        assert same(resumed, twin), step
        assert resumed.trainer.current_epoch == whole.trainer.current_epoch
        path = tmp_path / f"{step}" / f"step={after}.ckpt"


def test_max_steps_cut_an_epoch_off(tmp_path: Path) -> None:
    saving: dict[str, Any] = {"dirpath": tmp_path, "save_last": True, "save_on_train_epoch_end": True}
    whole = fit(tmp_path, lit=Lit(linear=False), max_epochs=-1, max_steps=44)
    cut = fit(tmp_path, ModelCheckpoint(**saving), lit=Lit(linear=False), max_epochs=-1, max_steps=20)
    assert (cut.kcd.loader.epoch, cut.kcd.loader.batches_done) == (2, 7)
    resumed = fit(
        tmp_path,
        ModelCheckpoint(**saving),
        resume="last",
        lit=Lit(linear=False),
        max_epochs=-1,
        max_steps=44,
    )
    assert resumed.drawn == whole.drawn[20:]
    assert same(resumed, whole)


# -- what goes wrong in a step -----------------------------------------------------------------------------


class Fails(Lit):
    """Fails once: after the student was called, or before it, as the batch of an optimizer step."""

    at = after = -1

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_step == self.at:
            self.at = -1
            raise ValueError("before the student")
        return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.global_step == self.after:
            self.after = -1
            raise ValueError("after the student")


class First(pl.Callback):  # type: ignore[misc]
    """A callback before KCDCallback, which saves or fails at a batch's end."""

    def __init__(self, path: Any = None) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 17 and self.path is None:
            raise ValueError("in a callback")
        if trainer.global_step == 17:
            trainer.save_checkpoint(self.path)


def failing(folder: Path, *before: Any, **fails: int) -> Any:
    """A run that fails in a step, saved as it does."""
    pl.seed_everything(5)
    lit: Any = Fails()
    lit.kcd, lit.at, lit.after = callback(), fails.get("at", -1), fails.get("after", -1)
    saver = ModelCheckpoint(dirpath=folder, filename="failed", save_on_exception=True, every_n_epochs=100)
    trainer = trainer_of(folder, *before, lit.kcd, saver)
    with pytest.raises(ValueError, match=r"the student|in a callback"):
        trainer.fit(lit, Data())
    return lit


@pytest.mark.parametrize(
    ("before", "fails", "done"),
    [([], {"at": 17}, 17), ([], {"after": 17}, 17), ([], {"after": 23}, 23), ([First()], {}, 17)],
)
def test_saved_on_an_exception(twin: Any, tmp_path: Path, before: Any, fails: Any, done: int) -> None:
    failing(tmp_path, *before, **fails)
    resumed = fit(tmp_path, resume=tmp_path / "failed.ckpt")
    assert resumed.drawn == twin.drawn[done:]
    assert same(resumed, twin)
    assert resumed.validated == twin.validated[1:]


def test_fit_again_after_an_exception(twin: Any, tmp_path: Path) -> None:
    """Lightning begins the epoch anew, without a checkpoint, and so does the loader."""
    lit = failing(tmp_path, after=17)
    with pytest.warns(UserWarning, match="epoch 2 is recorded again from its start"):
        lit.trainer.fit(lit, Data())
    assert lit.lengths == STEPS[:2] + STEPS[1:]
    assert lit.drawn[18:29] == twin.drawn[13:24]
    assert len(lit.drawn) == 18 + sum(STEPS[1:])
    assert lit.validated == twin.validated
    lit = failing(tmp_path, after=7)  # in the first epoch, nothing is there to go on with
    lit.trainer.fit(lit, Data())
    assert lit.lengths == STEPS[:1] + STEPS
    assert np.asarray(lit.kcd.loader.tracker.count).sum() == sum(SIZES)


def test_saved_before_the_callback(twin: Any, tmp_path: Path) -> None:
    lit: Any = Lit()
    lit.kcd, path = callback(), tmp_path / "first.ckpt"
    pl.seed_everything(5)
    trainer_of(tmp_path, First(path), lit.kcd).fit(lit, Data())
    assert same(lit, twin)
    resumed = fit(tmp_path, resume=path)
    assert resumed.drawn == twin.drawn[17:]
    assert same(resumed, twin)
    with pytest.raises(RuntimeError, match=r"by a callback before KCDCallback, .* put KCDCallback before it"):
        trainer_of(tmp_path, First(path), callback(outputs="logits")).fit(Lit(out=True), Data())


def test_steps_that_record_nothing(tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", **EVERY)
    whole = fit(tmp_path, saver, lit=Skipping())
    for step, drawn in ((2, 1), (15, 10), (24, 16)):  # each after a batch that was skipped
        resumed = fit(tmp_path, resume=tmp_path / f"step={step}.ckpt", lit=Skipping())
        assert resumed.drawn == whole.drawn[drawn:], step
        assert same(resumed, whole), step


def test_counts_that_differ(tmp_path: Path) -> None:
    class Early(Lit):
        def on_train_epoch_start(self) -> None:
            if self.global_step == 13:  # where Lightning saves counts of which it makes nothing right
                self.trainer.save_checkpoint(tmp_path / "start.ckpt")

    fit(tmp_path, lit=Early())
    with pytest.raises(RuntimeError, match=r"Lightning ends epoch 2 after 14 batches, and 1 of its 11 were"):
        fit(tmp_path, resume=tmp_path / "start.ckpt")


def on_two_ranks(folder: Path) -> Any:
    """On one of two ranks: the whole run, and what goes on from it at several places."""
    warnings.simplefilter("ignore")
    ddp: dict[str, Any] = {"strategy": "ddp", "devices": 2}
    saver = ModelCheckpoint(dirpath=folder, filename="{step}", **EVERY)
    whole = fit(folder, saver, **ddp)
    states = [state_of(whole)]
    for step in (3, 7, 13):  # of 7, 6, 4, 3, 3
        resumed = fit(folder, resume=folder / f"step={step}.ckpt", **ddp)
        assert resumed.drawn == whole.drawn[step:], step
        states.append(state_of(resumed))
    with pytest.raises(RuntimeError, match="each of them would draw all samples in the same order"):
        fit_plain(folder, PlainData(), **ddp)
    fabric = Fabric(accelerator="cpu", **ddp)
    fabric.launch()
    student = Student()
    trained = fabric.setup(student, torch.optim.SGD(student.parameters(), lr=0.1))
    share = {"num_replicas": fabric.world_size, "rank": fabric.global_rank}
    loader = kcd.wrap_loader(
        DataLoader(Samples(N), batch_size=BATCH), schedule=SCHEDULE, mixing=None, **share
    )
    for x, labels in map(fabric.to_device, loader):
        logits = trained[0](x)
        fabric.backward(cross_entropy(logits, labels))
        trained[1].step()
        loader.record(logits)
    loader.end_epoch()
    by_fabric = student.read[0], np.asarray(loader.sampler.kept), len(loader.gather_state_dict())
    asks = callback(schedule=None, ask=0.25)
    asked = fit(folder, lit=Asks(), kcd_callback=asks, max_epochs=3, **ddp).asked
    said = whole.drawn, whole.student.read, whole.lengths, whole.estimated, whole.validated
    return *said, states, by_fabric, asked


class Asks(Lit):
    """Its teacher is asked for some rows."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[Any]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 0 or not self.asked:
            self.asked.append([])
        before = len(self.student.read[-1])
        loss = super().training_step(batch, batch_idx)
        loader = self.trainer.train_dataloader
        values = [value for _, value in self.student.read[-1][before:]]
        pairs = list(zip(loader.indices.tolist(), values, strict=True))
        assert all(i in (-1, j) for i, j in zip(loader.indices.tolist(), which(batch[0]), strict=True))
        self.asked[-1].append((pairs, loader.asked_rows.tolist()))
        return loss


class PlainData(Data):
    """A DataModule that wraps its loader itself."""

    def __init__(self, **share: Any) -> None:
        super().__init__()
        self.share, self.wrapped = share, None

    def train_dataloader(self) -> Any:
        if self.wrapped is None:
            loader = super().train_dataloader()
            self.wrapped = kcd.wrap_loader(loader, schedule=SCHEDULE, mixing=None, **self.share)
        return self.wrapped


class PlainLit(Lit):
    """A LightningModule that records, and ends epochs, itself."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.drawn.append(which(batch[0]))
        logits = self.student(batch[0])
        self.trainer.train_dataloader.record(logits)
        return cross_entropy(logits, batch[1])

    def on_train_epoch_end(self) -> None:
        self.trainer.train_dataloader.end_epoch()
        super().on_train_epoch_end()


def fit_plain(folder: Path, data: PlainData, *callbacks: Any, resume: Any = None, **settings: Any) -> Any:
    pl.seed_everything(5)
    lit: Any = PlainLit(linear=False)
    trainer_of(folder, *callbacks, **settings).fit(lit, data, ckpt_path=resume)
    lit.kcd = SimpleNamespace(loader=data.wrapped)
    return lit


def test_without_the_callback(tmp_path: Path) -> None:
    """What docs/trainers.md says of it: right, but for the epoch's length, and for states at an epoch's end."""
    lit = fit_plain(tmp_path, PlainData(), ModelCheckpoint(dirpath=tmp_path, filename="{step}", **EVERY))
    check_recorded(lit)
    assert lit.validated == [(0, STEPS[0] - 1)]  # as docs/trainers.md warns
    resumed = fit_plain(tmp_path, PlainData(), resume=tmp_path / "step=15.ckpt")
    assert resumed.drawn == lit.drawn[15:]
    assert same(resumed, lit)
    lit = fit_plain(tmp_path, PlainData(), reload_dataloaders_every_n_epochs=1)
    check_recorded(lit)
    assert lit.validated == [(epoch, steps - 1) for epoch, steps in enumerate(STEPS)]


def test_two_ranks(tmp_path: Path) -> None:
    ranks = on_ranks(on_two_ranks, tmp_path)
    one, other = ranks
    steps = [7, 6, 4, 3, 3]
    for drawn, _, lengths, estimated, validated, *_ in (one, other):
        assert lengths == steps
        assert len(drawn) == estimated == sum(steps)
        assert validated == [(epoch, each - 1) for epoch, each in enumerate(steps)]
    # What only pads the ranks to equal lengths is drawn, and not recorded: of an odd set, the last sample of rank 1.
    read = []
    for first, second, size in zip(one[1], other[1], SIZES, strict=False):
        pairs = sorted([*first, *second])
        distinct = {index for index, _ in pairs}
        assert len(distinct) == size
        assert len(pairs) == size + size % 2
        read.append(first + (second[:-1] if size % 2 else second))
    value, count = summed([pair for epoch in read for pair in epoch], N)
    kept = expected_sets(read, N, SCHEDULE)[-1]
    for mine, theirs in zip(one[5], other[5], strict=True):  # the whole run, and what went on from it
        sums, counts = (a + b for a, b in zip(mine["sums"], theirs["sums"], strict=True))
        assert np.array_equal(counts, count)
        np.testing.assert_allclose(sums / np.maximum(counts, 1), np.nan_to_num(value), atol=3e-7)
        for state in (mine, theirs):
            assert np.array_equal(np.sort(state["kept"]), kept)
            assert state["history"] == one[5][0]["history"]
            assert np.array_equal(state["weights"], one[5][0]["weights"])
    read = [one[6][0] + other[6][0][:-1]]
    assert np.array_equal(np.sort(one[6][1]), expected_sets(read, N, SCHEDULE)[0])
    assert np.array_equal(one[6][1], other[6][1])
    assert one[6][2] == other[6][2] == 2
    check_asked([one[7], other[7]], N, None, 0.25)
    with pytest.raises(ValueError, match="on 2 ranks has saved this within an epoch, and here is 1"):
        fit(tmp_path, resume=tmp_path / "step=3.ckpt")


# -- a teacher that is asked for some rows --------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [None, SCHEDULE], ids=["alone", "condensed"])
def test_asked_rows(tmp_path: Path, schedule: Any) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", **EVERY)
    asks = {"schedule": schedule, "ask": 0.25}
    lit = fit(
        tmp_path, saver, lit=Asks(), kcd_callback=callback(**asks), accumulate_grad_batches=2, max_epochs=4
    )
    check_asked([lit.asked], N, schedule, 0.25)
    resumed = fit(
        tmp_path,
        resume=tmp_path / "step=9.ckpt",
        lit=Asks(),
        kcd_callback=callback(**asks),
        accumulate_grad_batches=2,
        max_epochs=4,
    )
    assert resumed.asked[-1] == lit.asked[-1]


# -- lengths that nobody knows ahead, and weights ---------------------------------------------------------------


class Weighs(Lit):
    """Multiplies its losses by the sets' weights."""

    def __init__(self) -> None:
        super().__init__(linear=False)
        self.weights: list[list[tuple[int, float]]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 0:
            self.weights.append([])
        x, labels = batch
        logits = self.student(x)
        losses, weights = (
            cross_entropy(logits, labels, reduction="none"),
            self.trainer.train_dataloader.sample_weights,
        )
        weights = torch.ones(len(x)) if weights is None else weights
        self.weights[-1] += zip(which(x), weights.tolist(), strict=True)
        return (losses * weights).mean()


@pytest.mark.filterwarnings("error:the set has sample weights")
def test_a_rule_that_weighs(tmp_path: Path) -> None:
    lit = fit(tmp_path, lit=Weighs(), kcd_callback=callback(schedule=None, select=kcd.InfoBatch(EPOCHS)))
    sizes = [len(epoch) for epoch in lit.weights]
    assert sizes == [N, *(stage["kept"] for stage in lit.kcd.loader.history)]
    assert sizes[0] == sizes[-1] == N > max(sizes[1:-1])
    for epoch, drawn in enumerate(lit.weights, 1):
        assert {weight for _, weight in drawn} == ({1.0, 2.0} if 1 < epoch < EPOCHS else {1.0})


def test_steps_that_nobody_knows_are_an_error_where_they_are_asked_for(tmp_path: Path) -> None:
    free = callback(schedule=None, select=kcd.InfoBatch(EPOCHS))
    with pytest.raises(ValueError, match="nobody knows yet how many samples epoch 2 has"):
        fit(tmp_path, lit=Lit(linear=True), kcd_callback=free)


# -- settings of the trainer -------------------------------------------------------------------------------


def test_accumulation(tmp_path: Path) -> None:
    lit = fit(tmp_path, accumulate_grad_batches=4)
    assert lit.estimated == lit.global_step == sum(-(-steps // 4) for steps in STEPS)
    assert lit.optimizers().param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)
    check_recorded(lit)
    lit = fit(tmp_path, GradientAccumulationScheduler({0: 1, 2: 3}))
    assert lit.estimated == lit.global_step == 13 + 11 + 3 + 2 + 2


@pytest.mark.parametrize(
    ("settings", "lengths"),
    [
        ({"limit_train_batches": 10}, [10, 10, 8, 6, 6]),
        ({"limit_train_batches": 0.5}, [6, 5, 4, 3, 3]),
        ({"fast_dev_run": 3}, [3]),
        ({"fast_dev_run": True}, [1]),
    ],
)
def test_limits(tmp_path: Path, settings: Any, lengths: list[int]) -> None:
    lit = fit(tmp_path, **settings)
    assert lit.lengths == lengths
    assert lit.estimated == lit.global_step == len(lit.drawn) == sum(lengths)
    assert lit.validated == [(epoch, length - 1) for epoch, length in enumerate(lengths)]
    saved = 1 - sum(lengths) / (lengths[0] * len(lengths))
    assert float(lit.trainer.callback_metrics["kcd/saved"]) == pytest.approx(saved)
    check_recorded(lit)


def test_limits_that_a_later_epoch_breaks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"limit_train_batches=0\.1 leaves no batch of epoch 3, which has 8"):
        fit(tmp_path, limit_train_batches=0.1)
    with pytest.raises(ValueError, match="val_check_interval=7 is more than the 6 batches that epoch 4 has"):
        fit(tmp_path, val_check_interval=7)
    with pytest.raises(ValueError, match="condenses one data set, and reload_dataloaders_every_n_epochs=1"):
        fit(tmp_path, reload_dataloaders_every_n_epochs=1)
    lit = fit(tmp_path, val_check_interval=6)
    assert lit.validated == [(0, 5), (0, 11), (1, 5), (2, 5), (3, 5), (4, 5)]
    lit = fit(tmp_path, val_check_interval=14, check_val_every_n_epoch=None)
    assert lit.validated == [(1, 0), (2, 3), (4, 3)]


def test_validation_by_time_keeps_its_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    class Clock(pl.Callback):  # type: ignore[misc]
        def on_train_batch_start(self, *args: Any) -> None:
            now[0] += 1

    lit = fit(tmp_path, Clock(), val_check_interval=timedelta(seconds=20))  # longer than any epoch
    assert len(lit.validated) == sum(STEPS) // 20


def test_overfit_batches_is_left_alone(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="overfit_batches trains on the same batches .* stands aside"):
        lit = fit(tmp_path, ModelCheckpoint(dirpath=tmp_path, save_last=True), overfit_batches=2)
    assert lit.kcd.loader is None
    assert lit.lengths == [2] * EPOCHS
    assert lit.drawn[:2] == lit.drawn[-2:]
    with pytest.raises(RuntimeError, match="saved without a KCDCallback"):
        fit(tmp_path, resume=tmp_path / "last.ckpt")


def test_fit_again(tmp_path: Path) -> None:
    lit = fit(tmp_path, max_epochs=2)
    lit.trainer.fit_loop.max_epochs = EPOCHS
    lit.trainer.fit(lit, Data())
    assert lit.lengths == STEPS
    check_recorded(lit)
    again = fit(tmp_path, kcd_callback=lit.kcd)  # with a trainer of its own
    assert again.lengths == STEPS
    check_recorded(again)
    other = trainer_of(tmp_path, max_epochs=2)  # which has trained without it
    other.fit(Lit(linear=False), Data())
    other.callbacks.append(lit.kcd)
    other.fit_loop.max_epochs = EPOCHS
    with pytest.raises(RuntimeError, match="epochs were trained without this KCDCallback"):
        other.fit(Lit(linear=False), Data())
    assert pickle.loads(pickle.dumps(lit.kcd)).loader.epoch == lit.kcd.loader.epoch


def test_tests_of_a_checkpoint_change_nothing(tmp_path: Path) -> None:
    lit = fit(tmp_path, ModelCheckpoint(dirpath=tmp_path, filename="{step}", **EVERY))
    lit.trainer.validate(lit, Data(), ckpt_path=tmp_path / "step=5.ckpt", verbose=False)
    check_recorded(lit)


def test_an_epoch_that_is_stopped(tmp_path: Path) -> None:
    class Skips(Lit):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
            return -1 if batch_idx == 4 else None

    lit = fit(tmp_path, lit=Skips())
    assert len(lit.drawn) == 4 * EPOCHS
    check_recorded(lit)

    class Stops(Lit):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.trainer.should_stop = self.global_step == 16
            return super().training_step(batch, batch_idx)

    lit = fit(tmp_path, ModelCheckpoint(dirpath=tmp_path, **AT_END, filename="{step}"), lit=Stops())
    assert (lit.kcd.loader.epoch, lit.kcd.loader.batches_done) == (2, 4)
    lit = fit(tmp_path, resume=tmp_path / "step=17.ckpt")
    assert lit.lengths == STEPS[2:]  # Lightning goes on with the next epoch


def test_tuners(tmp_path: Path) -> None:
    class Tuned(Data):
        batch_size = 4

        def train_dataloader(self) -> Any:
            return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    lit: Any = Lit(linear=False)
    lit.kcd, lit.lr, data = callback(), 0.1, Tuned()
    trainer = trainer_of(tmp_path, lit.kcd)
    Tuner(trainer).scale_batch_size(lit, datamodule=data, init_val=8, max_trials=2, steps_per_trial=2)
    Tuner(trainer).lr_find(lit, datamodule=data, num_training=30)
    assert data.batch_size == 16
    lit.student.read, lit.lengths = [[]], []
    trainer.fit(lit, data)
    assert lit.lengths == STEPS
    check_recorded(lit)


# -- what is recorded --------------------------------------------------------------------------------------


def test_what_training_step_returns(tmp_path: Path) -> None:
    lit = fit(tmp_path, lit=Lit(out=True), kcd_callback=callback(outputs="logits"))
    check_recorded(lit)
    with pytest.raises(RuntimeError, match=r"dict with \['soft'\], .* got \['logits', 'loss'\]"):
        fit(tmp_path, lit=Lit(out=True), kcd_callback=callback(outputs="soft"))


def test_manual_optimization(tmp_path: Path) -> None:
    class Manual(Lit):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization, self.other = False, torch.nn.Linear(WIDTH - 1, 3)

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.student, self.other)]

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer, loss in zip(
                self.optimizers(),
                (super().training_step(batch, batch_idx), self.other(batch[0][:, 1:]).square().sum()),
                strict=True,
            ):
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()

    lit = fit(tmp_path, lit=Manual())
    assert lit.lengths == STEPS
    check_recorded(lit)
    late = kcd.CondensationSchedule(ratio=0.4, stages=2, period=2)
    with pytest.warns(UserWarning, match="nothing was recorded in epoch 1"):
        fit(tmp_path, lit=Manual(), kcd_callback=callback(outputs="logits", schedule=late), max_epochs=1)


class TwoViews(Lit):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.student(batch[0])
        return super().training_step(batch, batch_idx)


class InPlace(Lit):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return cross_entropy(self.student(batch[0]).div_(2), batch[1])


class Teaches(Lit):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        with torch.no_grad():
            self.student(batch[0].flip(0))
        return super().training_step(batch, batch_idx)


class Part(Lit):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return cross_entropy(self.student.layer(batch[0][:, 1:]), batch[1])


class Pairs(Lit):
    def __init__(self) -> None:
        super().__init__()
        self.student.register_forward_hook(lambda module, args, output: (output, output))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return cross_entropy(self.student(batch[0])[0], batch[1])


class Skipping(Lit):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx % 3 == 1 else super().training_step(batch, batch_idx)


def test_calls_of_the_student(tmp_path: Path) -> None:
    check_recorded(fit(tmp_path, lit=Teaches()))
    check_recorded(fit(tmp_path, lit=InPlace()))
    lit = fit(tmp_path, lit=Skipping())
    assert lit.lengths == STEPS
    check_recorded(lit)
    for module, told in (
        (TwoViews(), "'student' was called twice in one training step"),
        (Part(), "'student' was not called in training_step"),
        (Pairs(), "'student' returns a tuple, and not its logits"),
    ):
        with pytest.raises((RuntimeError, TypeError), match=told):
            fit(tmp_path, lit=module)
    assert type(module.trainer) is pl.Trainer
    assert "dataloader" not in vars(module.trainer.fit_loop._data_source)


def test_a_compiled_student(tmp_path: Path) -> None:
    class Compiled(Lit):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.compile(self.student.layer, backend="eager")

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            logits = self.net(batch[0][:, 1:])
            self.student.read[-1] += zip(
                which(batch[0]), map(entropy, logits.detach().double().tolist()), strict=True
            )
            return cross_entropy(logits, batch[1])

    lit = fit(tmp_path, lit=Compiled(), kcd_callback=KCDCallback(SCHEDULE, student="net", mixing=None))
    check_recorded(lit)


# -- refusals and packages ---------------------------------------------------------------------------------


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"either student=.* or outputs="):
        KCDCallback(SCHEDULE)
    with pytest.raises(TypeError, match="schedule must be a CondensationSchedule, got NoneType"):
        callback(schedule=None)
    with pytest.raises(TypeError, match=r"takes no \['rank'\]"):
        callback(rank=0)
    with pytest.raises(
        ValueError, match=r"alpha=0\.1 would not be used: with select=random nothing is ranked"
    ):
        callback(alpha=0.1, select="random")
    with pytest.raises(ValueError, match=r"outputs names arguments of record.*got \['logits'\]"):
        callback(outputs={"logits": "student_logits"})
    with pytest.raises(ValueError, match=r"student='net' is no submodule of Lit, which has \['student'\]"):
        fit(tmp_path, kcd_callback=KCDCallback(SCHEDULE, student="net"))
    plain = DataLoader(Samples(N), batch_size=BATCH)
    for loaders in (
        [plain, plain],
        {"one": plain},
        CombinedLoader([plain]),
        kcd.wrap_loader(plain, schedule=SCHEDULE),
    ):
        with pytest.raises(TypeError, match="condenses one train DataLoader, got a "):
            trainer_of(tmp_path, callback()).fit(Lit(), loaders)


def test_a_checkpoint_without_a_state(tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", **EVERY)
    trainer_of(tmp_path, saver, max_epochs=2).fit(Lit(linear=False), Data())
    for step in (5, 13):
        with pytest.raises(RuntimeError, match=r"saved without a KCDCallback, .* load its weights alone"):
            fit(tmp_path, resume=tmp_path / f"step={step}.ckpt", lit=Lit(linear=False))


def test_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("lightning.pytorch.loops.fit_loop._process_dataloader")
    with pytest.raises(RuntimeError, match=r"does not know how Lightning 2\.\d"):
        fit(tmp_path)


def test_a_version_that_loses_count(twin: Any) -> None:
    """Before 2.5, nothing takes back where Lightning would go on within an epoch."""
    loop: Any = type("Loop", (), {"__module__": "lightning.pytorch.loops.fit_loop"})()
    within = SimpleNamespace(sampler=SimpleNamespace(num_replicas=1), batches_done=3)
    for loader, max_steps in ((within, -1), (twin.kcd.loader, 44)):
        with pytest.raises(RuntimeError, match="loses count of a run that is resumed within an epoch"):
            check_resumable(SimpleNamespace(fit_loop=loop, max_steps=max_steps), loader, 1)
    check_resumable(SimpleNamespace(fit_loop=loop, max_steps=-1), twin.kcd.loader, 1)


def test_pytorch_lightning(tmp_path: Path) -> None:
    package = pytest.importorskip("pytorch_lightning")

    class Old(package.LightningModule):  # type: ignore[misc, name-defined]
        for name in ("training_step", "validation_step", "configure_optimizers"):
            locals()[name] = getattr(Lit, name)
        on_train_epoch_start, on_train_epoch_end = Lit.on_train_epoch_start, Lit.on_train_epoch_end

        def __init__(self) -> None:
            super().__init__()
            self.student, self.linear, self.out, self.kcd = Student(), True, False, callback()
            self.drawn, self.validated, self.lengths = [], [], []

    lit = Old()
    loaders = (DataLoader(Samples(N), batch_size=BATCH, shuffle=True), DataLoader(Samples(20), batch_size=10))
    trainer_of(tmp_path, lit.kcd, package=package).fit(lit, *loaders)
    assert lit.lengths == STEPS
    assert lit.estimated == sum(STEPS)
    assert lit.validated == [(epoch, steps - 1) for epoch, steps in enumerate(STEPS)]
    check_recorded(lit)
