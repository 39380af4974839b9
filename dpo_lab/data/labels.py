"""Single answers labelled good or bad -> pairs, where a prompt has both."""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dpo_lab.data.messages import Fault, chat, first, get, given, is_conversation, kind, messages, reply, tools
from dpo_lab.data.prompts import Rules, answer, asked, finished, in_full, one_answer
from dpo_lab.data.types import Message, Pair, Row

LABELS = ("label", "kto_tag")
PROMPTS = ("prompt", "instruction", "messages", "conversations")
ANSWERS = ("completion", "response", "output")
WORDS = {"true": True, "1": True, "false": False, "0": False, "-1": False}


@dataclass(frozen=True, slots=True)
class Labelled:
    """An answer and whether it is a good one."""

    prompt: tuple[Message, ...]
    answer: str
    good: bool
    row: int
    tools: tuple[dict[str, Any], ...] = ()


def kto(row: Row, number: int, rules: Rules) -> Labelled:
    """Unpaired answers (TRL, KTO): `prompt`, `completion`, `label` (true or false).

    Without `prompt`, completion is a whole conversation; or `messages` (or conversations) is one, and its last message
    the answer (LLaMA-Factory); or `instruction`, `input`, `output` and the label.
    """
    good = _label(get(row, *LABELS))
    prompt, reply = _parts(row, rules)
    return Labelled(tuple(prompt), reply, good, number, tools(row.get("tools")))


def _parts(row: Row, rules: Rules) -> tuple[list[Message], str]:
    """The prompt and the answer to it."""
    if not any(name in row for name in ANSWERS):
        return _last_apart(given(row, *PROMPTS)[1], "messages", row, rules)
    value, said = chat(first(row, PROMPTS), rules.tags), reply(first(row, ANSWERS), rules.tags)
    if is_conversation(said) and not isinstance(value, list):
        return _last_apart(said, "completion", row, rules)
    column, value = given(row, *PROMPTS)
    prompt = finished(in_full(asked(value, "prompt", rules.tags), column, row, rules), row)
    return prompt, answer(said, "completion", prompt, rules.tags)


def _last_apart(value: Any, column: str, row: Row, rules: Rules) -> tuple[list[Message], str]:
    turns = messages(value, column, rules.tags)
    if len(turns) < 2:
        raise Fault(f"{column} must hold a prompt and the answer to it")
    return finished(turns[:-1], row), one_answer(turns[-1:], column)


def _label(value: Any) -> bool:
    word = str(value).strip().lower().removesuffix(".0") if isinstance(value, bool | int | float | str) else ""
    if word not in WORDS:
        raise Fault(f"label must be true or false, not {repr(value)[:40] if isinstance(value, str) else kind(value)}")
    return WORDS[word]


def matched(answers: Iterable[Labelled], lone: Callable[[int], None]) -> Iterator[Pair]:
    """The i-th good answer to a prompt with the i-th bad one, as soon as both are there.

    `lone` is told the rows of the others. What waits for a partner is kept without its prompt: its answer
    and a few bytes.
    """
    waiting: dict[bytes, deque[tuple[bool, str, int]]] = {}
    for one in answers:
        key = _key(one)
        others = waiting.get(key)
        if not others or others[0][0] == one.good:
            waiting.setdefault(key, deque()).append((one.good, one.answer, one.row))
            continue
        _, other, _ = others.popleft()
        if not others:
            del waiting[key]
        chosen, rejected = (one.answer, other) if one.good else (other, one.answer)
        yield Pair(one.prompt, chosen, rejected, one.row, tools=one.tools)
    for row in sorted(row for others in waiting.values() for _, _, row in others):
        lone(row)


def _key(one: Labelled) -> bytes:
    said = json.dumps([one.prompt, one.tools], sort_keys=True, default=str)
    return hashlib.blake2b(said.encode(), digest_size=16).digest()
