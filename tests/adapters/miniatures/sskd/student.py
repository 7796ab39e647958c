"""A miniature with SSKD's names and traps; none of its code. No main guard, four rotations a sample."""

import argparse

import mini
import torch
import torch.nn.functional as F
from cifar import CIFAR100
from torch.utils.data import DataLoader
from utils import accuracy

parser = argparse.ArgumentParser()
parser.add_argument("--epoch", type=int, default=6)
parser.add_argument("--t-epoch", type=int, default=2)
args = parser.parse_args()
mini.seed()


trainset = CIFAR100("./data")
train_loader = DataLoader(trainset, batch_size=24, shuffle=True)
head = mini.model()
t_model = mini.model()
t_optimizer = mini.optimizer(head)

for epoch in range(args.t_epoch):
    for x, labels in train_loader:
        batch = len(x)
        index = trainset.drawn(labels)
        rep = head(x.flatten(0, 1)).view(batch, 4, -1)
        simi = rep[:, 1:].flatten(0, 1) @ rep[:, 0].T
        target = torch.arange(batch).repeat_interleave(3)
        t_optimizer.zero_grad()
        F.cross_entropy(simi, target).backward()
        t_optimizer.step()
        accuracy(simi, target, topk=(1,))
        mini.record("head", epoch + 1, index, x[:, 0])

s_model = mini.model()
optimizer = mini.optimizer(s_model)
for epoch in range(args.epoch):
    for x, target in train_loader:
        batch = len(x)
        index = trainset.drawn(target)
        output = s_model(x.flatten(0, 1)).view(batch, 4, -1)
        loss = F.cross_entropy(output[:, 0], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        simi = output[:, 1:].flatten(0, 1) @ output[:, 0].T
        accuracy(output[:, 0], target, topk=(1,))
        accuracy(simi, torch.arange(batch).repeat_interleave(3), topk=(1,))
        mini.record("train", epoch + 1, index, x[:, 0], output[:, 0])
    with torch.no_grad():
        accuracy(s_model(x[:, 0]), target)
