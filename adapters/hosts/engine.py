"""KCD inside somebody else's training script: what to watch, and when a stage ends.

The student's loader is the shuffled one whose batches are observed; an epoch is a pass in which something
was. So phases before it (a regressor's or a head's training) draw all the data and count nothing, without
being known.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from kcd_core.mixing import mix_arrays

from ..contrast import why_unused
from ..profiles import Profile
from ..settings import Settings
from ..telling import show
from .again import Again
from .alignment import Labels, Pass, Student, unfit
from .by_steps import BySteps
from .elsewhere import Elsewhere
from .finder import Drawn, Finder
from .journal import Journal
from .on_all_ranks import OnAllRanks
from .resume import Checkpoints
from .told_length import ToldLength
from .unobserved import Unobserved

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

    from .asked_teacher import AskedTeacher
    from .loader import HostedLoader

__all__ = ["Engine"]


class Engine:
    """The state of one run: which loader, what was recorded, which epoch.

    Attributes
    ----------
    train : HostedLoader or None
        The loader the student trains on, once it is known.
    teacher : AskedTeacher or None
        What comes between the host and its teacher, with ``--ask``.
    """

    def __init__(self, settings: Settings, profile: Profile, arguments: Sequence[str]) -> None:
        self.settings, self.profile = settings, profile
        self.journal = Journal(settings, profile.title, profile.method(list(arguments)), arguments)
        self.train: HostedLoader | None = None
        self.unobserved = Unobserved(settings, profile, arguments, self.journal)
        # For which predictions were passed over; of this pass, once the student is known.
        self.reasons = self.unobserved.reasons
        self.alone = True  # whether no other process may be the one that trains
        self._hosted: weakref.WeakKeyDictionary[DataLoader[Any], HostedLoader] = weakref.WeakKeyDictionary()
        self._candidates: weakref.WeakSet[HostedLoader] = weakref.WeakSet()
        self._finder = Finder(profile.observes, self.journal, self.reasons)
        self._student = Student()
        self.teacher: AskedTeacher | None = None
        self._told_length = ToldLength(self.journal)
        self._closed = self._plain = False
        self._on_all_ranks = OnAllRanks(profile.observed_at)
        self._process = os.getpid()
        self._drawing: HostedLoader | None = None  # the loader that was asked last for a batch
        self._between: list[Callable[[bool], None]] = []  # what is to be done before a batch
        self.checkpoints = Checkpoints(settings, profile, self.journal)
        self.elsewhere, self.again = Elsewhere(self.journal), Again(profile, self.journal)
        self.by_steps = BySteps(settings, profile, arguments, self.journal)

    # -- drawing -----------------------------------------------------------------------------------

    def hosted(self, loader: DataLoader[Any]) -> HostedLoader | None:
        """The hosted loader for one of the host's that may be the student's."""
        hosted = self._hosted.get(loader)
        if hosted is not None:
            return hosted if self.train in (None, hosted) else None
        from .loader import (
            HostedLoader,
            OrderedError,
            UnfollowedError,
        )  # torch, which the host has imported by now

        try:
            if self.train is None:
                hosted = HostedLoader(loader, self.profile, self.settings)
            elif self.train.loader is None and self.train.follow(loader):
                hosted = self.train
        except UnfollowedError as error:
            self.unobserved.refused.note(str(error))
            if self.train is None:
                self.unobserved.began(loader, ordered=isinstance(error, OrderedError))
            return None
        if hosted is not None:
            self._hosted[loader] = hosted
            if hosted is self.train:  # whoever asks a new loader anything is about to begin an epoch
                self._end_passes()
            else:
                self._candidates.add(hosted)
                self.unobserved.followed = True
                self._resume(hosted)
        return hosted

    def start(self, hosted: HostedLoader) -> Iterator[Any]:
        """A pass over a loader. If it is the student's, the pass before it ends now."""
        self.journal.know_rank()  # while the host's process group is there to ask
        self._done_with_batch(first=True)
        self._drawing = hosted
        self.elsewhere.end()
        self._on_all_ranks.check(hosted)
        if hosted is self.train:
            self._end_passes()
        self._finder.start()
        if self.train is None:
            self.by_steps.begin()
        else:
            self.reasons.clear()
        return self._watched(hosted, hosted.start(self._end_passes))

    def length(self, hosted: HostedLoader) -> int:
        """``len(loader)``: between two epochs, that of the one that has ended, which is the one it began with.

        Where the script plans ahead, it is the next one's.
        """
        between = hosted is self.train and all(one.over for one in hosted.passes)
        if self.profile.plans and between:
            self._on_all_ranks.check(hosted)
            self._end_passes()
        told = len(hosted)
        if between and hosted.passes:
            self._told_length.between_epochs(told)
        return told

    def batches(self) -> int | None:
        """Batches of the epoch under way; None until the student's loader is known."""
        return None if self.train is None else len(self.train)

    def dataset(self) -> Any:
        """Of the loader that was asked last for a batch."""
        return None if self._drawing is None else self._drawing.dataset

    def before_batch(self, action: Callable[[bool], None]) -> None:
        """Run ``action(first)`` before every batch. See `Running.before_batch`."""
        self._between.append(action)

    def _done_with_batch(self, *, first: bool = False) -> None:
        for action in self._between:
            action(first)

    def _watched(self, hosted: HostedLoader, batches: Iterator[Any]) -> Iterator[Any]:
        steps = self.unobserved.steps
        for batch in batches:
            if hosted is self.train:
                self._told_length.drawn(len(hosted))
            if self.teacher is not None:
                self.teacher.drawn(batch)
            yield batch
            self._done_with_batch()
        if self.checkpoints.unconfirmed and hosted is self.train:
            raise RuntimeError(
                f"KCD resumed, but nothing was observed in a whole pass over {type(hosted.dataset).__name__}: "
                f"{self.unobserved.why()}"
            )
        if self.train is None:
            name = f"{type(hosted.dataset).__name__}, {hosted.sampler.num_samples} samples"
            self.unobserved.passed(hosted, name, since=steps)

    # -- recording ---------------------------------------------------------------------------------

    def observe(self, prediction: Any, targets: Any) -> None:
        """Record what may be a prediction and its labels, if it is the student's for a pending batch."""
        reason = unfit(prediction, targets)
        if reason is not None:
            if self.train is None or reason[0] != "gradient":
                self.reasons.note(*reason)
            return
        drawn = self.find({"": targets})
        if drawn is None:
            return
        if not (drawn.one.observed or self._student.is_of(prediction)):
            self.journal.say("another model is trained now: the run stops")
            raise RuntimeError(self._another_student())
        self.record(drawn, prediction)

    def find(self, seen: Mapping[str, torch.Tensor]) -> Drawn | None:
        """The pending batch that has one of these labels, taken out of those that wait. See `Running.find`."""
        return self._finder.find(seen, self.followed())

    def waits(self, rows: int) -> bool:
        """Whether a batch of this size waits for its prediction."""
        return any(hosted.waits(rows) for hosted in self.followed())

    def record(self, batch: Drawn, prediction: torch.Tensor) -> None:
        """Record the prediction for a batch that `find` has returned."""
        if self.train is None:
            self.checkpoints.refuse(batch.hosted)
            self.choose(batch.hosted)
        self.checkpoints.unconfirmed = False
        if self.teacher is not None:
            self.teacher.observed(batch)
        if batch.hosted.classes is not None:
            batch.hosted.classes.see(batch.indices, batch.own)
        batch.hosted.record(batch.one, batch.indices, prediction, batch.labels)

    def excuse(self) -> None:
        """What is trained in this pass is not the student. See `Running.excuse`."""
        self.unobserved.excused = True

    def restart(self) -> bool:
        """Begin anew with another student. See `Running.restart`."""
        if self.train is not None:
            if not self.train.restart():
                return False
            self._finder.labels, self._student, self.train = Labels(), Student(), None
            self.journal.restart()
        return True

    def followed(self) -> list[HostedLoader]:
        """The loaders that the student may be trained on."""
        return [self.train] if self.train else list(self._candidates)

    def choose(self, hosted: HostedLoader) -> None:
        """Settle on a loader as the student's."""
        if hosted.unmixable is not None:
            raise hosted.unmixable
        self.train = hosted
        self.unobserved.leave()
        self.reasons.clear()
        mixing, sampler, dataset = hosted.run.mixing, hosted.sampler, hosted.dataset
        how = "raw images" if hosted.mixer is mix_arrays else "samples after their transform"
        told = f"mixing {how}, {mixing}" if mixing else "no mixing"
        self.journal.say(
            f"the student trains on {type(dataset).__name__}, {sampler.num_samples} samples in batches of "
            f"{hosted.batches.batch_size}; {told}"
        )
        if self.settings.negatives == "full" and self.profile.condensed(dataset, sampler.kept) is dataset:
            self.journal.warn(why_unused(dataset))
        self.again.begin()

    def _another_student(self) -> str:
        stages = len(self.train.history) if self.train else 0
        ended = f", and {stages} of its stages have ended" if stages else ""
        return (
            f"another model is trained now on the loader of the one that {self.profile.observed_at} was called for first "
            f"(a teacher, before its student?). KCD is at epoch {self.journal.epochs + 1} of that model{ended}: its values "
            "say nothing of this one. Train the first in a run of its own without KCD, or let the profile observe a "
            "function that is called for the student alone, and say in `before` how many epochs come first"
        )

    # -- stages ------------------------------------------------------------------------------------

    def _end_passes(self, *, last: bool = False) -> bool:
        """End the student's passes that are over. Returns whether another set is in force now."""
        self._done_with_batch()
        train = self.train
        if train is None:
            return False
        stages = len(train.history)
        for one in train.take_over(last=last):
            if one.observed:
                self._end_pass(train, one, last)
        return len(train.history) > stages and train.sampler.num_kept < train.sampler.num_samples

    def _end_pass(self, train: HostedLoader, one: Pass, last: bool) -> None:
        self._finder.check()
        self.journal.add(train, one, self.unobserved.why_not_all())
        if last:  # a stage due now is left out, since nothing trains on it
            return
        show()
        chosen = train.end_epoch(partial(self.journal.more, train))
        if chosen is not None:
            train.renew()
            self.journal.write_stage(train, chosen)
        self.by_steps.end(train, one)

    # -- resuming ----------------------------------------------------------------------------------

    def host_saved(self, *call: Any, **named: Any) -> None:
        """Save KCD's state beside each checkpoint that a call of the host's has just saved."""
        for checkpoint, path in self.profile.saved(*call, **named):
            self.checkpoints.save(self.train, checkpoint, path)

    def host_loaded(self, *call: Any, **named: Any) -> None:
        """Load KCD's state from beside the checkpoint that a call of the host's has just loaded."""
        checkpoint, path = self.profile.loaded(*call, **named)
        if self.checkpoints.load(checkpoint, path, running=self.train is not None):
            for hosted in self.followed():
                self._resume(hosted)

    def _resume(self, hosted: HostedLoader) -> None:
        """Resume with a loader, if a state waits that was saved of it."""
        if self.checkpoints.restore(hosted):
            self.choose(hosted)
            self.journal.say(f"resumed after epoch {self.journal.epochs + bool(hosted.observed)}")

    # -- the end of the process --------------------------------------------------------------------

    def spawning(self, *_: Any) -> None:
        """Take note that a process is being spawned."""
        self.alone = False

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
            self.journal.know_rank()
            if failed:
                self._between.clear()  # what the script left half done
            self._end_passes(last=True)
            if self.train is not None:
                self.journal.sum_up(self.train, failed=failed)
            elif self.unobserved.stopped:
                self._plain = True
            elif not failed and (self.unobserved.tried or self.alone):
                self._plain = self.unobserved.tried  # else it did not train: --help
                self.journal.warn(
                    f"this run was without KCD, since no prediction was observed: {self.unobserved.why()}"
                )
        return not self._plain
