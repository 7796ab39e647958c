"""Lightning, as `lightning` or `pytorch_lightning`: a callback condenses the training set of an unchanged
LightningModule."""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections.abc import Mapping
from importlib import import_module, util
from typing import Any

import torch
from torch.utils.data import DataLoader

from kcd_core import CondensationSchedule, CondensedLoader, wrap_loader
from kcd_core.base.arguments import check_kind
from kcd_core.rules import resolve_select, schedule_of
from kcd_core.unused import check_used

from .lightning_loader import (
    TrainLoader,
    check_counts,
    check_lengths,
    check_resumable,
    check_trainer,
    estimate_exactly,
    lengths,
    processed,
    read_length_anew,
    stand_in,
    step_is_over,
)
from .lightning_student import called_twice, logits_of, not_called, returned, submodule

__all__ = ["KCDCallback"]

# The two packages are copies of one another, and each knows its own classes alone: a callback for both is one of both.
PACKAGES = [name for name in ("lightning", "pytorch_lightning") if util.find_spec(name)] or ["lightning"]
BASES = tuple(import_module({"lightning": "lightning.pytorch"}.get(name, name)).Callback for name in PACKAGES)
Callback: Any = type("Callback", BASES, {})

SETTINGS = inspect.signature(wrap_loader).parameters.keys() - {
    *("loader", "schedule", "return_index", "num_replicas", "rank")
}
RECORDED = ("student_logits", "values", "teacher_logits", "targets")


