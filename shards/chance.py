"""Random numbers as arithmetic: hashes and permutations of integers.

Owns the one source of chance in the order of samples. Refuses to keep state: the same numbers give
the same result on every platform and under every release of numpy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def permutation(n: int, *parts: int) -> NDArray:
    """The integers below `n`, shuffled by a hash of `parts`."""
    return np.argsort(hashed(*parts, np.arange(n)), kind="stable")


def hashed(*parts: int | NDArray) -> NDArray:
    """A 64-bit hash of integers, elementwise: a chain of splitmix64 (Steele, Lea, Flood 2014)."""
    value = np.zeros(1, dtype=np.uint64)
    for part in parts:
        value = value + np.asarray(part).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        value = value ^ (value >> np.uint64(31))
    return value


def apportion(places: int, weights: NDArray) -> NDArray[np.int64]:
    """`places` dealt out by weight, in whole numbers, by the largest remainder; the first of
    equals."""
    exact = places * weights / weights.sum()
    # A product of decimals may fall a rounding error short of the integer it means.
    dealt = np.floor(exact + 1e-9).astype(np.int64)
    rest = places - int(dealt.sum())
    dealt[np.argsort(dealt - exact, kind="stable")[:rest]] += 1
    return dealt
