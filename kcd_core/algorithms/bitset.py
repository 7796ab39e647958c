"""A subset of a range, one bit a number, of which every member is found at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .ranks import Indices, blocks

__all__ = ["Members"]


class Members:
    """A subset of ``range(length)`` in 9 bits for every 8 numbers of the range, which finds its k-th member at once.

    Parameters
    ----------
    bits : uint8 [ceil(length / 8)]
        As ``numpy.packbits`` makes them.
    length : int
    """

    ROW = 64  # bytes; how many members come before each row is known

    def __init__(self, bits: npt.NDArray[np.uint8], length: int) -> None:
        self.length = length
        self._rows = np.zeros((-(-length // (8 * self.ROW)), self.ROW), np.uint8)
        self._rows.reshape(-1)[: len(bits)] = bits
        self._before = np.zeros(len(self._rows) + 1, np.int64)
        for block in blocks(len(self._rows)):
            self._before[1:][block] = _ONES[self._rows[block]].sum(1)
        np.cumsum(self._before, out=self._before)

    def __len__(self) -> int:
        return int(self._before[-1])

    @property
    def bits(self) -> npt.NDArray[np.uint8]:
        """As `numpy.packbits` makes them."""
        return self._rows.reshape(-1)[: -(-self.length // 8)]

    @property
    def nbytes(self) -> int:
        """Memory taken, in bytes."""
        return self._rows.nbytes + self._before.nbytes

    def indices(self) -> Indices:
        """All members: int64, ascending."""
        return np.flatnonzero(np.unpackbits(self.bits, count=self.length))

    def select(self, places: Indices) -> Indices:
        """The members at the given 0-based places of the ascending list of them."""
        row = np.searchsorted(self._before, places, "right") - 1
        left = places - self._before[row]
        content = self._rows[row]
        reached = _ONES[content].cumsum(1, dtype=np.uint16)
        byte = (reached <= left[:, None]).sum(1)
        each = np.arange(len(places))
        left -= np.where(byte > 0, reached[each, byte - 1], 0)
        found: Indices = (row * self.ROW + byte) * 8 + _PLACES[content[each, byte], left]
        return found


_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
_ONES = _BITS.sum(1, dtype=np.uint8)  # how many ones a byte has
_PLACES = np.argsort(1 - _BITS.astype(np.int8), 1, kind="stable")  # and where
