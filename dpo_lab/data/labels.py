"""Single answers labelled good or bad -> pairs, where a prompt has both."""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dpo_lab.data.messages import Fault, decoded, first, get, is_conversation, kind, messages, text, tools, user
from dpo_lab.data.prompts import Rules, answer, asked, finished, one_answer
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
    value = first(row, PROMPTS)
    if not any(name in row for name in ANSWERS):
        return _last_apart(decoded(get(row, *PROMPTS) if value is None else value), "messages", row, rules)
    reply = first(row, ANSWERS)
    if is_conversation(reply) and not isinstance(value, list):
        return _last_apart(reply, "completion", row, rules)
    prompt = asked(get(row, *PROMPTS) if value is None else value, "prompt", rules.tags)
    if ("instruction" in row or "query" in row) and (more := text(row.get("input"), "input")):
        prompt = [user("\n".join(part for part in (prompt[-1]["content"], more) if part))]
    prompt = finished(prompt, row)
    return prompt, answer(reply, "completion", prompt, rules.tags)


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
