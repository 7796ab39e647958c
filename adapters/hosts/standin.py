"""What stands in for the teacher's logits of a sample that it is not asked for: its label.

`kcd_core.gated_loss` has the labels of such samples at weight 1, and that is the rule that the study bears out. A host's loss
is its own: a · CE + w · T² · KL at temperature T, on all rows of a batch. The gradient of its second term, by the student's
logits z, is w · T · (softmax(z / T) - q), with q the teacher's probabilities at T. With

    q = softmax(z / T) - (1 - a) / (w · T) · (softmax(z) - onehot(label))

the whole is softmax(z) - onehot(label): the gradient of CE at weight 1. With a = 1, these are the student's own logits.
"""

from __future__ import annotations

import torch
from torch.nn.functional import one_hot

from ..profiles import Loss

__all__ = ["GradientCheck", "labels_as_logits"]

LEAST = 1e-9  # a probability


def labels_as_logits(student: torch.Tensor, labels: torch.Tensor, loss: Loss) -> torch.Tensor:
    """Teacher's logits [B, C], float32, for samples with these ``student`` logits [B, C] and labels [B].

    Where a probability of q would be negative, as for a student that is all but sure of another class than the label's, it
    is set to nearly nothing: there the gradient is the largest of its direction that a teacher can make, and less than CE's.
    """
    student = student.detach().float()
    share, temperature = loss.share, loss.temperature
    if not share or temperature is None:
        return student
    of_labels = student.softmax(1) - one_hot(labels, student.shape[1])
    target = (student / temperature).softmax(1) - share * of_labels
    return temperature * target.clamp(min=LEAST).log()


class GradientCheck:
    """Looks, in a backward pass, whether a host's loss is what its profile says, and so has the labels' gradient in rows not asked.

    Up to a factor: a batch is averaged over, gradients may be accumulated and scaled.

    Parameters
    ----------
    student : Tensor [B, C]
    labels : Tensor [B]
    told : Tensor [B, C]
        What the host is given as the teacher's logits.
    loss : Loss
        With a temperature.
    """

    def __init__(self, student: torch.Tensor, labels: torch.Tensor, told: torch.Tensor, loss: Loss) -> None:
        given, temperature = student.detach().float(), loss.temperature or 1
        of_labels = given.softmax(1) - one_hot(labels, given.shape[1])
        of_teacher = (given / temperature).softmax(1) - (told.float() / temperature).softmax(1)
        self._expected = loss.labels * of_labels + loss.teacher * temperature * of_teacher

    def __call__(self, gradient: torch.Tensor) -> None:
        given, expected = (one.double().flatten() for one in (gradient, self._expected))
        both = given.norm() * expected.norm()
        alike = (
            0.9999 if gradient.element_size() > 2 else 0.99
        )  # in half precision, the teacher's row is coarse
        if both > 0 and given @ expected < alike * both:
            raise RuntimeError(
                "the gradient of this loss is not that of its profile's formula, so where the teacher is not asked it is not that "
                "of the labels' cross-entropy (labels that are smoothed, logits that are normalised, another term or weight?): "
                "leave out --ask"
            )
