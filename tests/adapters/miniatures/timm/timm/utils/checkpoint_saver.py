import os
import shutil

import torch


class CheckpointSaver:
    """Keeps the last checkpoint, that of each epoch, and the best."""

    extension, save_prefix, best_epoch = ".pth.tar", "checkpoint", None

    def __init__(self, model, optimizer, checkpoint_dir):
        self.model, self.optimizer, self.checkpoint_dir = model, optimizer, checkpoint_dir
        self.best = None

    def _path(self, name):
        return os.path.join(self.checkpoint_dir, name + self.extension)

    def save_checkpoint(self, epoch, metric=None):
        state = {
            "epoch": epoch,
            "optimizer": self.optimizer.state_dict(),
            "state_dict": self.model.state_dict(),
        }
        torch.save(state, self._path("tmp"))
        os.replace(self._path("tmp"), self._path("last"))
        shutil.copy2(self._path("last"), self._path(f"{self.save_prefix}-{epoch}"))
        if self.best is None or metric < self.best:
            self.best, self.best_epoch = metric, epoch
            shutil.copy2(self._path("last"), self._path("model_best"))
        return self.best, self.best_epoch
