"""How pairs lie in memory: one run of tokens a pair, packed end to end, nothing padded, nothing twice.

B pairs, T tokens in the pack, N completion tokens (both answers of every pair, in the order of the pairs).
Answers are numbered 2b (chosen) and 2b + 1 (rejected) for pair b.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Cached properties of a layout that lie on its device.
_INDICES = ("answer_tokens", "targets", "positions", "predictors", "varlen", "once")


class Run(NamedTuple):
    """A prompt and the different answers to it, end to end in the pack: (start, length) in tokens of each."""

    prompt: tuple[int, int]
    answers: tuple[tuple[int, int], ...]

    @property
    def stop(self) -> int:
        """Where the last answer ends."""
        start, length = self.answers[-1]
        return start + length


class Varlen(NamedTuple):
    """The pack as sequences of queries and keys, one for every prompt and every answer."""

    keys: Tensor  # (Tk,) places in the pack: a prompt's own, or an answer's prompt and the answer
    starts_q: Tensor  # (S + 1,) int32, where each sequence of queries begins, and the end
    starts_k: Tensor  # (S + 1,) int32
    max_q: int
    max_k: int


@dataclass
class Layout:
    """A micro-batch of pairs, each laid out as prompt | chosen | rejected.

    Two pairs, the first with a prompt of 3 tokens and answers of 2 and 1, the second with 1, 1 and 2:

        ids        p p p c c r | p c r r        (T,) = (10,)
        lengths    (3, 2, 1), (1, 1, 2)         prompt, chosen, rejected
        positions  0 1 2 3 4 3 | 0 1 1 2        the rejected answer restarts after its prompt

    An answer sees its own prompt and itself, and nothing else in the pack. Pairs with the same prompt share it, and an
    answer that two of them have lies in the pack once: a ranked list a > b > c makes three pairs and one run p a b c.

    Attributes:
        ids: (T,) tokens.
        lengths: of prompt, chosen and rejected answer, one triple a pair.
        keys: where the reference cache keeps each answer, (2B).
        index: rows of the pairs in the data set, (B).
        places: (start of the prompt, starts of both answers) of each pair in `ids`; empty: one pair after the other.
    """

    ids: Tensor
    lengths: tuple[tuple[int, int, int], ...]
    keys: tuple[bytes, ...] = ()
    index: tuple[int, ...] = ()
    places: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.places:
            starts = [0]
            for sizes in self.lengths:
                starts.append(starts[-1] + sum(sizes))
            pairs = zip(starts, self.lengths, strict=False)
            self.places = tuple((start, start + p, start + p + c) for start, (p, c, _) in pairs)

    def planned(self) -> "Layout":
        """This layout, with all its index tensors at hand: made where it is laid out, they are only copied later."""
        for name in _INDICES:
            getattr(self, name)
        return self

    def to(self, device: torch.device, non_blocking: bool = False) -> "Layout":
        """The same layout with its tensors on `device`."""
        return self._with(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Layout":
        """The same layout with its tensors in pinned memory, for a `DataLoader`."""
        return self._with(lambda x: x.pin_memory())

    def _with(self, change: Callable[[Tensor], Tensor]) -> "Layout":
        changed = Layout(change(self.ids), self.lengths, self.keys, self.index, self.places)
        for name in _INDICES:
            if name in self.__dict__:
                changed.__dict__[name] = _changed(self.__dict__[name], change)
        return changed

    def __getstate__(self) -> dict[str, Any]:
        """Tensors as arrays: a worker of a `DataLoader` would send each of them through a file descriptor of its own."""
        return {name: _changed(value, lambda x: x.numpy()) for name, value in self.__dict__.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrays as tensors."""
        self.__dict__.update({name: _changed(value, torch.from_numpy) for name, value in state.items()})

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def answers(self) -> list[tuple[int, int, int, int]]:
        """(start of the prompt, its length, start of the answer, its length) in `ids`, for each of the 2B answers."""
        return [
            (prompt, p, start, n)
            for (prompt, *starts), (p, *sizes) in zip(self.places, self.lengths, strict=True)
            for start, n in zip(starts, sizes, strict=True)
        ]

    @cached_property
    def runs(self) -> list[Run]:
        """The pack as it lies: each prompt with the different answers to it."""
        found: dict[tuple[int, int], dict[tuple[int, int], None]] = {}
        for prompt, p, start, n in self.answers:
            found.setdefault((prompt, p), {})[start, n] = None
        return [Run(prompt, tuple(sorted(answers))) for prompt, answers in sorted(found.items())]

    @cached_property
    def answer_tokens(self) -> Tensor:
        """(2B,) number of tokens of each answer."""
        return self._index([length for *_, length in self.answers])

    @cached_property
    def targets(self) -> Tensor:
        """(N,) the completion tokens."""
        return self.ids[self._ranges((start, start + n) for *_, start, n in self.answers)]

    @cached_property
    def positions(self) -> Tensor:
        """(T,) position of each token in its own sequence: an answer's begin after its prompt."""
        spans = [((0, p), *((p, p + n) for _, n in answers)) for (_, p), answers in self.runs]
        return self._ranges(span for run in spans for span in run)

    @cached_property
    def predictors(self) -> Tensor:
        """(N,) place in the pack of the token that predicts each completion token: the one before it in its sequence."""
        spans = (((prompt + p - 1, prompt + p), (start, start + n - 1)) for prompt, p, start, n in self.answers)
        return self._ranges(span for pair in spans for span in pair)

    @cached_property
    def varlen(self) -> Varlen:
        """Sequences for attention kernels that take unequal lengths."""
        spans, queries, keys = [], [], []
        for (start, p), answers in self.runs:
            prompt = (start, start + p)
            spans += [prompt, *(span for a, n in answers for span in (prompt, (a, a + n)))]
            queries += [p, *(n for _, n in answers)]
            keys += [p, *(p + n for _, n in answers)]
        starts = (torch.tensor([0, *accumulate(lengths)], dtype=torch.int32) for lengths in (queries, keys))
        starts_q, starts_k = (x.to(self.ids.device, non_blocking=True) for x in starts)
        return Varlen(self._ranges(spans), starts_q, starts_k, max(queries), max(keys))

    def padded(self) -> tuple[Tensor, Tensor]:
        """Rows (2B, L) of prompt + answer, padded on the right, and the flat index (N,) that predicts each completion.

        Under causal attention a token sees nothing to its right, so the padding needs no mask.
        """
        width = max(prompt + n for _, prompt, _, n in self.answers)
        rows, predictors = [], []
        for row, (start, prompt, answer, n) in enumerate(self.answers):
            used = [*range(start, start + prompt), *range(answer, answer + n)]
            rows.append(used + [start] * (width - len(used)))
            predictors.extend(range(row * width + prompt - 1, row * width + prompt + n - 1))
        return self.ids[self._index(rows)], self._index(predictors)

    def padded_positions(self) -> Tensor:
        """(2B, L) positions of the rows of `padded`; padding stands at 0, so that a row's largest is of its own length."""
        width = max(prompt + n for _, prompt, _, n in self.answers)
        return self._index([[*range(prompt + n)] + [0] * (width - prompt - n) for _, prompt, _, n in self.answers])

    @cached_property
    def once(self) -> tuple[Tensor, Tensor] | None:
        """Where pairs have an answer in common: each token but once, and which of them each completion token is.

        (M,) places among the N completion tokens, and (N,) places among those M; None where all answers differ.
        """
        begins, n_tokens = dict[tuple[int, int], int](), 0
        kept, back, n = list[tuple[int, int]](), list[tuple[int, int]](), 0
        for prompt, _, start, length in self.answers:
            if (prompt, start) not in begins:
                begins[prompt, start] = n_tokens
                kept.append((n, n + length))
                n_tokens += length
            place = begins[prompt, start]
            back.append((place, place + length))
            n += length
        return None if len(kept) == len(back) else (self._ranges(kept), self._ranges(back))

    def answer_sums(self, per_token: Tensor) -> Tensor:
        """Sum (N,) values over each answer: (2B,)."""
        # Unsafe is without a check of the lengths, for which a GPU would have to be waited for.
        return torch.segment_reduce(per_token, "sum", lengths=self.answer_tokens, unsafe=True)

    def _ranges(self, spans: Iterable[tuple[int, int]]) -> Tensor:
        return torch.cat([torch.arange(a, b) for a, b in spans]).to(self.ids.device, non_blocking=True)

    def _index(self, values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.long).to(self.ids.device, non_blocking=True)


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    """A cached value of a layout with its tensors changed."""
    if isinstance(value, Varlen):
        return Varlen(*(_changed(part, change) for part in value))
    if isinstance(value, tuple) and value and isinstance(value[0], Tensor | np.ndarray):  # `once`
        return tuple(map(change, value))
    return change(value) if isinstance(value, Tensor | np.ndarray) else value


def split_answers(values: Tensor) -> tuple[Tensor, Tensor]:
    """(2B,) values of answers as (B,) of the chosen and (B,) of the rejected ones."""
    return values[0::2], values[1::2]
