"""Intervals and quantiles."""

import math
from collections.abc import Sequence

import numpy as np

from dpo_lab.data.doctor.findings import Histogram
from dpo_lab.data.doctor.sample import Ints

Z95 = 1.959963984540054  # of the normal distribution: 95 % lie within


def wilson(hits: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927); (0, 1) of nothing."""
    if n == 0:
        return 0.0, 1.0
    share, z = hits / n, Z95
    middle = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def histogram(name: str, values: Ints, *, bins: int = 24) -> Histogram:
    """At most `bins` bins of whole tokens over all values; the last one holds the long tail from the 99.5 % on."""
    if not len(values):
        return Histogram(name, (0.0, 1.0), (0,))
    top = int(np.quantile(values, 0.995)) + 1
    low = int(values.min())
    width = max(1, math.ceil((top - low) / bins))
    edges = [*range(low, top + width, width)]
    counts, _ = np.histogram(np.minimum(values, edges[-1] - 1), bins=edges)
    edges[-1] = max(edges[-1], int(values.max()) + 1)
    return Histogram(name, tuple(float(e) for e in edges), tuple(int(c) for c in counts))


def quantiles(values: Ints) -> dict[str, float]:
    """Mean, median, 95 % quantile and maximum."""
    if not len(values):
        return {}
    return {
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "p95": float(np.quantile(values, 0.95)),
        "max": float(values.max()),
    }


def percent(share: float) -> str:
    """A share for readers, with a decimal where it is small or near all."""
    value = 100 * share
    return f"{value:.1f} %" if value < 10 or 99 < value < 100 else f"{value:.0f} %"


def interval(bounds: Sequence[float]) -> str:
    """A confidence interval for readers."""
    return f"95 % interval {100 * bounds[0]:.1f} to {100 * bounds[1]:.1f} %"
