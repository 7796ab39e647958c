"""What is being done, and how far it is."""

from __future__ import annotations

import sys
import time


class Progress:
    """On stderr: rewritten in place on a terminal, else a line at each beginning, and now and then.

    Parameters
    ----------
    every : float, optional
        Seconds between two lines where they can't be rewritten.
    """

    def __init__(self, every: float = 15.0) -> None:
        self._in_place = sys.stderr.isatty()
        self._every = 0.2 if self._in_place else every
        self._started = self._said = time.monotonic()
        self._what, self._width = "", 0

    def begin(self, what: str) -> None:
        """Something else is being done from now on."""
        self._what = what
        self._say(what)

    def at(self, number: int, of: int) -> None:
        """So much of it is done."""
        if time.monotonic() - self._said >= self._every:
            self._say(f"{self._what}, {number} of {of}")

    def end(self) -> None:
        """Nothing is left on a terminal's line."""
        if self._in_place:
            sys.stderr.write(f"\r{' ' * self._width}\r")
            sys.stderr.flush()

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        text = f"{text}, {self._said - self._started:.0f} s"
        if self._in_place:
            sys.stderr.write(f"\r{text:<{self._width}}")
            self._width = len(text)
        else:
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
