import torch


class KDLoss:
    last = None

    def __init__(self, student, teacher, ori_loss):
        self.student, self.teacher, self.ori_loss = student, teacher, ori_loss

    def __call__(self, x, targets):
        with torch.no_grad():
            wanted = self.teacher(x).softmax(1)
        logits = KDLoss.last = self.student(x)
        return self.ori_loss(logits, targets) - (wanted * logits.log_softmax(1)).sum(1).mean()
