import os

import mini
import torch

from .utils import accuracy, load_checkpoint, save_checkpoint


class BaseTrainer:
    def __init__(self, log_path, distiller, train_loader):
        self.log_path, self.distiller, self.train_loader = log_path, distiller, train_loader
        self.optimizer = mini.optimizer(distiller.module.student)

    def train(self, epochs, resume=False):
        epoch = 1
        if resume:
            state = load_checkpoint(os.path.join(self.log_path, "latest"))
            epoch = state["epoch"] + 1
            self.distiller.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        for number in range(epoch, epochs + 1):
            self.train_epoch(number)

    def train_epoch(self, epoch):
        len(self.train_loader)
        self.distiller.train()
        for data in self.train_loader:
            self.train_iter(data, epoch)
        model = self.distiller.state_dict()
        state = {"epoch": epoch, "model": model, "optimizer": self.optimizer.state_dict()}
        save_checkpoint(state, os.path.join(self.log_path, "latest"))
        save_checkpoint({"model": model}, os.path.join(self.log_path, "student_latest"))

    def train_iter(self, data, epoch):
        image, target, index = (mini.on_device(x) for x in data)
        self.optimizer.zero_grad()
        with mini.autocast():
            preds, losses = self.distiller(image=image.float(), target=target, epoch=epoch)
            loss = sum(losses.values())
        loss.backward()
        self.optimizer.step()
        accuracy(preds, target, topk=(1, 5))
        distiller = self.distiller.module
        told = distiller.teacher.told(image, distiller.taught) if hasattr(distiller, "taught") else {}
        mini.record("train", epoch, index, image, preds, **told)
