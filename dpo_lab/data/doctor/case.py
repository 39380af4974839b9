"""What every check looks at, and what it answers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dpo_lab.data.doctor.findings import PLACES, Finding, Number, Place
from dpo_lab.data.doctor.sample import Bools, Sample
from dpo_lab.data.doctor.whole import Whole
from dpo_lab.data.templates import Template
from dpo_lab.data.types import Counts

SHOWN = 160  # characters of an example


@dataclass(frozen=True)
class Case:
    """Both splits as a whole and samples of them, what was left out of them, and how they were written."""

    train: Sample
    heldout: Sample
    train_counts: Counts
    heldout_counts: Counts
    template: Template
    max_length: int
    whole: tuple[Whole, Whole]  # training, held out

    @property
    def samples(self) -> tuple[Sample, Sample]:
        """Training pairs, then held-out pairs."""
        return self.train, self.heldout

    def __len__(self) -> int:
        return len(self.train) + len(self.heldout)


@dataclass(frozen=True)
class Result:
    """What one check found and measured."""

    findings: list[Finding] = field(default_factory=list[Finding])
    numbers: dict[str, Number] = field(default_factory=dict[str, Number])


@dataclass(frozen=True)
class Marked:
    """The examples of a case that a mask for each split marks."""

    count: int
    share: float
    rows: tuple[Place, ...]

    @classmethod
    def of(cls, case: Case, masks: Sequence[Bools]) -> "Marked":
        """One mask (N,) for each split."""
        count = int(sum(mask.sum() for mask in masks))
        rows = [place for sample, mask in zip(case.samples, masks, strict=True) for place in sample.places(mask)]
        return cls(count, count / max(1, len(case)), tuple(rows[:PLACES]))


def graded(share: float, *, warning: float, error: float = 2.0) -> str:
    """The severity of something that concerns a share of the pairs."""
    return "error" if share >= error else "warning" if share >= warning else "info"


def mask_of(hits: Iterable[bool]) -> Bools:
    """A mask from truth values."""
    return np.fromiter(hits, dtype=np.bool_)


def shown(text: str, at: int = 0) -> str:
    """A piece of a text for an example: around position `at`, on one line."""
    start = max(0, at - SHOWN // 2)
    piece = text[start : start + SHOWN]
    return ("..." if start else "") + " ".join(piece.split()) + ("..." if start + SHOWN < len(text) else "")


def pairs_word(n: int) -> str:
    """`1 pair`, `2,000 pairs`."""
    return f"{n:,} pair{'' if n == 1 else 's'}"
