"""Install KCD in a process, before somebody else's training script runs in it.

Two things are patched: ``DataLoader.__iter__`` and ``__len__``, so that the loader the student trains on
draws the condensed set; and the one function of the host's that always gets the student's final
prediction, so that it is recorded.

Nothing here imports torch: the host does, after it has set what torch reads as it is imported
(``OMP_NUM_THREADS``, say), and both are patched in the moment after.
"""

from __future__ import annotations

import atexit
import dataclasses
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kcd_core.base.files import check_writable

from ..profiles import Profile, find
from ..running import Batch
from ..settings import Settings, number
from . import import_hooks, shims
from .asked_teacher import AskedTeacher
from .engine import Engine
from .finder import Drawn

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

__all__ = ["install"]

_INSTALLED: list[Engine] = []  # one at most


def install(
    settings: Settings,
    profile: Profile | None = None,
    arguments: Sequence[str] | None = None,
    *,
    spawned: bool = False,
) -> Engine:
    """Install KCD in this process, before the host's script runs.

    Parameters
    ----------
    settings : Settings
    profile : Profile, optional
        Default: the one that knows the script being run, or that ``settings`` name.
    arguments : sequence of str, optional
        The script's. Default: ``sys.argv[1:]``.
    spawned : bool
        Whether this is a process that the script spawned: its parent has said what there is to say.

    Raises
    ------
    ValueError
        If no profile knows the script, the command line can't run with KCD (which, and why), what was asked for
        can't be written, or KCD is installed already.
    ImportError
        If the package that ``tensorboard`` needs is missing.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if profile is None:
        script = getattr(sys.modules.get("__main__"), "__file__", None) or sys.argv[0]
        profile = find(Path(script), settings.profile)
    refusal = profile.refuse(arguments)
    if refusal is not None:
        raise ValueError(f"{profile.title} can't run like this with KCD: {refusal}")
    unaskable = None if settings.ask is None else profile.why_not_ask(arguments)
    if unaskable is not None:
        raise ValueError(f"{profile.title} can't run like this with --ask: {unaskable}")
    if _INSTALLED:
        raise ValueError(
            "KCD is installed in this process already (by kcd patch? then run the script itself)"
        )
    epochs, auto = profile.epochs(arguments), settings.period == "auto"
    settings = settings.for_epochs(epochs)
    engine = Engine(settings, profile, arguments)
    engine.alone = not spawned
    journal = engine.journal
    if settings.history is not None and not spawned:
        check_writable(Path(settings.history), "--history")
    if not spawned:
        journal.log.check("--{}".format)
    _INSTALLED.append(engine)
    say = _silent if spawned else journal.say
    say(
        f"{profile.title}, {journal.method} (profile {profile.name}); the student is observed at {profile.observed_at}"
    )
    say(str(settings))
    if auto:
        say(f"--period auto: {number(settings.schedule().period, 'epoch')} a stage, for {epochs} epochs")
    first = settings.schedule().next_due(1) or 0
    if settings.ratio < 1 and epochs is not None and first >= epochs:
        say(
            f"with {number(epochs, 'epoch')} this will be plain training: the first stage ends after epoch {first}, and nothing "
            f"would train on its set. {_remedy(settings, epochs)}",
            logging.WARNING,
        )
    if settings.ask is not None and epochs == 1:
        say(
            "with 1 epoch the teacher is asked for all samples: --ask counts from the second on",
            logging.WARNING,
        )
    shims.install(profile.shims, settings.no_shims, say)
    for name in profile.observes:
        hook = import_hooks.after_call if profile.returns(name) else import_hooks.before_call
        hook(
            name,
            partial(_observe, engine, profile.predicts(name)),
            say if len(profile.observes) > 1 else None,
        )
    profile.prepare(_Running(engine, arguments))
    if settings.ask is not None and profile.teacher is not None:
        engine.teacher = AskedTeacher(profile.teacher, engine.followed)
        engine.before_batch(engine.teacher.before_batch)
        import_hooks.before_call(profile.teacher.given, engine.teacher.meet)
    if profile.checkpoint is not None:
        import_hooks.after_call(profile.checkpoint[0], engine.host_saved)
        import_hooks.after_call(profile.checkpoint[1], engine.host_loaded)
    import_hooks.before_call("torch.optim.optimizer:Optimizer.load_state_dict", engine.again.loaded)
    import_hooks.after_call("torch.optim.lr_scheduler:LRScheduler.__init__", engine.by_steps.made)
    import_hooks.before_call("multiprocessing.spawn.get_preparation_data", engine.spawning)
    import_hooks.when_imported("torch", partial(_patch_torch, engine))
    # The interpreter leaves last_type where an exception ended the program.
    atexit.register(lambda: engine.close(failed=hasattr(sys, "last_type")))
    return engine


def _remedy(settings: Settings, epochs: int) -> str:
    """What to do about a run that ends before its first stage."""
    if settings.warmup >= epochs:
        return f"Lower kcd's --warmup {settings.warmup}"
    if epochs <= settings.stages:
        return "Lower kcd's --period"
    chosen = dataclasses.replace(settings, period="auto").for_epochs(epochs)
    return f"--period auto would choose {chosen.period}"


def _silent(text: str, level: int = logging.INFO) -> None:
    """What a process says that was spawned: nothing."""


class _Running:
    """See `kcd_adapters.profiles.Running`."""

    def __init__(self, engine: Engine, arguments: Sequence[str]) -> None:
        self._engine = engine
        self.arguments, self.settings, self.say = arguments, engine.settings, engine.journal.say
        self.batches, self.dataset, self.before_batch = engine.batches, engine.dataset, engine.before_batch
        self.when_imported, self.after_call = import_hooks.when_imported, import_hooks.after_call
        self.find, self.waits = engine.find, engine.waits
        self.restart, self.excuse, self.pass_over = engine.restart, engine.excuse, engine.reasons.note

    def record(self, batch: Batch, prediction: torch.Tensor) -> None:
        assert isinstance(batch, Drawn)
        self._engine.record(batch, prediction)

    def observe(self, prediction: torch.Tensor, labels: torch.Tensor) -> None:
        batch = self.find({"": labels})
        if batch is not None:
            self.record(batch, prediction)


def _observe(engine: Engine, predicted: Callable[..., tuple[Any, Any]], *args: Any, **named: Any) -> None:
    engine.observe(*predicted(*args, **named))


def _patch_torch(engine: Engine, _: ModuleType) -> None:
    from torch.utils.data import DataLoader

    engine.unobserved.watch()

    iterate, length = DataLoader.__iter__, DataLoader.__len__

    def patched_iter(loader: DataLoader[Any]) -> Iterator[Any]:
        hosted = engine.hosted(loader)
        if hosted is not None:
            return engine.start(hosted)
        engine.elsewhere.begin(loader, engine.train)
        return iterate(loader)

    def patched_len(loader: DataLoader[Any]) -> int:
        hosted = engine.hosted(loader) if engine.train or engine.checkpoints.waiting else None
        return length(loader) if hosted is None else engine.length(hosted)

    DataLoader.__iter__ = patched_iter  # type: ignore[method-assign,assignment]
    DataLoader.__len__ = patched_len  # type: ignore[method-assign]
