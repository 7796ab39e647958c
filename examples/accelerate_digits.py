"""Distils in a loop with Accelerate, is interrupted, and resumes."""

import os
import tempfile

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from digits import accuracy, kd_loss, network, summary, train, trained_teacher
from torch.utils.data import DataLoader

import kcd_core as kcd
from kcd_adapters.trainers.accelerate import prepare

EPOCHS = 28

teacher = trained_teacher()
set_seed(0)


def distil(folder, last_epoch):
    accelerator = Accelerator(gradient_accumulation_steps=2)
    student = network(16)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    schedule = kcd.CondensationSchedule.for_epochs(EPOCHS, ratio=0.3)
    loader = DataLoader(train, batch_size=32, shuffle=True)
    loader = prepare(accelerator, loader, schedule=schedule, mixing=None)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, loader.scheduler_steps(EPOCHS))
    student, optimizer, scheduler = accelerator.prepare(student, optimizer, scheduler)
    if os.listdir(folder):
        accelerator.load_state(folder)
    while loader.epoch <= last_epoch:
        for x, _ in loader:
            with accelerator.accumulate(student):
                with torch.no_grad():
                    teacher_logits = teacher(x)
                logits = student(x)
                accelerator.backward(kd_loss(logits, teacher_logits))
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            loader.record(logits)
        loader.end_epoch()
        accelerator.save_state(folder)
    print(f"learning rate {scheduler.get_last_lr()[0]:.1e} after epoch {last_epoch}")
    return student, loader


with tempfile.TemporaryDirectory() as folder:
    distil(folder, last_epoch=6)
    student, loader = distil(folder, last_epoch=EPOCHS)

print(loader.history)
print(f"teacher {accuracy(teacher):.1%}, student {accuracy(student):.1%}")
print(summary(loader.tracker.count.sum(), EPOCHS, loader.sampler.num_kept))
