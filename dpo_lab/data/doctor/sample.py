"""An evenly spaced sample of a split, small enough to hold: token ids as flat arrays, and the pairs themselves.

N examples, V token ids in all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpo_lab.data.doctor.findings import PLACES, Place
from dpo_lab.data.doctor.hashing import Bools, Hashes
from dpo_lab.data.doctor.whole import Ints, Whole
from dpo_lab.data.types import Pair


@dataclass(frozen=True)
class Ragged:
    """Lists of token ids one after the other: list i is `values[offsets[i] : offsets[i + 1]]`."""

    values: Ints  # (V,)
    offsets: Ints  # (N + 1,)

    @classmethod
    def of(cls, lists: Sequence[Sequence[int] | Ints]) -> "Ragged":
        """From a list of lists."""
        lengths = np.fromiter((len(x) for x in lists), dtype=np.int64, count=len(lists))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        values = np.zeros(offsets[-1], np.int32)
        for x, start, stop in zip(lists, offsets, offsets[1:], strict=False):
            values[start:stop] = x
        return cls(values, offsets)

    @property
    def lengths(self) -> Ints:
        """Tokens of each list (N,)."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> Ints:
        """The list that each value belongs to (V,)."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> Ints:
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def at(self, position: int) -> Ints:
        """The value at one position of each list (N,), from the end where negative; -1 where a list is too short."""
        start = self.offsets[:-1] if position >= 0 else self.offsets[1:]
        fits = self.lengths >= (position + 1 if position >= 0 else -position)
        found = np.full(len(self), -1, np.int64)
        found[fits] = self.values[start[fits] + position]
        return found

    def ends_with(self, tail: Sequence[int]) -> Bools:
        """Which lists end with `tail` (N,)."""
        hits = [self.at(i - len(tail)) == token for i, token in enumerate(tail)]
        return np.logical_and.reduce(hits) if hits else np.ones(len(self), bool)


@dataclass(frozen=True)
class Sample:
    """The examples of one split that the examination looks at."""

    split: str
    pairs: list[Pair]
    prompts: Ragged
    chosen: Ragged
    rejected: Ragged
    keys: Hashes  # (N, 3), of the texts of prompt, chosen and rejected answer

    @classmethod
    def of(cls, whole: Whole, size: int) -> "Sample":
        """At most `size` examples, evenly spaced, each read once."""
        places = whole.spread(size)
        pairs: list[Pair] = []
        prompts: list[Ints] = []
        chosen: list[Ints] = []
        rejected: list[Ints] = []
        for i in places.tolist():
            example = whole.examples[i]
            pairs.append(example.pair)
            prompts.append(np.asarray(example.prompt_ids, np.int32))
            chosen.append(np.asarray(example.chosen_ids, np.int32))
            rejected.append(np.asarray(example.rejected_ids, np.int32))
        return cls(whole.split, pairs, Ragged.of(prompts), Ragged.of(chosen), Ragged.of(rejected), whole.keys[places])

    def __len__(self) -> int:
        return len(self.pairs)

    def places(self, which: Bools | Sequence[int]) -> tuple[Place, ...]:
        """The first rows of those that a mask (N,) marks, or of the given indices."""
        marked = isinstance(which, np.ndarray) and which.dtype == np.bool_
        indices = np.flatnonzero(which)[:PLACES] if marked else list(which)[:PLACES]
        return tuple(Place(self.pairs[i].source, self.pairs[i].row, self.split) for i in indices)
