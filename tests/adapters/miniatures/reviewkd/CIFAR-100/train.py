"""A miniature with ReviewKD's names and traps; none of its code. No main guard."""

import argparse

import mini
import torch
from model.reviewkd import hcl
from util.kd import DistillKL

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--use-kl", action="store_true")
parser.add_argument("--batch_size", type=int, default=16)
parser.add_argument("--prefetch", action="store_true")
parser.add_argument("--mixup", action="store_true")
args = parser.parse_args()
mini.seed()
logger = open("logs/log.txt", "w")  # noqa: SIM115

dataset = mini.Points()
train_loader = torch.utils.data.DataLoader(dataset=dataset, batch_size=args.batch_size, shuffle=True)
cnn, teacher = mini.model(), mini.model()
criterion = torch.nn.CrossEntropyLoss()
optimizer = mini.optimizer(cnn)


def ahead(loader):
    """One batch further than the loop is, as prefetchers are."""
    batches = iter(loader)
    upcoming = next(batches)
    for batch in batches:
        yield upcoming
        upcoming = batch
    yield upcoming


for epoch in range(args.epochs):
    for images, labels in ahead(train_loader) if args.prefetch else train_loader:
        index = dataset.drawn(labels)
        if len(images) == 1:
            raise ValueError("Expected more than 1 value per channel when training")
        pred = cnn(images)
        if args.mixup:
            labels = labels.flip(0)
        t_pred = teacher(images).detach()
        loss = criterion(pred, labels) + hcl(pred, t_pred) + DistillKL(4)(pred, t_pred)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mini.record("train", epoch + 1, index, images, pred)
    with torch.no_grad():
        criterion(cnn(images), labels)
logger.close()
