"""What a sweep has found: its settings ranked, which of them may be the best, and the effect of each axis.

A setting is the trials that differ in seeds alone. It is scored by its accuracy, the share of held-out pairs whose
log-ratio margin is above 0, and by that margin in nats; both are means over its seeds and over the pairs. Rewards are not
used, as they depend on beta. How noise is measured and the best is compared with the rest: see resampling.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpo_lab.sweep.comparable import comparable, group_by_setting, pairs_of, prompt_numbers, seed_numbers
from dpo_lab.sweep.lengths import Lengths
from dpo_lab.sweep.resampling import Best, Floats, Spread, best, half_width, spread, t_quantiles
from dpo_lab.sweep.results import Sweep, Trial
from dpo_lab.sweep.verdict import judge, nothing
from dpo_lab.sweep.wording import SEEDS, identity, setting_text


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Standing:
    """A setting and how it did.

    Attributes:
        axes: its values, without seeds.
        trials: one a seed, all scored on the same pairs as those of all other settings.
        label: the setting in words.
        accuracy: mean over seeds and pairs; its interval is for this setting alone.
        margin: the same of the log-ratio margin, in nats.
        behind: accuracy of the best minus this one's; its interval holds for all settings at once.
        may_be_best: whether it is in the 95 % confidence set of the best.
        kl: mean val/kl of the trials that have it.
        tokens: mean length of the policy's sampled answers.
    """

    axes: dict[str, Any]
    trials: tuple[Trial, ...]
    label: str
    accuracy: float
    accuracy_interval: Interval
    margin: float
    margin_interval: Interval
    behind: float
    behind_interval: Interval
    may_be_best: bool
    kl: float | None
    tokens: float | None


@dataclass(frozen=True)
class Effect:
    """A value of an axis: means over `settings` settings, the same others for each value where the grid allows it."""

    axis: str
    value: Any
    accuracy: float
    accuracy_interval: Interval
    margin: float
    margin_interval: Interval
    settings: int


@dataclass(frozen=True)
class Answer:
    """What a reader should take home.

    Attributes:
        standings: best first, by accuracy, ties by margin.
        verdict: "clear winner", "no clear winner", "leader" (seed noise is unmeasured), "one setting" or "nothing".
        sentence: the verdict with its numbers.
        seeds: the least number of trials of a setting.
        pairs: held-out pairs that all settings were scored on.
        prompts: of these pairs.
        effects: of the axes that have two values or more.
        left_out: trials that could not be compared, and why.
    """

    standings: tuple[Standing, ...]
    verdict: str
    sentence: str
    seeds: int
    pairs: int
    prompts: int
    effects: tuple[Effect, ...]
    left_out: tuple[tuple[Trial, str], ...]


@dataclass(frozen=True)
class Measure:
    """Accuracy (`bounded`: between 0 and 1) or margin of the settings, and the quantiles of its errors."""

    spread: Spread
    quantiles: Floats
    bounded: bool

    def of(self, members: Sequence[int]) -> tuple[float, Interval]:
        """The mean over some settings, and its interval."""
        mean, over_prompts, over_seeds = self.spread.mean_of(members)
        prompts, floor, top = self.spread.prompts, *((0.0, 1.0) if self.bounded else (-math.inf, math.inf))
        if prompts < 2:
            return mean, Interval(floor, top)
        half = half_width(over_prompts, over_seeds, self.quantiles)
        low, high = mean - half, mean + half
        if (
            self.bounded and half < 1e-9
        ):  # every pair right, or wrong: Clopper and Pearson's interval of so many prompts
            low = 0.025 ** (1 / prompts) if mean > 1 - 1e-9 else low
            high = 1 - 0.025 ** (1 / prompts) if mean < 1e-9 else high
        return mean, Interval(max(low, floor), min(high, top))


def answer(sweep: Sweep, *, seed: int = 0) -> Answer:
    """Compare the settings of a sweep.

    Args:
        sweep: as it is on disk.
        seed: of the draws behind the intervals.
    """
    trials, left_out = comparable(sweep.trials)
    if not trials:
        return Answer((), "nothing", nothing(sweep.trials), 0, 0, 0, (), left_out)
    settings = [*group_by_setting(trials).values()]
    prompts = prompt_numbers(pairs_of(trials[0]))
    seeds = [seed_numbers(group) for group in settings]
    accuracy = spread([np.stack([pairs_of(t).correct for t in group]) for group in settings], prompts, seeds)
    margin = spread([np.stack([pairs_of(t).margins for t in group]) for group in settings], prompts, seeds)
    quantiles = t_quantiles(accuracy, seed=seed)
    measures = Measure(accuracy, quantiles, True), Measure(margin, quantiles, False)
    found = best(accuracy, seed=seed)
    standings = _standings(settings, measures, found)
    order = sorted(range(len(settings)), key=lambda i: (-round(standings[i].accuracy, 12), -standings[i].margin))
    ranked = [standings[i] for i in order]
    contending = in_contention(accuracy, found, seed=seed)
    verdict, sentence = judge(ranked, [bool(contending[i]) for i in order], len(prompts), accuracy.prompts)
    return Answer(
        standings=tuple(ranked),
        verdict=verdict,
        sentence=sentence,
        seeds=min(len(group) for group in settings),
        pairs=len(prompts),
        prompts=accuracy.prompts,
        effects=_effects(sweep, [group[0].seedless() for group in settings], measures),
        left_out=left_out,
    )


def in_contention(accuracy: Spread, found: Best, *, seed: int) -> NDArray[np.bool_]:
    """The settings that the noise of the prompts alone does not rule out: those whose seeds matter to the verdict."""
    if accuracy.seed_df == 0 or accuracy.seeds.min() > 1:  # then it is the set itself, or not asked for
        return found.members
    return best(accuracy.without_seeds(), seed=seed).members


def _standings(settings: Sequence[Sequence[Trial]], measures: tuple[Measure, Measure], found: Best) -> list[Standing]:
    lengths, top = Lengths(), measures[0].spread.means.max()
    standings = []
    for i, group in enumerate(settings):
        (accuracy, accuracy_interval), (margin, margin_interval) = (measure.of([i]) for measure in measures)
        standings.append(
            Standing(
                axes=group[0].seedless(),
                trials=tuple(group),
                label=setting_text(group[0].seedless()),
                accuracy=accuracy,
                accuracy_interval=accuracy_interval,
                margin=margin,
                margin_interval=margin_interval,
                behind=float(top) - accuracy,
                behind_interval=Interval(float(found.low[i]), float(found.high[i])),
                may_be_best=bool(found.members[i]),
                kl=_mean([trial.metrics.get("val/kl") for trial in group]),
                tokens=_mean([lengths.of(trial) for trial in group]),
            )
        )
    return standings


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None


def _effects(sweep: Sweep, settings: Sequence[dict[str, Any]], measures: tuple[Measure, Measure]) -> tuple[Effect, ...]:
    """Means over the combinations of the other axes that all values of an axis share; over all settings if none is."""
    effects = []
    for axis, values in sweep.axes.items():
        if axis in SEEDS:
            continue
        places: dict[str, dict[str, int]] = {}
        for i, axes in enumerate(settings):
            if axis in axes:
                others = identity({key: value for key, value in axes.items() if key != axis})
                places.setdefault(identity({axis: axes[axis]}), {})[others] = i
        if len(places) < 2:
            continue
        shared = set.intersection(*(set(at) for at in places.values()))
        for value in values:
            if at := places.get(identity({axis: value})):
                members = [i for others, i in at.items() if others in shared or not shared]
                (accuracy, near), (margin, around) = (measure.of(members) for measure in measures)
                effects.append(Effect(axis, value, accuracy, near, margin, around, len(members)))
    return tuple(effects)
