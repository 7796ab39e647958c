"""Distils a ResNet's knowledge of the digits in timm's task, loader and prefetcher, and prints what was saved."""

import torch
from PIL import Image
from sklearn.datasets import load_digits
from timm.data import create_loader
from timm.models import create_model
from timm.task import ClassificationTask, LogitDistillationTask

import kcd_core as kcd
from kcd_adapters.trainers.timm import wrap_loader

EPOCHS = 6

torch.manual_seed(0)
pixels, labels = load_digits(return_X_y=True)


class Digits(torch.utils.data.Dataset):
    transform = None  # create_loader sets it

    def __getitem__(self, index):
        image = Image.fromarray((pixels[index].reshape(8, 8) * 15).astype("uint8")).convert("RGB")
        return self.transform(image), int(labels[index])

    def __len__(self):
        return len(labels)


def make(is_training):
    device = torch.device("cpu")
    return create_loader(
        Digits(), 16, batch_size=64, is_training=is_training, no_aug=True, num_workers=0, device=device
    )


def model(width):
    return create_model("test_resnet", channels=[width] * 4, num_classes=10)


def train(task, loader, epochs, record=None, end_epoch=None):
    optimizer = torch.optim.AdamW(task.get_trainable_module().parameters(), lr=3e-3)
    task.train()
    for _ in range(epochs):
        for images, targets in loader:
            result = task(images, targets)
            optimizer.zero_grad()
            result["loss"].backward()
            optimizer.step()
            if record is not None:
                record(result["output"])
        if end_epoch is not None:
            end_epoch()


teacher, student = model(32), model(16)
train(ClassificationTask(teacher, torch.nn.CrossEntropyLoss(), verbose=False), make(True), 2)

loader = wrap_loader(make(True), schedule=kcd.CondensationSchedule(ratio=0.5, stages=2, period=2))
task = LogitDistillationTask(student, teacher, torch.nn.CrossEntropyLoss(), temperature=4.0, verbose=False)
train(task, loader, EPOCHS, loader.record, loader.end_epoch)

student.eval()
with torch.no_grad():
    right = sum((student(images).argmax(-1) == targets).sum().item() for images, targets in make(False))
print(f"accuracy {right / len(labels):.1%}")
print(loader.history)
drawn, total, kept = loader.tracker.count.sum(), EPOCHS * len(labels), loader.history[-1]["kept"]
print(f"{drawn:,} of {total:,} samples drawn, {kept:,} of {len(labels):,} kept")
