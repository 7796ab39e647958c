"""Distils a linear teacher's knowledge of the digits in ignite's engine, and prints how many samples were drawn."""

import torch
from ignite.engine import Engine, Events
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import kcd_core as kcd

EPOCHS = 12

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
images, labels = torch.from_numpy(images).float() / 16, torch.from_numpy(labels)
teacher = torch.nn.Linear(64, 10)
student = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))


def fit_teacher():
    optimizer = torch.optim.Adam(teacher.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(teacher(images), labels).backward()
        optimizer.step()


fit_teacher()
optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
schedule = kcd.CondensationSchedule(ratio=0.5, stages=3, period=3)
loader = kcd.wrap_loader(
    DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True), schedule=schedule
)


def step(engine, batch):
    x, targets = batch
    with torch.no_grad():
        soft = teacher(x).softmax(-1)
    logits = student(x)
    loss = torch.nn.functional.cross_entropy(logits, targets) + torch.nn.functional.cross_entropy(
        logits, soft
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    loader.record(logits)
    return loss.item()


engine = Engine(step)


@engine.on(Events.EPOCH_COMPLETED)
def end_epoch(engine):
    loader.end_epoch()
    engine.set_data(loader)
    engine.state.epoch_length = len(loader)


engine.run(loader, max_iters=loader.total_steps(EPOCHS))

with torch.no_grad():
    right = (student(images).argmax(-1) == labels).double().mean()
print(f"accuracy {right:.1%}")
print(loader.history)
drawn, total, kept = loader.tracker.count.sum(), EPOCHS * len(images), loader.history[-1]["kept"]
print(f"{drawn:,} of {total:,} samples drawn, {kept:,} of {len(images):,} kept")