class KCDCallback(Callback):
    """Trains on the condensed set: ``Trainer(callbacks=[KCDCallback(schedule=..., student="student")])``.

    The LightningModule and the DataModule stay as they are, with an ordinary ``train_dataloader()``. The callback
    wraps the loader that it returns, records the student's output in ``training_step``, and ends the stages.
    Checkpoints hold its state. At the end of each epoch it logs ``kcd/kept``, the number of samples of the next
    epoch; ``kcd/cut``, the ranking score of the lowest-ranked one, once a stage has ended; and ``kcd/saved``, the
    share of batches saved so far.

    Parameters
    ----------
    schedule : CondensationSchedule or None
        None is for ``ask`` alone, or for a ``select`` that has its own schedule.
    student : str, optional
        The LightningModule's submodule whose output is recorded, as ``get_submodule`` names it: logits [B, C] of the
        whole batch, called once in a step with gradients.
    outputs : str or dict, optional
        Instead of ``student``: the key under which ``training_step`` returns the student's logits,
        ``outputs="logits"``; or the keys of several arguments of `CondensedLoader.record`,
        ``outputs={"student_logits": "logits", "teacher_logits": "soft"}``.
    **settings
        Those of `wrap_loader`, except ``return_index``, and ``num_replicas`` and ``rank``, which Lightning gives. In
        ``training_step``, the rows to ask the teacher for with ``ask`` are
        ``self.trainer.train_dataloader.asked_rows``, and the factors for losses, if the set has sample weights, are
        its ``sample_weights``.

    Attributes
    ----------
    loader : CondensedLoader or None
        The loader of the current or last ``fit``.

    Raises
    ------
    TypeError, ValueError
        If a setting is unknown, or would not be used; or if not exactly one of ``student`` and ``outputs`` is given. At
        ``fit``, before the first step: also what `wrap_loader` raises; several train loaders;
        ``reload_dataloaders_every_n_epochs``; a missing student; or if ``val_check_interval`` or
        ``limit_train_batches`` will not suit a later, shorter epoch.
    RuntimeError
        At ``fit``, if a checkpoint without the callback's state is resumed. In the first step, if the student is
        called twice or, with automatic optimization, not at all. A step of manual optimization may record nothing; an
        epoch of such steps gets a warning at its end.
    """

    def __init__(
        self,
        schedule: CondensationSchedule | None,
        *,
        student: str | None = None,
        outputs: str | Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        own = schedule_of(resolve_select(settings.get("select")), schedule)
        if own is not None or settings.get("ask") is None:
            check_kind(own, "schedule", CondensationSchedule)
        if (student is None) == (outputs is None):
            raise TypeError(
                "give KCDCallback either student=, the name of a submodule, or outputs=, what training_step returns its "
                f"logits under, got student={student!r} and outputs={outputs!r}"
            )
        if outputs is not None:
            outputs = {"student_logits": outputs} if isinstance(outputs, str) else dict(outputs)
            if unknown := set(outputs) - set(RECORDED):
                raise ValueError(f"outputs names arguments of record(), {RECORDED}, got {sorted(unknown)}")
        if unknown := settings.keys() - SETTINGS:
            raise TypeError(f"KCDCallback takes no {sorted(unknown)}; of wrap_loader's: {sorted(SETTINGS)}")
        check_used(settings, stages=own is not None)
        self.schedule, self.student, self.outputs, self.settings = schedule, student, outputs, settings
        self.loader: CondensedLoader[Any] | None = None
        self._saved: Any = None
        self._view: TrainLoader | None = None
        self._undo: list[Any] = []  # what takes back, at fit()'s end, what was put into the trainer
        self._trainer: Any = None  # a weak reference to the present one, or the last
        self._begun = self._in_step = self._called = self._again = False
        self._logits: torch.Tensor | None = None  # the student's, until the step has ended well

    # -- the loader --------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Stand in for the trainer's source of the train loader; ask what can be asked before there is one."""
        if stage != "fit":
            return
        self._release()
        before, self.loader, self._view, self._saved = self.loader, None, None, None
        former, self._trainer = self._trainer, weakref.ref(trainer)
        if trainer.overfit_batches > 0:
            warnings.warn(
                "overfit_batches trains on the same batches in every epoch: KCDCallback stands aside, and drops none of them",
                UserWarning,
                stacklevel=2,
            )
            return
        check_trainer(trainer)
        # A trainer that continues in another fit() continues here; a new one begins anew, or brings a checkpoint.
        same = former is not None and former() is trainer
        self._again = same and trainer.fit_loop.epoch_progress.current.processed > 0
        if before is not None and self._again:
            self._saved = before.gather_state_dict()
        self._begun = False
        self._undo.append(stand_in(trainer, self._train_loader))
        self._undo.append(estimate_exactly(trainer, lambda: self.loader))

    def _train_loader(self, trainer: Any, request: Any) -> Any:
        """What Lightning gets for its train loader; until training begins, a tuner may ask for another."""
        if self._view is None or not self._begun:
            users = request()
            if not isinstance(users, DataLoader):
                raise TypeError(
                    f"KCDCallback condenses one train DataLoader, got a {type(users).__name__}: return the loader alone, and "
                    "not wrapped by wrap_loader(). Of several train loaders, or none of torch's, write a loop by hand"
                )
            loader = wrap_loader(processed(trainer, users), schedule=self.schedule, **self.settings)
            if self._saved is not None:
                loader.load_state_dict(self._saved)
            check_lengths(trainer, loader)
            self.loader, self._view = loader, TrainLoader(loader)
        return self._view

    # -- recording ---------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Watch the student, which is there by now, and in the form in which it is trained."""
        if self.student is None or not self._undo:
            return
        student = submodule(pl_module, self.student)
        watch = torch.compiler.disable(self._on_forward)  # type: ignore[no-untyped-call]
        self._undo.append(student.register_forward_hook(watch).remove)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """From now on, what the student says is of this batch."""
        self._in_step, self._called, self._logits = True, False, None

    def _on_forward(self, module: Any, args: Any, output: Any) -> None:
        # Evaluation, teachers that share the student, and tuners, which put this callback aside, are not recorded.
        if not (self._in_step and torch.is_grad_enabled()) or self.loader is None:
            return
        if self._called:
            raise called_twice(self.student)
        # Recorded once the step has ended well, since one that fails is done again; a loss may change them in place by then.
        self._logits, self._called = logits_of(output, self.student).detach().clone(), True

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record what the student said, or what ``training_step`` returned; a step that returned None was skipped."""
        if self.loader is None:
            return
        if self.outputs is not None and outputs:
            outputs = returned(outputs, self.outputs.values())
            self.loader.record(**{name: outputs[key] for name, key in self.outputs.items()})
        elif self.outputs is None and outputs and pl_module.automatic_optimization and not self._called:
            raise not_called(self.student)
        self._finish()

    def _finish(self) -> None:
        """The batch is done: record what is to be recorded still; if nothing is, no resumed run draws it again."""
        assert self.loader is not None
        logits, self._logits = self._logits, None
        if logits is None:
            self.loader.skip()
        else:
            self.loader.record(logits)
        self._in_step = False

    # -- epochs ------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Be in the epoch that Lightning is in."""
        if self.loader is None:
            return
        self._begun = True
        if self._again and self.loader.batches_done and self.loader.epoch == trainer.current_epoch + 1:
            # The fit() before failed within the epoch. Without a checkpoint, Lightning begins that anew, as is warned of.
            self.loader.load_state_dict([{**state, "position": 0} for state in self._saved])
        if self._saved is not None:
            check_resumable(trainer, self.loader, len(self._saved))
        loop = trainer.fit_loop
        if self.loader.epoch <= trainer.current_epoch and self.loader.batches_done:
            # Saved on an epoch's last batch, or stopped within it: Lightning counts it as done.
            self._end_epoch(trainer)
            loop.reset_restart_stage()  # and would not say that the next one starts
        elif self.loader.epoch > trainer.current_epoch + 1:
            # Saved at an epoch's end: with max_steps, Lightning would end it again, by the length that it has no more.
            loop.epoch_progress.increment_completed()
            loop.reset_restart_stage()
            loop.epoch_loop.restarting = False
        if self.loader.epoch <= trainer.current_epoch:
            raise RuntimeError(
                f"Lightning continues with epoch {trainer.current_epoch + 1}, and the condensed loader with {self.loader.epoch}: "
                "epochs were trained without this KCDCallback. Begin a run of its own, with a new Trainer"
            )

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """End the epoch, if it is whole: one that max_steps cut off continues when the run is resumed."""
        if self.loader is None:
            return
        self._in_step = False
        cut_off = trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step
        if self.loader.batches_done and (trainer.is_last_batch or not cut_off):
            check_counts(trainer, self.loader)
            self._end_epoch(trainer)
        drawn = lengths(trainer, self.loader, self.loader.epoch - 1)
        told = {
            "kcd/kept": self.loader.sampler.num_kept,
            "kcd/saved": 1 - sum(drawn) / (sum(drawn[:1]) * len(drawn) or 1),
        }
        if len(self.loader.history) and (cut := self.loader.history[-1]["cut"]) is not None:
            told["kcd/cut"] = cut
        for name, value in told.items():
            self.log(name, float(value), sync_dist=True)

    def _end_epoch(self, trainer: Any) -> None:
        assert self.loader is not None
        if self.loader.end_epoch() is not None:
            read_length_anew(trainer)

    # -- state -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The states of all ranks, of which each calls this, and the first writes the file."""
        if self.loader is None:  # tuners save before anything is drawn
            return {"ranks": []} if self._undo else {}
        if self._in_step and step_is_over(self._trainer()):
            if self.outputs is not None:
                raise RuntimeError(
                    "a checkpoint is saved in on_train_batch_end, by a callback before KCDCallback, which has not recorded "
                    "this batch yet: put KCDCallback before it in Trainer(callbacks=[...])"
                )
            self._finish()
        return {"ranks": self.loader.gather_state_dict()}

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that does not say where to resume."""
        if self._undo and self.state_key not in checkpoint["callbacks"]:
            raise RuntimeError(
                "the checkpoint was saved without a KCDCallback, so that nothing says which samples come next: load its "
                "weights alone, and call fit() without ckpt_path"
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume there once the loader is made. Testing a checkpoint changes nothing."""
        if self._undo:
            self._saved, self._again = state_dict["ranks"] or None, False
            if self.loader is not None and self._saved is not None:  # some strategies load late
                self.loader.load_state_dict(self._saved)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave trainer and student as they were."""
        if stage == "fit":
            self._release()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave trainer and student as they were. A batch whose step is over is done, which may be saved next."""
        if self._in_step and self.loader is not None and step_is_over(trainer):
            self._finish()
        self._release()

    def _release(self) -> None:
        while self._undo:
            self._undo.pop()()
        self._in_step, self._logits = False, None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_trainer": None}
