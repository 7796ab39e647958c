"""A miniature with image_classification_sota's names, signatures and traps; none of its code."""

import argparse
import os
import sys

import mini
import torch
from torch.utils.data import DataLoader

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from lib.dataset.dataloader import DataPrefetcher
from lib.models.losses.cross_entropy import CrossEntropyLabelSmooth
from lib.models.losses.kd_loss import KDLoss
from lib.utils.scheduler import build_scheduler


def train_epoch(epoch, points, model, loader, optimizer, loss_fn, scheduler, args):
    for batch_idx, (images, target) in enumerate(loader):
        optimizer.zero_grad()
        loss = loss_fn(images, target) if args.kd else loss_fn(model(images), target)
        loss.backward()
        optimizer.step()
        logits = KDLoss.last if args.kd else CrossEntropyLabelSmooth.last
        lr = optimizer.param_groups[0]["lr"]
        mini.record("train", epoch + 1, points.drawn(target), images, logits, lr=lr)
        scheduler.step(epoch * len(loader) + batch_idx + 1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-c", "--config", default="")
    parser.add_argument("--kd", default="")
    parser.add_argument("--smoothing", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    mini.seed()
    points = mini.Points()
    loader = DataPrefetcher(DataLoader(points, batch_size=16, shuffle=True))
    model, teacher = mini.model(), mini.model()
    loss_fn = CrossEntropyLabelSmooth(mini.CLASSES, args.smoothing) if args.smoothing else None
    loss_fn = loss_fn or torch.nn.CrossEntropyLoss()
    if args.kd:
        with torch.no_grad():
            loss_fn(teacher(torch.rand(2, 3, 4, 4)), torch.tensor([0, 1]))  # the teacher is validated first
        loss_fn = KDLoss(model, teacher, loss_fn)
    optimizer = mini.optimizer(model)
    steps = len(loader)
    scheduler = build_scheduler("linear", optimizer, args.epochs * steps, steps_per_epoch=steps)
    for epoch in range(args.epochs):
        train_epoch(epoch, points, model, loader, optimizer, loss_fn, scheduler, args)


if __name__ == "__main__":
    main()
