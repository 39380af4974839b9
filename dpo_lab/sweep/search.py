"""Which points of a space to try: all of a grid, or some at random."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from dpo_lab.sweep.space import Axis

Point = dict[str, str]  # axis key -> text of its value; an override is f"{key}={text}"

ENUMERABLE = 100_000  # points; a larger space is drawn from without a list of what there is
REPEATS = 1000  # draws in a row that found nothing new: the space has no more


@dataclass(frozen=True)
class Seen:
    """A trial as a searcher sees it."""

    point: Point
    state: str  # done | running | failed | pruned
    values: tuple[float, ...] | None  # of the objectives, in their order, where it is done
    steps: dict[int, float]  # the first objective by step, as far as it went


def grid(axes: Sequence[Axis], points: int) -> list[Point]:
    """Every combination, the last axis changing fastest; an interval becomes `points` values."""
    keys = [axis.key for axis in axes]
    return [dict(zip(keys, values, strict=True)) for values in product(*(axis.points(points) for axis in axes))]


def random_points(axes: Sequence[Axis], total: int, seed: int) -> list[Point]:
    """`total` different points at random; all there are where these are fewer.

    Point i depends on the seed, i and the axes only, not on their order: a larger total goes on where a smaller one
    ended.
    """
    if enumerable(axes):
        return [nth(axes, i) for i in permutation(axes, seed)[:total]]
    found: dict[tuple[str, ...], Point] = {}
    repeats = i = 0
    while len(found) < total and repeats < REPEATS:
        point = draw(axes, seed, i)
        repeats = repeats + 1 if tuple(point.values()) in found else 0
        found.setdefault(tuple(point.values()), point)
        i += 1
    return list(found.values())


def size(axes: Sequence[Axis]) -> int | None:
    """How many points there are; None where an axis is continuous."""
    counts = [axis.count for axis in axes]
    return None if None in counts else prod(n for n in counts if n is not None)


def enumerable(axes: Sequence[Axis]) -> bool:
    """Whether the points are few enough to be counted one by one."""
    n = size(axes)
    return n is not None and n <= ENUMERABLE


def nth(axes: Sequence[Axis], i: int) -> Point:
    """Point number `i` of a finite space."""
    found: Point = {}
    for axis in sorted(axes, key=lambda axis: axis.key):
        i, place = divmod(i, axis.count or 1)
        found[axis.key] = axis.nth(place)
    return {axis.key: found[axis.key] for axis in axes}


def permutation(axes: Sequence[Axis], seed: int) -> list[int]:
    """The numbers of all points of an enumerable space, shuffled."""
    return np.random.default_rng([seed]).permutation(size(axes) or 0).tolist()


def draw(axes: Sequence[Axis], seed: int, i: int) -> Point:
    """Draw number `i` from a space of any size."""
    ordered = sorted(axes, key=lambda axis: axis.key)
    shares = np.random.default_rng([seed, i]).random(len(ordered))
    found = {axis.key: axis.at(float(share)) for axis, share in zip(ordered, shares, strict=True)}
    return {axis.key: found[axis.key] for axis in axes}
