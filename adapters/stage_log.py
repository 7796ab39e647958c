"""What each stage did, written as it ends, where a run is asked to: JSON lines, and TensorBoard's files."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from collections.abc import Callable, Mapping
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from kcd_core import CondensationHistory
from kcd_core.base.files import check_writable

from .settings import Settings
from .telling import say

__all__ = ["StageLog", "now"]

SHOWN = ("kept", "dropped", "mixed", "unseen", "cut")  # of a record, as TensorBoard's scalars


def now() -> str:
    """The time, to the second, with its zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


class StageLog:
    """Where ``log`` and ``tensorboard`` of the settings say; nowhere by default.

    Where a stage can't be written, a warning says so, and training continues.

    Parameters
    ----------
    settings : Settings
    about : mapping
        What every line begins with: of which run it is.
    """

    def __init__(self, settings: Settings, about: Mapping[str, Any]) -> None:
        self._about = dict(about)
        # Absolute from the start: the host may change its working directory.
        self._lines = None if settings.log is None else Path(settings.log).absolute()
        self._folder = None if settings.tensorboard is None else Path(settings.tensorboard).absolute()
        self._writer: Any = None

    def check(self, name: Callable[[str], str]) -> None:
        """See now whether it can be written later; ``name`` makes an option of a setting's name.

        Raises
        ------
        ValueError
            If a file or folder can't be written to.
        ImportError
            If the package that TensorBoard's files are written with is missing.
        """
        if self._lines is not None:
            check_writable(self._lines, name("log"))
            if self._lines.exists() and not os.access(self._lines, os.W_OK):
                raise ValueError(f"{name('log')} {self._lines}: it is read-only")
        if self._folder is not None:
            if self._folder.exists() and not self._folder.is_dir():
                raise ValueError(f"{name('tensorboard')} {self._folder}: it is a file, a folder is expected")
            if importlib.util.find_spec("tensorboard") is None:
                raise ImportError(
                    f"{name('tensorboard')} needs the package tensorboard, with which torch writes its files: "
                    "pip install tensorboard"
                )

    def write(self, history: CondensationHistory, **counts: int) -> None:
        """The last stage of ``history``, and what else is counted by now."""
        record = history[-1]
        if self._lines is not None:
            self._attempt("log", self._append, record, history.num_samples, counts)
        if self._folder is not None:
            self._attempt("tensorboard", self._draw, record, history.num_samples, counts)

    def _attempt(self, name: str, write: Callable[..., None], *what: Any) -> None:
        try:
            write(*what)
        except OSError as error:
            text = f"stage {what[0]['stage']} can't be written ({name}): {error.strerror or error}"
            say(text, logging.WARNING)

    def _append(self, record: Mapping[str, Any], num_samples: int, counts: Mapping[str, int]) -> None:
        shown = {k: v for k, v in record.items() if k not in ("edges", "counts") and v is not None}
        line = {"time": now(), **self._about, "num_samples": num_samples, **shown, **counts}
        assert self._lines is not None
        # In one write, at the end of the file wherever that is by then: lines of several runs do not mingle.
        handle = os.open(self._lines, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(handle, (json.dumps(line) + "\n").encode())
        finally:
            os.close(handle)

    def _draw(self, record: Mapping[str, Any], num_samples: int, counts: Mapping[str, int]) -> None:
        if self._writer is None:
            # Not before there is something to write; and torch is imported by now, by the host.
            self._writer = import_module("torch.utils.tensorboard").SummaryWriter(str(self._folder))
        shown = {name: record[name] for name in SHOWN if record[name] is not None}
        shown["share"] = record["kept"] / num_samples
        if counts.get("full"):
            shown["saved"] = counts["saved"] / counts["full"]
        for name, value in shown.items():
            self._writer.add_scalar(f"kcd/{name}", value, record["epoch"])
        self._writer.flush()
