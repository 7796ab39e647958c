"""A keyed permutation of ``range(size)``: any place of an epoch's order, without the order in memory.

The same on every machine, NumPy version and number of ranks, and from any place on.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["hashed", "mix_int", "permute", "round_keys"]

Indices = npt.NDArray[np.int64]

_ROUNDS = 8
_MASK = (1 << 64) - 1


def mix_int(x: int) -> int:
    """SplitMix64's finaliser, on a Python int (Steele, Lea & Flood, OOPSLA 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def round_keys(seed: int, epoch: int) -> list[int]:
    """The keys of one epoch's order: other seeds and epochs have unrelated ones."""
    state = mix_int(mix_int(seed) ^ mix_int(epoch ^ 0x6B6364))
    keys = []
    for _ in range(_ROUNDS):
        state = mix_int(state)
        keys.append(state)
    return keys


def permute(places: Indices, size: int, keys: list[int], *, inverse: bool = False) -> Indices:
    """A permutation of ``range(size)``, or its inverse, evaluated at ``places``.

    A Feistel network permutes ``range(2 ** bits)``, the power of two at or above ``size``; what lands
    outside ``range(size)`` goes through again until it is inside (cycle walking, Black & Rogaway,
    CT-RSA 2002), less than two times on average.
    """
    bits = (size - 1).bit_length()
    if bits == 0:
        return places
    rounds = list(enumerate(keys))[:: -1 if inverse else 1]
    x = _feistel(places.astype(np.uint64), bits, rounds)
    outside = np.flatnonzero(x >= size)
    while len(outside):
        x[outside] = _feistel(x[outside], bits, rounds)
        outside = outside[x[outside] >= size]
    return x.astype(np.int64)


def _feistel(x: npt.NDArray[np.uint64], bits: int, rounds: list[tuple[int, int]]) -> npt.NDArray[np.uint64]:
    """Alternately, each half is XORed with a keyed hash of the other: a bijection whatever the hash, and undone by the
    same rounds in reverse."""
    low_bits = np.uint64(bits // 2)
    low_mask = np.uint64((1 << (bits // 2)) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    low, high = x & low_mask, x >> low_bits
    for number, key in rounds:
        if number % 2:
            low = low ^ (hashed(high, key) & low_mask)
        else:
            high = high ^ (hashed(low, key) & high_mask)
    joined: npt.NDArray[np.uint64] = (high << low_bits) | low
    return joined


def hashed(x: npt.NDArray[np.uint64], key: int) -> npt.NDArray[np.uint64]:
    """Each number's keyed hash."""
    x = (x ^ np.uint64(key)) * np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(32)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(29)
    return x
