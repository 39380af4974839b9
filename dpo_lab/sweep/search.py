"""Which points of a space to try: all of a grid, or some at random."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, product
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


def random_points(axes: Sequence[Axis], total: int, seed: int, tried: Sequence[Point] = ()) -> list[Point]:
    """`total` different points at random; all there are where these are fewer.

    Draw i depends on the seed, i and the axes only, not on their order: a larger total goes on where a smaller one
    ended.

    Args:
        axes: what to draw from.
        total: how many points, those that were tried among them.
        seed: of the draws.
        tried: points that come first, all that lie in the space: those of an axis that had fewer values would hardly be
            drawn again.
    """
    known = {tuple(sorted(point.items())): point for point in tried if holds(axes, point)}
    found = [*known.values()]
    draws = (nth(axes, i) for i in permutation(axes, seed)) if enumerable(axes) else _draws(axes, seed)
    repeats = 0
    while len(found) < total and repeats < REPEATS + len(tried) and (point := next(draws, None)) is not None:
        place = tuple(sorted(point.items()))
        repeats = repeats + 1 if place in known else 0
        if place not in known:
            known[place] = point
            found.append(point)
    return found


def _draws(axes: Sequence[Axis], seed: int) -> Iterator[Point]:
    return (draw(axes, seed, i) for i in count())


def holds(axes: Sequence[Axis], point: Point) -> bool:
    """Whether a point lies in the space: one of an earlier command may not."""
    return all(axis.key in point and axis.value(point[axis.key]) is not None for axis in axes)


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
