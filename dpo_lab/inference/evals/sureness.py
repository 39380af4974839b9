"""How sure the numbers of answers are: prompts are drawn again and again, the same ones for every model.

All prompts are drawn alike, with replacement, as many as there are; a number is computed from the sums over the drawn
ones. Intervals are the middle 95 % of the draws. They say what other prompts would have done to greedy answers; what
another seed would have done to sampled ones they hold only as far as it differs between prompts.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpo_lab.inference.evals.compare import CHUNK, LEVELS, Estimate

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Additive:
    """A number that is a function of sums over prompts.

    Attributes:
        sums: (P, K) what each prompt adds.
        of: (S, K) sums -> (S,) numbers.
    """

    sums: Floats
    of: Callable[[Floats], Floats]

    @property
    def value(self) -> float:
        """The number over all prompts."""
        return float(self.of(self.sums.sum(axis=0, keepdims=True))[0])


def ratio(above: Floats, below: Floats) -> Additive:
    """The sum of the one (P,) over the sum of the other (P,); nan where that is 0."""
    return Additive(np.stack([above, below], axis=1), _divided)


def _divided(sums: Floats) -> Floats:
    return np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] != 0)


@dataclass(frozen=True)
class Sureness:
    """Intervals of each model's numbers, and of their differences from a baseline.

    Attributes:
        alone: by model and number.
        apart: by model, without the baseline, and number.
    """

    alone: dict[str, dict[str, Estimate]]
    apart: dict[str, dict[str, Estimate]]

    def to_json(self) -> dict[str, Any]:
        """As plain containers."""
        return {
            key: {name: {number: asdict(e) for number, e in own.items()} for name, own in part.items()}
            for key, part in (("intervals", self.alone), ("differences", self.apart))
        }


def sureness(
    numbers: Mapping[str, Mapping[str, Additive]], baseline: str, *, prompts: int, resamples: int, seed: int
) -> Sureness:
    """The intervals of all models' numbers, and of what sets the models apart from the baseline.

    Args:
        numbers: by model and number, over the same prompts in the same order.
        baseline: one of the models.
        prompts: how many there are; of one there are no intervals.
        resamples: draws of the prompts.
        seed: of the draws.
    """
    drawn = _drawn(numbers, prompts, resamples, seed)
    values = {name: {key: number.value for key, number in own.items()} for name, own in numbers.items()}
    alone = {
        name: {key: _estimate(value, drawn[name, key]) for key, value in own.items()} for name, own in values.items()
    }
    apart = {
        name: {
            key: _estimate(value - values[baseline][key], drawn[name, key] - drawn[baseline, key])
            for key, value in own.items()
            if key in values[baseline]
        }
        for name, own in values.items()
        if name != baseline
    }
    return Sureness(alone, apart)


def _drawn(
    numbers: Mapping[str, Mapping[str, Additive]], prompts: int, resamples: int, seed: int
) -> dict[tuple[str, str], Floats]:
    """Each number (S,) of each draw; (0,) where there is one prompt alone."""
    found: dict[tuple[str, str], list[Floats]] = {(name, key): [] for name, own in numbers.items() for key in own}
    generator = np.random.default_rng(seed)
    block = max(1, CHUNK // prompts)
    for start in range(0, resamples if prompts > 1 else 0, block):
        size = min(block, resamples - start)
        times = generator.multinomial(prompts, np.full(prompts, 1 / prompts), size=size).astype(np.float64)  # (B, P)
        for (name, key), parts in found.items():
            number = numbers[name][key]
            parts.append(number.of(times @ number.sums))
    return {place: np.concatenate([np.zeros(0), *parts]) for place, parts in found.items()}


def _estimate(value: float, draws: Floats) -> Estimate:
    draws = draws[np.isfinite(draws)]
    if not len(draws) or not np.isfinite(value):
        return Estimate(value, None, None)
    low, high = np.percentile(draws, LEVELS)
    return Estimate(value, float(low), float(high))
