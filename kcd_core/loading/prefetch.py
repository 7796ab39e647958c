"""A prefetcher between the DataLoader and the loop: what it still holds back is not drawn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from .keys import Fetched

__all__ = ["Prefetch", "Prefetched"]

#: ``prefetch(batches) -> iterator``: yields a batch for each that it takes from ``batches``, in the same order.
Prefetch = Callable[[Iterator[Any]], Iterator[Any]]

END = object()
RULE = ": it must yield one batch for each that it is given, in the same order, until there are no more"


class Prefetched:
    """The batches of a pass as ``prefetch`` yields them, each with the indices that it came with.

    A batch that can't be fetched is the end for the prefetcher, which then yields what it holds back. The error is raised
    in that batch's place, and the prefetcher is begun anew for what is left, so that a loop may continue as without it.

    Raises
    ------
    TypeError
        If it returns nothing to iterate.
    RuntimeError
        If it yields more batches, or fewer, than it was given, or leaves some.
    """

    def __init__(self, prefetch: Prefetch, fetched: Iterator[Fetched]) -> None:
        self._prefetch, self._fetched = prefetch, fetched
        self._waiting: deque[Fetched] = (
            deque()
        )  # given to the prefetcher, and not yielded yet; without their batches
        self._given = 0
        self._error: Exception | None = None
        self._ahead: Iterator[Any] | None = None

    def _begun(self) -> Iterator[Any]:
        batches = self._prefetch(self._batches())
        if not hasattr(batches, "__iter__"):
            raise TypeError(f"prefetch must return an iterator over batches, got {type(batches).__name__}")
        return iter(batches)

    def _batches(self) -> Iterator[Any]:
        while True:
            try:
                one = next(self._fetched)
            except StopIteration:
                return
            except Exception as error:
                self._error = error
                return
            self._given += 1
            self._waiting.append(one._replace(batch=None))
            yield one.batch

    def __iter__(self) -> Prefetched:
        return self

    def __next__(self) -> Fetched:
        if self._ahead is None:
            self._ahead = self._begun()
        batch = next(self._ahead, END)
        if batch is not END:
            if not self._waiting:
                raise RuntimeError(
                    f"prefetch yielded more batches than the {self._given} it had been given{RULE}"
                )
            return self._waiting.popleft()._replace(batch=batch)
        if self._waiting:
            raise RuntimeError(
                f"prefetch kept {len(self._waiting)} of the {self._given} batches it was given{RULE}. Values recorded in this "
                "pass may be of other samples: go back to a state saved before"
            )
        error, self._error = self._error, None
        if error is not None:
            self._ahead = None
            raise error
        if next(self._fetched, None) is not None:
            raise RuntimeError(f"prefetch ended after {self._given} batches, and others were left{RULE}")
        raise StopIteration
