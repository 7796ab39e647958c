"""The torchdistill plugin's batch sampler: batches of the condensed set, and KCD's state."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DistributedSampler, RandomSampler

from kcd_core import (
    Condensation,
    CondensationHistory,
    KnowledgeValueTracker,
    __version__,
    load_checkpoint,
    save_checkpoint,
)
from kcd_core.base import distributed
from kcd_core.base.files import check_writable, write_whole
from kcd_core.base.states import check_same
from kcd_core.loading.keys import KeyBatches
from kcd_core.loading.mixed_images import mixing_cache_of

from ..contrast import restrict, why_unused
from ..hosts.order import HostOrder
from ..settings import Settings
from ..stage_log import StageLog, now
from ..telling import say, show
from .wrapper import KCDDatasetWrapper

__all__ = ["KCDBatchSampler"]

FORGOTTEN = (
    "Use student: {forward_proc: 'kcd_forward_batch_only'} and post_epoch_process: "
    "'kcd_default_post_epoch_process_with_teacher' (or 'kcd_' and those you have)"
)
#: Settings of how ``kcd run`` finds and starts what it watches.
OF_THE_COMMAND = {"profile", "student", "if_unobserved", "no_shims"}


class KCDBatchSampler:
    """Batches of the condensed set, in the order of the sampler it is given; and KCD's state.

    Parameters
    ----------
    sampler : RandomSampler or DistributedSampler
        Over a `KCDDatasetWrapper`. It stays reachable as ``.sampler``, whose ``set_epoch`` torchdistill calls.
    batch_size : int
    drop_last : bool
    state : str, optional
        A file that keeps KCD's state, written after every epoch, read where torchdistill starts at a later one
        (see `kcd_core.save_checkpoint`).
    **settings
        Of `kcd_adapters.settings.Settings`: ``ratio``, ``stages``, ``period`` and so on. ``ask``, and those that only
        ``kcd run`` uses, are refused.

    Raises
    ------
    TypeError
        If the sampler does not shuffle, or the data set is not wrapped.
    ValueError
        If a setting is outside its range, or would not be used; if ``state`` or ``history`` can't be written; or if
        teacher outputs are cached while images are mixed.
    """

    current: KCDBatchSampler | None = (
        None  # torchdistill's processes are plain functions: no place for it there
    )

    def __init__(
        self,
        sampler: Any,
        batch_size: int,
        drop_last: bool = False,
        state: str | None = None,
        **settings: Any,
    ) -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(
                f"KCDBatchSampler's batch_size must be an integer of at least 1, got {batch_size!r}"
            )
        if others := sorted(settings.keys() & OF_THE_COMMAND):
            raise ValueError(
                f"KCDBatchSampler takes no {', '.join(others)}, which only kcd run uses: leave it out"
            )
        self.settings = Settings.from_dict(settings)
        if self.settings.ask is not None:
            raise ValueError(
                "KCDBatchSampler takes no ask: torchdistill calls its teacher with whole batches"
            )
        self._state = None if state is None else Path(state)
        for name, given in (("state", state), ("history", self.settings.history)):
            if given is not None:
                check_writable(Path(given), f"KCDBatchSampler's {name}")
        self._about = {"repository": "torchdistill", "started": now()}
        self._log = StageLog(self.settings, self._about)
        self._log.check("KCDBatchSampler's {}".format)
        self.schedule = self.settings.schedule()
        shuffled = (type(sampler) is RandomSampler and not sampler.replacement) or (
            isinstance(sampler, DistributedSampler) and sampler.shuffle
        )
        if not shuffled:
            raise TypeError(
                f"KCDBatchSampler needs a RandomSampler without replacement or a shuffling DistributedSampler, "
                f"got {type(sampler).__name__}"
            )
        dataset = sampler.dataset if isinstance(sampler, DistributedSampler) else sampler.data_source
        if not isinstance(dataset, KCDDatasetWrapper):
            raise TypeError(
                "KCDBatchSampler needs dataset_wrapper: {key: 'KCDDatasetWrapper', kwargs: {}} in the same "
                f"train_data_loader, got a {type(dataset).__name__}"
            )
        mixing = self.settings.recipes(dataset.mixer)
        if mixing and any(hasattr(d, "cache_dir_path") for d in (dataset.inner, dataset.org_dataset)):
            raise ValueError(
                "cached teacher outputs are wrong for mixed images: use mixing: 'none', or no cache"
            )
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, bool(drop_last)
        self.dataset = dataset
        self.order = HostOrder(sampler, len(dataset), mixing=mixing)
        self.order.adopts_mixing = self.settings.mixing == "auto"
        self.run = Condensation(
            self.order,
            schedule=self.schedule,
            value=self.settings.value,
            select=self.settings.select,
            alpha=self.settings.alpha,
            min_weight=self.settings.min_weight,
            dataset=dataset.org_dataset,
        )
        self.observed = 0  # samples of the present epoch
        self._batches = KeyBatches(self.order, self.batch_size, self.drop_last)
        self._batches.cache = mixing_cache_of(self.settings.cache_bytes, dataset.mixer, dataset.org_dataset)
        self._batches.rehearse = self.run.mixing is not None
        self._begun = False
        self._passes = 0  # that began
        unused = (
            self.settings.negatives == "full" and restrict(dataset.inner, self.order.kept) is dataset.inner
        )
        if unused and distributed.rank_announced() == 0:
            say(why_unused(dataset.inner), logging.WARNING)
        KCDBatchSampler.current = self

    @property
    def tracker(self) -> KnowledgeValueTracker:
        """V and F."""
        return self.run.tracker

    @property
    def history(self) -> CondensationHistory:
        """What each stage did."""
        return self.run.history

    @property
    def epoch(self) -> int:
        """How many epochs have ended."""
        return self.run.epoch - 1

    def __iter__(self) -> Iterator[list[Any]]:
        if self.observed:
            raise RuntimeError(
                "an epoch began before KCD ended the one before: use post_epoch_process: "
                "'kcd_default_post_epoch_process_with_teacher' (or 'kcd_' and the one you have)"
            )
        if self._state is not None and not self._begun:
            raise RuntimeError(
                "KCD can't tell at which epoch this run starts: with state, use pre_epoch_process: "
                "'kcd_default_pre_epoch_process_with_teacher' (or 'kcd_' and the one you have)"
            )
        return self._drawn()

    def _drawn(self) -> Iterator[list[Any]]:
        # At the first batch: a DataLoader with workers calls iter() twice for one pass.
        self._passes += 1
        if self._passes == 2 and self.epoch == 0 and distributed.rank_announced() == 0:
            say(
                f"nothing was observed in a whole epoch. That is right for a stage before the student's own. {FORGOTTEN}",
                logging.WARNING,
            )
        yield from self._batches

    def __len__(self) -> int:
        return len(self._batches)

    def record(self, indices: torch.Tensor, output: torch.Tensor, targets: Any) -> None:
        """Record the student's logits of one batch."""
        self.observed += self.run.record(output, indices=indices, targets=targets)

    def begin(self, epoch: int) -> None:
        """At the first epoch of this process: resume from the saved state, if it is not torchdistill's epoch 0.

        Raises
        ------
        ValueError
            If there is no state of that epoch, it is damaged, or it was saved with other settings. Nothing is
            changed then.
        """
        if self._begun:
            return
        if epoch > 0:
            if self._state is None or not self._state.is_file():
                raise ValueError(
                    f"KCD can't start at epoch {epoch} without its state: set state: 'FILE' in KCDBatchSampler's kwargs "
                    "from the first epoch on"
                )
            try:
                self._restore(load_checkpoint(self._state), epoch)
            except ValueError as error:
                raise ValueError(
                    f"KCD can't start at epoch {epoch} with {self._state}: {error}. The state is that after the last "
                    "epoch: --start_epoch must be the number of epochs until then, and the checkpoint of that epoch"
                ) from error
        self._begun = True

    def _restore(self, state: Any, epoch: int) -> None:
        if isinstance(state, dict):  # an older one, which chose by value
            state = {"select": None, **state}
        check_same(state, {**self._identity(), "epoch": epoch}, "run", needs=("tracker", "order", "history"))
        self.run.restore(
            epoch=epoch + 1,
            seen=False,
            tracker=state["tracker"],
            sampler=state["order"],
            history=state["history"],
            summed=True,
        )
        self._restrict()

    def _save(self) -> None:
        """Every rank takes part in the sums; the first writes."""
        if self._state is None:
            return
        total, count = distributed.sum_over_ranks(*self.tracker.sums())
        if self.order.rank > 0:
            return
        state: dict[str, Any] = {
            **self._identity(),
            "epoch": self.epoch,
            "tracker": {**self.tracker.state_dict(), "total": total, "count": count},
            "order": self.order.state_dict(),
            "history": self.history.state_dict(),
        }
        save_checkpoint(self._state, state)

    def _identity(self) -> dict[str, Any]:
        # The sampler's state tells its mixing.
        names = ("alpha", "min_weight", "value", "select", "negatives")
        settings = {name: getattr(self.settings, name) for name in names}
        dataset = self.run.identity()["dataset"]
        return {
            "num_samples": len(self.dataset),
            "dataset": dataset,
            "schedule": self.schedule.state_dict(),
            **settings,
        }

    def _restrict(self) -> None:
        """Let CRD draw its negatives from what is kept."""
        if self.settings.negatives == "kept":
            self.dataset.view = restrict(self.dataset.inner, self.order.kept)

    def end_epoch(self, loader: Any) -> None:
        """Condense, if a stage ends; save the state, if that is wanted."""
        if not self.observed:
            raise RuntimeError(f"KCD saw no prediction of the student in this epoch. {FORGOTTEN}")
        if self.epoch == 0:
            self._check_workers(loader)
        show()
        chosen = self.run.end_epoch()
        self.observed = 0
        if chosen is not None:
            self._restrict()
            self._write_stage()
        self._save()

    def _check_workers(self, loader: Any) -> None:
        """Persistent workers hold a copy of the data set, whose negatives stay as they are."""
        inner, settings = self.dataset.inner, self.settings
        if (
            getattr(loader, "persistent_workers", False)
            and settings.ratio < 1
            and settings.negatives == "kept"
            and restrict(inner, self.order.kept) is not inner
        ):
            raise ValueError(
                "persistent workers don't see that CRD's negatives changed: use persistent_workers: "
                "False, or negatives: 'full'"
            )

    def _write_stage(self) -> None:
        if distributed.rank_announced() > 0:
            return
        settings = self.settings
        self._log.write(self.history)
        if settings.history is not None:
            content = {
                "run": {**self._about, "command": shlex.join(sys.argv), "kcd": __version__},
                "settings": asdict(settings),
                "summary": {"epochs": self.epoch},
                "history": self.history.state_dict(),
            }
            write_whole(Path(settings.history), json.dumps(content).encode())
