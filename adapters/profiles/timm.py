"""timm (huggingface/pytorch-image-models), its own ``train.py``: logit, feature and token distillation.

Every task, whatever it distils, returns the student's logits as ``output``. The prefetcher is timm's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .options import Options
from .profile import Profile, Running
from .teacher import Loss, Pair, Teacher

__all__ = ["PROFILE"]


#: Options that are refused where they are on, and why.
MIXES = (
    "images are mixed, and the value of a mixture is that of neither sample: leave out --mixup and --cutmix"
)
NUMBERS = {
    "mixup": MIXES,
    "cutmix": MIXES,
    "aug-repeats": "samples are drawn several times in an epoch: leave out --aug-repeats",
    "aug-splits": "a batch has several rows for each sample: leave out --aug-splits",
}
FLAGS = {
    "use-multi-epochs-loader": "the next epoch would begin before its set is chosen: leave out --use-multi-epochs-loader",
    "naflex-loader": "its batches are made in the data set, of no fixed size: leave out --naflex-loader",
    "model-ema-warmup": "the count of updates it goes by goes back when epochs get shorter: leave out --model-ema-warmup",
}
STREAMS = ("tfds", "wds", "hfids")


def refuse(arguments: Sequence[str]) -> str | None:
    options = Options(arguments)
    refused = [why for name, why in NUMBERS.items() if options.number(name)]
    refused += [why for name, why in FLAGS.items() if options.flag(name)]
    if options.text("cutmix-minmax"):
        refused.append(MIXES)
    if options.text("train-img-sizes"):
        refused.append("its batch sampler is its own: leave out --train-img-sizes")
    if options.text("dataset").partition("/")[0] in STREAMS:
        refused.append("its data set is a stream, from which nothing can be chosen by index")
    return refused[0] if refused else None


def method(arguments: Sequence[str]) -> str:
    options = Options(arguments)
    if not options.text("kd-model-name"):
        return "without a teacher"
    return f"{options.text('kd-distill-type', default='logit')} distillation"


def unaskable(arguments: Sequence[str]) -> str | None:
    """Why the teacher's logits are not all that a task uses of it; None if they are."""
    options = Options(arguments)
    kind = options.text("kd-distill-type", default="logit")
    if not options.text("kd-model-name"):
        return "there is no teacher without --kd-model-name"
    weight, smoothing = (
        options.text("task-loss-weight", default="1"),
        options.text("smoothing", default="0.1"),
    )
    if float(weight) != 1 and float(smoothing):
        return "with --task-loss-weight, the labels must not be smoothed: add --smoothing 0"
    return None if kind == "logit" else f"it is for logit distillation, and this is {kind} distillation"


def pair(task: Any, *_: Any, **__: Any) -> Pair:
    loss = Loss(task.task_loss_weight, task.distill_loss_weight, task.temperature)
    # Not what timm wraps the teacher in, which it leaves in training mode.
    return Pair(task.trainable_module, task.teacher.model, loss)


def epochs(arguments: Sequence[str]) -> int | None:
    options = Options(arguments)
    given = options.text("epochs", default="300")
    return int(given) + int(options.number("cooldown-epochs")) if given.isdecimal() else None


def prediction(
    result: Any, task: Any, images: Any = None, target: Any = None, **named: Any
) -> tuple[Any, Any]:
    return (result.get("output") if isinstance(result, dict) else None), named.get("target", target)


def prepare(running: Running) -> None:
    accumulate = max(1, int(Options(running.arguments).number("grad-accum-steps")))

    def made(result: Any, *_: Any, updates_per_epoch: int = 0, **__: Any) -> None:
        """A learning rate by the update goes by the share of the epoch that is done, since epochs get shorter.

        The script counts ``epoch * updates + done`` with this epoch's updates, and the scheduler takes that for
        updates of the first epoch's length: with each stage it would go back.
        """
        scheduler = result[0]
        if scheduler is None or scheduler.t_in_epochs or not updates_per_epoch:
            return
        step_update = scheduler.step_update

        def by_epochs(num_updates: int, *args: Any, **named: Any) -> None:
            batches = running.batches()
            updates = updates_per_epoch if batches is None else -(-batches // accumulate)
            step_update(round(num_updates * updates_per_epoch / updates), *args, **named)

        scheduler.step_update = by_epochs
        running.say(
            "--sched-on-updates: within an epoch, the learning rate goes by the share of its updates that is done"
        )

    running.after_call("timm.scheduler.create_scheduler_v2", made)


def saved(_: Any, saver: Any, epoch: int, *__: Any, **___: Any) -> Iterator[tuple[Any, Path]]:
    """The files that `CheckpointSaver.save_checkpoint` has just written, which are of one content."""
    names = ["last", f"{saver.save_prefix}-{epoch}", *(["model_best"] if saver.best_epoch == epoch else [])]
    for name in names:
        path = Path(saver.checkpoint_dir, name + saver.extension)
        if path.is_file():
            yield WITH_OPTIMIZER, path


def loaded(_: Any, task: Any, path: Any, **__: Any) -> tuple[Any, Any]:
    return WITH_OPTIMIZER, path


WITH_OPTIMIZER = {
    "optimizer": None
}  # a checkpoint to resume from: what is in it besides is nobody's business here

OBSERVED = "timm.task.task:TrainingTask.__call__"

PROFILE = Profile(
    name="timm",
    title="timm",
    covers="train.py: training with and without a teacher, logit, feature and token distillation",
    script="train.py",
    marks=("validate.py", "timm/task/distillation.py", "timm/data/loader.py"),
    observe=OBSERVED,
    method=method,
    prediction=prediction,
    returned=True,
    checkpoint=(
        "timm.utils.checkpoint_saver:CheckpointSaver.save_checkpoint",
        "timm.task.resume_task_checkpoint",
    ),
    saved=saved,
    loaded=loaded,
    refuse=refuse,
    epochs=epochs,
    plans=True,
    paces=True,
    prepare=prepare,
    teacher=Teacher(
        OBSERVED,
        pair,
        unaskable,
        same_images=False,  # its prefetcher makes them of the loader's, and the teacher may have other statistics
    ),
)
