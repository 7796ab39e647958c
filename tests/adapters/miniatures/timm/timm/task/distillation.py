import mini
import torch

from .task import TrainingTask


class DistillationTeacher(torch.nn.Module):
    """In training mode itself, for ever."""

    def __init__(self, model):
        super().__init__()
        self.model = model.eval()

    def forward(self, images):
        return self.model(images)


class LogitDistillationTask(TrainingTask):
    task_loss_weight = distill_loss_weight = 1.0
    temperature = 4.0

    def __init__(self, student, teacher, criterion):
        super().__init__()
        self.teacher = DistillationTeacher(teacher)
        self.trainable_module, self.criterion = student, criterion

    def prepare_distributed(self):
        self.trainable_module = torch.nn.parallel.DistributedDataParallel(self.trainable_module)

    def student(self, images):
        output = self.trainable_module(images)
        return output, output

    def forward(self, images, target):
        output, distilled = self.student(images)
        with torch.no_grad():
            taught = self.teacher(images)
        soft = mini.distilled(distilled, taught, self.temperature)
        loss = self.task_loss_weight * self.criterion(output, target) + self.distill_loss_weight * soft
        return {"loss": loss, "output": output, "told": self.teacher.model.told(images, taught)}


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
