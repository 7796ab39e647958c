"""A miniature descendant of RepDistiller with NORM's names, no crd/, and an auxiliary head; none of its code."""

import argparse

import mini
import torch
from helper.loops import train_distill as train
from torch.utils.data import DataLoader


class Instance(mini.Points):
    def __getitem__(self, index):
        return (*super().__getitem__(index), index)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--distill", default="NORM")
    parser.add_argument("--epochs", type=int, default=4)
    opt = parser.parse_args()
    mini.seed()
    loader = DataLoader(Instance(), batch_size=16, shuffle=True)
    modules = torch.nn.ModuleList([mini.model(), mini.model(), mini.model()])
    optimizer = mini.optimizer(modules[:2])
    for epoch in range(1, opt.epochs + 1):
        train(epoch, loader, modules, torch.nn.CrossEntropyLoss(), optimizer, opt)


if __name__ == "__main__":
    main()
