"""Distils from batches that are dicts, with a learning rate that changes in every step."""

import functools

import torch
from digits import accuracy, images, kd_loss, labels, network, summary, trained_teacher
from torch.utils.data import DataLoader, Dataset

import kcd_core as kcd

EPOCHS = 14


class Digits(Dataset):
    def __len__(self):
        return 1200

    def __getitem__(self, index):
        return {"image": images[index], "label": labels[index], "name": f"digit {index}"}


torch.manual_seed(0)
teacher, student = trained_teacher(), network(16)
loader = DataLoader(Digits(), batch_size=64, shuffle=True)
schedule = kcd.CondensationSchedule.for_epochs(EPOCHS, ratio=0.3)
# Mixed as in the paper. With mixing=None, which docs/settings.md recommends, no mixer is needed.
mixer = functools.partial(kcd.mix_samples, fields=["image"])  # label and name stay the kept sample's
loader = kcd.wrap_loader(loader, schedule=schedule, mixer=mixer)
optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
steps = loader.total_steps(EPOCHS)  # exact, although epochs get shorter
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
for _ in range(EPOCHS):
    for batch in loader:
        with torch.no_grad():
            teacher_logits = teacher(batch["image"])
        logits = student(batch["image"])
        loss = kd_loss(logits, teacher_logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        loader.record(logits)
    loader.end_epoch()

print(loader.history)
print(f"{scheduler.last_epoch} of {steps} steps, learning rate {scheduler.get_last_lr()[0]:.1e} at the end")
print(f"teacher {accuracy(teacher):.1%}, student {accuracy(student):.1%}")
print(summary(loader.tracker.count.sum(), EPOCHS, loader.sampler.num_kept))
