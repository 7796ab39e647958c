"""A script that asks for a length between two epochs, and trains on an epoch of another: said once."""

from __future__ import annotations

from .journal import Journal

__all__ = ["ToldLength"]


class ToldLength:
    """Compares what the script was told between two epochs with the epoch that follows."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._told: int | None = None
        self._said = False

    def between_epochs(self, length: int) -> None:
        """The script was told this length."""
        self._told = length

    def drawn(self, length: int) -> None:
        """A batch was drawn, of an epoch of this length."""
        told, self._told = self._told, None
        if told not in (None, length) and not self._said:
            self._said = True
            self._journal.tell_length(told, length)
