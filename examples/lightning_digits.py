"""Distils a linear teacher's knowledge of the digits with Lightning's Trainer, is interrupted and goes on, and prints what was drawn."""

import tempfile

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import kcd_core as kcd
from kcd_adapters.trainers.lightning import KCDCallback

EPOCHS = 12

pl.seed_everything(0)
images, labels = load_digits(return_X_y=True)
images, labels = torch.from_numpy(images).float() / 16, torch.from_numpy(labels)
teacher = torch.nn.Linear(64, 10)
optimizer = torch.optim.Adam(teacher.parameters(), lr=0.05)
for _ in range(100):
    optimizer.zero_grad()
    cross_entropy(teacher(images), labels).backward()
    optimizer.step()


class Digits(pl.LightningDataModule):
    """As without condensation."""

    def train_dataloader(self):
        return DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True)


class Distillation(pl.LightningModule):
    """As without condensation."""

    def __init__(self):
        super().__init__()
        self.student = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))

    def training_step(self, batch, batch_idx):
        x, targets = batch
        with torch.no_grad():
            softened = teacher(x).softmax(-1)
        logits = self.student(x)
        return cross_entropy(logits, targets) + cross_entropy(logits, softened)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.student.parameters(), lr=0.02)
        steps = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class StopWithin(pl.Callback):
    """An interruption in the middle of epoch 6."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (5, 10):
            raise RuntimeError("interrupted")


def train(folder, *more, resume=None):
    """A run that saves every step."""
    condense = KCDCallback(
        schedule=kcd.CondensationSchedule(ratio=0.5, stages=3, period=3), student="student", mixing=None
    )
    saver = ModelCheckpoint(dirpath=folder, save_last=True, every_n_train_steps=1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=[condense, saver, *more], **quiet)
    module = Distillation()
    trainer.fit(module, Digits(), ckpt_path=resume)
    print(f"learning rate {trainer.optimizers[0].param_groups[0]['lr']:g} after {trainer.global_step} steps")
    return module.student, condense.loader


with tempfile.TemporaryDirectory() as folder:
    try:
        train(folder, StopWithin())
    except RuntimeError as error:
        print(error)
    student, loader = train(folder, resume="last")

with torch.no_grad():
    right = (student(images).argmax(-1) == labels).double().mean()
print(f"accuracy {right:.1%}")
print(loader.history)
drawn, total, kept = loader.tracker.count.sum(), EPOCHS * len(images), loader.history[-1]["kept"]
print(f"{drawn:,} of {total:,} samples drawn, {kept:,} of {len(images):,} kept")
