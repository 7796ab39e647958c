"""The arms' recordings, and what can be said of them without a training step."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from _common.counting import WINDOW, Counter, fake_cuda

import kcd_core as kcd

EPOCHS = 240


class Kcd:
    """The tracker, as the wrapped loader drives it."""

    def __init__(self, samples: int, device: torch.device) -> None:
        self.tracker = kcd.KnowledgeValueTracker(samples, device=device if device.type == "cuda" else None)

    def record(self, indices: torch.Tensor, logits: torch.Tensor, losses: torch.Tensor) -> None:
        self.tracker.update(indices, logits)

    def bytes_per_sample(self) -> float:
        total, count = self.tracker.sums()
        return (total.nbytes + count.nbytes) / len(total)

    def stage(self) -> None:
        kcd.condense_step(
            self.tracker, kcd.CondensedSampler(self.tracker.num_samples), kcd.CondensationSchedule()
        )


class Authors:
    """Softmax, p log p, a copy to the host every step, and a matrix with a column for every epoch."""

    def __init__(self, samples: int, device: torch.device) -> None:
        self.column = np.full(samples, -1.0)
        self.matrix = np.zeros((samples, 0))

    def record(self, indices: torch.Tensor, logits: torch.Tensor, losses: torch.Tensor) -> None:
        with torch.no_grad():
            p = logits.softmax(1)
            entropy = -(p * p.log()).sum(1)
            host = entropy.cpu()
        if type(host) is torch.Tensor:  # a fake tensor has nothing to store
            self.column[indices.numpy()] = host.float().numpy()

    def bytes_per_sample(self) -> float:
        return 8.0 * EPOCHS

    def stage(self) -> None:
        record = np.repeat(self.column[:, None], 40, axis=1)  # the first stage's matrix
        record = np.clip(record, 0.0, record.max())
        count = (record > 0).sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            score = (count / 40.0) ** 0.03 * (record.sum(1) / count)
        score.argsort()[::-1]


class InfoBatch:
    """Scores are the losses of the batch, stored in host memory each step; the loss is rescaled."""

    def __init__(self, samples: int, device: torch.device) -> None:
        self.scores = torch.full((samples,), 3.0)
        self.weights = torch.ones(samples)

    def record(self, indices: torch.Tensor, logits: torch.Tensor, losses: torch.Tensor) -> None:
        weights = self.weights[indices].to(losses.device, non_blocking=True)
        host = losses.detach().cpu()
        if type(host) is torch.Tensor:
            self.scores[indices] = host.float()
        losses.detach() * weights  # their mean is taken in place of plain KD's

    def bytes_per_sample(self) -> float:
        return float(self.scores.element_size() + self.weights.element_size())

    def stage(self) -> None:
        below = self.scores < self.scores.mean()
        kept = torch.rand(len(below), generator=torch.Generator().manual_seed(0)) < 0.5
        self.weights = torch.where(below & kept, 2.0, 1.0)


RECORDERS: dict[str, type[Any]] = {"kcd": Kcd, "authors": Authors, "infobatch": InfoBatch}
ARMS = ("kd", *RECORDERS)


def count(arm: str, steps: int = 2 * WINDOW) -> dict[str, float]:
    """What one step of an arm's recording does on CUDA: 64 x 100 logits, averaged over many steps.

    ``steps``: whole windows, so that all that waits is counted, too.
    """
    # In host memory, as a loader yields them; NumPy's, since inside the mode every tensor is fake.
    indices: Any = np.arange(64) if arm == "kcd" else torch.arange(64)
    with fake_cuda() as device:
        recorder = RECORDERS[arm](1000, device)
        logits, losses = torch.empty(64, 100, device=device), torch.empty(64, device=device)
        with Counter() as counter:
            for _ in range(steps):
                recorder.record(indices, logits, losses)
    return {
        "operations": counter.operations / steps,
        "synchronisations": counter.synchronisations / steps,
        "bytes_to_host": counter.bytes_to_host / steps,
    }


def stage_end(arm: str, samples: int = 50_000) -> float:
    """Seconds that the end of the first stage of 40 epochs takes, without mixing: the best of five."""
    recorder = RECORDERS[arm](samples, torch.device("cpu"))
    rng = np.random.default_rng(0)
    order, logits = (
        torch.from_numpy(rng.permutation(samples)),
        torch.from_numpy(rng.normal(size=(samples, 10))),
    )
    losses = torch.rand(samples, generator=torch.Generator().manual_seed(0))
    recorder.record(order, logits, losses)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        recorder.stage()
        best = min(best, time.perf_counter() - start)
    return best


def without_a_step(arm: str) -> dict[str, float]:
    """All of the above."""
    recorder = RECORDERS[arm](1000, torch.device("cpu"))
    return {**count(arm), "bytes_per_sample": recorder.bytes_per_sample(), "stage_end_s": stage_end(arm)}
