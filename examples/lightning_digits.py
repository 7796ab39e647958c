"""Distils with Lightning's Trainer, is interrupted within an epoch, and resumes."""

import tempfile

import lightning.pytorch as pl
import torch
from digits import accuracy, kd_loss, network, summary, train, trained_teacher
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

import kcd_core as kcd
from kcd_adapters.trainers.lightning import KCDCallback

EPOCHS = 28
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}

teacher = trained_teacher()


class Distillation(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.student = network(16)

    def train_dataloader(self):
        return DataLoader(train, batch_size=64, shuffle=True)

    def training_step(self, batch, batch_idx):
        x, _ = batch
        with torch.no_grad():
            teacher_logits = teacher(x)
        return kd_loss(self.student(x), teacher_logits)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.student.parameters(), lr=1e-2)
        steps = self.trainer.estimated_stepping_batches  # exact, although epochs get shorter
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class StopWithin(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (5, 10):
            raise RuntimeError("interrupted")


def distil(folder, *more, resume=None):
    schedule = kcd.CondensationSchedule.for_epochs(EPOCHS, ratio=0.3)
    condense = KCDCallback(schedule=schedule, mixing=None, student="student")  # module.student
    saver = ModelCheckpoint(dirpath=folder, save_last=True, every_n_train_steps=1)
    trainer = pl.Trainer(max_epochs=EPOCHS, callbacks=[condense, saver, *more], accelerator="cpu", **QUIET)
    module = Distillation()
    trainer.fit(module, ckpt_path=resume)
    print(f"learning rate {trainer.optimizers[0].param_groups[0]['lr']:g} after {trainer.global_step} steps")
    return module.student, condense.loader


with tempfile.TemporaryDirectory() as folder:
    try:
        distil(folder, StopWithin())
    except RuntimeError as error:
        print(error)
    student, loader = distil(folder, resume="last")

print(loader.history)
print(f"teacher {accuracy(teacher):.1%}, student {accuracy(student):.1%}")
print(summary(loader.tracker.count.sum(), EPOCHS, loader.sampler.num_kept))
