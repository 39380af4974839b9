"""Answers to prompts, in batches, of one model or of several that share a base."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Event
from typing import Any

import torch
from torch import Tensor

from dpo_lab.data.templates import Template
from dpo_lab.inference.sampler import Drawn, Repetition, Sampling
from dpo_lab.inference.stage import Stage
from dpo_lab.models import mixed
from dpo_lab.models.precision import Precision
from dpo_lab.models.quiet import quiet_loading
from dpo_lab.preference.forward import causal_lm

OnText = Callable[[int, str], None]  # (place in the batch, text that came on)


@dataclass(frozen=True)
class Asked:
    """A prompt, and who is to answer it."""

    name: str  # of the stage
    ids: list[int]  # with the generation prompt
    seed: int | None = None  # of its draws; None: the sampling's


@dataclass(frozen=True)
class Answer:
    """What came."""

    text: str
    ids: list[int]  # without what ends it
    ended: bool  # by itself; else it was cut at max_new_tokens, or stopped

    @property
    def tokens(self) -> int:
        """How many were generated, its end included."""
        return len(self.ids) + self.ended


def answers(
    stage: Stage,
    asked: Sequence[Asked],
    sampling: Sampling,
    *,
    on_text: OnText | None = None,
    stop: Event | None = None,
) -> list[Answer]:
    """The answers, one batch for all that can be computed together.

    Rows of one base with several adapters, or with one and without, go through the base together. An answer is a
    function of sampling, seed, prompt and model: neither batch mates nor their number change more than the last bits.

    Args:
        stage: who is loaded.
        asked: prompts that fit the model's context together with the answer; see `context.fit`.
        sampling: how tokens are chosen.
        on_text: called with each piece of text as it comes, from the thread of the caller.
        stop: set by another thread or a signal, it ends the answers where they are.
    """
    found: list[Answer | None] = [None] * len(asked)
    together = mixed.mixes(stage.model)
    for group in _groups(stage, [a.name for a in asked], together):
        rows = [asked[place] for place in group]
        names = [row.name for row in rows]
        with ExitStack() as opened:
            if together and names[0] not in stage.wholes:
                model = stage.model
                opened.enter_context(mixed.rows(model, [stage.adapter_of(name) for name in names]))
            else:
                model = opened.enter_context(stage.speaking(names[0]))
            made = generate(
                model,
                [row.ids for row in rows],
                stage.template,
                sampling,
                stage.precision,
                seeds=[sampling.seed if row.seed is None else row.seed for row in rows],
                on_text=_placed(on_text, group),
                stop=stop,
            )
        for place, answer in zip(group, made, strict=True):
            found[place] = answer
    return [a for a in found if a is not None]


def _placed(on_text: OnText | None, group: list[int]) -> OnText | None:
    return None if on_text is None else lambda row, text: on_text(group[row], text)


def _groups(stage: Stage, names: Sequence[str], together: bool) -> list[list[int]]:
    """Places that go through a model in one call."""
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        alone = name in stage.wholes or not together
        groups.setdefault(name if alone else "", []).append(place)
    return list(groups.values())


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    template: Template,
    sampling: Sampling,
    precision: Precision,
    *,
    seeds: Sequence[int] | None = None,
    on_text: OnText | None = None,
    stop: Event | None = None,
) -> list[Answer]:
    """Continuations of prompts, one batch for all.

    Of the model's own generation_config nothing counts but what ends an answer: how tokens are chosen is `sampling`'s.

    Args:
        model: a PEFT or transformers model in eval mode.
        prompts: token ids with the generation prompt.
        template: says what ends an answer; see `ends_of`.
        sampling: how tokens are chosen.
        precision: dtypes.
        seeds: of the draws of each prompt; None: all have the sampling's.
        on_text: called with (row, text) as text comes.
        stop: once set, the answers end where they are.
    """
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    tokenizer, lm = template.tokenizer, causal_lm(model)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else template.end_of_turn[-1]
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=lm.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=lm.device)
    ends = ends_of(lm, template)
    speaker = None if on_text is None else _Speaker(tokenizer, len(prompts), ends, on_text)
    chosen: list[Any] = []
    if sampling.repetition_penalty != 1.0:
        chosen.append(Repetition(sampling.repetition_penalty, width - mask.sum(dim=1)))
    if not sampling.greedy:
        chosen.append(Drawn(sampling, prompts, [sampling.seed] * len(prompts) if seeds is None else seeds))
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(ends),
        pad_token_id=pad,
        use_cache=True,
    )
    autocast = precision.autocast
    with quiet_loading(), _plain(lm), torch.autocast(lm.device.type, dtype=autocast, enabled=autocast is not None):
        out = lm.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            streamer=speaker,
            logits_processor=LogitsProcessorList(chosen),
            stopping_criteria=StoppingCriteriaList([] if stop is None else [_Stop(stop)]),
        )
    if speaker is not None:
        speaker.flush()
    return [_answer(row, ends, tokenizer) for row in out[:, width:].tolist()]


def ends_of(model: Any, template: Template) -> set[int]:
    """Tokens that end an answer: the template's, the tokenizer's, and those of the model's own generation_config.

    Args:
        model: a PEFT or transformers model.
        template: of the prompts.
    """
    own = causal_lm(model).generation_config.eos_token_id
    listed = own if isinstance(own, list) else [own]
    return {template.end_of_turn[-1], template.tokenizer.eos_token_id, *listed} - {None}


@contextmanager
def _plain(lm: Any) -> Iterator[None]:
    """While the context is open the model has no way of its own to choose tokens.

    transformers fills what a call leaves open from the model's generation_config: Qwen2.5's has a penalty for repetition.
    """
    from transformers import GenerationConfig

    own, lm.generation_config = lm.generation_config, GenerationConfig()
    try:
        yield
    finally:
        lm.generation_config = own


def _answer(row: list[int], ends: set[int], tokenizer: Any) -> Answer:
    place = next((i for i, token in enumerate(row) if token in ends), None)
    ids = row if place is None else row[:place]
    return Answer(tokenizer.decode(ids, skip_special_tokens=True).strip(), ids, place is not None)


class _Stop:
    """Ends every row once an event is set."""

    def __init__(self, event: Event) -> None:
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device, dtype=torch.bool)


class _Speaker:
    """Hands on each row's text as it comes, whole characters only."""

    def __init__(self, tokenizer: Any, rows: int, ends: set[int], on_text: OnText) -> None:
        self.tokenizer, self.ends, self.on_text = tokenizer, ends, on_text
        self.begun = False
        self.over = [False] * rows
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        self.said = [""] * rows

    def put(self, value: Tensor) -> None:
        """Take the next token of each row; what comes first is the prompts."""
        if not self.begun:
            self.begun = True
            return
        for row, token in enumerate(value.flatten().tolist()):
            if self.over[row]:
                continue
            if token in self.ends:
                self.over[row] = True
                self._say(row, last=True)
                continue
            self.ids[row].append(token)
            self._say(row, last=False)

    def end(self) -> None:
        """Called by transformers when all rows are over."""

    def flush(self) -> None:
        """Say what was held back of answers that were cut."""
        for row, over in enumerate(self.over):
            if not over:
                self._say(row, last=True)

    def _say(self, row: int, *, last: bool) -> None:
        text = self.tokenizer.decode(self.ids[row], skip_special_tokens=True)
        if not last and text.endswith("\ufffd"):  # a character of several tokens
            return
        text = text.lstrip() if not last else text.strip()
        if not last:
            text = text.rstrip()  # whitespace waits for what comes after it: an answer ends without
        if text.startswith(self.said[row]) and len(text) > len(self.said[row]):
            self.on_text(row, text[len(self.said[row]) :])
            self.said[row] = text
