"""Ranks samples by a value of one's own: how much less sure of a sample the student is than its teacher."""

import torch
from digits import accuracy, kd_loss, network, summary, train, trained_teacher
from torch.utils.data import DataLoader

import kcd_core as kcd

EPOCHS = 14

teacher = trained_teacher()
with torch.no_grad():
    teachers = kcd.entropy(teacher(train.tensors[0]))  # a table of your own, [N]


def above_teachers(student_logits, *, indices, teacher_logits=None, targets=None):
    return kcd.entropy(student_logits) - teachers[indices]


torch.manual_seed(0)
student = network(16)
optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
loader = DataLoader(train, batch_size=64, shuffle=True)
schedule = kcd.CondensationSchedule.for_epochs(EPOCHS, ratio=0.3)
loader = kcd.wrap_loader(loader, schedule=schedule, value=above_teachers, mixing=None)
for _ in range(EPOCHS):
    for x, _ in loader:
        with torch.no_grad():
            teacher_logits = teacher(x)
        logits = student(x)
        loss = kd_loss(logits, teacher_logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loader.record(logits)
    loader.end_epoch()

print(loader.history)
print(f"teacher {accuracy(teacher):.1%}, student {accuracy(student):.1%}")
print(summary(loader.tracker.count.sum(), EPOCHS, loader.sampler.num_kept))
