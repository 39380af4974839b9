"""Pairs -> token ids, exactly as the model will meet them, and what was dropped or cut on the way."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from dpo_lab.data.templates import Refusal, Template
from dpo_lab.data.types import Counts, Example, Pair

log = logging.getLogger(__name__)
CHUNK = 256  # pairs tokenised at a time
LEAST_ANSWER = 16  # tokens that a cut leaves of each answer, or all of the shorter one
REFUSED = "refused by the chat template"
LONG_PROMPT = "prompt longer than data.max_length"
LONG_PAIR = "prompt and answer longer than data.max_length"
SAME_AFTER_CUT = "identical answers after cutting"


@dataclass(frozen=True)
class Outcome:
    """What became of a pair: an example, or the reason why it was left out.

    Attributes:
        cuts: what was cut.
        named: it holds names of special tokens as text.
    """

    pair: Pair
    example: Example | None
    dropped: str | None = None
    cuts: tuple[str, ...] = ()
    named: bool = False


@dataclass(frozen=True)
class Encoder:
    """Pairs -> token ids. ids = render(prompt with generation prompt) + answer + end of turn: what inference sees.

    Attributes:
        template: tokenizer and chat template.
        max_length: bound on the tokens of the prompt plus each answer.
        truncation: drop, cut_prompt, cut_answer or cut_both.
    """

    template: Template
    max_length: int
    truncation: str

    def __call__(self, pairs: Sequence[Pair]) -> list[Outcome]:
        """The outcome of each pair, in order."""
        faults = [_fault(pair) for pair in pairs]
        encoded = iter(self._encode([pair for pair, fault in zip(pairs, faults, strict=True) if fault is None]))
        return [
            Outcome(pair, None, fault) if fault else next(encoded) for pair, fault in zip(pairs, faults, strict=True)
        ]

    def _encode(self, pairs: list[Pair]) -> Iterator[Outcome]:
        if not pairs:
            return
        template = self.template
        prompts = template.try_prompt_ids([p.prompt for p in pairs], [p.tools for p in pairs])
        answers = template.answer_ids([text for p in pairs for text in (p.chosen, p.rejected)] + [""])
        empty = answers.pop()
        for i, (pair, prompt) in enumerate(zip(pairs, prompts, strict=True)):
            chosen, rejected = answers[2 * i], answers[2 * i + 1]
            named = template.holds_special(
                "\n".join((pair.chosen, pair.rejected, *(m["content"] for m in pair.prompt)))
            )
            if isinstance(prompt, Refusal):
                yield Outcome(pair, None, f"{REFUSED}: {prompt.reason}", named=named)
            elif empty in (chosen, rejected):
                yield Outcome(pair, None, "empty answer", named=named)
            elif chosen == rejected:
                yield Outcome(pair, None, "identical answers", named=named)
            else:
                yield self._fit(Example(prompt, chosen, rejected, pair), named)

    def _fit(self, example: Example, named: bool) -> Outcome:
        """The example within `max_length`, or why it must be dropped.

        An answer that is cut has no end of turn: it does not end there.
        """
        pair, room, refusal = example.pair, self.max_length, None
        thoughts = any(self.template.leaves_out_thought(answer) for answer in (pair.chosen, pair.rejected))
        cuts = ["thoughts left out"] if thoughts else []
        if self.truncation in ("cut_prompt", "cut_both") and _too_long(example, room):
            shorter, refusal = _cut_prompt(example, self.template, room, answers_too=self.truncation == "cut_both")
            cuts += ["prompts cut"] if shorter is not example else []
            example = shorter
        left = room - len(example.prompt_ids)
        cut_answers = self.truncation in ("cut_answer", "cut_both") and _too_long(example, room)
        if left < (_least(example) if cut_answers else 1):
            return Outcome(pair, None, _why(LONG_PROMPT, refusal), named=named)
        if cut_answers:
            cuts.append("answers cut")
            example = Example(example.prompt_ids, example.chosen_ids[:left], example.rejected_ids[:left], pair)
            if example.chosen_ids == example.rejected_ids:
                return Outcome(pair, None, SAME_AFTER_CUT, named=named)
        if _too_long(example, room):
            return Outcome(pair, None, _why(LONG_PAIR, refusal), named=named)
        return Outcome(pair, example, cuts=tuple(cuts), named=named)


def tokenize(
    pairs: Iterable[Pair], template: Template, *, max_length: int, truncation: str, limit: int | None
) -> tuple[list[Example], Counts]:
    """The examples that fit, in order and in memory, and what became of the others.

    Args:
        pairs: in the order of their source.
        template: tokenizer and chat template.
        max_length: bound on the tokens of the prompt plus each answer.
        truncation: drop, cut_prompt, cut_answer or cut_both.
        limit: stop when so many are kept, and count nothing beyond; None keeps all.
    """
    encoder, counts, examples, source = Encoder(template, max_length, truncation), Counts(), [], iter(pairs)
    while limit is None or len(examples) < limit:
        chunk = list(islice(source, CHUNK if limit is None else min(CHUNK, limit - len(examples))))
        if not chunk:
            break
        for outcome in encoder(chunk):
            counts.add(outcome.pair.row, outcome.dropped, outcome.cuts, outcome.named)
            examples += [outcome.example] if outcome.example else []
    return examples, counts


def warn_of_names(counts: Counts) -> None:
    """Say that texts hold names of special tokens, where some do."""
    if counts.named:
        log.warning(
            "%d pairs, first row %d, hold names of special tokens such as those of a chat template. They are read as "
            "text; if the data was written with a template, give it without.",
            *(counts.named, counts.first_named),
        )


def _fault(pair: Pair) -> str | None:
    """Why a pair need not be tokenised."""
    if not pair.prompt[-1]["content"].strip():
        return "empty prompt"
    if not pair.chosen.strip() or not pair.rejected.strip():
        return "empty answer"
    return "identical answers" if pair.chosen == pair.rejected else None


def _too_long(example: Example, max_length: int) -> bool:
    prompt, chosen, rejected = example.lengths
    return prompt + max(chosen, rejected) > max_length


def _least(example: Example) -> int:
    """Tokens that an answer must have after a cut."""
    return min(LEAST_ANSWER, len(example.chosen_ids), len(example.rejected_ids))


def _why(reason: str, refusal: Refusal | None) -> str:
    """The reason, or that the template refuses every shorter prompt."""
    return reason if refusal is None else f"{REFUSED}: {refusal.reason}"


def _cut_prompt(
    example: Example, template: Template, max_length: int, *, answers_too: bool
) -> tuple[Example, Refusal | None]:
    """The prompt without its oldest turns: as few go as needed; system messages and the last turn stay.

    With `answers_too` prompts are cut to half of `max_length` and answers give the rest. What the template refuses is
    passed over; where it refuses every shorter prompt, the whole one comes back with the refusal.
    """
    prompt, tools = example.pair.prompt, example.pair.tools
    best, refusal = example, None
    turns = [i for i, m in enumerate(prompt) if m["role"] != "system"]
    for start in turns[1:]:
        if prompt[start]["role"] != "user":
            continue
        shorter = [m for i, m in enumerate(prompt) if i >= start or m["role"] == "system"]
        [ids] = template.try_prompt_ids([shorter], [tools])
        if isinstance(ids, Refusal):
            refusal = ids
            continue
        best = Example(ids, example.chosen_ids, example.rejected_ids, example.pair)
        if not _too_long(best, max_length) or (answers_too and len(ids) <= max_length // 2):
            break
    return best, refusal if best is example else None
