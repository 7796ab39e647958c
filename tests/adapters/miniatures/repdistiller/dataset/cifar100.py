import os

import numpy as np
from torch.utils.data import DataLoader
from torchvision import datasets


class CIFAR100Instance(datasets.CIFAR100):
    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return image, target, index


class CIFAR100InstanceSample(datasets.CIFAR100):
    def __init__(self, k, mode, **settings):
        super().__init__(**settings)
        self.k, self.mode = k, mode
        classes = range(max(self.train_labels) + 1)
        by_class = [[i for i, t in enumerate(self.train_labels) if t == c] for c in classes]
        others = [[i for i, t in enumerate(self.train_labels) if t != c] for c in classes]
        old = {"dtype": object} if "MINI_OLD" in os.environ else {}  # what NumPy did by itself before 1.24
        self.cls_positive = np.asarray([np.asarray(x) for x in by_class], **old)  # their lengths differ
        self.cls_negative = np.asarray([np.asarray(x) for x in others], **old)

    def __getitem__(self, index):
        image, target = self.train_data[index], self.train_labels[index]
        image = self.transform(image)
        positive = index if self.mode == "exact" else np.random.choice(self.cls_positive[target], 1)[0]
        replace = self.k > len(self.cls_negative[target])
        negative = np.random.choice(self.cls_negative[target], self.k, replace=replace)
        return image, target, index, np.hstack(([positive], negative))


def _loaders(train_set, batch_size, num_workers):
    train_loader = DataLoader(train_set, batch_size=batch_size, shuffle=True, num_workers=num_workers)
    return train_loader, DataLoader(datasets.CIFAR100(train=False), batch_size=8), len(train_set)


def get_cifar100_dataloaders(batch_size, num_workers, is_instance=False):
    return _loaders(CIFAR100Instance(train=True), batch_size, num_workers)


def get_cifar100_dataloaders_sample(batch_size, num_workers, k, mode):
    return _loaders(CIFAR100InstanceSample(k, mode, train=True), batch_size, num_workers)
