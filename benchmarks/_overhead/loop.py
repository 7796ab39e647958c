"""One training step, and arms that take it in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _common.progress import Progress

from .pairs import autocast
from .recorders import RECORDERS


@dataclass(frozen=True)
class Settings:
    """How a pair is measured.

    Attributes
    ----------
    device : torch.device
    samples : int
        Of the data set, all noise.
    amp : torch.dtype, optional
        Of autocast; with float16, gradients are scaled.
    backend : str, optional
        The students are compiled, by this backend of torch.compile.
    rounds, warmup : int
        Steps of each arm that count, and before them.
    windows : int
        Of recordings alone.
    seconds : float, optional
        Fewer rounds and windows are measured where they would take longer in all, after the warmup.
    until : float, optional
        Or where they would end after this moment of ``time.monotonic()``.
    """

    device: torch.device
    samples: int = 2048
    amp: torch.dtype | None = None
    backend: str | None = None
    rounds: int = 32
    warmup: int = 3
    windows: int = 10
    seconds: float | None = None
    until: float | None = None


class Loop:
    """One arm's student, loader and recording, and its training step."""

    def __init__(self, arm: str, teacher: Any, student: Any, loader: Any, settings: Settings) -> None:
        self.arm, self.teacher, self.student, self.loader = arm, teacher, student, loader
        self.device, self.amp = settings.device, settings.amp
        self.optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp is torch.float16)
        self.recorder: Any = None
        if arm in ("authors", "infobatch"):
            self.recorder = RECORDERS[arm](settings.samples, self.device)
        self.batches = self._forever()
        self._last: Any = None

    def _forever(self) -> Iterator[Any]:
        while True:
            yield from self.loader
            if self.arm == "kcd":
                self.loader.end_epoch()

    def _record(self, indices: list[Any], logits: Any, losses: Any) -> None:
        if self.arm == "kcd":
            self.loader.record(logits)
        elif self.recorder is not None:
            self.recorder.record(indices[0], logits, losses)

    def step(self) -> float:
        """Seconds from asking for the batch to the end of the update, the device waited for."""
        sync(self.device)
        start = time.perf_counter()
        *indices, images, targets = next(self.batches)
        images = images.to(self.device, non_blocking=True)
        targets = targets.to(self.device, non_blocking=True)
        with autocast(self.device, self.amp):
            with torch.no_grad():
                teacher_logits = self.teacher(images)
            logits = self.student(images)
            ce = F.cross_entropy(logits, targets, reduction="none")
            kl = F.kl_div((logits / 4).log_softmax(1), (teacher_logits / 4).softmax(1), reduction="none").sum(
                1
            )
            losses = 0.1 * ce + 0.9 * 16 * kl
        self.optimizer.zero_grad()
        self.scaler.scale(losses.mean()).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._record(indices, logits, losses)
        sync(self.device)
        self._last = logits.detach(), losses.detach()
        return time.perf_counter() - start

    def record_alone(self) -> float:
        """Seconds of the recording, after the student's forward pass, which the device has finished.

        Else a copy to the host would wait for that, too.
        """
        *indices, images, targets = next(self.batches)
        images = images.to(self.device, non_blocking=True)
        targets = targets.to(self.device, non_blocking=True)
        with autocast(self.device, self.amp):
            logits = self.student(images)
            losses = F.cross_entropy(logits, targets, reduction="none")
        sync(self.device)
        start = time.perf_counter()
        self._record(indices, logits, losses)
        return time.perf_counter() - start

    def again(self, steps: int, *, recorded: bool = True) -> None:
        """Batches drawn, and each recorded with the last step's logits: nothing else reaches the device."""
        for _ in range(steps):
            *indices, _, _ = next(self.batches)
            if recorded:
                self._record(indices, *self._last)


def sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turns(
    calls: dict[str, Callable[[], float]],
    rounds: int,
    progress: Progress,
    *,
    until: float | None = None,
    least: int = 2,
) -> dict[str, Any]:
    """Seconds that each arm's calls return, [rounds].

    ``until``: a time of ``time.monotonic()`` after which no round begins, once there are ``least``.
    """
    order = np.random.default_rng(0)
    taken: dict[str, list[float]] = {arm: [] for arm in calls}
    for number in range(rounds):
        if until is not None and number >= least and time.monotonic() > until:
            break
        for arm in order.permutation(list(calls)):
            taken[arm].append(calls[arm]())
        progress.at(number + 1, rounds)
    return {arm: np.array(own) for arm, own in taken.items()}
