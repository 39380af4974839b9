"""Examples -> layouts: which pairs share a forward pass, and how they lie in it."""

from collections.abc import Sequence

import torch

from dpo_lab.data.types import Example
from dpo_lab.preference.layout import Layout
from dpo_lab.preference.ref_cache import answer_key

Ids = tuple[int, ...]


def collate(examples: Sequence[Example], index: Sequence[int]) -> Layout:
    """Pack pairs end to end as prompt | chosen | rejected; a prompt of several pairs, and an answer, once.

    Args:
        examples: B pairs.
        index: their rows in the data set.
    """
    runs: dict[Ids, dict[Ids, None]] = {}
    for e in examples:
        runs.setdefault(tuple(e.prompt_ids), {}).update({tuple(e.chosen_ids): None, tuple(e.rejected_ids): None})
    ids: list[int] = []
    starts: dict[Ids, tuple[int, dict[Ids, int]]] = {}
    for prompt, answers in runs.items():
        starts[prompt] = len(ids), {}
        ids += prompt
        for answer in answers:
            starts[prompt][1][answer] = len(ids)
            ids += answer
    places = []
    for e in examples:
        start, of_answers = starts[tuple(e.prompt_ids)]
        places.append((start, of_answers[tuple(e.chosen_ids)], of_answers[tuple(e.rejected_ids)]))
    keys = [answer_key(e.prompt_ids, answer) for e in examples for answer in (e.chosen_ids, e.rejected_ids)]
    lengths = tuple(e.lengths for e in examples)
    return Layout(torch.tensor(ids), lengths, tuple(keys), tuple(index), tuple(places)).planned()


def microbatches(
    examples: Sequence[Example], index: Sequence[int], *, tokens: int, shared: bool = False
) -> list[Layout]:
    """Cut pairs into layouts of at most `tokens` tokens each, similar lengths together.

    A pair is never split: one that is longer than `tokens` has a layout to itself.

    Args:
        examples: the pairs.
        index: their rows in the data set.
        tokens: of a layout, at most.
        shared: count the tokens of the pack, pairs with the same prompt together; else those of padded rows.
    """
    groups = _packs(examples, tokens) if shared else _padded_rows(examples, tokens)
    return [collate([examples[i] for i in group], [index[i] for i in group]) for group in groups]


def count(layout: Layout, *, shared: bool) -> int:
    """Tokens of a layout as micro-batches are measured: of the pack, or of its padded rows."""
    if shared:
        return len(layout.ids)
    return 2 * len(layout) * max(prompt + max(answers) for prompt, *answers in layout.lengths)


def _padded_rows(examples: Sequence[Example], tokens: int) -> list[list[int]]:
    order = sorted(range(len(examples)), key=lambda i: (_width(examples[i]), i))
    groups: list[list[int]] = []
    for i in order:
        if groups and 2 * (len(groups[-1]) + 1) * _width(examples[i]) <= tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _packs(examples: Sequence[Example], tokens: int) -> list[list[int]]:
    """Pairs of one prompt side by side, and prompts by their longest pair."""
    by_prompt: dict[Ids, list[int]] = {}
    for i, e in enumerate(examples):
        by_prompt.setdefault(tuple(e.prompt_ids), []).append(i)
    prompts = sorted(by_prompt.items(), key=lambda item: (max(sum(examples[i].lengths) for i in item[1]), item[1][0]))
    groups: list[list[int]] = []
    size, answers = 0, set[Ids]()
    for prompt, rows in prompts:
        begun = False  # whether the prompt lies in the last group
        for i in rows:
            own = {tuple(examples[i].chosen_ids), tuple(examples[i].rejected_ids)}
            more = sum(map(len, own - answers if begun else own)) + (0 if begun else len(prompt))
            if groups and size + more <= tokens:
                groups[-1].append(i)
                size, answers = size + more, (answers | own if begun else own)
            else:
                groups.append([i])
                size, answers = len(prompt) + sum(map(len, own)), own
            begun = True
    return groups


def _width(example: Example) -> int:
    prompt, chosen, rejected = example.lengths
    return prompt + max(chosen, rejected)
