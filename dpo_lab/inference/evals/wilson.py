"""How often one contestant's answers are the better ones, and how sure that is."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Side = Literal["first", "second", "tie"]
Z = 1.959963984540054  # the normal's 97.5 % quantile


@dataclass(frozen=True)
class Tally:
    """What became of the prompts that two contestants answered, seen from the first."""

    won: int = 0
    tied: int = 0
    lost: int = 0

    @classmethod
    def of(cls, sides: Iterable[Side]) -> "Tally":
        """Count the winners."""
        found = list(sides)
        return cls(found.count("first"), found.count("tie"), found.count("second"))

    @property
    def n(self) -> int:
        """Prompts that were decided."""
        return self.won + self.tied + self.lost

    @property
    def rate(self) -> float | None:
        """The share of prompts that the first won, a tie as half a win; None where nothing was decided."""
        return (self.won + self.tied / 2) / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % Wilson interval of the rate.

        With ties it is on the careful side: halves vary less than the wins and losses that the interval is made for.
        """
        return wilson(self.won + self.tied / 2, self.n) if self.n else None


def wilson(successes: float, n: int, *, z: float = Z) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927, JASA 22; Brown, Cai and DasGupta 2001, Statistical Science 16, eq. 4).

    Args:
        successes: of n, from 0 to n.
        n: at least 1.
        z: quantile of the normal.
    """
    share = successes / n
    middle = (successes + z * z / 2) / (n + z * z)
    half = z * math.sqrt(n) / (n + z * z) * math.sqrt(share * (1 - share) + z * z / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)
