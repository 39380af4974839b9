"""Sets of 64 bit hashes, a million at a time.

N hashes.
"""

from typing import Any

import numpy as np

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Hashes = np.ndarray[Any, np.dtype[np.uint64]]


def mix(values: Hashes) -> Hashes:
    """Spread 64 bits evenly (splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def joined(*columns: Hashes) -> Hashes:
    """One hash (N,) for what columns (N,) say together, in their order."""
    found = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        found = mix(found * np.uint64(0x9E3779B97F4A7C15) + column)
    return found


def distinct(values: Hashes) -> int:
    """How many are different."""
    ordered = np.sort(values)
    return int((ordered[1:] != ordered[:-1]).sum()) + bool(len(ordered))


def again(values: Hashes) -> Bools:
    """Which (N,) have occurred before."""
    found = np.zeros(len(values), bool)
    if len(values):
        order = np.argsort(values)
        ordered = values[order]
        found[:] = True
        found[np.minimum.reduceat(order, _starts(ordered))] = False
    return found


def repeated(values: Hashes) -> Bools:
    """Which (N,) occur more than once, the first time included."""
    order = np.argsort(values)
    ordered = values[order]
    same = np.zeros(len(values) + 1, bool)
    same[1:-1] = ordered[1:] == ordered[:-1]
    found = np.zeros(len(values), bool)
    found[order] = same[1:] | same[:-1]
    return found


def within(values: Hashes, known: Hashes) -> Bools:
    """Which (N,) are among `known`."""
    return met(values, known)[0]


def met(a: Hashes, b: Hashes) -> tuple[Bools, Bools]:
    """Which of each are among the other's: as `np.isin` both ways, with one sort for both."""
    both = np.concatenate([a, b])
    found = np.zeros(len(both), bool)
    if len(a) and len(b):
        order = np.argsort(both)
        ordered = both[order]
        starts = _starts(ordered)
        sizes = np.diff(starts, append=len(both))
        of_b = np.add.reduceat(order >= len(a), starts, dtype=np.int64)
        found[order] = np.repeat((of_b > 0) & (of_b < sizes), sizes)
    return found[: len(a)], found[len(a) :]


def _starts(ordered: Hashes) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Where each run of equal values begins."""
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
