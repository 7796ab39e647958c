"""Condensation at the loss, for training loops whose loader can't be changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .base.arguments import check_kind, checked_choice
from .base.arrays import dtype_name, is_integer, to_numpy
from .base.cuda_streams import refuse_capture
from .base.padding import PADDING
from .condense import CondensedSet
from .tracker import KnowledgeValueTracker

__all__ = ["CondensedLoss"]


class CondensedLoss(torch.nn.Module):
    """Wraps a criterion: records each batch, weights kept samples by 1 and dropped ones by 0, and reduces.

    The result is the plain mean (or sum) of the criterion's losses over the kept samples of the batch. If the set has
    ``sample_weights``, each loss is first multiplied by its sample's weight. A criterion that weights all samples
    equally would give the same on those samples alone. A criterion with class weights or an ``ignore_index`` divides
    its own mean by the sum of the weights; here every kept sample counts as one, whatever its weight, even if it is
    ignored.

    All samples still pass through teacher and student, so this saves no time by itself, and nothing is mixed. It is
    for streaming loaders and loops that can't be changed. Give it to `condense_step` instead of a sampler.

    Parameters
    ----------
    criterion : callable
        Returns one loss per sample, ``[B]`` (``reduction="none"``).
    tracker : KnowledgeValueTracker
    reduction : {"mean", "sum", "none"}
        Over the kept samples. "mean" is the weighted sum of their losses divided by their number, or 0 if there are
        none; it is not the criterion's own weighted mean. "none" gives ``[B]`` with zeros for dropped samples.

    Raises
    ------
    ValueError
        If ``reduction`` is not one of those named.
    TypeError
        If ``criterion`` can't be called, or ``tracker`` is no KnowledgeValueTracker.

    Notes
    -----
    Records in training mode (``module.training``) and where gradients are enabled: a loss that is evaluated under
    ``no_grad()`` or ``inference_mode()`` is not recorded, whether or not ``eval()`` reaches this module. Where neither
    tells the two apart, ``record=`` does.

    No gradient flows into a dropped sample, so that its infinite loss, or one whose gradient is NaN, harms nothing.
    To a criterion that compares the samples of a batch with each other, a dropped one is a constant.

    The set is part of the module's ``state_dict()``; V and F are the tracker's. There is no boolean indexing, so on
    CUDA nothing waits. Indices are checked in host memory. On a device, one that is out of range weighs 0, and the
    tracker counts it.

    Examples
    --------
    >>> import torch
    >>> from kcd_core import KnowledgeValueTracker
    >>> loss = CondensedLoss(torch.nn.CrossEntropyLoss(reduction="none"), KnowledgeValueTracker(100))
    >>> value = loss(torch.zeros(2, 10), torch.tensor([3, 4]), indices=[17, 42])
    >>> round(value.item(), 4)
    2.3026
    """

    keep: torch.Tensor
    installs: torch.Tensor
    sample_weights: torch.Tensor | None

    def __init__(
        self,
        criterion: Callable[..., torch.Tensor],
        tracker: KnowledgeValueTracker,
        *,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if not callable(criterion):
            raise TypeError(f"criterion must be a callable that returns [B], got {criterion!r}")
        check_kind(tracker, "tracker", KnowledgeValueTracker)
        checked_choice(reduction, "reduction", ("mean", "sum", "none"))
        self.criterion = criterion
        self.tracker = tracker
        self.reduction = reduction
        self.register_buffer("keep", torch.ones(tracker.num_samples, dtype=torch.bool))
        self.register_buffer("installs", torch.zeros((), dtype=torch.int64))
        self.register_buffer("sample_weights", None)  # [N], where the set has some

    @property
    def num_samples(self) -> int:
        """N."""
        return self.tracker.num_samples

    @property
    def kept(self) -> Any:
        """The set in force: int64 NumPy array, ascending."""
        return np.flatnonzero(self.keep.cpu().numpy())

    @property
    def stage(self) -> int:
        """Number of sets installed."""
        return int(self.installs)

    @property
    def in_force(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Copies of the set, of the number of sets installed, and of the weights; assigned, they are put back."""
        weights = None if self.sample_weights is None else self.sample_weights.clone()
        return self.keep.clone(), self.installs.clone(), weights

    @in_force.setter
    def in_force(self, before: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]) -> None:
        *buffers, self.sample_weights = before
        for buffer, was in zip((self.keep, self.installs), buffers, strict=True):
            buffer.copy_(was)

    def fingerprint(self) -> str:
        """A short name of the set in force and its weights."""
        digest = hashlib.sha256(self.kept.astype(np.int64).tobytes())
        if self.sample_weights is not None:
            digest.update(self.sample_weights.cpu().numpy().tobytes())
        return digest.hexdigest()

    def install(self, condensed_set: CondensedSet) -> None:
        """Weight by ``condensed_set`` from now on.

        Raises
        ------
        ValueError
            If it was made for another number of samples.
        """
        check_kind(condensed_set, "condensed_set", CondensedSet)
        if condensed_set.num_samples != self.num_samples:
            raise ValueError(
                f"the set is of {condensed_set.num_samples} samples, this loss of {self.num_samples}"
            )
        mask = torch.zeros(self.num_samples, dtype=torch.bool)
        mask[torch.from_numpy(condensed_set.kept)] = True
        weights = None
        if condensed_set.sample_weights is not None:
            weights = torch.zeros(self.num_samples)
            weights[torch.from_numpy(condensed_set.kept)] = torch.from_numpy(condensed_set.sample_weights)
            weights = weights.to(self.keep.device)
        self.keep.copy_(mask)
        self.sample_weights = weights
        self.installs += 1

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        """As torch's, of a state with sample weights or without, whatever is in force here."""
        saved = f"{prefix}sample_weights" in state_dict
        if saved or f"{prefix}keep" in state_dict:  # of a state of others, nothing is taken over
            self.sample_weights = torch.ones(self.num_samples, device=self.keep.device) if saved else None
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(
        self,
        student_logits: torch.Tensor,
        *args: Any,
        indices: Any,
        teacher_logits: Any = None,
        targets: Any = None,
        record: bool | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """The criterion's loss over the kept samples of a batch.

        Parameters
        ----------
        student_logits : floating tensor [B, C]; with value "sequence_entropy", [B, T, C]
        *args, **kwargs
            Passed on to the criterion, after the student's logits.
        indices : integer array [B]
            Which samples these are. -1 is padding: its row has weight 0 and is not recorded.
        teacher_logits, targets : optional
            For the tracker, if its value uses them. They are not passed on to the criterion.
        record : bool, optional
            Whether the batch is recorded. Default: in training mode, where gradients are enabled.

        Returns
        -------
        tensor
            A scalar, or ``[B]`` with ``reduction="none"``. It is zero, with a gradient of zero, if no sample of the
            batch is kept.

        Raises
        ------
        TypeError
            If the criterion does not return one loss per sample.
        ValueError, TypeError, IndexError
            As `KnowledgeValueTracker.update` does.
        """
        if record is None:
            record = self.training and torch.is_grad_enabled()
        if record:
            refuse_capture(self.tracker.device)
        keep, weights = self._lookup(indices, len(student_logits), student_logits.device)
        # The gradient stops here, not only at the losses: further down, a 0 times an infinite one would be NaN.
        rows = keep.reshape(-1, *[1] * (student_logits.ndim - 1))
        losses = self.criterion(student_logits.where(rows, student_logits.detach()), *args, **kwargs)
        if not isinstance(losses, torch.Tensor) or losses.shape != keep.shape:
            shape = tuple(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
            raise TypeError(
                f"criterion must return one loss per sample, shape {tuple(keep.shape)}, got {shape}; "
                "use reduction='none' (and .sum(1) for losses [B, C])"
            )
        if record:
            self.tracker.update(indices, student_logits, teacher_logits=teacher_logits, targets=targets)
        if weights is not None:
            losses = losses * weights.to(losses.dtype)
        kept_losses = losses.where(keep, 0)  # not a product, which an infinite loss would make NaN
        if self.reduction == "none":
            return kept_losses
        if self.reduction == "sum":
            return kept_losses.sum()
        return kept_losses.sum() / keep.sum().clamp(min=1)

    def _lookup(
        self, indices: Any, batch_size: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Which rows count, bool [B], and their weights, if there are any. Recorded or not, the indices are checked here."""
        on_host = not isinstance(indices, torch.Tensor) or indices.device.type == "cpu"
        place: Any = to_numpy(indices) if on_host else indices
        if not is_integer(place) and place.shape != (0,):  # an empty list has no integers
            raise TypeError(f"indices must be integers, got dtype {dtype_name(place)}")
        if place.shape != (batch_size,):
            raise ValueError(
                f"indices must be [{batch_size}], one index per sample, got shape {tuple(place.shape)}"
            )
        if on_host:
            if batch_size and not PADDING <= place.min() <= place.max() < self.num_samples:
                raise IndexError(
                    f"indices must lie in 0 .. {self.num_samples - 1}, or be {PADDING} for padding"
                )
            place = torch.from_numpy(place.astype(np.int64))
        place = place.to(self.keep.device, torch.int64, non_blocking=True)
        inside: torch.Tensor = place.clamp(0, self.num_samples - 1)
        kept = self.keep.index_select(0, inside).logical_and(place == inside).to(device, non_blocking=True)
        if self.sample_weights is None:
            return kept, None
        return kept, self.sample_weights.index_select(0, inside).to(device, non_blocking=True)
