"""Lightning, both as `lightning` and as `pytorch_lightning`: one callback condenses what an unchanged LightningModule trains on."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from importlib import import_module, util
from typing import Any

import torch
from torch.utils.data import DataLoader

from kcd_core import CondensationSchedule, CondensedLoader, wrap_loader
from kcd_core.base.arguments import check_kind

from .lightning_loader import (
    TrainLoader,
    check_lengths,
    check_resumable,
    check_version,
    estimate_exactly,
    lengths,
    processed,
    read_length_anew,
    stand_in,
)

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

    The LightningModule and the DataModule stay as they are, with an ordinary ``train_dataloader()``. The callback wraps
    what it returns, records what the student says in ``training_step``, and ends the stages. Checkpoints hold its state.
    Logged at the end of each epoch: ``kcd/kept``, samples of the next epoch; ``kcd/cut``, the ranking score of the lowest-ranked
    one, once a stage has ended; ``kcd/saved``, the share of batches that were spared so far.

    Parameters
    ----------
    schedule : CondensationSchedule
    student : str, optional
        The LightningModule's submodule whose output is recorded, as ``get_submodule`` names it: logits [B, C] of the
        whole batch, called once in a step with gradients.
    outputs : str or dict, optional
        In its place: under which key ``training_step`` returns the student's logits, ``outputs="logits"``; or which
        arguments of `CondensedLoader.record` it returns under which keys,
        ``outputs={"student_logits": "logits", "teacher_logits": "soft"}``.
    **settings
        Of `wrap_loader`, but for ``return_index``, and for ``num_replicas`` and ``rank``, which Lightning says.

    Attributes
    ----------
    loader : CondensedLoader or None
        That of the present or last ``fit``.

    Raises
    ------
    TypeError, ValueError
        If a setting is unknown, or not exactly one of ``student`` and ``outputs`` is given. At ``fit``, before the first step:
        also what `wrap_loader` raises; several train loaders; ``reload_dataloaders_every_n_epochs``; a student that is
        not there; or if ``val_check_interval`` or ``limit_train_batches`` will not suit a later epoch, which is shorter.
    RuntimeError
        At ``fit``, if a checkpoint without the callback's state is resumed. In the first step, if the student is called
        twice, or not at all.
    """

    def __init__(
        self,
        schedule: CondensationSchedule,
        *,
        student: str | None = None,
        outputs: str | Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        check_kind(schedule, "schedule", CondensationSchedule)
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
        self.schedule, self.student, self.outputs, self.settings = schedule, student, outputs, settings
        self.loader: CondensedLoader[Any] | None = None
        self._saved: Any = None
        self._view: TrainLoader | None = None
        self._undo: list[Any] = []  # what takes back, at fit()'s end, what was put into the trainer
        self._begun = self._in_step = self._recorded = False

    # -- the loader --------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Stand in for the trainer's source of the train loader; ask what can be asked before there is one."""
        if stage != "fit":
            return
        self._release()
        before, self.loader, self._view, self._saved = self.loader, None, None, None
        if trainer.overfit_batches > 0:
            warnings.warn(
                "overfit_batches trains on the same batches in every epoch: KCDCallback stands aside, and drops none of them",
                UserWarning,
                stacklevel=2,
            )
            return
        if trainer.reload_dataloaders_every_n_epochs:
            raise ValueError(
                "KCDCallback condenses one data set, and reload_dataloaders_every_n_epochs="
                f"{trainer.reload_dataloaders_every_n_epochs} asks for new ones: leave it out. Lengths are read anew after "
                "each stage without it"
            )
        check_version(trainer)
        # A trainer that goes on in another fit() goes on here; a new one begins anew, or brings a checkpoint.
        if before is not None and trainer.current_epoch > 0:
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
        try:
            student = pl_module.get_submodule(self.student)
        except AttributeError:
            names = [name for name, _ in pl_module.named_children()]
            raise ValueError(
                f"student={self.student!r} is no submodule of {type(pl_module).__name__}, which has {names}"
            ) from None
        watch = torch.compiler.disable(self._on_forward)  # type: ignore[no-untyped-call]
        self._undo.append(student.register_forward_hook(watch).remove)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """From now on, what the student says is of this batch."""
        self._in_step, self._recorded = True, False

    def _on_forward(self, module: Any, args: Any, output: Any) -> None:
        # Evaluation, teachers that share the student, and tuners, which put this callback aside, are not recorded.
        if not (self._in_step and torch.is_grad_enabled()) or self.loader is None:
            return
        if self._recorded:
            raise RuntimeError(
                f"the student {self.student!r} was called twice in one training step, so that its output is not that of the "
                "batch for certain (several views? activation checkpointing? LBFGS?): return the logits that count from "
                'training_step, {"loss": loss, "logits": logits}, and give KCDCallback outputs="logits"'
            )
        if not isinstance(output, torch.Tensor):
            output = getattr(output, "logits", output)
        if not isinstance(output, torch.Tensor):
            raise TypeError(
                f"the student {self.student!r} returns a {type(output).__name__}, and not its logits: return them from "
                'training_step, {"loss": loss, "logits": logits}, and give KCDCallback outputs="logits"'
            )
        self.loader.record(output)
        self._recorded = True

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record what ``training_step`` returned; a step that returned None was skipped."""
        self._in_step = False
        if self.loader is None or not outputs:
            return
        if self.outputs is not None:
            if not isinstance(outputs, Mapping) or (missing := set(self.outputs.values()) - outputs.keys()):
                told = sorted(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
                raise RuntimeError(
                    f"training_step must return a dict with {sorted(missing or self.outputs.values())}, as KCDCallback's outputs= "
                    f"says, got {told}"
                )
            self.loader.record(**{name: outputs[key] for name, key in self.outputs.items()})
        elif pl_module.automatic_optimization and not self._recorded:
            raise RuntimeError(
                f"the student {self.student!r} was not called in training_step (is it one of its parts, or a method "
                'beside forward?): name what is called, or return the logits from training_step and give outputs="logits"'
            )

    # -- epochs ------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Be in the epoch that Lightning is in."""
        if self.loader is None:
            return
        self._begun = True
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
                f"Lightning goes on with epoch {trainer.current_epoch + 1}, and the condensed loader with {self.loader.epoch}: "
                "epochs were trained without this KCDCallback. Begin a run of its own, with a new Trainer"
            )

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """End the epoch, if it is whole: one that max_steps cut off goes on when the run is resumed."""
        if self.loader is None:
            return
        self._in_step = False
        cut_off = trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step
        if self.loader.batches_done and (trainer.is_last_batch or not cut_off):
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
        return {"ranks": self.loader.gather_state_dict()}

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that does not say where to go on."""
        if self._undo and self.state_key not in checkpoint["callbacks"]:
            raise RuntimeError(
                "the checkpoint was saved without a KCDCallback, so that nothing says which samples come next: load its "
                "weights alone, and call fit() without ckpt_path"
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on there once the loader is made. Testing a checkpoint changes nothing."""
        if self._undo:
            self._saved = state_dict["ranks"] or None
            if self.loader is not None and self._saved is not None:  # some strategies load late
                self.loader.load_state_dict(self._saved)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave trainer and student as they were."""
        if stage == "fit":
            self._release()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave trainer and student as they were."""
        self._release()

    def _release(self) -> None:
        while self._undo:
            self._undo.pop()()
        self._in_step = False
