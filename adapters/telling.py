"""What is said in somebody else's program, which knows nothing of KCD: lines ``kcd: TEXT``, by way of the logger."""

from __future__ import annotations

import functools
import logging

from kcd_core.log import LOGGER

__all__ = ["say", "show"]


class Lines(logging.Handler):
    """Prints each record where ``print`` would at that moment: the program may put another ``sys.stdout`` in place."""

    def emit(self, record: logging.LogRecord) -> None:
        warning = "WARNING: " if record.levelno >= logging.WARNING else ""
        print(f"kcd: {warning}{record.getMessage()}", flush=True)  # what it raises ends the program, as ever


def show() -> None:
    """Print what the logger is told from now on, however the program sets up logging for itself.

    Nothing is handed on to the root logger: a program that logs to its terminal would show each line twice.
    """
    _listen()
    LOGGER.disabled = False  # dictConfig() and fileConfig() disable the loggers that are there already


@functools.cache  # what the program changes in this logger by its name stays
def _listen() -> None:
    LOGGER.addHandler(Lines())
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


def say(text: str, level: int = logging.INFO) -> None:
    """Print a line, also in a process whose other loggers are quiet."""
    show()
    LOGGER.log(level, "%s", text)
