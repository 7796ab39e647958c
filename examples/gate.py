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
optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
loader = kcd.wrap_loader(DataLoader(train, batch_size=64, shuffle=True), schedule=None, ask=0.25)
asked = 0
for _ in range(EPOCHS):
    for x, targets in loader:
        rows = loader.asked_rows
        logits = student(x)
        with torch.no_grad():
            teacher_logits = teacher(x[rows])  # of these rows alone
        hard = F.cross_entropy(logits, targets, reduction="none")
        loss = kcd.gated_loss(hard, kd_losses(logits[rows], teacher_logits), rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loader.record(logits)  # of all rows
        asked += len(rows)
    loader.end_epoch()

print(loader.gate_history)
print(f"teacher {accuracy(teacher):.1%}, student {accuracy(student):.1%}")
total = len(train)
print(f"the teacher was asked for {asked:,} of {EPOCHS * total:,} samples drawn")
