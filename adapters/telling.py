"""What is said in somebody else's program, which knows nothing of KCD: lines ``kcd: TEXT``, by way of the logger."""

from __future__ import annotations

import logging
import sys
from typing import Any

from kcd_core.log import LOGGER

__all__ = ["say", "show"]


class Lines(logging.Handler):
    """Prints each record where ``print`` would at that moment: the program may put another ``sys.stdout`` in place.

    Where the program has closed that, the lines go to Python's own, if it is open.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != LOGGER.name:  # a program's own package kcd: on to where it was going
            logging.getLogger().callHandlers(record)
        elif record.levelno >= logging.INFO:
            self._print(record)

    def _print(self, record: logging.LogRecord) -> None:
        warning = "WARNING: " if record.levelno >= logging.WARNING else ""
        stream = sys.__stdout__ if _closed(sys.stdout) else sys.stdout
        if stream is not None and not _closed(stream):
            # What it raises ends the program, as ever.
            print(f"kcd: {warning}{record.getMessage()}", file=stream, flush=hasattr(stream, "flush"))


def _closed(stream: Any) -> bool:
    return getattr(stream, "closed", False)


LINES = Lines()


def show() -> None:
    """Print what the logger is told from now on, whatever the program has made of logging until now.

    Nothing is handed on to the root logger: a program that logs to its terminal would show each line twice.
    """
    if LINES not in LOGGER.handlers:
        LOGGER.addHandler(LINES)
    LOGGER.isEnabledFor = _enabled  # type: ignore[method-assign]
    LOGGER.disabled = LOGGER.propagate = False


def _enabled(level: int) -> bool:
    """Programs quiet all loggers that there are, by their levels or by ``logging.disable()``; these lines are not meant."""
    return level >= logging.INFO or logging.Logger.isEnabledFor(LOGGER, level)


def say(text: str, level: int = logging.INFO) -> None:
    """Print a line, also in a process whose other loggers are quiet."""
    show()
    LOGGER.log(level, "%s", text)
