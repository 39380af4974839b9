"""Pairs -> token ids, exactly as the model will meet them, and what was dropped or cut on the way."""

import logging
from collections.abc import Collection, Iterator
from itertools import islice

from dpo_lab.data.templates import Refusal, Template
from dpo_lab.data.types import Counts, Example, Message, Pair

log = logging.getLogger(__name__)
CHUNK = 256  # pairs tokenised at a time

PromptKey = tuple[tuple[str, str], ...]


def tokenize(
    pairs: list[Pair],
    template: Template,
    *,
    max_length: int,
    truncation: str,
    limit: int | None,
    heldout: Collection[PromptKey] = (),
) -> tuple[list[Example], Counts]:
    """The examples that fit, in order, and what became of the others.

    ids = render(prompt with generation prompt) + answer + end of turn, so that training sees what inference sees.

    Args:
        pairs: in the order of their source.
        template: tokenizer and chat template.
        max_length: bound on the tokens of the prompt plus each answer.
        truncation: drop, cut_prompt, cut_answer or cut_both.
        limit: stop when so many are kept, and count nothing beyond; None keeps all.
        heldout: prompts that must not be trained on.
    """
    counts, examples = Counts(), []
    sound = _sound(pairs, heldout, counts)
    named: list[int] = []
    while chunk := list(islice(sound, CHUNK if limit is None else min(CHUNK, limit - len(examples)))):
        named += [p.row for p in chunk if _names_special(p, template)]
        for example in _encode(chunk, template, counts):
            fitted = fit(example, template, counts, max_length=max_length, truncation=truncation)
            if fitted is not None:
                examples.append(fitted)
    counts.kept = len(examples)
    if named:
        log.warning(
            "%d pairs, first row %d, hold names of special tokens such as those of a chat template. They are read as "
            "text; if the data was written with a template, give it without.",
            *(len(named), named[0]),
        )
    return examples, counts


def fit(example: Example, template: Template, counts: Counts, *, max_length: int, truncation: str) -> Example | None:
    """The example within `max_length`, or None where it must be dropped; counted either way.

    An answer that is cut has no end of turn: it does not end there.
    """
    row, cuts = example.pair.row, []
    if truncation in ("cut_prompt", "cut_both") and _too_long(example, max_length):
        shorter = _cut_prompt(example, template, max_length, answers_too=truncation == "cut_both")
        cuts += ["prompts cut"] if shorter is not example else []
        example = shorter
    if len(example.prompt_ids) >= max_length:
        counts.drop("prompt longer than data.max_length", row)
        return None
    if truncation in ("cut_answer", "cut_both") and _too_long(example, max_length):
        room = max_length - len(example.prompt_ids)
        cuts.append("answers cut")
        example = Example(example.prompt_ids, example.chosen_ids[:room], example.rejected_ids[:room], example.pair)
        if example.chosen_ids == example.rejected_ids:
            counts.drop("identical answers after cutting", row)
            return None
    if _too_long(example, max_length):
        counts.drop("prompt and answer longer than data.max_length", row)
        return None
    for what in cuts:
        counts.cut[what] = counts.cut.get(what, 0) + 1
        counts.first_row.setdefault(what, row)
    return example


def _sound(pairs: list[Pair], heldout: Collection[PromptKey], counts: Counts) -> Iterator[Pair]:
    for pair in pairs:
        if not pair.prompt[-1]["content"].strip():
            counts.drop("empty prompt", pair.row)
        elif not pair.chosen.strip() or not pair.rejected.strip():
            counts.drop("empty answer", pair.row)
        elif pair.chosen == pair.rejected:
            counts.drop("identical answers", pair.row)
        elif heldout and pair.prompt_key() in heldout:
            counts.drop("prompt is held out", pair.row)
        else:
            yield pair


def _encode(pairs: list[Pair], template: Template, counts: Counts) -> Iterator[Example]:
    chosen = template.answer_ids([p.chosen for p in pairs])
    rejected = template.answer_ids([p.rejected for p in pairs])
    prompts = _prompt_ids(pairs, template)
    empty = template.answer_ids([""])[0]
    for pair, prompt, good, bad in zip(pairs, prompts, chosen, rejected, strict=True):
        if isinstance(prompt, Refusal):
            counts.drop(f"refused by the chat template: {prompt.reason}", pair.row)
        elif empty in (good, bad):
            counts.drop("empty answer", pair.row)
        elif good == bad:
            counts.drop("identical answers", pair.row)
        else:
            yield Example(prompt, good, bad, pair)


def _prompt_ids(pairs: list[Pair], template: Template) -> list[list[int] | Refusal]:
    try:
        return [*template.prompt_ids([p.prompt for p in pairs])]
    except Refusal as e:
        if len(pairs) == 1:
            return [e]
    return [ids for pair in pairs for ids in _prompt_ids([pair], template)]


def _names_special(pair: Pair, template: Template) -> bool:
    return any(
        template.holds_special(text) for text in (pair.chosen, pair.rejected, *(m["content"] for m in pair.prompt))
    )


def _too_long(example: Example, max_length: int) -> bool:
    prompt, chosen, rejected = example.lengths
    return prompt + max(chosen, rejected) > max_length


def _cut_prompt(example: Example, template: Template, max_length: int, *, answers_too: bool) -> Example:
    """The prompt without its oldest turns: as few go as needed; system messages and the last turn stay.

    With `answers_too` prompts are cut to half of `max_length` and answers give the rest.
    """
    system: list[Message] = [m for m in example.pair.prompt if m["role"] == "system"]
    turns: list[Message] = [m for m in example.pair.prompt if m["role"] != "system"]
    best = example
    for start in range(1, len(turns)):
        if turns[start]["role"] != "user":
            continue
        ids = template.prompt_ids([[*system, *turns[start:]]])[0]
        best = Example(ids, example.chosen_ids, example.rejected_ids, example.pair)
        if not _too_long(best, max_length) or (answers_too and len(ids) <= max_length // 2):
            break
    return best
