"""The journal of a run: what was drawn, observed and saved, told line by line and written for ``kcd report``."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kcd_core import CondensedSet, __version__
from kcd_core.base import distributed
from kcd_core.base.files import write_whole

from ..profiles import option
from ..settings import Settings, number
from ..stage_log import StageLog, now
from ..telling import say

if TYPE_CHECKING:
    from .alignment import Pass
    from .loader import HostedLoader

__all__ = ["TASKS", "Journal", "Reasons"]

#: What launchers number their processes by that set no ``RANK``. Whether those are ranks, a process group shows alone.
TASKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID", "LOCAL_RANK")

#: Options by which scripts are given a seed.
SEEDS = ("--seed", "--manual_seed", "--manual-seed", "--manualSeed", "--random_seed", "--random-seed")


class Journal:
    """Counts over the passes that ended, and what is said of them.

    Attributes
    ----------
    method : str
    epochs : int
        Passes in which the student was observed, but for the present one.
    drawn, observed : int
        Samples of this process.
    asked : int
        Rows of this process that the teacher was called with, with ``--ask``.
    saved : int
        Samples of all processes that were not drawn, and would have been without KCD.
    seconds : float
        Of these passes, in this process.
    path : Path or None
        Of the history.
    log : StageLog
        Where else stages are written.
    """

    def __init__(
        self, settings: Settings, repository: str, method: str, arguments: Sequence[str] = ()
    ) -> None:
        self._settings, self.method = settings, method
        about = {"repository": repository, "method": method, "started": now()}
        seed = option(arguments, *SEEDS)
        self._about = about | ({"seed": seed} if seed else {})
        self.log = StageLog(settings, self._about)
        self.epochs = self.drawn = self.observed = self.asked = self.saved = 0
        self.seconds = 0.0
        # Absolute from the start: the host may change its working directory.
        self.path = Path(settings.history).absolute() if settings.history is not None else None
        self._classes: list[dict[str, Any]] = []  # what share of each class a stage kept
        self._unseen = Reasons()  # for which samples were drawn, but not observed
        self._rank = 0
        tasks = (os.environ.get(name, "") for name in TASKS)
        later = "RANK" not in os.environ and any(task.isdecimal() and int(task) for task in tasks)
        # Lines of what may be another rank than the first.
        self._held: list[tuple[str, int]] | None = [] if later else None

    @property
    def rank(self) -> int:
        """This process's, remembered: the host's process group may not be there yet, and at the end be gone."""
        self._rank = self._rank or distributed.rank_announced()
        return self._rank

    def restart(self) -> None:
        """Forget the passes: another student is trained from now on."""
        self.epochs = self.drawn = self.observed = self.asked = self.saved = 0
        self.seconds = 0.0
        self._unseen.clear()

    def say(self, text: str, level: int = logging.INFO) -> None:
        """Print a line, on the first rank alone."""
        if self._held is not None:
            self._held.append((text, level))
        elif self.rank == 0:
            say(text, level)

    def warn(self, text: str) -> None:
        """Print a line that begins with ``WARNING``, on the first rank alone."""
        self.say(text, logging.WARNING)

    def know_rank(self) -> None:
        """Take note of the rank, now that the host's process group is there, if it ever is."""
        held, self._held = self._held or [], None
        for text, level in held:
            self.say(text, level)
        _ = self.rank

    def add(self, train: HostedLoader, one: Pass, unseen: str) -> None:
        """Add a pass over the student's loader that ended; ``unseen`` is why part of it was not observed, if so."""
        self.epochs += 1
        self.drawn += one.drawn
        self.observed += one.observed
        self.asked += one.asked
        self.seconds += one.seconds
        self.saved += train.drawn_of(train.sampler.num_samples) - train.drawn_of(one.size)
        if one.drawn > one.observed:
            self._unseen.note(unseen, times=one.drawn - one.observed)

    def tell_length(self, told: int, now: int) -> None:
        """Say that the script was ``told`` another length between two epochs than the next one has."""
        self.say(
            f"the script asked for len(loader) between two epochs and was told {told}, the length of the one "
            f"that had ended; the next has {now} batches. An average over the one that ended is right. What the "
            "script plans with it for the next is not: the last step of accumulated gradients, or a learning rate by "
            "the step (docs/adapters.md)"
        )

    def more(self, train: HostedLoader) -> str:
        """What to say of a stage that ended besides what it did."""
        lent = "; the last batch borrows a sample, so as not to be a single one" * train.batches.lends
        return f", {self._savings(train, ' so far')}{lent}"

    def write_stage(self, train: HostedLoader, chosen: CondensedSet) -> None:
        """Write what a stage did, where that was asked for."""
        shares = [] if train.classes is None else train.classes.shares(chosen.kept)
        if shares:
            self._classes.append({"stage": chosen.stage, "epoch": self.epochs, "shares": shares})
        self._write(train)
        if self.rank == 0:
            self.log.write(train.history, saved=self.saved, full=self._full(train))

    def _savings(self, train: HostedLoader, when: str = "") -> str:
        full = self._full(train)
        return f"{self.saved} of {full} samples saved{when} ({self.saved / max(1, full):.1%})"

    def _full(self, train: HostedLoader) -> int:
        """Samples that these epochs would have drawn without KCD."""
        return self.epochs * train.drawn_of(train.sampler.num_samples)

    def sum_up(self, train: HostedLoader, *, failed: bool) -> None:
        """The last lines; where the script ``failed``, there is no more to be said of stages that did not end."""
        processes, done = train.sampler.num_replicas, len(train.history)
        share = f" by the first of {processes} processes" if processes > 1 else ""
        self.say(
            f"{number(self.epochs, 'epoch')}, {number(done, 'stage')}, {self.drawn} samples drawn{share}, "
            f"{self.observed} of them observed, {self._savings(train)}, {self.seconds:.1f} s"
        )
        if self._settings.ask is not None:
            plain = self._full(train) // processes
            self.say(
                f"the teacher was asked for {self.asked} samples{share}; plain distillation asks for {plain} "
                f"({self.asked / max(1, plain):.1%})"
            )
        if self._unseen:
            self.say(f"not observed: {self._unseen.leading()}")
        if not failed and done < self._settings.stages and self._settings.ratio < 1:
            self.say(self._short(train, done))
        if self._write(train):
            self.say(f"history: {self._settings.history}")

    def _short(self, train: HostedLoader, done: int) -> str:
        """What to say of a run that ended fewer stages than were asked for."""
        settings, epochs = self._settings, number(self.epochs, "epoch")
        if done:
            share = train.sampler.num_kept / train.sampler.num_samples
            return (
                f"{done} of {settings.stages} stages ended in {epochs} with --period {settings.period} (one that is due "
                f"after the last epoch is left out): the last epoch was trained on {share:.1%}, not yet {settings.ratio:.1%}"
            )
        if settings.warmup > self.epochs:
            why = f"--warmup {settings.warmup} is longer than the {epochs}"
        elif settings.schedule().period > self.epochs:
            why = f"--period {settings.period} is longer than the {epochs}"
        else:
            why = "the first was due after the last epoch, when nothing would train on it"
        return f"no stage ended: {why}; this was plain training"

    def _write(self, train: HostedLoader) -> bool:
        if self.path is None or self.rank > 0:
            return False
        content: dict[str, Any] = {
            "run": {**self._about, "command": shlex.join(sys.argv), "kcd": __version__},
            "settings": asdict(self._settings),
            "summary": {
                "epochs": self.epochs,
                "drawn": self.drawn,
                "observed": self.observed,
                **({} if self._settings.ask is None else {"asked": self.asked}),
                "saved": self.saved,
                "seconds": round(self.seconds, 3),
                "full": self._full(train),
                "processes": train.sampler.num_replicas,
            },
            "history": train.history.state_dict(),
            **({"classes": self._classes} if self._classes else {}),
        }
        try:
            write_whole(self.path, json.dumps(content).encode())
        except OSError as error:
            self.warn(f"the history can't be written to {self.path}: {error.strerror or error}")
            return False
        return True


class Reasons:
    """Why predictions were passed over: counted by kind, told by the first example of each."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._texts: dict[str, str] = {}

    def note(self, kind: str, text: str | None = None, times: int = 1) -> None:
        self._counts[kind] += times
        self._texts.setdefault(kind, text or kind)

    def clear(self) -> None:
        self._counts.clear()
        self._texts.clear()

    def __bool__(self) -> bool:
        return bool(self._counts)

    def leading(self, most: int = 3) -> str:
        """The most frequent ones, each with how often."""
        return "; ".join(f"{self._texts[kind]} ({n} x)" for kind, n in self._counts.most_common(most))
