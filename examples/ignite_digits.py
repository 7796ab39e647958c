"""Distils in ignite's engine, is interrupted within an epoch, and resumes in another."""

import copy

import torch
from digits import accuracy, kd_loss, network, summary, train, trained_teacher
from ignite.engine import Engine, Events
from torch.utils.data import DataLoader

import kcd_core as kcd

EPOCHS = 14

torch.manual_seed(0)
teacher, student = trained_teacher(), network(16)
optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
schedule = kcd.CondensationSchedule.for_epochs(EPOCHS, ratio=0.3)
loader = kcd.wrap_loader(DataLoader(train, batch_size=64, shuffle=True), schedule=schedule, mixing=None)


def step(engine, batch):
    x, _ = batch
    with torch.no_grad():
        teacher_logits = teacher(x)
    logits = student(x)
    loss = kd_loss(logits, teacher_logits)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    loader.record(logits)


engine = Engine(step)
engine.add_event_handler(Events.ITERATION_COMPLETED(once=100), engine.terminate)  # an interruption


def end_epoch(engine):
    loader.end_epoch()
    engine.set_data(loader)
    engine.state.epoch_length = len(loader)


engine.add_event_handler(Events.EPOCH_COMPLETED, end_epoch)
engine.run(loader, max_iters=loader.total_steps(EPOCHS))
state = copy.deepcopy(loader.state_dict())  # saved, with the student's and the optimizer's


def resume(state):
    loader.load_state_dict(state)
    if loader.batches_done == len(loader):
        loader.end_epoch()
    left = loader.total_steps(EPOCHS) - loader.total_steps(loader.epoch - 1) - loader.batches_done
    engine = Engine(step)
    engine.add_event_handler(Events.EPOCH_COMPLETED, end_epoch)
    engine.run(loader, max_iters=left, epoch_length=len(loader) - loader.batches_done)


resume(state)

print(loader.history)
print(f"teacher {accuracy(teacher):.1%}, student {accuracy(student):.1%}")
print(summary(loader.tracker.count.sum(), EPOCHS, loader.sampler.num_kept))
