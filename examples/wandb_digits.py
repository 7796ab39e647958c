"""Logs what each stage did to Weights & Biases, offline, beside the loss."""

import torch
import wandb
from digits import kd_loss, network, summary, train, trained_teacher
from torch.utils.data import DataLoader

import kcd_core as kcd

EPOCHS = 14

torch.manual_seed(0)
teacher, student = trained_teacher(), network(16)
optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
schedule = kcd.CondensationSchedule.for_epochs(EPOCHS, ratio=0.3)
loader = kcd.wrap_loader(DataLoader(train, batch_size=64, shuffle=True), schedule=schedule, mixing=None)
with wandb.init(project="kcd", mode="offline", config=schedule.state_dict()) as run:
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
        logged = {"loss": loss.item()}
        if loader.end_epoch() is not None:  # a stage ended
            stage = loader.history[-1]
            logged |= {f"kcd/{name}": stage[name] for name in ("kept", "dropped", "mixed", "cut")}
        run.log(logged, step=epoch)

print(summary(loader.tracker.count.sum(), EPOCHS, loader.sampler.num_kept))
