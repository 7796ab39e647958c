"""Training in which nothing is observed: found out after its first epoch, not after the last.

Where no loader can be followed, it is with the first step. A pass over all of a loader, with steps of an optimizer meanwhile, is an epoch of training. Statistics of the data,
validation and a look at a few batches are none. A profile says how many epochs come before the student's own.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from ..profiles import Profile
from ..settings import Settings, number
from . import import_hooks
from .journal import Journal, Reasons

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

__all__ = ["STATUS", "Unobserved"]

STATUS = 3  # the exit status of training without KCD


class Unobserved:
    """What speaks against KCD's having a part in the run, until something is observed.

    Attributes
    ----------
    reasons, refused : Reasons
        For which predictions, and for which loaders, were passed over.
    followed : bool
        Whether a loader was followed.
    stopped : bool
        Whether the run was stopped.
    excused : bool
        Whether it is known that what is trained in this pass is not the student.
    steps : int
        That optimizers made, or are about to.
    """

    def __init__(
        self, settings: Settings, profile: Profile, arguments: Sequence[str], journal: Journal
    ) -> None:
        self._stops, self._profile, self._journal = settings.if_unobserved == "stop", profile, journal
        self._before = profile.before(arguments)
        self.reasons, self.refused = Reasons(), Reasons()
        self.followed = self.stopped = self.excused = False
        self.steps = 0
        self._epochs: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()  # by loader
        self._begun: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._due = ""  # what to say if training continues
        self._over = ""  # the data of the loader that is iterated, where it can't be followed
        self._told = False  # whether it was said that nothing is observed
        self._hook: Any = None

    def watch(self) -> None:
        """Take note of every optimizer's steps from now on."""
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        self._hook = register_optimizer_step_pre_hook(self.stepped)

    def leave(self) -> None:
        """Something was observed, or nothing more is to be said."""
        self._due = ""
        if self._hook is not None:
            self._hook.remove()

    @property
    def tried(self) -> bool:
        """Whether the script did anything that training does."""
        return bool(self.followed or self.refused or self.reasons)

    def stepped(self, *_: Any) -> None:
        """An optimizer is about to make a step."""
        self.steps += 1
        if self._over and not (self.followed or self._before):
            self._due = (
                f"training over {self._over} began, and no loader could be followed: {self.refused.leading()}"
            )
        if self._due and self._stops:
            self._stop()
        if self._due:
            self._journal.warn(self._due)
            self.leave()

    def began(self, loader: DataLoader[Any], *, ordered: bool) -> None:
        """A pass begins over a loader that can't be followed; the one before it over the same loader is over.

        One over an ``ordered`` loader may be a validation.
        """
        self._over = "" if ordered else type(loader.dataset).__name__
        if ordered:
            return
        since, self._begun[loader] = self._begun.get(loader), self.steps
        if since is not None:
            self.passed(loader, type(loader.dataset).__name__, since=since)

    def passed(self, loader: Any, name: str, *, since: int) -> None:
        """A pass over all of a loader ended, in which nothing was observed; ``since``: the steps before it."""
        if self.excused:
            self.excused = False
            return
        expected = "That is right for a phase before the student's own"
        if self.steps > since:
            self._epochs[loader] = self._epochs.get(loader, 0) + 1
            if self._epochs[loader] > self._before:
                first = f" (the profile expects {self._before} before the student's own)" * bool(self._before)
                self._due = (
                    f"{number(self._epochs[loader], 'epoch')} of training over {name}{first}, and nothing was observed: "
                    f"{self.why()}"
                )
                expected = "If training continues, the run stops" if self._stops else expected
        if not self._told:
            self._told = True
            self._journal.say(f"nothing was observed in a whole pass over {name}: {self.why()}. {expected}")

    def _stop(self) -> NoReturn:
        if not self.stopped:
            self.stopped = True
            self._journal.say(
                f"the run stops, since it is plain training: {self._due}. If another phase comes before the student's own, "
                "give --if-unobserved warn (if_unobserved='warn' in a patched script), or let the profile say how many "
                "epochs it has (`before`); else let it observe another function (docs/profiles.md)"
            )
        raise SystemExit(STATUS)

    def why_not_all(self) -> str:
        """Why part of a pass was not observed."""
        names = self._profile.observed_at if self._profile.observes else "the student"
        return self.reasons.leading() or f"{names} was not called for their batches"

    def why(self) -> str:
        """Why no prediction was observed."""
        where, names = self._profile.observed_at, self._profile.observes
        if not (names or self.reasons or self.followed):
            text = ""
        elif not names:
            text = self.reasons.leading() or "no model returned [B, C] with a gradient before backward()"
        elif self.reasons:
            text = f"{where} was called, but {self.reasons.leading()}"
        else:
            modules = dict.fromkeys(map(import_hooks.module_of, names))
            text = f"{where} was never called"
            if not any(module in sys.modules for module in modules):
                text = f"{' or '.join(modules)} was never imported"
        if not self.followed:
            text += "; " * bool(text)
            text += f"no loader could be followed: {self.refused.leading() or 'no DataLoader was iterated'}"
        return text
