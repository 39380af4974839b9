"""Which prompts are answered: the user's own, or those of the data, each once."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Config
from dpo_lab.data.pairs import Pairs
from dpo_lab.data.prepare import Split, read_pairs
from dpo_lab.data.tables import Progress
from dpo_lab.data.templates import Refusal, Template, load_template
from dpo_lab.data.tokenize import CHUNK
from dpo_lab.data.types import Message, Pair
from dpo_lab.models.locate import locate
from dpo_lab.models.tokenizer import load_tokenizer
from dpo_lab.preference.ref_cache import answer_key
from dpo_lab.runtime.errors import ConfigError, DataError
from dpo_lab.runtime.terminal import Terminal

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptRow:
    """A prompt, and what the data says is a good and a bad answer to it.

    Attributes:
        messages: the conversation, which ends with a turn of the user or a tool.
        chosen: the preferred answer; None for a prompt of the user's own.
        rejected: the other one.
        key: 12 hex digits of the token ids, the `prompt` of the same pairs in eval_pairs.jsonl.
        ids: of the whole prompt with the generation prompt.
        tools: functions that the model may call.
    """

    messages: tuple[Message, ...]
    chosen: str | None
    rejected: str | None
    key: str
    ids: tuple[int, ...]
    tools: tuple[dict[str, Any], ...] = ()


def ask_for_prompts(config: Config, terminal: Terminal) -> list[PromptRow]:
    """The `wanted_prompts`, written with the model's tokenizer; its weights stay where they are.

    Raises:
        LabError: there is no tokenizer, or there are no prompts.
    """
    with terminal.working("loading the tokenizer") as say:
        located = locate(config.model, expand(config.cache_dir), say, weights=False)
        template = load_template(load_tokenizer(located, config.model), config.template)
    return wanted_prompts(config, template, terminal.progress)


def wanted_prompts(config: Config, template: Template, progress: Progress | None = None) -> list[PromptRow]:
    """The prompts that `prompts.own`, or `evaluate.split` of the data, and `evaluate.max_prompts` come to, in order.

    A prompt of several pairs is there once, with the answers of the first of them. `prompts.system` comes before every
    prompt that has no system message of its own.

    Args:
        config: with its node evaluate.
        template: says which prompts can be written, and how.
        progress: shows how far a first reading of the data is.

    Raises:
        ConfigError: a prompt of the user's own is empty, or the template does not take it.
        DataError: the data cannot be read, or there is no prompt in it.
    """
    assert config.evaluate is not None
    limit = config.evaluate.max_prompts
    if config.prompts.own:
        return _own(config, template)[:limit]
    split = read_pairs(config.data, expand(config.cache_dir), progress)
    found: dict[str, PromptRow] = {}
    left_out = 0
    for row in _rows(_pairs(config, split), template, config.prompts.system):
        if row is None:
            left_out += 1
            continue
        found.setdefault(row.key, row)
        if len(found) == limit:
            break
    if left_out:
        log.warning("%d prompts are empty or refused by the chat template; they are not answered.", left_out)
    if not found:
        raise DataError(_nothing(config, left_out))
    return [*found.values()]


def _own(config: Config, template: Template) -> list[PromptRow]:
    """The prompts on the command line."""
    rows: dict[str, PromptRow] = {}
    for place, text in enumerate(config.prompts.own, start=1):
        if not text.strip():
            raise ConfigError(f"prompts.own: prompt {place} is empty. Give a text, or leave it out.")
        messages = _with_system((Message(role="user", content=text),), config.prompts.system)
        [ids] = template.try_prompt_ids([messages])
        if isinstance(ids, Refusal):
            raise ConfigError(f"prompts.own: {ids}")
        row = PromptRow(messages, None, None, key_of(ids), tuple(ids))
        rows.setdefault(row.key, row)
    return [*rows.values()]


def _pairs(config: Config, split: Split) -> Iterator[Pair]:
    """The pairs of the split that is asked for, as training would take them: no held-out prompt among those trained on."""
    assert config.evaluate is not None
    wanted, heldout, train = config.evaluate.split, split.heldout, split.train.once()
    train = train.where(~np.isin(train.hashes(), heldout.hashes()))
    if wanted in ("heldout", "all"):
        yield from _first(heldout, config.data.max_eval_pairs)
    if wanted in ("train", "all"):
        yield from _first(train, config.data.max_pairs)


def _first(pairs: Pairs, limit: int | None) -> Iterator[Pair]:
    return (pairs[i] for i in range(len(pairs) if limit is None else min(limit, len(pairs))))


def _rows(pairs: Iterator[Pair], template: Template, system: str | None) -> Iterator[PromptRow | None]:
    """A row for each pair, or None where its prompt is empty or refused."""
    while chunk := list(islice(pairs, CHUNK)):
        chunk = [replace(pair, prompt=_with_system(pair.prompt, system)) for pair in chunk]
        written = template.try_prompt_ids([p.prompt for p in chunk], [p.tools for p in chunk])
        for pair, ids in zip(chunk, written, strict=True):
            if isinstance(ids, Refusal) or not pair.prompt[-1]["content"].strip():
                yield None
                continue
            yield PromptRow(pair.prompt, pair.chosen, pair.rejected, key_of(ids), tuple(ids), pair.tools)


def key_of(ids: Sequence[int]) -> str:
    """What a prompt is called: the first 12 hex digits of a hash of its token ids."""
    return answer_key(list(ids), ()).hex()[:12]


def _with_system(messages: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    if not system or messages[0]["role"] == "system":
        return messages
    return Message(role="system", content=system), *messages


def _nothing(config: Config, left_out: int) -> str:
    """Why there is no prompt to answer, and what to do."""
    assert config.evaluate is not None
    split = config.evaluate.split
    if left_out:
        return f"None of the {left_out} prompts of evaluate.split={split} can be answered: they are empty or refused by the chat template. Try another template=."
    return f"evaluate.split={split}: there is no prompt in it. Try evaluate.split=all, or raise data.eval_fraction."
