"""Ranks samples by a value of one's own: the chance that the student gives to classes that the teacher rules out."""

import torch
from digits import accuracy, kd_loss, network, summary, train, trained_teacher
from torch.utils.data import DataLoader

import kcd_core as kcd

EPOCHS = 14


def misplaced(student_logits, *, teacher_logits, targets=None):
    """One value for each sample, [B, C] -> [B]; a higher one is worth more."""
    ruled_out = teacher_logits.softmax(1) < 0.01
    return (student_logits.softmax(1) * ruled_out).sum(1)


torch.manual_seed(0)
teacher, student = trained_teacher(), network(16)
optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
loader = kcd.wrap_loader(
    DataLoader(train, batch_size=64, shuffle=True),
    schedule=kcd.CondensationSchedule.for_epochs(EPOCHS, ratio=0.7),
    value=misplaced,
)
for _ in range(EPOCHS):
    for x, _ in loader:
        with torch.no_grad():
            teacher_logits = teacher(x)
        logits = student(x)
        loss = kd_loss(logits, teacher_logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loader.record(logits, teacher_logits=teacher_logits)  # what the value needs is given by name
    loader.end_epoch()

print(loader.history)
print(f"teacher {accuracy(teacher):.1%}, student {accuracy(student):.1%}")
print(summary(loader.tracker.count.sum(), EPOCHS, loader.sampler.num_kept))
