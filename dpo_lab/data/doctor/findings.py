"""What an examination found: findings with a severity and a fix, and the numbers behind them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SEVERITIES = ("error", "warning", "info")  # the worst first
PLACES = 50  # rows that a finding names at most

Number = float | int | None


@dataclass(frozen=True)
class Place:
    """A row of a source."""

    source: str
    row: int
    split: str = "train"

    @property
    def name(self) -> str:
        """The source's file name; the split where the source is not known."""
        return self.source.rsplit("/", 1)[-1] or self.split


@dataclass(frozen=True)
class Finding:
    """Something about the data that its owner should know."""

    check: str
    severity: str  # error: the numbers of training would be wrong; warning: likely to mislead; info: worth knowing
    message: str
    fix: str
    count: int = 0
    share: float = 0.0  # of the examples that were looked at
    rows: tuple[Place, ...] = ()  # the first ones
    example: str = ""


@dataclass(frozen=True)
class Histogram:
    """How many values lie in each bin [edges[i], edges[i + 1])."""

    name: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Report:
    """The result of one examination."""

    findings: tuple[Finding, ...] = ()
    numbers: Mapping[str, Number] = field(default_factory=dict[str, Number])
    histograms: tuple[Histogram, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])  # train, train/looked_at, heldout, ...
    skipped: tuple[str, ...] = ()  # checks for which there was no time
    seconds: float = 0.0  # of CPU time

    @property
    def worst(self) -> str | None:
        """The worst severity among the findings; None where there are none."""
        found = {f.severity for f in self.findings}
        return next((s for s in SEVERITIES if s in found), None)

    def count(self, severity: str) -> int:
        """Findings of one severity."""
        return sum(f.severity == severity for f in self.findings)

    def failed(self, fail_on: str) -> bool:
        """Whether there is a finding as bad as `fail_on`, or worse; never for `never`."""
        if fail_on == "never" or self.worst is None:
            return False
        return SEVERITIES.index(self.worst) <= SEVERITIES.index(fail_on)

    def sampled(self) -> str:
        """What the numbers are about: "on 20,000 of 1,000,000 pairs"."""
        parts = []
        for split in ("train", "heldout"):
            have = self.sizes.get(split, 0)
            seen = self.sizes.get(f"{split}/looked_at", have)
            what = "training" if split == "train" else "held-out"
            parts.append(f"{seen:,} of {have:,} {what} pairs" if seen < have else f"all {have:,} {what} pairs")
        return "on " + " and ".join(parts)

    def summary(self) -> str:
        """One line: how many findings of which severity, and on how much they rest."""
        counted = [f"{n} {s}{'s' if s != 'info' and n > 1 else ''}" for s in SEVERITIES if (n := self.count(s))]
        return f"{', '.join(counted) or 'nothing found'} ({self.sampled()})"

    def to_json(self) -> dict[str, Any]:
        """Plain containers, as JSON takes them."""
        return {
            "worst": self.worst,
            "summary": self.summary(),
            "findings": [asdict(f) for f in self.findings],
            "numbers": dict(self.numbers),
            "histograms": [asdict(h) for h in self.histograms],
            "sizes": dict(self.sizes),
            "skipped": list(self.skipped),
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Report":
        """The report that `to_json` wrote."""
        return cls(
            findings=tuple(
                Finding(**{**f, "rows": tuple(Place(**place) for place in f["rows"])}) for f in content["findings"]
            ),
            numbers=content["numbers"],
            histograms=tuple(
                Histogram(h["name"], tuple(h["edges"]), tuple(h["counts"])) for h in content["histograms"]
            ),
            sizes=content["sizes"],
            skipped=tuple(content["skipped"]),
            seconds=content["seconds"],
        )
