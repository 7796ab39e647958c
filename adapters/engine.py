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
import sys
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from kcd_core import __version__, distributed
from kcd_core.condense import condense_stage
from kcd_core.mixing import mix_arrays

from . import late, shims
from .files import write_whole
from .hosted import HostedLoader, differ
from .profiles import Profile, find
from .resume import Checkpoints
from .settings import Settings

__all__ = ["Engine", "install"]

CHECKED_AT_ONCE = 3  # batches whose labels are compared at once; on a device, later ones are counted


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
        If no profile knows the script, the command line can't run with KCD (which, and why), or KCD is
        installed already.
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
    say = (lambda text: None) if spawned else engine.say
    say(
        f"{profile.title}, {engine.method} (profile {profile.name}); the student is observed at {profile.observe}"
    )
    shims.install(profile.shims, settings.no_shims, say)
    late.before_call(profile.observe, engine.observe)
    if profile.checkpoint is not None:
        late.after_call(profile.checkpoint[0], engine.checkpoints.save)
        late.after_call(profile.checkpoint[1], engine.checkpoints.load)
    _patch_loader(engine)
    atexit.register(engine.close)
    return engine


def _patch_loader(engine: Engine) -> None:
    iterate, length = DataLoader.__iter__, DataLoader.__len__

    def patched_iter(loader: DataLoader[Any]) -> Iterator[Any]:
        hosted = engine.hosted(loader)
        return iterate(loader) if hosted is None else engine.start(hosted)

    def patched_len(loader: DataLoader[Any]) -> int:
        hosted = engine.hosted(loader) if engine.train else None
        return length(loader) if hosted is None else len(hosted)

    DataLoader._kcd_engine = engine  # type: ignore[attr-defined]
    DataLoader.__iter__ = patched_iter  # type: ignore[method-assign,assignment]
    DataLoader.__len__ = patched_len  # type: ignore[method-assign]


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
        self._hosted: weakref.WeakKeyDictionary[DataLoader[Any], HostedLoader] = weakref.WeakKeyDictionary()
        self._candidates: weakref.WeakSet[HostedLoader] = weakref.WeakSet()
        self._checked = 0  # batches compared at once
        self._moved = False  # whether the tracker is where the predictions are
        self._strangers = 0  # predictions of this pass with labels that no batch has
        self._elsewhere = 0  # predictions since this pass ended
        self._rank = 0
        self._wrong: Any = None  # labels that differed, counted on the device
        self._closed = False
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
        except (TypeError, ValueError):  # ordered, iterable-style, empty, one of ours
            return None
        if hosted is not None:
            self._hosted[loader] = hosted
            if self.train is None:
                self._candidates.add(hosted)
                self.checkpoints.restore(hosted)
        return hosted

    def start(self, hosted: HostedLoader) -> Iterator[Any]:
        """A pass over a loader. If it is the student's, the pass before it ends now."""
        _ = self.rank  # while the host's process group is there to ask
        if hosted is self.train:
            self._end_pass()
        self._strangers = self._elsewhere = 0
        return hosted.start()

    # -- recording ---------------------------------------------------------------------------------

    def observe(self, prediction: Any = None, targets: Any = None, *_: Any, **named: Any) -> None:
        """Record a prediction, if it is the student's for a pending batch. Called before the host's function."""
        prediction = named.get("input", named.get("output")) if prediction is None else prediction
        targets = named.get("target") if targets is None else targets
        if not (isinstance(prediction, torch.Tensor) and isinstance(targets, torch.Tensor)):
            return
        if not prediction.requires_grad or prediction.ndim != 2 or targets.shape != prediction.shape[:1]:
            return
        for hosted in [self.train] if self.train else list(self._candidates):
            known, rows = hosted.observed, len(prediction)
            found = hosted.match(rows, lambda expected: bool(differ(expected, targets) == 0))
            if found is not None:
                if self.train is None:
                    self.choose(hosted)
                indices, expected = found
                if known:  # else it was compared just now
                    self._compare(expected, targets)
                self._record(hosted, indices, prediction, targets)
                return
            if not known and any(len(indices) == rows for indices, _ in hosted.pending):
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
        self, hosted: HostedLoader, indices: Any, prediction: torch.Tensor, targets: torch.Tensor
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
        hosted.observed += len(indices)

    def choose(self, hosted: HostedLoader) -> None:
        """Settle on a loader as the student's."""
        self.train = hosted
        sampler, dataset = hosted.sampler, hosted.dataset
        how = "raw images" if hosted.mixer is mix_arrays else "samples after their transform"
        mixing = f"mixing {how}, {sampler.mixing}" if sampler.mixing else "no mixing"
        self.say(
            f"the student trains on {type(dataset).__name__}, {sampler.num_samples} samples in batches of "
            f"{hosted.batches.batch_size}; {mixing}"
        )

    def _misaligned(self) -> str:
        return (
            f"{self.profile.observe} was given predictions with other labels than the batch has that was drawn for "
            "them (mixed labels? a loop that was changed?), so nothing could be recorded rightly. Write a profile for "
            "this repository (docs/adapters.md), or run without KCD"
        )

    # -- stages ------------------------------------------------------------------------------------

    def _end_pass(self, *, last: bool = False) -> None:
        train = self.train
        if train is None or not train.observed:
            return
        if self._wrong is not None and int(self._wrong):
            raise RuntimeError(self._misaligned())
        self.epochs += 1
        self.drawn += train.drawn
        self.observed += train.observed
        self.saved += train.sampler.num_samples - train.sampler.num_kept
        train.drawn = train.observed = 0
        if self.schedule.due(self.epochs) and not last:
            self._condense(train)

    def _condense(self, train: HostedLoader) -> None:
        chosen, value, count = condense_stage(
            train.tracker,
            train.sampler,
            self.schedule,
            alpha=self.settings.alpha,
            min_weight=self.settings.min_weight,
            select=None,
        )
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
            f"cut {chosen.cut:.4f}, {self._savings()}{lent}"
        )
        self._write_history(train)

    def _savings(self) -> str:
        full = self.epochs * (self.train.sampler.num_samples if self.train else 0)
        return f"{self.saved} of {full} samples saved so far ({self.saved / max(1, full):.1%})"

    def close(self) -> None:
        """The end of the run: the summary. A stage due now is left out, since nothing trains on it."""
        if self._closed:
            return
        self._closed = True
        self._end_pass(last=True)
        if self.train is None:
            if self._candidates:
                self.say(
                    f"no prediction of a student was observed at {self.profile.observe}: this run was without KCD"
                )
            return
        processes = self.train.sampler.num_replicas
        share = f" by the first of {processes} processes" if processes > 1 else ""
        self.say(
            f"{self.epochs} epochs, {len(self.train.history)} stages, {self.drawn} samples drawn{share}, {self.observed} "
            f"of them observed, {self._savings()}"
        )
        self._write_history(self.train)

    def _write_history(self, train: HostedLoader) -> None:
        if self.settings.history is None or self.rank > 0:
            return
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
        write_whole(Path(self.settings.history), json.dumps(content).encode())

    @property
    def rank(self) -> int:
        """This process's, remembered: at the end, the host's process group may be gone."""
        self._rank = self._rank or distributed.rank()
        return self._rank

    def say(self, text: str) -> None:
        """Print a line, on the first rank alone."""
        if self.rank == 0:
            print(f"kcd: {text}", flush=True)
