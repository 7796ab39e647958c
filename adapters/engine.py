"""KCD inside somebody else's training script: what to patch, what to watch, when a stage ends.

Two things are patched: ``DataLoader.__iter__`` and ``__len__``, so that the loader the student trains on
draws the condensed set; and the one function of the host's that always gets the student's final
prediction, so that it is recorded. The student's loader is the shuffled one whose batches are observed;
an epoch is a pass in which something was. So phases before it (a regressor's or a head's training) draw
all the data and count nothing, without being known.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from kcd_core import __version__, distributed
from kcd_core.condense import condense_stage
from kcd_core.mixing import mix_arrays

from . import late, shims
from .files import check_writable, write_whole
from .hosted import HostedLoader, differ
from .passes import CHECKED_AT_ONCE, Pass
from .profiles import Profile, find
from .reasons import Reasons, unfit
from .resume import Checkpoints
from .settings import Settings, number

__all__ = ["Engine", "install"]


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
        If no profile knows the script, the command line can't run with KCD (which, and why), the history
        can't be written, or KCD is installed already.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if profile is None:
        script = getattr(sys.modules.get("__main__"), "__file__", None) or sys.argv[0]
        profile = find(Path(script), settings.profile)
    refusal = profile.refuse(arguments)
    if refusal is not None:
        raise ValueError(f"{profile.title} can't run like this with KCD: {refusal}")
    if hasattr(DataLoader, "_kcd_engine"):
        raise ValueError(
            "KCD is installed in this process already (by kcd patch? then run the script itself)"
        )
    engine = Engine(settings, profile, arguments)
    engine.alone = not spawned
    if engine.history is not None and not spawned:
        try:
            check_writable(engine.history)
        except OSError as error:
            raise ValueError(
                f"--history {settings.history}: {error.strerror or error}; give a file in a folder that exists"
            ) from None
    say = (lambda text: None) if spawned else engine.say
    say(
        f"{profile.title}, {engine.method} (profile {profile.name}); the student is observed at {profile.observe}"
    )
    say(str(settings))
    shims.install(profile.shims, settings.no_shims, say)
    late.before_call(profile.observe, engine.observe)
    if profile.checkpoint is not None:
        late.after_call(profile.checkpoint[0], engine.checkpoints.save)
        late.after_call(profile.checkpoint[1], engine.checkpoints.load)
    late.before_call("multiprocessing.spawn.get_preparation_data", engine.spawning)
    _patch_loader(engine)
    # The interpreter leaves last_type where an exception ended the program.
    atexit.register(lambda: engine.close(failed=hasattr(sys, "last_type")))
    return engine


def _patch_loader(engine: Engine) -> None:
    iterate, length = DataLoader.__iter__, DataLoader.__len__

    def patched_iter(loader: DataLoader[Any]) -> Iterator[Any]:
        hosted = engine.hosted(loader)
        return iterate(loader) if hosted is None else engine.start(hosted)

    def patched_len(loader: DataLoader[Any]) -> int:
        hosted = engine.hosted(loader) if engine.train or engine.checkpoints.waiting else None
        return length(loader) if hosted is None else len(hosted)

    DataLoader._kcd_engine = engine  # type: ignore[attr-defined]
    DataLoader.__iter__ = patched_iter  # type: ignore[method-assign,assignment]
    DataLoader.__len__ = patched_len  # type: ignore[method-assign]


def _thread_variables() -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}


class Engine:
    """The state of one run: which loader, what was recorded, which epoch.

    Attributes
    ----------
    train : HostedLoader or None
        The loader the student trains on, once it is known.
    epochs : int
        Passes in which the student was observed, but for the present one.
    """

    def __init__(self, settings: Settings, profile: Profile, arguments: Sequence[str]) -> None:
        self.settings, self.profile, self.arguments = settings, profile, list(arguments)
        self.method = profile.method(self.arguments)
        self.schedule = settings.schedule()
        self.train: HostedLoader | None = None
        self.epochs = self.drawn = self.observed = 0  # of the passes that ended; samples of this process
        self.saved = 0  # samples of all processes
        # Absolute from the start: the host may change its working directory.
        self.history = Path(settings.history).absolute() if settings.history is not None else None
        self.reasons = (
            Reasons()
        )  # for which predictions were passed over; of this pass, once the student is known
        self._unseen = Reasons()  # for which samples were drawn, but not observed
        self._refused = Reasons()  # for which loaders were passed over
        self._any = False  # whether a loader was followed
        self.alone = True  # whether no other process may be the one that trains
        self._told = False  # whether it was said that nothing is observed
        self._hosted: weakref.WeakKeyDictionary[DataLoader[Any], HostedLoader] = weakref.WeakKeyDictionary()
        self._candidates: weakref.WeakSet[HostedLoader] = weakref.WeakSet()
        self._checked = 0  # batches compared at once
        self._moved = False  # whether the tracker is where the predictions are
        self._strangers = 0  # predictions of this pass with labels that no batch has
        self._elsewhere = 0  # predictions since this pass ended
        self._rank = 0
        self._wrong: Any = None  # labels that differed, counted on the device
        self._closed = self._plain = False
        self._agreed = False  # whether all ranks observe
        self._process = os.getpid()
        self._threads = _thread_variables()
        self.checkpoints = Checkpoints(self)

    # -- drawing -----------------------------------------------------------------------------------

    def hosted(self, loader: DataLoader[Any]) -> HostedLoader | None:
        """The hosted loader for one of the host's that may be the student's."""
        hosted = self._hosted.get(loader)
        if hosted is not None:
            return hosted if self.train in (None, hosted) else None
        try:
            if self.train is None:
                hosted = HostedLoader(loader, self.profile, self.settings)
            elif self.train.loader is None and self.train.follow(loader):
                hosted = self.train
        except (TypeError, ValueError) as error:  # ordered, iterable-style, empty, one of ours
            self._refused.note(str(error).partition(";")[0])
            return None
        if hosted is not None:
            self._hosted[loader] = hosted
            if self.train is None:
                self._candidates.add(hosted)
                self._any = True
                self.checkpoints.restore(hosted)
        return hosted

    def start(self, hosted: HostedLoader) -> Iterator[Any]:
        """A pass over a loader. If it is the student's, the pass before it ends now."""
        _ = self.rank  # while the host's process group is there to ask
        self._see_all_ranks(hosted)
        if hosted is self.train:
            self._end_passes()
        self._strangers = self._elsewhere = 0
        if self.train is not None:
            self.reasons.clear()
        return self._watched(hosted, hosted.start(self._end_passes))

    def _see_all_ranks(self, hosted: HostedLoader) -> None:
        """Once, after the first pass that was observed: was it on all ranks? Else some would wait for others."""
        if self._agreed or hosted.sampler.num_replicas == 1 or not hosted.passes:
            return
        (ranks,) = distributed.sum_over_ranks(np.array([bool(hosted.observed)], np.int64))
        if 0 < ranks[0] < distributed.world_size():
            raise RuntimeError(
                f"the student was observed at {self.profile.observe} on {ranks[0]} of {distributed.world_size()} ranks: "
                "KCD needs the predictions of all; let the script call it on every rank, or run without KCD"
            )
        self._agreed = bool(ranks[0])

    def _watched(self, hosted: HostedLoader, batches: Iterator[Any]) -> Iterator[Any]:
        yield from batches
        if self.checkpoints.unconfirmed and hosted is self.train:
            raise RuntimeError(
                f"KCD resumed, but nothing was observed in a whole pass over {type(hosted.dataset).__name__}: "
                f"{self._why()}"
            )
        if self.train is None and not self._told:
            self._told = True
            self.say(
                f"nothing was observed in a whole pass over {type(hosted.dataset).__name__}, "
                f"{hosted.sampler.num_samples} samples: {self._why()}. That is right for a phase before the student's own"
            )

    # -- recording ---------------------------------------------------------------------------------

    def observe(self, *args: Any, **named: Any) -> None:
        """Record a prediction, if it is the student's for a pending batch. Called before the host's function."""
        prediction, targets = self.profile.prediction(*args, **named)
        reason = unfit(prediction, targets)
        if reason is not None:
            if self.train is None or reason[0] != "gradient":
                self.reasons.note(*reason)
            return
        for hosted in self.followed():
            rows = len(prediction)
            for one in hosted.passes:
                known = one.observed
                found = one.match(rows, lambda expected: bool(differ(expected, targets) == 0))
                if found is not None:
                    if self.train is None:
                        self.checkpoints.refuse(hosted)
                        self.choose(hosted)
                    self.checkpoints.unconfirmed = False
                    indices, expected = found
                    if known:  # else it was compared just now
                        self._compare(expected, targets)
                    self._record(hosted, one, indices, prediction, targets)
                    return
            if not hosted.observed and hosted.waits(rows):
                self._strangers += 1
                if self._strangers >= CHECKED_AT_ONCE:
                    raise RuntimeError(self._misaligned())
            elif hosted is self.train and hosted.done:
                self._elsewhere += 1
                if self._elsewhere == CHECKED_AT_ONCE:
                    self.say(
                        "WARNING: a student is being trained on another loader than the one that was recognised "
                        "(the host makes several?); what it draws is not condensed, and not recorded"
                    )
        self._pass_over(len(prediction))

    def _pass_over(self, rows: int) -> None:
        if any(one.waits(rows) for one in self.followed() if not one.observed):
            self.reasons.note("strange", "the labels are not those of the batch")
        else:
            self.reasons.note("rows", f"no batch of {rows} samples was waiting for its prediction")

    def followed(self) -> list[HostedLoader]:
        """The loaders that the student may be trained on."""
        return [self.train] if self.train else list(self._candidates)

    def _why(self) -> str:
        """Why no prediction was observed."""
        where, module = self.profile.observe, self.profile.observe.rpartition(".")[0]
        if self.reasons:
            text = f"{where} was called, but {self.reasons.leading()}"
        else:
            text = f"{where} was never called"
            if module not in sys.modules:
                text = f"{module} was never imported"
        if not self._any:
            text += (
                f"; no loader could be followed: {self._refused.leading() or 'no DataLoader was iterated'}"
            )
        return text

    def _compare(self, expected: torch.Tensor, targets: torch.Tensor) -> None:
        wrong = differ(expected, targets)
        self._checked += 1
        if wrong.device.type == "cpu" or self._checked < CHECKED_AT_ONCE:
            if int(wrong):
                raise RuntimeError(self._misaligned())
        elif self._wrong is None:
            self._wrong = wrong
        else:
            self._wrong += wrong

    def _record(
        self, hosted: HostedLoader, one: Pass, indices: Any, prediction: torch.Tensor, targets: torch.Tensor
    ) -> None:
        if prediction.is_cuda and not self._moved:
            hosted.tracker.to(prediction.device)
            self._moved = True
        if hosted.sampler.num_replicas > 1:
            real = indices >= 0  # what pads a rank's length is no observation
            if not bool(real.all()):
                rows = torch.nonzero(real).squeeze(1)
                indices, rows = indices[rows], rows.to(prediction.device, non_blocking=True)
                prediction, targets = prediction[rows], targets[rows]
        hosted.tracker.update(indices, prediction, targets=targets)
        one.observed += len(indices)

    def choose(self, hosted: HostedLoader) -> None:
        """Settle on a loader as the student's."""
        if hosted.unmixable is not None:
            raise hosted.unmixable
        self.train = hosted
        self.reasons.clear()
        self._check_threads()
        sampler, dataset = hosted.sampler, hosted.dataset
        how = "raw images" if hosted.mixer is mix_arrays else "samples after their transform"
        mixing = f"mixing {how}, {sampler.mixing}" if sampler.mixing else "no mixing"
        self.say(
            f"the student trains on {type(dataset).__name__}, {sampler.num_samples} samples in batches of "
            f"{hosted.batches.batch_size}; {mixing}"
        )

    def _check_threads(self) -> None:
        """Torch reads these as it is imported, and kcd has imported it before the script ran."""
        changed = [name for name, value in _thread_variables().items() if value != self._threads[name]]
        if changed:
            self.say(
                f"WARNING: the script set {', '.join(changed)} before its `import torch`, which has no effect under kcd: "
                "set it in the shell, as the number of threads can change the last bits of the weights"
            )

    def _misaligned(self) -> str:
        return (
            f"{self.profile.observe} was given predictions with other labels than the batch has that was drawn for "
            "them (mixed labels? a loop that was changed?), so nothing could be recorded rightly. Write a profile for "
            "this repository (docs/adapters.md), or run without KCD"
        )

    # -- stages ------------------------------------------------------------------------------------

    def _end_passes(self, *, last: bool = False) -> bool:
        """End the student's passes that are over. Returns whether another set is in force now."""
        train = self.train
        if train is None:
            return False
        stages = len(train.history)
        for one in train.take_over(last=last):
            if one.observed:
                self._end_pass(train, one, last)
        return len(train.history) > stages and train.sampler.num_kept < train.sampler.num_samples

    def _end_pass(self, train: HostedLoader, one: Pass, last: bool) -> None:
        if self._wrong is not None and int(self._wrong):
            raise RuntimeError(self._misaligned())
        self.epochs += 1
        self.drawn += one.drawn
        self.observed += one.observed
        self.saved += train.sampler.num_samples - one.size
        if one.drawn > one.observed:
            reason = self.reasons.leading() or f"{self.profile.observe} was not called for their batches"
            self._unseen.note(reason, times=one.drawn - one.observed)
        if self.schedule.due(self.epochs) and not last:
            self._condense(train)

    def _condense(self, train: HostedLoader) -> None:
        try:
            chosen, value, count = condense_stage(
                train.tracker,
                train.sampler,
                self.schedule,
                alpha=self.settings.alpha,
                min_weight=self.settings.min_weight,
                select=None,
            )
        except RuntimeError as error:
            skipped = train.tracker.skipped["nonfinite"]
            if not skipped:
                raise
            raise RuntimeError(
                f"no stage can end: {skipped} of {self.observed} predictions of the student were not finite, "
                "and were not recorded (a learning rate that is too high, or half precision?)"
            ) from error
        train.renew()
        train.history.append(
            chosen,
            value,
            count,
            epoch=self.epochs,
            alpha=self.settings.alpha,
            mixing=train.sampler.mixing is not None,
        )
        lent = (
            "; the last batch borrows a sample, so as not to be a single one" if train.batches.lends else ""
        )
        self.say(
            f"stage {chosen.stage} after epoch {self.epochs}: {len(chosen.kept)} of {chosen.num_samples} kept, "
            f"{len(chosen.dropped)} dropped, {len(chosen.tail) if train.sampler.mixing else 0} mixed, "
            f"cut {chosen.cut:.4f}, {self._savings(' so far')}{lent}"
        )
        self._write_history(train)

    def _savings(self, when: str = "") -> str:
        full = self.epochs * (self.train.sampler.num_samples if self.train else 0)
        return f"{self.saved} of {full} samples saved{when} ({self.saved / max(1, full):.1%})"

    def close(self, *, failed: bool = False) -> bool:
        """The end of the run: the summary. A stage due now is left out, since nothing trains on it.

        Parameters
        ----------
        failed : bool
            Whether the host's own script failed, which then is the reason for whatever is missing.

        Returns
        -------
        bool
            False if the script ended well and iterated loaders, but nothing was observed: plain training.
        """
        if os.getpid() != self._process:  # a fork of the host's, which has nothing to sum up
            return True
        if not self._closed:
            self._closed = True
            self._end_passes(last=True)
            if self.train is not None:
                self._sum_up(self.train, failed)
            elif not failed and (self._any or self._refused or self.reasons or self.alone):
                self._plain = bool(
                    self._any or self._refused or self.reasons
                )  # else it did not train: --help
                self.say(
                    f"WARNING: this run was without KCD, since no prediction was observed: {self._why()}"
                )
        return not self._plain

    def _sum_up(self, train: HostedLoader, failed: bool) -> None:
        processes, done = train.sampler.num_replicas, len(train.history)
        share = f" by the first of {processes} processes" if processes > 1 else ""
        self.say(
            f"{number(self.epochs, 'epoch')}, {number(done, 'stage')}, {self.drawn} samples drawn{share}, "
            f"{self.observed} of them observed, {self._savings()}"
        )
        if self._unseen:
            self.say(f"not observed: {self._unseen.leading()}")
        if not failed and done < self.settings.stages and self.settings.ratio < 1:
            self.say(self._short(train, done))
        if self._write_history(train):
            self.say(f"history: {self.settings.history}")

    def _short(self, train: HostedLoader, done: int) -> str:
        """What to say of a run that ended fewer stages than were asked for."""
        settings, epochs = self.settings, number(self.epochs, "epoch")
        if done:
            share = train.sampler.num_kept / train.sampler.num_samples
            return (
                f"{done} of {settings.stages} stages ended in {epochs} with --period {settings.period} (one that is due "
                f"after the last epoch is left out): the last epoch was trained on {share:.1%}, not yet {settings.ratio:.1%}"
            )
        if settings.warmup > self.epochs:
            why = f"--warmup {settings.warmup} is longer than the {epochs}"
        elif settings.period > self.epochs:
            why = f"--period {settings.period} is longer than the {epochs}"
        else:
            why = "the first was due after the last epoch, when nothing would train on it"
        return f"no stage ended: {why}; this was plain training"

    def _write_history(self, train: HostedLoader) -> bool:
        if self.history is None or self.rank > 0:
            return False
        content = {
            "run": {"repository": self.profile.title, "method": self.method, "kcd": __version__},
            "settings": asdict(self.settings),
            "summary": {
                "epochs": self.epochs,
                "drawn": self.drawn,
                "observed": self.observed,
                "saved": self.saved,
                "processes": train.sampler.num_replicas,
            },
            "history": train.history.state_dict(),
        }
        try:
            write_whole(self.history, json.dumps(content).encode())
        except OSError as error:
            self.say(f"WARNING: the history can't be written to {self.history}: {error.strerror or error}")
            return False
        return True

    @property
    def rank(self) -> int:
        """This process's, remembered: at the end, the host's process group may be gone."""
        self._rank = self._rank or distributed.rank()
        return self._rank

    def spawning(self, *_: Any) -> None:
        """Take note that a process is being spawned."""
        self.alone = False

    def say(self, text: str) -> None:
        """Print a line, on the first rank alone."""
        if self.rank == 0:
            print(f"kcd: {text}", flush=True)
