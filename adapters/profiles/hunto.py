"""hunto/image_classification_sota, the code of DIST and DiffKD: KD, DIST and DiffKD in one script.

Its loss calls the student and its own cross-entropy, or one with smoothed labels, with the student's prediction: of all
its methods, once for every batch. What it distils is taken by hooks and is nowhere an argument. Its prefetcher is its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .options import Options
from .profile import Profile, Running

__all__ = ["PROFILE"]

SMOOTHED = "lib.models.losses.cross_entropy:CrossEntropyLabelSmooth.forward"
PLAIN = "torch.nn.functional.cross_entropy"
MIXES = (
    "images are mixed, and the value of a mixture is that of neither sample: leave out --mixup and --cutmix"
)


def refuse(arguments: Sequence[str]) -> str | None:
    options = Options(arguments)
    if options.number("mixup") or options.number("cutmix") or options.text("cutmix-minmax"):
        return MIXES
    if options.flag("dyrep"):
        return "DyRep exchanges the student's parameters while it trains: leave out --dyrep"
    return None


def method(arguments: Sequence[str]) -> str:
    return Options(arguments).text("kd") or "without a teacher"


def epochs(arguments: Sequence[str]) -> int | None:
    return int(Options(arguments).number("epochs")) or 200


def prediction(loss: Any, logits: Any = None, targets: Any = None) -> tuple[Any, Any]:
    return logits, targets


def prepare(running: Running) -> None:
    def made(scheduler: Any, *_: Any, steps_per_epoch: int = 1, **__: Any) -> None:
        """A learning rate by the step: the script counts ``epoch * steps + done``, and epochs get shorter."""
        step = scheduler.step

        def by_epochs(done: int | None = None, *args: Any, **named: Any) -> None:
            batches = running.batches()
            if done is not None and batches:
                done = round(done * steps_per_epoch / batches)
            step(done, *args, **named)

        scheduler.step = by_epochs

    running.after_call("lib.utils.scheduler.build_scheduler", made)


PROFILE = Profile(
    name="hunto",
    title="image_classification_sota",
    covers="tools/train.py: KD, DIST, DiffKD, and training without a teacher",
    script="tools/train.py",
    marks=("lib/models/losses/kd_loss.py", "lib/dataset/dataloader.py", "lib/utils/scheduler.py"),
    observe=(SMOOTHED, PLAIN),
    prediction={SMOOTHED: prediction},
    method=method,
    refuse=refuse,
    epochs=epochs,
    paces=True,
    prepare=prepare,
)
