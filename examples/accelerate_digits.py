"""Distils a linear teacher's knowledge of the digits in a loop with Accelerate, is interrupted and goes on, and prints what was drawn."""

import tempfile

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import kcd_core as kcd
from kcd_adapters.trainers.accelerate import prepare

EPOCHS = 12

set_seed(0)
images, labels = load_digits(return_X_y=True)
images, labels = torch.from_numpy(images).float() / 16, torch.from_numpy(labels)
teacher = torch.nn.Linear(64, 10)
optimizer = torch.optim.Adam(teacher.parameters(), lr=0.05)
for _ in range(100):
    optimizer.zero_grad()
    cross_entropy(teacher(images), labels).backward()
    optimizer.step()
soft = teacher(images).softmax(-1).detach()


def train(folder, resume=False):
    """Up to the middle of epoch 6, or from there to the end."""
    accelerator = Accelerator(gradient_accumulation_steps=2)
    student = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    loader = prepare(
        accelerator,
        DataLoader(TensorDataset(images, labels, soft), batch_size=64, shuffle=True),
        schedule=kcd.CondensationSchedule(ratio=0.5, stages=3, period=3),
        mixing=None,
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, loader.scheduler_steps(EPOCHS))
    student, optimizer, scheduler = accelerator.prepare(student, optimizer, scheduler)
    if resume:
        accelerator.load_state(folder)
    while loader.epoch <= EPOCHS:
        for x, targets, softened in loader:
            with accelerator.accumulate(student):
                logits = student(x)
                accelerator.backward(cross_entropy(logits, targets) + cross_entropy(logits, softened))
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            loader.record(logits)
            if (loader.epoch, loader.batches_done) == (6, 10) and not resume:
                accelerator.save_state(folder)
                return student, loader
        loader.end_epoch()
    print(f"learning rate {scheduler.get_last_lr()[0]:g} at the end")
    return student, loader


with tempfile.TemporaryDirectory() as folder:
    train(folder)
    student, loader = train(folder, resume=True)

with torch.no_grad():
    right = (student(images).argmax(-1) == labels).double().mean()
print(f"accuracy {right:.1%}")
print(loader.history)
drawn, total, kept = loader.tracker.count.sum(), EPOCHS * len(images), loader.history[-1]["kept"]
print(f"{drawn:,} of {total:,} samples drawn, {kept:,} of {len(images):,} kept")
