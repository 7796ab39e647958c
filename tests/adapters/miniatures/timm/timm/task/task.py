import torch


class TrainingTask(torch.nn.Module):
    """Called with a batch, it returns a dict with the loss and the student's output."""
