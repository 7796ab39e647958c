"""Distils in a loop with Lightning Fabric, is interrupted, and resumes."""

import os
import tempfile

import torch
from digits import accuracy, kd_loss, network, summary, train, trained_teacher
from lightning.fabric import Fabric
from torch.utils.data import DataLoader

import kcd_core as kcd

EPOCHS = 14

teacher = trained_teacher()
torch.manual_seed(0)


def distil(path, last_epoch):
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    student = network(16)
    student, optimizer = fabric.setup(student, torch.optim.Adam(student.parameters(), lr=1e-2))
    loader = kcd.wrap_loader(
        DataLoader(train, batch_size=64, shuffle=True),
        schedule=kcd.CondensationSchedule.for_epochs(EPOCHS, ratio=0.3),
        mixing=None,
        num_replicas=fabric.world_size,
        rank=fabric.global_rank,
    )
    if os.path.exists(path):
        saved = fabric.load(path, {"student": student, "optimizer": optimizer})
        loader.load_state_dict(saved["loader"])
    while loader.epoch <= last_epoch:
        for x, _ in map(fabric.to_device, loader):
            with torch.no_grad():
                teacher_logits = teacher(x)
            logits = student(x)
            optimizer.zero_grad()
            fabric.backward(kd_loss(logits, teacher_logits))
            optimizer.step()
            loader.record(logits)
        loader.end_epoch()
        state = {"student": student, "optimizer": optimizer, "loader": loader.gather_state_dict()}
        fabric.save(path, state)
    return student, loader


with tempfile.TemporaryDirectory() as folder:
    path = f"{folder}/last.ckpt"
    distil(path, last_epoch=6)
    student, loader = distil(path, last_epoch=EPOCHS)

print(loader.history)
print(f"teacher {accuracy(teacher):.1%}, student {accuracy(student):.1%}")
print(summary(loader.tracker.count.sum(), EPOCHS, loader.sampler.num_kept))
