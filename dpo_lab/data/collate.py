"""Examples -> layouts: which pairs share a forward pass, and how they lie in it."""

import torch

from dpo_lab.data.types import Example
from dpo_lab.preference.layout import Layout
from dpo_lab.preference.ref_cache import answer_key


def collate(examples: list[Example], index: list[int]) -> Layout:
    """Pack pairs end to end as prompt | chosen | rejected.

    Args:
        examples: B pairs.
        index: their rows in the data set.
    """
    ids = [i for e in examples for i in (*e.prompt_ids, *e.chosen_ids, *e.rejected_ids)]
    keys = [answer_key(e.prompt_ids, answer) for e in examples for answer in (e.chosen_ids, e.rejected_ids)]
    return Layout(torch.tensor(ids), tuple(e.lengths for e in examples), tuple(keys), tuple(index))


def microbatches(examples: list[Example], index: list[int], *, tokens: int) -> list[Layout]:
    """Cut pairs into layouts whose padded rows hold at most `tokens` tokens each, similar lengths together.

    A pair is never split: one that is longer than `tokens` has a layout to itself.
    """
    order = sorted(range(len(examples)), key=lambda i: (_width(examples[i]), i))
    groups: list[list[int]] = []
    for i in order:
        if groups and 2 * (len(groups[-1]) + 1) * _width(examples[i]) <= tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
    return [collate([examples[i] for i in group], [index[i] for i in group]) for group in groups]


def _width(example: Example) -> int:
    prompt, chosen, rejected = example.lengths
    return prompt + max(chosen, rejected)
