"""How pairs lie in memory: one run of tokens a pair, packed end to end, nothing padded.

B pairs, T tokens in the pack, N completion tokens (both answers of every pair, in the order of the pack).
Answers are numbered 2b (chosen) and 2b + 1 (rejected) for pair b.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass
class Layout:
    """A micro-batch of pairs, each laid out as prompt | chosen | rejected.

    Two pairs, the first with a prompt of 3 tokens and answers of 2 and 1, the second with 1, 1 and 2:

        ids        p p p c c r | p c r r        (T,) = (10,)
        lengths    (3, 2, 1), (1, 1, 2)         prompt, chosen, rejected
        positions  0 1 2 3 4 3 | 0 1 1 2        the rejected answer restarts after its prompt

    An answer sees its own prompt and itself, and nothing else in the pack.
    """

    ids: Tensor
    lengths: tuple[tuple[int, int, int], ...]
    keys: tuple[bytes, ...] = ()  # one an answer: where the reference cache keeps it
    index: tuple[int, ...] = ()  # one a pair: its row in the data set

    def to(self, device: torch.device, non_blocking: bool = False) -> "Layout":
        """The same layout with its tokens on `device`."""
        return Layout(self.ids.to(device, non_blocking=non_blocking), self.lengths, self.keys, self.index)

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def answers(self) -> list[tuple[int, int, int, int]]:
        """(start of the prompt, its length, start of the answer, its length) in `ids`, for each of the 2B answers."""
        spans, start = [], 0
        for prompt, chosen, rejected in self.lengths:
            spans.append((start, prompt, start + prompt, chosen))
            spans.append((start, prompt, start + prompt + chosen, rejected))
            start += prompt + chosen + rejected
        return spans

    @cached_property
    def answer_tokens(self) -> Tensor:
        """(2B,) number of tokens of each answer."""
        return self._index([length for *_, length in self.answers])

    @cached_property
    def targets(self) -> Tensor:
        """(N,) the completion tokens."""
        return self.ids[self._index([i for *_, start, n in self.answers for i in range(start, start + n)])]

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

    def answer_sums(self, per_token: Tensor) -> Tensor:
        """Sum (N,) values over each answer: (2B,)."""
        return torch.segment_reduce(per_token, "sum", lengths=self.answer_tokens)

    def _index(self, values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.long).to(self.ids.device, non_blocking=True)


def split_answers(values: Tensor) -> tuple[Tensor, Tensor]:
    """(2B,) values of answers as (B,) of the chosen and (B,) of the rejected ones."""
    return values[0::2], values[1::2]
