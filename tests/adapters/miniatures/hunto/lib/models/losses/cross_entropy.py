import torch


class CrossEntropyLabelSmooth(torch.nn.Module):
    last = None

    def __init__(self, num_classes, epsilon):
        super().__init__()
        self.num_classes, self.epsilon = num_classes, epsilon

    def forward(self, inputs, targets):
        CrossEntropyLabelSmooth.last = inputs
        share = torch.nn.functional.one_hot(targets, self.num_classes) * (1 - self.epsilon)
        return -((share + self.epsilon / self.num_classes) * inputs.log_softmax(1)).sum(1).mean()
