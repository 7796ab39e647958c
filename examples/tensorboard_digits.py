"""Writes what each stage did to TensorBoard, beside the loss."""

import torch
from digits import kd_loss, network, summary, train, trained_teacher
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

import kcd_core as kcd

EPOCHS = 14

torch.manual_seed(0)
teacher, student = trained_teacher(), network(16)
optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
schedule = kcd.CondensationSchedule.for_epochs(EPOCHS, ratio=0.3)
loader = kcd.wrap_loader(DataLoader(train, batch_size=64, shuffle=True), schedule=schedule, mixing=None)
with SummaryWriter("runs/kcd") as writer:
    for epoch in range(1, EPOCHS + 1):
        for x, _ in loader:
            with torch.no_grad():
                teacher_logits = teacher(x)
            logits = student(x)
            loss = kd_loss(logits, teacher_logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loader.record(logits)
        writer.add_scalar("loss", loss.item(), epoch)
        if loader.end_epoch() is not None:  # a stage ended
            for name in ("kept", "dropped", "mixed", "cut"):
                writer.add_scalar(f"kcd/{name}", loader.history[-1][name], epoch)

print(summary(loader.tracker.count.sum(), EPOCHS, loader.sampler.num_kept))
