"""In the place of torchvision: the names that it has today, on data made on the fly."""

import os

import mini
import torch


class CIFAR10(torch.utils.data.Dataset):
    def __init__(self, train=True):
        self.train = train
        self.data, self.targets = mini.images(), mini.labels()
        if "MINI_OLD" in os.environ:  # as in torchvision 0.2
            self.train_data, self.train_labels = self.data, self.targets

    def transform(self, image):
        return torch.from_numpy(image).float() / 255

    def __getitem__(self, index):
        return self.transform(self.data[index]), self.targets[index]

    def __len__(self):
        return len(self.data)


class CIFAR100(CIFAR10):
    pass
