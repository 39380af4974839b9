"""How sure the scores of results are, and their differences: prompts are drawn again and again.

Pairs of a prompt are alike, so whole prompts are drawn, with replacement, as many as there are. All results are scored on
the same draws: what makes a prompt easy for one of two results makes it easy for the other, and falls out of the
difference. Intervals are the middle 95 % of the draws; with few prompts they are too narrow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEVELS = (2.5, 97.5)
CHUNK = 4_000_000  # drawn prompts that are in memory at a time


@dataclass(frozen=True)
class PairValues:
    """What a result makes of P pairs.

    Attributes:
        correct: (P,) 1.0 where it prefers the chosen answer.
        margins: (P,) log-ratio of the chosen minus that of the rejected answer, in nats.
    """

    correct: Floats
    margins: Floats


@dataclass(frozen=True)
class Estimate:
    """A mean over pairs and its 95 % interval; None where there is one prompt alone."""

    value: float
    low: float | None
    high: float | None

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Comparison:
    """How far a result is from a baseline on the same pairs.

    Attributes:
        result: name of the one.
        baseline: name of the other.
        accuracy: of the result minus that of the baseline; None where one of them has none.
        margin: the same of the margins, in nats.
        gained: pairs that only the result gets right.
        lost: pairs that only the baseline gets right.
    """

    result: str
    baseline: str
    accuracy: Estimate | None
    margin: Estimate
    gained: int
    lost: int

    def to_json(self) -> dict[str, Any]:
        """As plain containers."""
        return asdict(self)


@dataclass(frozen=True)
class Compared:
    """All results of an evaluation: each alone, and each pair of them."""

    accuracy: dict[str, Estimate]
    margin: dict[str, Estimate]
    comparisons: list[Comparison]


def compare(
    results: Mapping[str, PairValues], prompts: Sequence[str], *, resamples: int, seed: int, reference: str
) -> Compared:
    """Intervals of each result, and of the difference of each two of them; the later of two is held against the earlier.

    Args:
        results: by name, in order, on the same pairs.
        prompts: (P,) what each pair's prompt is called.
        resamples: draws of the prompts.
        seed: of the draws.
        reference: what the reference is called, which every result is held against too: its margin is 0 everywhere,
            and it prefers no answer.
    """
    names = list(results)
    columns = np.stack([v for r in results.values() for v in (r.correct, r.margins)])  # (2R, P)
    drawn = _draws(columns, prompts, resamples, seed)  # (S, 2R)
    means = columns.mean(axis=1)
    correct = {name: 2 * i for i, name in enumerate(names)}
    margin = {name: 2 * i + 1 for i, name in enumerate(names)}

    def alone(column: int) -> Estimate:
        return _estimate(float(means[column]), drawn[:, column])

    def apart(one: int, other: int) -> Estimate:
        return _estimate(float(means[one] - means[other]), drawn[:, one] - drawn[:, other])

    found = [Comparison(name, reference, None, alone(margin[name]), 0, 0) for name in names]
    for place, name in enumerate(names):
        for baseline in names[:place]:
            ours, theirs = results[name].correct > 0, results[baseline].correct > 0
            found.append(
                Comparison(
                    name,
                    baseline,
                    apart(correct[name], correct[baseline]),
                    apart(margin[name], margin[baseline]),
                    int((ours & ~theirs).sum()),
                    int((theirs & ~ours).sum()),
                )
            )
    return Compared(
        {name: alone(correct[name]) for name in names}, {name: alone(margin[name]) for name in names}, found
    )


def _draws(columns: Floats, prompts: Sequence[str], resamples: int, seed: int) -> Floats:
    """(S, C) means of the columns (C, P) over the pairs of drawn prompts; (0, C) where there is one prompt alone."""
    _, clusters = np.unique(np.asarray(prompts), return_inverse=True)
    n = int(clusters.max()) + 1
    if n < 2:
        return np.zeros((0, len(columns)))
    sizes = np.bincount(clusters, minlength=n).astype(np.float64)
    sums = np.stack([np.bincount(clusters, weights=column, minlength=n) for column in columns], axis=1)  # (G, C)
    generator, parts = np.random.default_rng(seed), []
    block = max(1, CHUNK // n)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        places = generator.integers(0, n, size=(size, n)) + n * np.arange(size)[:, None]
        times = np.bincount(places.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)
        parts.append(times @ sums / (times @ sizes)[:, None])
    return np.concatenate(parts)


def _estimate(value: float, draws: Floats) -> Estimate:
    if not len(draws):
        return Estimate(value, None, None)
    low, high = np.percentile(draws, LEVELS)
    return Estimate(value, float(low), float(high))
