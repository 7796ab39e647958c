"""What stands in for the teacher's logits on rows of which it was not asked.

In somebody's repository the loss is the host's own, on all rows of a batch, and wants the teacher's logits of each. In
the first epoch the teacher is asked for all samples; from then on these are the logits of the others. So the rule of
`kcd.gated_loss` is not to be had there, and which of these comes near it is for the study to say.
"""

from __future__ import annotations

import torch
from torch.nn.functional import one_hot


class StandIn:
    """The student's own logits: their divergence and its gradient vanish, and of the labels' loss the host's weight stays."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def see(self, teacher_logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Take note of some samples of the first epoch."""

    def fill(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Teacher's logits [B, C] for samples with these logits of the student."""
        return logits.clone()


class ClassMeans(StandIn):
    """The mean of the teacher's logits over the samples of the class."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.total, self.count = torch.zeros(classes, classes), torch.zeros(classes, 1)

    def see(self, teacher_logits: torch.Tensor, targets: torch.Tensor) -> None:
        self.total.index_add_(0, targets, teacher_logits)
        self.count.index_add_(0, targets, torch.ones(len(targets), 1))

    def means(self) -> torch.Tensor:
        """[C, C], a row for each class."""
        return self.total / self.count.clamp(min=1)

    def fill(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.means()[targets]


class Softened(ClassMeans):
    """The label alone: as high above the other classes as the teacher's logit of it was on the average."""

    def height(self) -> torch.Tensor:
        """Of the label's logit above the mean of the others."""
        own = self.total.diagonal().sum()
        return (own - (self.total.sum() - own) / (self.classes - 1)) / self.count.sum()

    def fill(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.height() * one_hot(targets, self.classes)


class AsLabels(StandIn):
    """Logits from which a loss of 0.1 CE + 0.9 KL at temperature 4 has the gradient of CE at weight 1.

    KL's is 3.6 (p - q), with p the student's and q the teacher's probabilities at that temperature, so 0.9 of CE's is its
    with q = p - CE's gradient / 4. Where that is negative, it is set to nearly nothing, and the gradient is another.
    """

    def fill(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        of_labels = logits.softmax(-1) - one_hot(targets, self.classes)
        return 4 * ((logits / 4).softmax(-1) - of_labels / 4).clamp(min=1e-9).log()


#: By the first word of their arms' names.
STAND_INS = {"own": StandIn, "soft": Softened, "mean": ClassMeans, "ce": AsLabels}
