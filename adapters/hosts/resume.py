"""KCD's state beside the checkpoints of a host that can resume."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kcd_core import CondensationHistory, KnowledgeValueTracker
from kcd_core.base import distributed
from kcd_core.base.checkpoint import load_checkpoint, save_checkpoint
from kcd_core.base.states import check_same, differ, state_int
from kcd_core.layout import WholeLayout
from kcd_core.mixing import mix_arrays
from kcd_core.sampler import CondensedSampler

from ..profiles import Profile
from ..settings import Settings
from .alignment import Pass
from .journal import Journal

if TYPE_CHECKING:
    from .loader import HostedLoader

__all__ = ["Checkpoints"]

VERSION = 3
COUNTS = ("epochs", "drawn", "drawn_in_pass", "observed", "observed_in_pass", "saved")
NEEDS = (*COUNTS, "checkpoint", "loader", "tracker", "sampler", "history")


class Checkpoints:
    """Saves and loads ``PATH.kcd`` whenever the host saves or loads ``PATH``.

    Attributes
    ----------
    waiting : bool
        Whether a state was loaded, and the loader that it belongs to was not seen yet.
    unconfirmed : bool
        Whether a loader was given its state, and the student was not observed on it yet.
    """

    def __init__(self, settings: Settings, profile: Profile, journal: Journal) -> None:
        self._settings, self._profile, self._journal = settings, profile, journal
        self._schedule = settings.schedule()
        self._state: Any = None
        self._file = Path()
        self.unconfirmed = self._told = False

    @property
    def waiting(self) -> bool:
        return self._state is not None

    def save(self, train: HostedLoader | None, checkpoint: Any, path: Any) -> None:
        """Called after the host saved. A checkpoint without an optimizer is not one to resume from."""
        journal = self._journal
        if train is None or journal.rank > 0 or not _resumable(checkpoint):
            return
        if distributed.ranks_announced() > 1:
            if not self._told:
                self._told = True
                self._journal.say(
                    f"{_for_one()}, so no state of KCD's is saved beside the host's checkpoints"
                )
            return
        state = {
            **self._identity(),
            "checkpoint": _fingerprint(path),
            "loader": _described(train),
            "epochs": journal.epochs,
            "drawn": journal.drawn,
            "drawn_in_pass": train.drawn,
            "observed": journal.observed,
            "observed_in_pass": train.observed,
            "saved": journal.saved,
            "seconds": journal.seconds + sum(one.seconds for one in train.passes if one.observed),
            "tracker": train.tracker.state_dict(),
            "sampler": train.sampler.state_dict(),
            "history": train.history.state_dict(),
        }
        if train.gate is not None:
            in_pass = sum(one.asked for one in train.passes)
            state |= {"gate": train.gate.state_dict(), "asked": journal.asked, "asked_in_pass": in_pass}
        save_checkpoint(f"{path}.kcd", state)

    def load(self, checkpoint: Any, path: Any, *, running: bool) -> bool:
        """Called after the host loaded: a teacher, too, which has no such file beside it.

        Parameters
        ----------
        checkpoint, path
            What was loaded, and from where.
        running : bool
            Whether the student is being trained already.

        Returns
        -------
        bool
            Whether a state waits now for the loader that it was saved of.

        Raises
        ------
        ValueError
            If the file can't be read, is not the one that was written beside this checkpoint, or is of a
            run with other settings. Nothing is changed then.
        """
        file, warn = Path(f"{path}.kcd"), self._journal.warn
        if not file.is_file():
            if _resumable(checkpoint):
                warn(
                    f"there is no {file}. If this run resumes from {path}, KCD begins anew, with all the data"
                )
            return False
        if running:
            warn(f"{path} was loaded in the middle of the run; KCD continues with its present set")
            return False
        try:
            if distributed.ranks_announced() > 1:
                raise ValueError(_for_one())
            state = _current(load_checkpoint(file))
            check_same(state, self._identity(), "run", needs=NEEDS, hints={"schedule": self._longer(state)})
            if state["checkpoint"] != _fingerprint(path):
                raise ValueError(
                    f"it belongs to another checkpoint than {path} is now (one that was overwritten by a run without "
                    "KCD, or by one that was killed before it wrote the new state)"
                )
            self._check(state)
        except (ValueError, TypeError, LookupError, OSError) as error:
            raise ValueError(
                f"can't resume with {file}: {error}. Resume from another checkpoint, or delete {file} to begin anew "
                "with all the data"
            ) from error
        self._state, self._file = state, file
        return True

    def _check(self, state: Any) -> None:
        """Whether the parts fit one another; on objects of no use otherwise, so that nothing is half restored."""
        counts = {name: state_int(state, name, 0, "run") for name in COUNTS}
        num_samples, epochs = state["loader"]["num_samples"], counts["epochs"]
        tracker = KnowledgeValueTracker(num_samples, value=self._settings.value)
        tracker.load_state_dict(state["tracker"])
        sampler = CondensedSampler(num_samples, mixing=self._settings.recipes(mix_arrays))
        sampler.adopts_mixing, sampler.adopts_seed = self._settings.mixing == "auto", True
        sampler.load_state_dict(state["sampler"])
        CondensationHistory.from_state(state["history"])
        wanted = self._schedule.size(num_samples, epochs + 1)
        if sampler.num_kept != wanted:
            raise ValueError(
                f"it keeps {sampler.num_kept} samples after {epochs} epochs; the schedule, {wanted}"
            )
        if self._settings.ask is not None:
            from .gate import HostGate  # torch, which the host has imported by now

            gate = HostGate(WholeLayout(sampler, tracker), self._settings)
            gate.load_state_dict(state["gate"])
            for name in ("asked", "asked_in_pass"):
                state_int(state, name, 0, "run")
        if int(tracker.count.max()) > epochs + 1 or counts["observed"] > counts["drawn"]:
            raise ValueError("it is damaged: its counts contradict each other")
        if not 0 <= float(state.get("seconds", 0.0)) < 1e15:
            raise ValueError("it is damaged: its seconds are none")

    def restore(self, hosted: HostedLoader) -> bool:
        """Give a loader, and the journal, the state that waits, if it was saved of this loader; say whether it was."""
        state, journal = self._state, self._journal
        if state is None or state["loader"] != _described(hosted):
            return False
        hosted.run.restore(
            epoch=state["epochs"] + 1,
            seen=state["observed_in_pass"] > 0,
            tracker=state["tracker"],
            sampler=state["sampler"],
            history=state["history"],
        )
        asked = 0
        if hosted.gate is not None:
            hosted.gate.load_state_dict(state["gate"])
            journal.asked, asked = state["asked"], state["asked_in_pass"]
        hosted.renew()
        journal.epochs, journal.saved = state["epochs"], state["saved"]
        journal.drawn, journal.observed = state["drawn"], state["observed"]
        journal.seconds = float(state.get("seconds", 0.0))  # which older states don't say
        # The pass it was saved in ends when the next begins, as ever.
        drawn, observed = state["drawn_in_pass"], state["observed_in_pass"]
        hosted.passes = [Pass(hosted.sampler.num_kept, drawn=drawn, observed=observed, asked=asked)]
        self._state, self.unconfirmed = None, True
        return True

    def refuse(self, hosted: HostedLoader) -> None:
        """RuntimeError if the student is about to be trained on a loader that the waiting state is not of."""
        if self.waiting:
            raise RuntimeError(
                f"{self._file} was saved of {_shown(self._state['loader'])}, and the student is being trained on "
                f"{_shown(_described(hosted))}: resume with the data and batch size of then, or delete {self._file} "
                "to begin anew with all the data"
            )

    def _longer(self, state: Any) -> str:
        """What to do about another schedule, where it may be that of the same run for more epochs."""
        saved = state.get("schedule") if isinstance(state, Mapping) else None
        period = saved.get("period") if isinstance(saved, Mapping) else None
        if not isinstance(period, int) or differ(saved, {**self._schedule.state_dict(), "period": period}):
            return ""
        return f". To train for more epochs, keep the schedule: --period {period}, and not auto"

    def _identity(self) -> dict[str, Any]:
        # The sampler's state tells its mixing.
        names = ("alpha", "min_weight", "value", "select", "negatives", "ask", "ask_multiple")
        return {
            "version": VERSION,
            "repository": self._profile.name,
            "method": self._journal.method,
            "schedule": self._schedule.state_dict(),
            **{name: getattr(self._settings, name) for name in names},
        }


def _current(state: Any) -> Any:
    """A state of version 2 is one of version 3, of a run without ``--ask``; one without ``select`` chose by value."""
    if not isinstance(state, dict):
        return state
    if isinstance(version := state.get("version"), int) and version == 2:
        state = state | {"version": 3, "ask": None, "ask_multiple": 1}
    return {"select": None, **state}


def _for_one() -> str:
    return f"resuming is for one process, and there are {distributed.ranks_announced()}"


def _resumable(checkpoint: Any) -> bool:
    return isinstance(checkpoint, dict) and "optimizer" in checkpoint


def _described(hosted: HostedLoader) -> dict[str, Any]:
    """What a loader is recognised by in another process."""
    return {
        "dataset": type(hosted.dataset).__name__,
        "num_samples": hosted.sampler.num_samples,
        "batch_size": hosted.batches.batch_size,
        "about": hosted.about,
    }


def _shown(loader: dict[str, Any]) -> str:
    about = {name: digest for name, digest in loader.get("about", {}).items() if name != "length"}
    known = f" ({', '.join(f'{name} {digest}' for name, digest in about.items())})" if about else ""
    return f"{loader['dataset']}, {loader['num_samples']} samples in batches of {loader['batch_size']}{known}"


def _fingerprint(path: Any) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
