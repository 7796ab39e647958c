"""How a Lightning Trainer comes by its train loader and its lengths, and what it counts: what has no public name there is used here alone."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader

from kcd_core import CondensedLoader
from kcd_core.schedule import AHEAD

__all__ = [
    "TrainLoader",
    "check_counts",
    "check_lengths",
    "check_resumable",
    "check_trainer",
    "estimate_exactly",
    "lengths",
    "processed",
    "read_length_anew",
    "stand_in",
    "step_is_over",
]

# When a trainer that validates by time began to, which is not to be forgotten where a length is read anew.
CLOCK = ("_train_start_time", "_last_val_time")
Undo = Callable[[], object]


class TrainLoader:
    """A condensed loader as Lightning sees it: one whose state is none of its, since it would give all ranks the first one's."""

    def __init__(self, loader: CondensedLoader[Any]) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self._loader)

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":
            raise AttributeError(name)
        return getattr(self._loader, name)  # dataset, batch_size, ...

    def state_dict(self) -> dict[str, Any]:
        """Nothing; by it, Lightning knows that a loader can resume in the middle of an epoch."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


# -- the loader --------------------------------------------------------------------------------------------


def check_trainer(trainer: Any) -> None:
    """ValueError if the trainer is to change its data; RuntimeError if it lacks what is used here."""
    if trainer.reload_dataloaders_every_n_epochs:
        raise ValueError(
            "KCDCallback condenses one data set, and reload_dataloaders_every_n_epochs="
            f"{trainer.reload_dataloaders_every_n_epochs} asks for new ones: leave it out. Lengths are read anew after "
            "each stage without it"
        )
    module = sys.modules[type(trainer.fit_loop).__module__]
    process = getattr(module, "_process_dataloader", None)
    names = ["trainer", "trainer_fn", "stage", "dataloader"]
    known = process is not None and list(inspect.signature(process).parameters) == names
    if not known or not {"_data_source", "_combined_loader"} <= vars(trainer.fit_loop).keys():
        raise RuntimeError(
            f"KCDCallback does not know how Lightning {_version(trainer)} comes by its train loader: it was written for 2.6"
        )


def check_resumable(trainer: Any, loader: CondensedLoader[Any], ranks: int) -> None:
    """Refuse to resume where Lightning's own count of batches, which is one rank's, will say another place."""
    now = loader.sampler.num_replicas
    if ranks != now and loader.batches_done:
        raise ValueError(
            f"a run on {ranks} ranks has saved this within an epoch, and here is {now}, by whose batches Lightning's count means "
            "another place: resume from the end of an epoch, or on as many ranks"
        )
    if not hasattr(trainer.fit_loop, "reset_restart_stage") and (
        loader.batches_done or trainer.max_steps != -1
    ):
        raise RuntimeError(
            f"Lightning {_version(trainer)} loses count of a run that is resumed within an epoch, or that has max_steps: resume "
            "from a checkpoint of an epoch's end (save_on_train_epoch_end=True), with max_epochs, or use Lightning 2.5"
        )


def _version(trainer: Any) -> str:
    return str(sys.modules[type(trainer.fit_loop).__module__.partition(".")[0]].__version__)


def stand_in(trainer: Any, make: Callable[[Any, Callable[[], Any]], Any]) -> Undo:
    """Have ``make(trainer, request)`` return the train loader, where Lightning would ``request()`` it of module, data or caller.

    It asks when it needs the loader, and the data may be there no earlier; it has no public hook in which to change it.
    """
    source = trainer.fit_loop._data_source
    request = source.dataloader
    source.dataloader = lambda: make(trainer, request)
    return lambda: vars(source).pop("dataloader", None)


def processed(trainer: Any, loader: DataLoader[Any]) -> Any:
    """A train DataLoader as Lightning would make it: with the DistributedSampler of its strategy, and its workers seeded."""
    module = sys.modules[type(trainer.fit_loop).__module__]
    return module._process_dataloader(trainer, trainer.state.fn, trainer.state.stage, loader)


def read_length_anew(trainer: Any) -> None:
    """Have the trainer set up its train loader again: it reads a length once.

    Its public setting for that, ``reload_dataloaders_every_n_epochs``, would make the validation loaders anew as well.
    """
    clock = {name: at for name, at in vars(trainer).items() if name in CLOCK}
    trainer.fit_loop._combined_loader = None
    trainer.fit_loop.setup_data()
    vars(trainer).update(clock)


# -- steps -------------------------------------------------------------------------------------------------


def step_is_over(trainer: Any) -> bool:
    """Whether Lightning counts the present batch as done, which a resumed run does not train on again."""
    batches = trainer.fit_loop.epoch_loop.batch_progress.current
    return bool(batches.ready == batches.started == batches.processed)


def check_counts(trainer: Any, loader: CondensedLoader[Any]) -> None:
    """RuntimeError if an epoch ends of which Lightning counts other batches than the loader."""
    counted = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    if counted != loader.batches_done:
        raise RuntimeError(
            f"Lightning ends epoch {loader.epoch} after {counted} batches, and {loader.batches_done} of its {len(loader)} were "
            "drawn: it does not continue where the loader does. Resume from a checkpoint that was saved after a batch or an "
            "epoch, trainer.fit(..., ckpt_path=...)"
        )


# -- lengths -----------------------------------------------------------------------------------------------


def lengths(trainer: Any, loader: CondensedLoader[Any], epochs: int) -> list[int]:
    """The batches of each epoch from 1 to ``epochs`` that ``limit_train_batches`` leaves."""
    limit = trainer.limit_train_batches
    steps = [loader.steps(epoch) for epoch in range(1, epochs + 1)]
    return [min(each, limit) if isinstance(limit, int) else int(each * limit) for each in steps]


def check_lengths(trainer: Any, loader: CondensedLoader[Any]) -> None:
    """Refuse what Lightning would refuse in the first epoch that is too short for it, as far ahead as lengths are known."""
    endless, free = trainer.max_epochs == -1, loader.schedule.free
    if not endless and not trainer.fast_dev_run and not free:
        loader.total_steps(trainer.max_epochs)  # warns of a run that is over before it drops anything
    ahead = AHEAD if endless else trainer.max_epochs
    each = lengths(trainer, loader, min(loader.epoch, ahead) if free else ahead)
    if not each:
        return
    shortest = min(each)
    epoch = each.index(shortest) + 1
    if shortest == 0 and trainer.limit_train_batches > 0:
        raise ValueError(
            f"limit_train_batches={trainer.limit_train_batches} leaves no batch of epoch {epoch}, which has "
            f"{loader.steps(epoch)}: raise it, or give a number of batches"
        )
    every = getattr(trainer, "val_check_interval", None)  # not there where validation goes by time
    within = trainer.check_val_every_n_epoch is not None and trainer.limit_val_batches > 0
    if within and isinstance(every, int) and every > shortest:
        raise ValueError(
            f"val_check_interval={every} is more than the {shortest} batches that epoch {epoch} has: give a share of the epoch "
            "(a float), or check_val_every_n_epoch=None, with which batches are counted across epochs"
        )


def estimate_exactly(trainer: Any, made: Callable[[], CondensedLoader[Any] | None]) -> Undo:
    """Make ``estimated_stepping_batches`` of this one trainer the sum over epochs that it stands for.

    Lightning's is the first epoch's times the number of epochs, a property of the class. So the trainer becomes an instance
    of a subclass, and nobody else's does.
    """
    users = type(trainer)

    def estimated(self: Any) -> Any:
        theirs = users.estimated_stepping_batches.fget(self)  # has the loader set up, if need be
        loader = made()
        if self.max_epochs == -1 or loader is None:
            return theirs
        scheduled = [one for one in self.callbacks if hasattr(one, "get_accumulate_grad_batches")]
        steps = 0
        for epoch, batches in enumerate(lengths(self, loader, max(self.max_epochs, 1))):
            every = self.accumulate_grad_batches
            for one in scheduled:
                every = one.get_accumulate_grad_batches(epoch)
            steps += -(-batches // every)
        return steps if self.max_steps == -1 else min(steps, self.max_steps)

    names = {"estimated_stepping_batches": property(estimated), "__module__": users.__module__}
    trainer.__class__ = type(users.__name__, (users,), names)
    return lambda: setattr(trainer, "__class__", users)
