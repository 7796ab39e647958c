"""Hugging Face's Trainer: a mixin that gives it the condensed loader, exact step counts, and KCD's state in checkpoints."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, IterableDataset
from transformers import TrainerCallback

from kcd_core import CondensationSchedule, load_checkpoint, save_checkpoint
from kcd_core.base.arguments import check_kind
from kcd_core.rules import resolve_select, schedule_of
from kcd_core.unused import check_used

from .accelerate import AcceleratedLoader, prepare
from .progress import StepsOfEpochs, last_epoch, metrics, samples_of, steps_left, updates
from .transformers_loader import INDICES, UNKNOWN, Batches

if TYPE_CHECKING:
    from transformers import Trainer as Base
else:
    Base = object  # a mixin of Trainer, and of what others make of it

__all__ = ["INDICES", "KCDTrainerMixin"]

FILE = "kcd.ckpt"  # in a checkpoint's folder
SETTINGS = (
    "value",
    "alpha",
    "min_weight",
    "mixing",
    "mixer",
    "mixing_cache",
    "select",
    "statistic",
    "on_nonfinite",
    "device",
    "seed",
)
NO_GATE = (
    "the Trainer draws the batches of an accumulation group before it trains on the first of them, and asked_rows are those of "
    "the last one drawn: ask= is for kcd_adapters.trainers.accelerate.prepare, in a loop of your own"
)
# What the Trainer calls and has no public hook for. A version without one of them is refused.
HOOKS = ("_inner_training_loop", "_prepare_inputs", "_save_rng_state", "set_initial_training_values")


class KCDTrainerMixin(Base):
    """Trains on the condensed set: ``class DistilTrainer(KCDTrainerMixin, Trainer)``, the mixin first.

    ``compute_loss`` must call ``self.kcd_record(logits)``. The mixin does the rest: it draws the samples, ends the
    epochs, sets ``max_steps``, and saves its state in checkpoints.

    Parameters
    ----------
    *args, **kwargs
        Of the Trainer.
    kcd_schedule : CondensationSchedule or None
        None is for a ``kcd_select`` that has its own schedule.
    kcd_value, kcd_statistic, kcd_alpha, kcd_min_weight, kcd_mixer, kcd_mixing_cache, kcd_select, kcd_on_nonfinite, kcd_device
        Of `wrap_loader`, under these names.
    kcd_mixing : {None, "auto", "cumulative", "fresh"}
        As for `wrap_loader`, but None by default. A Trainer's samples are dicts, which can only be mixed with a
        ``kcd_mixer`` that names the fields, ``functools.partial(mix_samples, fields=["pixel_values"])``. Text can't
        be mixed.
    kcd_seed : int, optional
        The seed of the samples' order. Default: ``args.data_seed``, else ``args.seed``.

    Attributes
    ----------
    kcd_loader : AcceleratedLoader or None
        The loader of the current or last training, with ``tracker``, ``history``, ``epoch`` and everything else of a
        `CondensedLoader`.

    Raises
    ------
    ValueError
        If a setting would not be used, such as ``kcd_mixer`` without ``kcd_mixing``.
    TypeError
        If there is no such setting (``ask`` is none), or the class after the mixin is not a Trainer.
    TypeError, ValueError
        By ``train()``, before the first step: what `kcd_adapters.trainers.accelerate.prepare` and `wrap_loader` refuse; a
        data set without a length; an order by length; tensor, context or sequence parallelism; an epoch without a
        batch; or a checkpoint that was saved without the mixin.

    Notes
    -----
    A resumed run continues at its place without fetching earlier batches again, so ``ignore_data_skip`` changes
    nothing. Subclasses may override `kcd_wrap` and `kcd_record`, and use `kcd_indices` in ``compute_loss``.
    """

    kcd_loader: AcceleratedLoader | None = None
    kcd_indices: Any = (
        None  # within a training step's compute_loss: int64 [B], of its batch; -1 for what only pads
    )
    _kcd_owed: bool | None = None  # within a training step: whether its batch is to be recorded still
    _kcd_predicts = False  # within a prediction step, also one in a training step
    _kcd_checkpoint: str | None = None

    def __init__(self, *args: Any, kcd_schedule: CondensationSchedule | None, **kwargs: Any) -> None:
        own = schedule_of(resolve_select(kwargs.get("kcd_select")), kcd_schedule)
        check_kind(own, "kcd_schedule", CondensationSchedule)
        if own is not None and own.free:
            whose = ", which is kcd_select's own," * (kcd_schedule is None)
            raise ValueError(
                f"kcd_schedule must say how many samples are kept, and {own!r}{whose} leaves that to select: the Trainer "
                "counts all its steps before the first. Use a CondensationSchedule and a select that keeps its sizes, or a loop "
                "of your own"
            )
        given = {name[4:]: kwargs.pop(name) for name in list(kwargs) if name.startswith("kcd_")}
        if given.keys() & {"ask", "ask_multiple"}:
            raise TypeError(f"KCDTrainerMixin takes no kcd_ask: {NO_GATE}")
        for name in given.keys() - set(SETTINGS):
            raise TypeError(f"there is no kcd_{name}, but kcd_schedule and kcd_{', kcd_'.join(SETTINGS)}")
        given = {"mixing": None, **given}
        check_used(given, named="kcd_{}")
        after = super()
        if missing := [hook for hook in HOOKS if not hasattr(after, hook)]:
            raise TypeError(
                f"what comes after KCDTrainerMixin in {type(self).__name__} must be a Trainer of transformers 4.57 or 5, as in "
                f"class DistilTrainer(KCDTrainerMixin, Trainer): it has no {missing[0]}"
            )
        self._kcd_settings = {"schedule": kcd_schedule, **given}
        super().__init__(*args, **kwargs)
        # The first of all: others find the epoch ended, and its log is none of those that are due at the epoch's end.
        self.callback_handler.callbacks.insert(0, _Epochs(self))

    # -- for the loss ------------------------------------------------------------------------------

    def kcd_record(self, student_logits: Any = None, **others: Any) -> None:
        """E-step: record the values of the training batch. In evaluation and prediction, nothing is recorded.

        Parameters
        ----------
        student_logits : floating tensor [B, C]
            The student's for the whole batch.
        **others
            ``values``, ``teacher_logits``, ``targets``: see `CondensedLoader.record`.

        Raises
        ------
        RuntimeError
            If it is called twice for a batch, for a batch that the loader didn't draw, as from a replay buffer, or in
            a training step that is not the mixin's.
        ValueError, TypeError
            As `CondensedLoader.record` does.
        """
        if self._kcd_predicts:
            return
        if self._kcd_owed is None:
            if self.is_in_train and self.model.training:
                raise RuntimeError(
                    f"KCDTrainerMixin doesn't see this training step: training_step() of {type(self).__name__} must call "
                    "super().training_step(), or be that of a class after the mixin"
                )
            return
        if not self._kcd_owed:
            raise RuntimeError("kcd_record() was called twice for one batch: call it once in compute_loss()")
        if self.kcd_indices is None:
            raise RuntimeError(
                f"the batch of this step has no {INDICES!r}, so the training loader did not draw it (a replay buffer?), or "
                "something on the way made another batch of it: leave that entry in"
            )
        assert self.kcd_loader is not None
        self.kcd_loader.record(student_logits, indices=self.kcd_indices, **others)
        self._kcd_owed = False

    def kcd_wrap(self, loader: DataLoader[Any]) -> AcceleratedLoader:
        """The condensed loader of the one that the Trainer made; with ``return_index``."""
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return prepare(self.accelerator, loader, return_index=True, **{"seed": seed, **self._kcd_settings})

    # -- what the Trainer calls --------------------------------------------------------------------

    def _inner_training_loop(
        self, batch_size: Any = None, args: Any = None, resume_from_checkpoint: Any = None, **others: Any
    ) -> Any:
        # The one place that knows, before the loader is asked for, whether a run begins, and where.
        self.kcd_loader, self._kcd_checkpoint = None, resume_from_checkpoint
        return super()._inner_training_loop(
            batch_size, args=args, resume_from_checkpoint=resume_from_checkpoint, **others
        )

    def get_train_dataloader(self) -> Any:
        """The condensed loader, as the Trainer reads it: one in each training."""
        if self.kcd_loader is None:
            _check(self)
            loader = self.kcd_wrap(super().get_train_dataloader())
            if loader.gate is not None:
                raise TypeError(f"kcd_wrap() of {type(self).__name__} made a loader with ask=: {NO_GATE}")
            self._kcd_steps_done, self._kcd_ended = 0, False
            if self._kcd_checkpoint is not None:
                saved = _read(self._kcd_checkpoint)
                loader.load_state_dict(saved["loader"])
                self._kcd_steps_done = saved["global_step"]
                self._kcd_ended = loader.batches_done == len(loader)
                if self._kcd_ended:  # saved in the last step of an epoch
                    loader.end_epoch()
            self.kcd_loader, self._kcd_begin = loader, (loader.epoch, loader.batches_done)
        return Batches(self.kcd_loader, *self._kcd_begin)

    def set_initial_training_values(self, args: Any, dataloader: Any, *others: Any) -> Any:
        """Epochs and steps of a run whose epochs differ in length."""
        if not isinstance(dataloader, Batches):
            raise TypeError(
                f"get_train_dataloader() of {type(self).__name__} hides the mixin's: override it in a class after the mixin, "
                "`class Base(Trainer)` and `class DistilTrainer(KCDTrainerMixin, Base)`"
            )
        # Both versions begin with these four, and end with max_steps.
        epochs, steps, examples, samples, *rest, max_steps = super().set_initial_training_values(
            args, dataloader, *others
        )
        loader, accumulate, done = self.kcd_loader, args.gradient_accumulation_steps, self._kcd_steps_done
        assert loader is not None
        if epochs and args.max_steps <= 0:
            max_steps = done + steps_left(loader, args.num_train_epochs, accumulate)
            samples = samples_of(loader, args.num_train_epochs)
        epochs = last_epoch(loader, max_steps - done, accumulate)
        if self._kcd_checkpoint is not None:
            steps = StepsOfEpochs(steps, loader.epoch - 1)
        return epochs, steps, examples, samples, *rest, max_steps

    def _run_epoch(self, **settings: Any) -> Any:  # 4.57 has none, and reads the length itself
        batches = len(settings["train_dataloader"])
        steps = updates(batches, self.args.gradient_accumulation_steps)
        own = {"steps_in_epoch": batches, "num_update_steps_per_epoch": steps}
        return super()._run_epoch(**(settings | own))

    def training_step(self, model: Any, inputs: Any, *others: Any, **settings: Any) -> Any:
        """One step, whose batch `kcd_record` is about. If that was not called, there is nothing to record."""
        drawn = inputs.get(INDICES) if isinstance(inputs, Mapping) else None
        self._kcd_owed = True
        try:
            loss = super().training_step(model, inputs, *others, **settings)
            if self._kcd_owed and self.kcd_loader is not None and drawn is not None:
                self.kcd_loader.skip(indices=drawn)
            return loss
        finally:
            self.kcd_indices = self._kcd_owed = None

    def prediction_step(self, *args: Any, **settings: Any) -> Any:
        """The Trainer's. Nothing in it is recorded, also where ``compute_loss`` evaluates."""
        before = self.kcd_indices, self._kcd_predicts
        self.kcd_indices, self._kcd_predicts = None, True
        try:
            return super().prediction_step(*args, **settings)
        finally:
            self.kcd_indices, self._kcd_predicts = before

    def _prepare_inputs(self, inputs: Any) -> Any:
        # It sees the batch that compute_loss() is given, which may be another than training_step() was given, as from a
        # replay buffer: its own indices come with it, or none. What else a step prepares (a teacher's inputs) has none.
        if self._kcd_owed is not None and isinstance(inputs, Mapping) and INDICES in inputs:
            inputs = copy.copy(inputs)
            self.kcd_indices = inputs.pop(INDICES)
        return super()._prepare_inputs(inputs)

    def _save_rng_state(self, output_dir: str) -> None:
        # Called on every rank, for what can be resumed, before the checkpoint is announced, pushed or rotated.
        # on_save() comes after all that, and does not say where the checkpoint is.
        super()._save_rng_state(output_dir)
        if self.kcd_loader is not None:
            state = {"global_step": self.state.global_step, "loader": self.kcd_loader.gather_state_dict()}
            if self.args.should_save:
                save_checkpoint(os.path.join(output_dir, FILE), state)


