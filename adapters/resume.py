"""KCD's state beside the checkpoints of a host that can resume."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kcd_core import CondensationHistory
from kcd_core.tracker import check_same

from .files import write_whole

if TYPE_CHECKING:
    from .engine import Engine
    from .hosted import HostedLoader

__all__ = ["Checkpoints"]

VERSION = 1
NEEDS = ("epochs", "drawn", "observed", "saved", "tracker", "sampler", "history")


class Checkpoints:
    """Saves and loads ``PATH.kcd`` whenever the host saves or loads ``PATH``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loaded: Any = None

    def save(self, checkpoint: Any, path: Any) -> None:
        """Called after the host saved. A checkpoint without an optimizer is not one to resume from."""
        engine, train = self._engine, self._engine.train
        if train is None or not (isinstance(checkpoint, dict) and "optimizer" in checkpoint):
            return
        if engine.rank > 0:
            return
        state = {
            **self._identity(train),
            "checkpoint": _fingerprint(path),
            "epochs": engine.epochs,
            "drawn": [engine.drawn, train.drawn],
            "observed": [engine.observed, train.observed],
            "saved": engine.saved,
            "tracker": train.tracker.state_dict(),
            "sampler": train.sampler.state_dict(),
            "history": train.history.state_dict(),
        }
        content = io.BytesIO()
        torch.save(state, content)
        write_whole(Path(f"{path}.kcd"), content.getvalue())

    def load(self, path: Any) -> None:
        """Called after the host loaded: a teacher, too, which has no such file beside it.

        Raises
        ------
        ValueError
            If the checkpoint is not the one that the file was written beside.
        """
        if not Path(f"{path}.kcd").is_file():
            return
        state = torch.load(f"{path}.kcd", map_location="cpu", weights_only=True)
        if state.get("checkpoint") != _fingerprint(path):
            raise ValueError(
                f"{path}.kcd belongs to another checkpoint than {path} is now (one that was overwritten by a run "
                "without KCD, or by one that was killed before it wrote the new state): resume from another "
                "checkpoint, or delete that file to begin anew with the full set"
            )
        self._loaded = state

    def restore(self, hosted: HostedLoader) -> None:
        """Give a loader the state that was loaded, if it is of its size.

        Raises
        ------
        ValueError
            If it was saved with other settings. Nothing is changed then.
        """
        state, engine = self._loaded, self._engine
        if state is None or state.get("num_samples") != hosted.sampler.num_samples:
            return
        check_same(state, self._identity(hosted), "run", needs=NEEDS)
        hosted.tracker.load_state_dict(state["tracker"])
        hosted.sampler.load_state_dict(state["sampler"])
        hosted.history = CondensationHistory.from_state(state["history"])
        engine.epochs = state["epochs"]
        # The pass it was saved in ends when the next begins, as ever.
        engine.drawn, hosted.drawn = state["drawn"]
        engine.observed, hosted.observed = state["observed"]
        engine.saved = state["saved"]
        self._loaded = None
        engine.choose(hosted)
        engine.say(f"resumed after epoch {engine.epochs + bool(hosted.observed)}")

    def _identity(self, hosted: HostedLoader) -> dict[str, Any]:
        settings = self._engine.settings
        names = ("alpha", "min_weight", "mixing", "value", "negatives")
        return {
            "version": VERSION,
            "num_samples": hosted.sampler.num_samples,
            "schedule": self._engine.schedule.state_dict(),
            **{name: getattr(settings, name) for name in names},
        }


def _fingerprint(path: Any) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
