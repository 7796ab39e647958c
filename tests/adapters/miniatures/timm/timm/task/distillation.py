import mini
import torch

from .task import TrainingTask


class LogitDistillationTask(TrainingTask):
    def __init__(self, student, teacher, criterion):
        super().__init__()
        self.trainable_module, self.teacher, self.criterion = student, teacher, criterion

    def student(self, images):
        output = self.trainable_module(images)
        return output, output

    def forward(self, images, target):
        output, distilled = self.student(images)
        with torch.no_grad():
            soft = self.teacher(images).softmax(1)
        loss = self.criterion(output, target) + torch.nn.functional.cross_entropy(distilled, soft)
        return {"loss": loss, "output": output}


class TokenDistillationTask(LogitDistillationTask):
    """The student has a second head, which learns from the teacher alone."""

    def __init__(self, student, teacher, criterion):
        super().__init__(student, teacher, criterion)
        self.head = mini.model()

    def student(self, images):
        return self.trainable_module(images), self.head(images)


def resume_task_checkpoint(task, checkpoint_path, optimizer=None, loss_scaler=None):
    checkpoint = torch.load(checkpoint_path, weights_only=True)
    task.trainable_module.load_state_dict(checkpoint["state_dict"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    return checkpoint["epoch"] + 1
