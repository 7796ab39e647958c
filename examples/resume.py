"""Saves a run within an epoch, and resumes from there with everything made anew."""

import tempfile
from pathlib import Path

import torch
from digits import accuracy, kd_loss, network, summary, train, trained_teacher
from torch.utils.data import DataLoader

import kcd_core as kcd

EPOCHS = 14

teacher = trained_teacher()


def new_run():
    torch.manual_seed(0)
    student = network(16)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    schedule = kcd.CondensationSchedule.for_epochs(EPOCHS, ratio=0.3)
    loader = kcd.wrap_loader(DataLoader(train, batch_size=64, shuffle=True), schedule=schedule, mixing=None)
    return {"loader": loader, "student": student, "optimizer": optimizer}


def save(path, parts):
    kcd.save_checkpoint(path, {name: part.state_dict() for name, part in parts.items()})


def resume(path, parts):
    for name, state in kcd.load_checkpoint(path).items():
        parts[name].load_state_dict(state)


def distil(loader, student, optimizer):
    while loader.epoch <= EPOCHS:
        for x, _ in loader:
            with torch.no_grad():
                teacher_logits = teacher(x)
            logits = student(x)
            loss = kd_loss(logits, teacher_logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loader.record(logits)
            yield loader.epoch, loader.batches_done
        loader.end_epoch()


with tempfile.TemporaryDirectory() as folder:
    path, parts = Path(folder) / "run.ckpt", new_run()
    for place in distil(**parts):
        if place == (6, 10):
            save(path, parts)
            break
    parts = new_run()
    resume(path, parts)

loader, student = parts["loader"], parts["student"]
print(f"on from epoch {loader.epoch}, after {loader.batches_done} batches")
for _ in distil(**parts):
    pass
print(loader.history)
print(f"teacher {accuracy(teacher):.1%}, student {accuracy(student):.1%}")
print(summary(loader.tracker.count.sum(), EPOCHS, loader.sampler.num_kept))
