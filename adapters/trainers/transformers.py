"""Hugging Face's Trainer: a mixin that gives it the condensed loader, exact step counts, and KCD's state in checkpoints."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator, MutableMapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset
from transformers import TrainerCallback

from kcd_core import CondensationSchedule, load_checkpoint, save_checkpoint
from kcd_core.base.arguments import check_kind

from .accelerate import AcceleratedLoader, prepare

__all__ = ["KCDTrainerMixin"]

INDICES = "kcd_indices"  # of a batch's rows: its key on the way from the loader to the training step
FILE = "kcd.ckpt"  # in a checkpoint's folder
SETTINGS = ("value", "alpha", "min_weight", "mixing", "mixer", "select", "on_nonfinite", "device", "seed")
# What the Trainer calls and has no public hook for. A version without one of them is refused.
HOOKS = ("_inner_training_loop", "_prepare_inputs", "_save_rng_state", "set_initial_training_values")


class KCDTrainerMixin:
    """Trains on the condensed set: ``class DistilTrainer(KCDTrainerMixin, Trainer)``, the mixin first.

    ``compute_loss`` calls ``self.kcd_record(logits)``; all else is the mixin's: which samples are drawn, when an epoch
    ends, ``max_steps``, and what a checkpoint holds.

    Parameters
    ----------
    *args, **kwargs
        Of the Trainer.
    kcd_schedule : CondensationSchedule
    kcd_value, kcd_alpha, kcd_min_weight, kcd_mixer, kcd_select, kcd_on_nonfinite, kcd_device
        Of `wrap_loader`, under these names.
    kcd_mixing : {None, "cumulative", "fresh"}
        Of `wrap_loader`, but None by default: a Trainer's samples are dicts, which are only mixed with a ``kcd_mixer`` that
        says which of their fields, ``functools.partial(mix_samples, fields=["pixel_values"])``; text can't be mixed.
    kcd_seed : int, optional
        Of the order of the samples. Default: ``args.data_seed``, else ``args.seed``.

    Attributes
    ----------
    kcd_loader : AcceleratedLoader or None
        Of the training under way, or the last one: ``tracker``, ``history``, ``epoch`` and all else of a
        `CondensedLoader`.

    Raises
    ------
    TypeError
        If a ``kcd_`` setting has another name, or ``kcd_schedule`` is no CondensationSchedule; if the class after the mixin is no
        Trainer of a version whose steps per epoch can be set.
    ValueError, TypeError
        By ``train()``, before the first step: what `kcd_adapters.trainers.accelerate.prepare` refuses.

    Notes
    -----
    Subclasses may override `kcd_wrap`, which makes the condensed loader of the Trainer's, and `kcd_record`. They have
    `kcd_indices` within a training step.
    """

    kcd_loader: AcceleratedLoader | None = None
    kcd_indices: Any = None  # within a training step: int64 [B], of its batch; -1 for what only pads
    _kcd_owed: bool | None = None  # within one: whether it is to be recorded still
    _kcd_checkpoint: str | None = None

    def __init__(self, *args: Any, kcd_schedule: CondensationSchedule, **kwargs: Any) -> None:
        check_kind(kcd_schedule, "kcd_schedule", CondensationSchedule)
        given = {name[4:]: kwargs.pop(name) for name in list(kwargs) if name.startswith("kcd_")}
        if unknown := sorted(given.keys() - set(SETTINGS)):
            raise TypeError(
                f"kcd_{unknown[0]} is no setting; there are {', '.join(f'kcd_{name}' for name in ('schedule', *SETTINGS))}"
            )
        after = super()
        missing = [hook for hook in HOOKS if not hasattr(after, hook)]
        if missing:
            raise TypeError(
                f"{type(self).__name__} must be a Trainer, `class {type(self).__name__}(KCDTrainerMixin, Trainer)`, of "
                f"transformers 4.57 or 5: {missing[0]} is missing"
            )
        self._kcd_settings = {"schedule": kcd_schedule, "mixing": None, **given}
        super().__init__(*args, **kwargs)
        # The first of all: others see the epoch ended, and what it logs does not count as the log that they ask for.
        self.callback_handler.callbacks.insert(0, _Epochs(self))  # type: ignore[attr-defined]

    # -- for the loss ------------------------------------------------------------------------------

    def kcd_record(self, student_logits: Any = None, **others: Any) -> None:
        """E-step: record the values of the batch that is trained on; in evaluation and prediction, nothing.

        Parameters
        ----------
        student_logits : floating tensor [B, C]
            The student's for the whole batch.
        **others
            ``values``, ``teacher_logits``, ``targets``: see `CondensedLoader.record`.

        Raises
        ------
        RuntimeError
            If the batch was recorded before; or if it is another than the loader drew, as from a replay buffer.
        ValueError, TypeError
            As `CondensedLoader.record` does.
        """
        if self._kcd_owed is None:
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
        """The condensed loader, of the one that the Trainer made; with ``return_index``."""
        args: Any = self.args  # type: ignore[attr-defined]
        settings = dict(self._kcd_settings)
        seed = settings.pop("seed", args.seed if args.data_seed is None else args.data_seed)
        return prepare(self.accelerator, loader, seed=seed, return_index=True, **settings)  # type: ignore[attr-defined]

    # -- what the Trainer calls --------------------------------------------------------------------

    def _inner_training_loop(
        self, batch_size: Any = None, args: Any = None, resume_from_checkpoint: Any = None, **others: Any
    ) -> Any:
        self.kcd_loader, self._kcd_checkpoint = None, resume_from_checkpoint
        return super()._inner_training_loop(  # type: ignore[misc]
            batch_size, args=args, resume_from_checkpoint=resume_from_checkpoint, **others
        )

    def get_train_dataloader(self) -> Any:
        """The condensed loader as the Trainer needs it; one for each training."""
        if self.kcd_loader is None:
            _check(self)
            loader = self.kcd_wrap(super().get_train_dataloader())  # type: ignore[misc]
            self._kcd_steps_done, self._kcd_ended = 0, False
            if self._kcd_checkpoint is not None:
                saved = _read(self._kcd_checkpoint)
                loader.load_state_dict(saved["loader"])
                self._kcd_steps_done = saved["global_step"]
                self._kcd_ended = loader.batches_done == len(loader)
                if self._kcd_ended:  # saved in the last step of an epoch
                    loader.end_epoch()
            self.kcd_loader, self._kcd_resumed = loader, (loader.epoch, loader.batches_done)
        return _Batches(self.kcd_loader, *self._kcd_resumed)

    def set_initial_training_values(self, args: Any, dataloader: Any, *others: Any) -> Any:
        """Of a run whose epochs differ in length."""
        if not isinstance(dataloader, _Batches):
            raise TypeError(
                f"{type(self).__name__}.get_train_dataloader() hides the mixin's: override it in a class after the mixin, "
                "`class Base(Trainer)` and `class DistilTrainer(KCDTrainerMixin, Base)`"
            )
        loader, accumulate, done = self.kcd_loader, args.gradient_accumulation_steps, self._kcd_steps_done
        assert loader is not None

        def left(epoch: int) -> int:
            batches = loader.steps(epoch) - (loader.batches_done if epoch == loader.epoch else 0)
            return int(-(-batches // accumulate))

        # Both versions begin with these four, and end with max_steps.
        _, steps, examples, samples, *rest, max_steps = super().set_initial_training_values(  # type: ignore[misc]
            args, dataloader, *others
        )
        if args.max_steps <= 0:
            last, sizes = math.ceil(args.num_train_epochs), loader.schedule.sizes
            of_last = loader.steps(last, accumulate=accumulate)
            cut_off = last * of_last - math.ceil(args.num_train_epochs * of_last)
            max_steps = done + max(0, sum(map(left, range(loader.epoch, last + 1))) - cut_off)
            *whole, part = sizes(loader.sampler.num_samples, last)
            samples = sum(whole) + part * (args.num_train_epochs - last + 1)
        epochs, reached = loader.epoch - 1, done
        while reached < max_steps:
            epochs += 1
            if not left(epochs):
                raise ValueError(
                    f"epoch {epochs} has no batch, and the Trainer would stop there: use a smaller batch, a higher ratio, or "
                    "dataloader_drop_last=False"
                )
            reached += left(epochs)
        if epochs:
            loader.total_steps(epochs)  # warns of a run that drops nothing
        if self._kcd_checkpoint is not None:
            steps = _GoesOn(steps, loader.epoch - 1)
        return epochs, steps, examples, samples, *rest, max_steps

    def _run_epoch(self, **settings: Any) -> Any:  # 4.57 has none, and reads the length itself
        batches = len(settings["train_dataloader"])
        accumulate = self.args.gradient_accumulation_steps  # type: ignore[attr-defined]
        settings |= {"steps_in_epoch": batches, "num_update_steps_per_epoch": -(-batches // accumulate)}
        return super()._run_epoch(**settings)  # type: ignore[misc]

    def training_step(self, model: Any, inputs: Any, *others: Any, **settings: Any) -> Any:
        """One step, whose batch `kcd_record` is about."""
        self._kcd_owed = True
        try:
            return super().training_step(model, inputs, *others, **settings)  # type: ignore[misc]
        finally:
            self.kcd_indices = self._kcd_owed = None

    def _prepare_inputs(self, inputs: Any) -> Any:
        # The last that sees the batch that compute_loss() is given, which may be another than training_step() was given,
        # as from a replay buffer: its own indices come with it, or none.
        if self._kcd_owed:
            inputs = copy.copy(inputs)
            self.kcd_indices = inputs.pop(INDICES, None)
        return super()._prepare_inputs(inputs)  # type: ignore[misc]

    def _save_rng_state(self, output_dir: str) -> None:
        # Called on every rank, for what can be resumed, before the checkpoint is announced, pushed or rotated.
        # on_save() comes after all that, and does not say where the checkpoint is.
        super()._save_rng_state(output_dir)  # type: ignore[misc]
        if self.kcd_loader is not None:
            state = {"global_step": self.state.global_step, "loader": self.kcd_loader.gather_state_dict()}  # type: ignore[attr-defined]
            if self.args.should_save:  # type: ignore[attr-defined]
                save_checkpoint(os.path.join(output_dir, FILE), state)


class _Batches:
    """The condensed loader as the Trainer reads it: what is left of an epoch, with the indices in the batches, since
    those of a whole accumulation group are drawn before the first of them is trained on."""

    def __init__(self, loader: AcceleratedLoader, resumed_epoch: int, batches_done: int) -> None:
        self._loader, self._resumed_epoch, self._batches_done = loader, resumed_epoch, batches_done

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __len__(self) -> int:
        resumed = self._loader.epoch == self._resumed_epoch
        return len(self._loader) - (self._batches_done if resumed else 0)

    def __iter__(self) -> Iterator[Any]:
        for indices, batch in self._loader:
            if not isinstance(batch, MutableMapping):
                raise TypeError(
                    f"the data collator must return dicts, which the batch's indices can travel in; got {type(batch).__name__}"
                )
            batch[INDICES] = indices
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """What the Trainer counts is compared, and changes nothing."""
        if epoch != self._loader.epoch - 1:
            raise RuntimeError(
                f"the Trainer begins epoch {epoch + 1}, and the condensed loader is in epoch {self._loader.epoch}: this "
                "version of transformers counts in a way that KCDTrainerMixin doesn't know"
            )


class _GoesOn(int):
    """Steps of an epoch, for a run that is resumed.

    The Trainer divides the steps that were done by those of one epoch, and takes the quotient for the epoch to go on in and
    the rest for what to skip of it. Epochs differ in length here, and the loader is at its place already.
    """

    _epochs_done: int

    def __new__(cls, steps: int, epochs_done: int) -> _GoesOn:
        made = super().__new__(cls, steps)
        made._epochs_done = epochs_done
        return made

    def __rfloordiv__(self, steps_done: int) -> int:
        return self._epochs_done

    def __rmod__(self, steps_done: int) -> int:
        return 0


class _Epochs(TrainerCallback):
    """Ends the epochs, and says what came of it."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._step_at_begin = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self._trainer._kcd_ended:
            self._log()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._step_at_begin = state.global_step
        self._steps = -(-len(self._trainer.get_train_dataloader()) // args.gradient_accumulation_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        loader = self._trainer.kcd_loader
        state.epoch = (
            loader.epoch - 1 + loader.batches_done / len(loader)
        )  # also in an epoch that was resumed

    def on_epoch_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        loader = self._trainer.kcd_loader
        complete = loader.batches_done == len(loader)
        if complete and state.global_step - self._step_at_begin != self._steps:
            raise RuntimeError(
                f"the Trainer took {state.global_step - self._step_at_begin} steps in an epoch of {self._steps}: this version of "
                "transformers counts in a way that KCDTrainerMixin doesn't know"
            )
        if complete or not control.should_training_stop:
            loader.end_epoch()
            self._log()

    def _log(self) -> None:
        loader = self._trainer.kcd_loader
        cut = loader.history[-1]["cut"] if len(loader.history) else None
        drawn = sum(loader.schedule.sizes(loader.sampler.num_samples, loader.epoch - 1))
        self._trainer.log(
            {
                "kcd/kept": loader.sampler.num_kept,
                **({} if cut is None else {"kcd/cut": cut}),
                "kcd/saved": 1 - drawn / (loader.sampler.num_samples * (loader.epoch - 1)),
            }
        )


def _check(trainer: Any) -> None:
    """ValueError or TypeError for what `prepare` can't see."""
    args, dataset = trainer.args, trainer.train_dataset
    if isinstance(dataset, IterableDataset) or (dataset is not None and not hasattr(dataset, "__len__")):
        raise TypeError(
            "train_dataset has no indices to choose from, since it has no length; CondensedStream goes by ids"
        )
    by_length = getattr(args, "group_by_length", False)
    strategy = "group_by_length" if by_length else getattr(args, "train_sampling_strategy", "random")
    if strategy not in ("random", "sequential"):
        raise ValueError(
            f"{strategy} orders the samples by their lengths, and the condensed set comes in an order of its own: leave "
            "it out, or use 'random' or 'sequential'"
        )
    if getattr(args, "include_tokens_per_second", False):
        raise ValueError(
            "include_tokens_per_second takes the tokens of the first epoch for those of every epoch: leave it out; "
            "include_num_input_tokens_seen counts them"
        )
    sizes = {f"{kind}_size": getattr(trainer, f"get_{kind}_size", lambda: 1)() for kind in ("tp", "cp", "sp")}
    if split := [name for name, size in sizes.items() if size > 1]:
        raise ValueError(
            f"{', '.join(split)} of more than 1 is not supported: each rank must hold a replica of the model, or a shard of "
            "it (data parallelism, FSDP), and draw batches of its own"
        )


def _read(checkpoint: str) -> Any:
    path = os.path.join(checkpoint, FILE)
    if not os.path.isfile(path):
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint!r} has no {FILE}, so it was saved without KCDTrainerMixin, or with "
            "save_only_model: start anew, or from a checkpoint that has one"
        )
    return load_checkpoint(path)
