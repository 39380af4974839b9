"""All pairs of a split, as far as hashes and lengths tell of them: no text and no token is read.

N pairs.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dpo_lab.data.doctor.findings import PLACES, Place
from dpo_lab.data.doctor.hashing import Bools, Hashes
from dpo_lab.data.pairs import prompt_hash
from dpo_lab.data.tokens import Examples
from dpo_lab.data.types import Example, Pair

Ints = np.ndarray[Any, np.dtype[np.signedinteger[Any]]]


@dataclass(frozen=True)
class Whole:
    """One split.

    Attributes:
        split: train or heldout.
        examples: any of them is read when it is asked for.
        keys: (N, 3), hashes of the texts of prompt, chosen and rejected answer.
        lengths: (N, 3), their tokens.
    """

    split: str
    examples: Sequence[Example]
    keys: Hashes
    lengths: Ints

    @classmethod
    def of(cls, examples: Sequence[Example], split: str) -> "Whole":
        """From a table that knows both, or from a list, which is gone through."""
        keys, lengths = getattr(examples, "keys", None), getattr(examples, "lengths", None)
        return cls(
            split,
            examples,
            np.asarray([keys_of(e.pair) for e in examples], np.uint64).reshape(-1, 3) if keys is None else keys(),
            np.asarray([e.lengths for e in examples], np.int64).reshape(-1, 3) if lengths is None else lengths,
        )

    @property
    def prompts(self) -> Hashes:
        """(N,) a number for each prompt, tools and tool calls included."""
        return self.keys[:, 0]

    @cached_property
    def rows(self) -> Ints:
        """(N,) the row of each pair in its file."""
        if isinstance(self.examples, Examples):
            pairs = self.examples.pairs
            return pairs.columns.numbers("row")[pairs.rows[self.examples.rows]]
        return np.asarray([e.pair.row for e in self.examples], np.int64)

    @cached_property
    def rows_of_source(self) -> int:
        """Rows of the source that gave a pair, on whichever side of the split and whether or not it was asked for."""
        rows = self.examples.pairs.columns.numbers("row") if isinstance(self.examples, Examples) else self.rows
        return int((np.diff(rows) != 0).sum()) + bool(len(rows))  # pairs of one row stand together

    def spread(self, size: int) -> Ints:
        """At most `size` places, evenly spaced."""
        count = min(size, len(self))
        return np.arange(count, dtype=np.int64) * len(self) // max(1, count)

    def pair(self, i: int) -> Pair:
        """The texts of one pair."""
        if isinstance(self.examples, Examples):
            return self.examples.pairs[int(self.examples.rows[i])]
        return self.examples[i].pair

    def places(self, mask: Bools) -> tuple[Place, ...]:
        """The first rows of those that a mask (N,) marks."""
        return tuple(self._place(int(i)) for i in np.flatnonzero(mask)[:PLACES])

    def __len__(self) -> int:
        return len(self.keys)

    def _place(self, i: int) -> Place:
        if isinstance(self.examples, Examples):
            pairs = self.examples.pairs
            row = int(pairs.rows[self.examples.rows[i]])
            return Place(pairs.columns.text("source", row), pairs.columns.text("row", row), self.split)
        pair = self.examples[i].pair
        return Place(pair.source, pair.row, self.split)


def keys_of(pair: Pair) -> tuple[int, int, int]:
    """What a table of pairs knows of each: hashes of prompt, chosen and rejected answer."""
    return prompt_hash(pair.prompt, pair.tools), _hash(pair.chosen), _hash(pair.rejected)


def _hash(text: str) -> int:
    content = text.strip().encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
