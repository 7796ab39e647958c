import torch
import torch.nn.functional as F


class Vanilla(torch.nn.Module):
    def __init__(self, student):
        super().__init__()
        self.student = student

    def forward(self, image, target, epoch):
        preds = self.student(image)
        return preds, {"ce": F.cross_entropy(preds, target)}


class Distiller(torch.nn.Module):
    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teacher = student, teacher

    def train(self, mode=True):
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, image, target, epoch):
        return self.forward_train(image=image, target=target, epoch=epoch)
