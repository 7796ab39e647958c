"""Keys that are chosen such that a dict of them takes forever."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from itertools import islice

__all__ = ["collide"]

FEW = 250  # keys that cost little, however they were chosen
TRIES = 32  # for a place in the table; chance needs two, and multiples of a power of two a dozen


def collide(keys: Collection[Hashable]) -> bool:
    """Whether a dict of ``keys`` takes steps out of proportion to their number.

    Whoever knows how numbers are hashed can choose n of them for which it takes n² steps, also without giving any
    two the same hash. So each key is given a place as CPython does it (``Objects/dictobject.c``), in tables of all
    sizes that a growing dict can pass through, until it has taken too many tries.
    """
    size = 8
    while size < 4 * len(keys) and len(keys) > FEW:
        taken, left = bytearray(size), TRIES * size
        for key in islice(keys, 2 * size // 3):
            rest = hash(key) & 0xFFFF_FFFF_FFFF_FFFF
            place = rest & (size - 1)
            while taken[place]:
                left -= 1
                rest >>= 5
                place = (5 * place + rest + 1) & (size - 1)
            if left < 0:
                return True
            taken[place] = 1
        size *= 2
    return False
