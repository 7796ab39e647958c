import mini
import torch
import torch.nn.functional as F

from ._base import Distiller, Vanilla


class KD(Distiller):
    ce_loss_weight, kd_loss_weight, temperature = 0.1, 0.9, 4

    def forward_train(self, image, target, epoch):
        preds, _ = self.student(image)
        with torch.no_grad():
            self.taught, _ = self.teacher(image)
        kd = mini.distilled(preds, self.taught, self.temperature)
        return preds, {
            "ce": self.ce_loss_weight * F.cross_entropy(preds, target),
            "kd": self.kd_loss_weight * kd,
        }


distiller_dict = {"NONE": Vanilla, "KD": KD}
