"""What a swept override ranges over: named values, or an interval of numbers.

Hydra's grammar: `a=1,2`, `a=choice(1,2)`, `a=range(1,10,3)`, `a=interval(1e-5,1e-3)`, `a=tag(log,interval(1e-5,1e-3))`.
Hydra reads the ends of an interval as floats; whole numbers are asked for by `a=int(interval(4,64))`.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, ValueType
from hydra.errors import HydraException

from dpo_lab.runtime.errors import ConfigError

POINT_TOLERANCE = 0.02  # a point of a grid may lie this share of the gap beside its place, to have few digits
DRAW_TOLERANCE = 0.001  # a value drawn at random may be rounded by this share of the interval


@dataclass(frozen=True)
class Axis:
    """One swept override: its values, or the interval between `low` and `high`, ends included."""

    key: str  # as in the override, without + and package: optim.lr, loss
    values: tuple[str, ...] = ()  # of a choice or range, as text that Hydra reads back as the same value
    low: float | None = None
    high: float | None = None
    log: bool = False
    integer: bool = False

    @property
    def count(self) -> int | None:
        """How many values there are; None where they are without number."""
        low, high = self._ends
        if self.values:
            return len(self.values)
        return int(high) - int(low) + 1 if self.integer else 1 if low == high else None

    def nth(self, i: int) -> str:
        """Value number `i` of an axis that has a count."""
        if self.values:
            return self.values[i]
        return str(int(self._ends[0]) + i) if self.integer else repr(self._ends[0])

    def points(self, n: int) -> tuple[str, ...]:
        """Its values, or `n` of an interval: evenly spaced, on a log scale where tagged log, ends included.

        A single one lies in the middle. `tag(log,interval(1e-5,1e-3))`, 3 -> 1e-05, 0.0001, 0.001
        """
        if self.values:
            return self.values
        low, high = self._ends
        shares = [0.5] if n == 1 else [i / (n - 1) for i in range(n)]
        gap = POINT_TOLERANCE / max(n - 1, 1)
        ends = {0.0: self.text(low, tolerance=0), 1.0: self.text(high, tolerance=0)}
        texts = [ends.get(share) or self.text(self._place(share), tolerance=gap) for share in shares]
        return tuple(dict.fromkeys(texts))

    def at(self, share: float) -> str:
        """The value at 0 <= share < 1 of the axis: values are equally likely, intervals even on their scale."""
        if self.values:
            return self.values[int(share * len(self.values))]
        low, high = self._ends
        if not self.integer:
            return self.text(self._place(share))
        if self.log:  # half a step beyond both ends, so that these are as likely as their neighbours
            bottom, top = math.log(low - 0.5), math.log(high + 0.5)
            return self.text(math.exp(bottom + share * (top - bottom)))
        return self.text(math.floor(low + share * (high - low + 1)))

    def value(self, text: str) -> str | float | None:
        """What a text stands for: a named value, or a number of the interval; None where the axis does not hold it."""
        if self.values:
            return text if text in self.values else None
        low, high = self._ends
        try:
            number = float(text)
        except ValueError:
            return None
        if not low <= number <= high or (self.integer and number != int(number)):
            return None
        return int(number) if self.integer else number

    def text(self, number: float, *, tolerance: float = DRAW_TOLERANCE) -> str:
        """A number of an interval in as few digits as keep it within `tolerance` (a share of the interval)."""
        low, high = self._ends
        if self.integer:
            return str(round(min(max(number, low), high)))
        room = tolerance * (abs(number) * math.log(high / low) if self.log else high - low)
        for digits in range(17):
            rounded = float(f"{number:.{digits}e}")
            if low <= rounded <= high and abs(rounded - number) <= room:
                return repr(rounded)
        return repr(min(max(number, low), high))

    def _place(self, share: float) -> float:
        low, high = self._ends
        if self.log:
            return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        return low + share * (high - low)

    @property
    def _ends(self) -> tuple[float, float]:
        assert self.values or (self.low is not None and self.high is not None), self.key
        return self.low or 0.0, self.high or 0.0


def read_axes(words: Sequence[str]) -> list[Axis]:
    """The axes of the words that are sweeps, in their order; the other words are ignored.

    Raises:
        ConfigError: a word cannot be read, or ranges over nothing.
    """
    parser = OverridesParser.create()
    axes = []
    for word in words:
        try:
            override = parser.parse_override(word)
            if override.is_sweep_override():
                axes.append(_axis(word, override))
        except (HydraException, ValueError) as e:  # ValueError: range(1,5,0)
            raise ConfigError(f"{word}: this cannot be read ({str(e).splitlines()[0]}).") from e
    return axes


def _axis(word: str, override: Override) -> Axis:
    key = override.key_or_group
    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        return _interval(word, key, sweep)
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        raise ConfigError(f"{word}: which options these are is not known here. Name them: {key}=A,B.")
    if tags := getattr(sweep, "tags", None):
        raise ConfigError(f"{word}: the tag {', '.join(sorted(tags))} has no effect on named values. Drop it.")
    shuffled = getattr(sweep, "shuffle", False)
    if shuffled:
        sweep.shuffle = False  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    values = list(dict.fromkeys(override.sweep_string_iterator()))
    if shuffled:
        random.Random(key).shuffle(values)  # the same way each time: a sweep that goes on keeps its order
    if not values:
        raise ConfigError(f"{word}: nothing to sweep over: this selects no value.")
    return Axis(key, tuple(values))


def _interval(word: str, key: str, sweep: IntervalSweep) -> Axis:
    low, high = sweep.start, sweep.end
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        raise ConfigError(f"{word}: both ends of an interval must be finite numbers.")
    if low > high:
        raise ConfigError(f"{word}: the interval ends before it starts. Write interval({high:g},{low:g}).")
    if unknown := sweep.tags - {"log"}:
        raise ConfigError(
            f"{word}: the tag {', '.join(sorted(unknown))} has no effect; an interval knows log. Drop it."
        )
    log = "log" in sweep.tags
    if log and low <= 0:
        raise ConfigError(f"{word}: on a log scale an interval must start above 0.")
    return Axis(key, low=low, high=high, log=log, integer=isinstance(low, int) and isinstance(high, int))
