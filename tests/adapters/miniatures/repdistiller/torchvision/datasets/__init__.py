from .cifar import CIFAR10, CIFAR100
