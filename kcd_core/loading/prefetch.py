"""A prefetcher between the DataLoader and the loop: what it still holds back is not drawn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from .keys import Fetched

__all__ = ["Prefetch", "prefetched"]

#: ``prefetch(batches) -> iterator``: yields a batch for each that it takes from ``batches``, in the same order.
Prefetch = Callable[[Iterator[Any]], Iterator[Any]]

RULE = ": it must yield one batch for each that it is given, in the same order, until there are no more"


def prefetched(prefetch: Prefetch, fetched: Iterator[Fetched]) -> Iterator[Fetched]:
    """The batches of a pass as ``prefetch`` yields them, each with the indices that it came with.

    Raises
    ------
    RuntimeError
        If it yields more batches, or fewer, than it was given, or leaves some.
    """
    waiting: deque[Fetched] = deque()
    given, all_given = 0, False

    def batches() -> Iterator[Any]:
        nonlocal given, all_given
        for one in fetched:
            given += 1
            waiting.append(one._replace(batch=None))
            yield one.batch
        all_given = True

    for batch in prefetch(batches()):
        if not waiting:
            raise RuntimeError(f"prefetch yielded more batches than the {given} it had been given{RULE}")
        yield waiting.popleft()._replace(batch=batch)
    if waiting:
        raise RuntimeError(f"prefetch kept {len(waiting)} of the {given} batches it was given{RULE}")
    if not all_given:
        raise RuntimeError(f"prefetch ended after {given} batches, and others were left{RULE}")