class _Epochs(TrainerCallback):
    """Ends the epochs, and says what came of it."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._expected = 0  # steps at the epoch's end

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self._trainer._kcd_ended:
            self._trainer.log(metrics(self._trainer.kcd_loader))

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        batches = len(others["train_dataloader"])
        self._expected = state.global_step + updates(batches, args.gradient_accumulation_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        # In an epoch that was resumed, the Trainer counts what is left of it.
        loader = self._trainer.kcd_loader
        state.epoch = loader.epoch - 1 + loader.batches_done / len(loader)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        loader = self._trainer.kcd_loader
        complete = loader.batches_done == len(loader)
        if complete and state.global_step != self._expected:
            raise RuntimeError(
                f"the Trainer is at step {state.global_step} at the end of epoch {loader.epoch}, where step "
                f"{self._expected} is due{UNKNOWN}"
            )
        if complete or not control.should_training_stop:
            loader.end_epoch()
            self._trainer.log(metrics(loader))


def _check(trainer: Any) -> None:
    """ValueError or TypeError for what `prepare` can't see."""
    args, dataset = trainer.args, trainer.train_dataset
    if isinstance(dataset, IterableDataset) or (dataset is not None and not hasattr(dataset, "__len__")):
        raise TypeError(
            "train_dataset has no indices to choose from, since it has no length: give one that has (in datasets, "
            "load_dataset() without streaming=True), or train on a kcd_core.CondensedStream, which needs ids in place of "
            "indices, in a loop of your own (docs/streams.md in the repository)"
        )
    strategy = getattr(args, "train_sampling_strategy", "random")
    if getattr(args, "group_by_length", False) or strategy not in ("random", "sequential"):
        raise ValueError(
            "an order by length (group_by_length, or another train_sampling_strategy than 'random' and 'sequential') is not "
            "supported: the condensed set comes in an order of its own"
        )
    if getattr(args, "include_tokens_per_second", False):
        raise ValueError(
            "include_tokens_per_second takes the tokens of the first epoch for those of every epoch: leave it out; "
            "include_num_input_tokens_seen counts them"
        )
    for name in ("tp_size", "cp_size", "sp_size"):
        if getattr(trainer, f"get_{name}", lambda: 1)() > 1:
            raise ValueError(
                f"{name} of more than 1 is not supported: each rank must hold a replica of the model, or a shard of it (data "
                "parallelism, FSDP), and draw batches of its own"
            )


def _read(checkpoint: str) -> Any:
    path = os.path.join(checkpoint, FILE)
    if not os.path.isfile(path):
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint!r} has no {FILE}, so it was saved without KCDTrainerMixin, or with "
            "save_only_model: start anew, or from a checkpoint that has one"
        )
    return load_checkpoint(path)
