"""Distils with timm's task and loader, prefetcher and all."""

import torch
from digits import images, labels, summary
from PIL import Image
from timm.data import create_loader
from timm.models import create_model
from timm.task import ClassificationTask, LogitDistillationTask

import kcd_core as kcd
from kcd_adapters.trainers.timm import wrap_loader

EPOCHS = 7


class Digits(torch.utils.data.Dataset):
    transform = None  # create_loader sets it

    def __init__(self, first, stop):
        self.pixels = (255 * images[first:stop]).byte().view(-1, 8, 8).numpy()
        self.labels = labels[first:stop]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.pixels[index]).convert("RGB")), int(self.labels[index])


def digits_loader(*part, is_training=True):
    settings = {"no_aug": True, "num_workers": 0, "device": torch.device("cpu")}
    return create_loader(Digits(*part), 16, batch_size=64, is_training=is_training, **settings)


def network(width):
    return create_model("test_resnet", channels=[width] * 4, num_classes=10)


def accuracy(model):
    model.eval()
    with torch.no_grad():
        right = [model(x).argmax(1) == y for x, y in digits_loader(1200, None, is_training=False)]
    return torch.cat(right).double().mean()


torch.manual_seed(0)
teacher, student = network(32), network(16)
task = ClassificationTask(teacher, torch.nn.CrossEntropyLoss(), verbose=False)
optimizer = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
for _ in range(6):
    for x, targets in digits_loader(0, 1200):
        optimizer.zero_grad()
        task(x, targets)["loss"].backward()
        optimizer.step()

schedule = kcd.CondensationSchedule.for_epochs(EPOCHS, ratio=0.3, stages=3)
loader = wrap_loader(digits_loader(0, 1200), schedule=schedule, mixing=None)
task = LogitDistillationTask(student, teacher, torch.nn.CrossEntropyLoss(), temperature=4.0, verbose=False)
optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
task.train()
for _ in range(EPOCHS):
    for x, targets in loader:
        result = task(x, targets)
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
        loader.record(result["output"])
    loader.end_epoch()

print(loader.history)
print(f"teacher {accuracy(teacher):.1%}, student {accuracy(student):.1%}")
print(summary(loader.tracker.count.sum(), EPOCHS, loader.sampler.num_kept))
