"""Distils a network's knowledge of the digits into a smaller one, in a training loop of one's own."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import kcd_core as kcd

EPOCHS = 28

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
images, labels = torch.from_numpy(images).float() / 16, torch.from_numpy(labels)
train = TensorDataset(images[:1200], labels[:1200])
test_images, test_labels = images[1200:], labels[1200:]


def network(width):
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def accuracy(model):
    with torch.no_grad():
        return (model(test_images).argmax(1) == test_labels).double().mean()


def train_teacher(epochs=20):
    teacher = network(256)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-3)
    for _ in range(epochs):
        for x, targets in DataLoader(train, batch_size=64, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(teacher(x), targets).backward()
            optimizer.step()
    return teacher


teacher, student = train_teacher(), network(16)
optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
loader = DataLoader(train, batch_size=64, shuffle=True)

schedule = kcd.CondensationSchedule.for_epochs(EPOCHS, ratio=0.3)
loader = kcd.wrap_loader(loader, schedule=schedule, mixing=None)
for _ in range(EPOCHS):
    for x, targets in loader:
        with torch.no_grad():
            soft = (teacher(x) / 4).softmax(1)
        logits = student(x)
        distilled = F.kl_div((logits / 4).log_softmax(1), soft, reduction="batchmean") * 16
        loss = 0.1 * F.cross_entropy(logits, targets) + 0.9 * distilled
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loader.record(logits)
    loader.end_epoch()

print(loader.history)
print(f"teacher {accuracy(teacher):.1%}, student {accuracy(student):.1%}")
drawn, kept = loader.tracker.count.sum(), loader.sampler.num_kept
print(f"{drawn:,} of {EPOCHS * len(train):,} samples drawn, {kept:,} of {len(train):,} kept")
