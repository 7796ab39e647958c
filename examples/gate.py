"""Draws all samples, and asks the teacher for the quarter of highest value alone."""

import torch
from digits import accuracy, network, train, trained_teacher
from torch.nn import functional as F
from torch.utils.data import DataLoader

import kcd_core as kcd

EPOCHS = 14


def kd_losses(student_logits, teacher_logits, temperature=4.0):
    student, teacher = ((z / temperature).log_softmax(1) for z in (student_logits, teacher_logits))
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(1) * temperature**2


torch.manual_seed(0)
teacher, student = trained_teacher(), network(16)
optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
loader = DataLoader(train, batch_size=64, shuffle=True)

loader = kcd.wrap_loader(loader, schedule=None, ask=0.25)
for _ in range(EPOCHS):
    for x, targets in loader:
        rows = loader.asked_rows  # int64, in host memory
        logits = student(x)
        with torch.no_grad():
            teacher_logits = teacher(x[rows])  # the teacher sees these rows alone
        hard = F.cross_entropy(logits, targets, reduction="none")
        loss = kcd.gated_loss(hard, kd_losses(logits[rows], teacher_logits), rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loader.record(logits)  # of all rows
    loader.end_epoch()

print(loader.gate_history)
print(f"teacher {accuracy(teacher):.1%}, student {accuracy(student):.1%}")
cost = loader.account.total
print(f"the teacher was asked for {cost.asked:,} of {cost.drawn:,} samples drawn")
