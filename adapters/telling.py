"""What is said in somebody else's program, which knows nothing of KCD: lines ``kcd: TEXT``, by way of the logger."""

from __future__ import annotations

import logging

from kcd_core.log import LOGGER

__all__ = ["say", "show"]


class Lines(logging.Handler):
    """Prints each record where ``print`` would at that moment: the program may put another ``sys.stdout`` in place."""

    def emit(self, record: logging.LogRecord) -> None:
        warning = "WARNING: " if record.levelno >= logging.WARNING else ""
        print(f"kcd: {warning}{record.getMessage()}", flush=True)  # what it raises ends the program, as ever


LINES = Lines(logging.INFO)


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
