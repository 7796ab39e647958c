import mini
import torch

from .utils import accuracy


class BaseTrainer:
    def __init__(self, student, train_loader):
        self.student, self.train_loader = student, train_loader
        self.optimizer = mini.optimizer(student)

    def train(self, epochs):
        for epoch in range(1, epochs + 1):
            for data in self.train_loader:
                self.train_iter(data, epoch)

    def train_iter(self, data, epoch):
        image, target, index = data
        preds = self.student(image)
        self.step(torch.nn.functional.cross_entropy(preds, target))
        accuracy(preds, target, topk=(1, 5))
        mini.record("train", epoch, index, image, preds)

    def step(self, loss):
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class AugTrainer(BaseTrainer):
    """An image is a weak view and a strong one; what counts is the prediction for the weak."""

    def train_iter(self, data, epoch):
        (weak, strong), target, index = data
        preds, others = self.student(weak), self.student(strong)
        loss = sum(torch.nn.functional.cross_entropy(one, target) for one in (preds, others))
        self.step(loss)
        accuracy(preds, target, topk=(1, 5))
        mini.record("train", epoch, index, weak, preds)
