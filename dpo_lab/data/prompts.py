"""The prompt of a row and the answers to it: what the formats have in common."""

import re
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from dpo_lab.data.messages import (
    Fault,
    Tags,
    chat,
    decoded,
    get,
    is_transcript,
    kind,
    messages,
    refuse_media,
    reply,
    text,
    tools,
    transcript,
    user,
)
from dpo_lab.data.types import Message, Pair, Row

WORD = re.compile(r"[\u2e80-\U0003ffff]|[^\W\u2e80-\U0003ffff]+")  # each Chinese character is one of its own
WORDS = 3  # as many as TRL's own example has, "The sky is"
SYSTEMS = ("system", "system_prompt", "system_message")


@dataclass(frozen=True)
class Rules:
    """How the rows of one source are read."""

    tags: Tags = Tags()
    ranking: str = "all"  # all | best_worst | adjacent
    min_margin: float = 0.0


def pair(prompt: list[Message], row: Row, number: int, rules: Rules) -> Pair:
    """The pair of `prompt` and the row's chosen and rejected answers."""
    prompt = finished(prompt, row)
    chosen = answer(get(row, "chosen"), "chosen", prompt, rules.tags)
    rejected = answer(get(row, "rejected"), "rejected", prompt, rules.tags)
    return Pair(tuple(prompt), chosen, rejected, number, tools=tools(row.get("tools")))


def shared(row: Row, number: int, rules: Rules, columns: tuple[str, str] = ("chosen", "rejected")) -> Pair:
    """The pair of two whole conversations that differ in their last message alone; the rest is the prompt."""
    good, bad = (messages(get(row, column), column, rules.tags) for column in columns)
    if len(good) < 2 or good[:-1] != bad[:-1]:
        lead = "" if "prompt" in row or columns[0] != "chosen" else "prompt is missing, and "
        raise Fault(f"{lead}{columns[0]} and {columns[1]} differ in more than their last message")
    prompt = finished(good[:-1], row)
    chosen, rejected = (one_answer(m[-1:], column) for m, column in zip((good, bad), columns, strict=True))
    return Pair(tuple(prompt), chosen, rejected, number, tools=tools(row.get("tools")))


def finished(prompt: list[Message], row: Row) -> list[Message]:
    """The prompt with the row's system text, where it has no such message, if it is one that can be answered."""
    refuse_media(row)
    system = ""
    for name in SYSTEMS:
        system = system or text(row.get(name), name)
    if system and prompt[0]["role"] != "system":
        prompt = [{"role": "system", "content": system}, *prompt]
    last = prompt[-1]["role"]
    if last not in ("user", "tool"):
        raise Fault(f"the prompt must end with a user's turn or a tool's, not with the {last}'s")
    return prompt


def answer(value: Any, column: str, prompt: list[Message], tags: Tags) -> str:
    """The text of an answer: a text, one message, or a list of messages (that may repeat the prompt)."""
    value = reply(value, tags)
    if value is None or isinstance(value, str):
        return text(value, column)
    if not isinstance(value, dict | list):
        raise Fault(f"{column} must be text or messages, not {kind(value)}")
    found = messages(value, column, tags)
    if len(found) > 1 and found[:-1] == prompt[1 - len(found) :]:
        found = found[-1:]
    return one_answer(found, column)


def one_answer(found: list[Message], column: str) -> str:
    """The text of the one message of the assistant that is there."""
    if len(found) != 1 or found[0]["role"] != "assistant":
        roles = " + ".join(m["role"] for m in found)
        raise Fault(f"{column} must be one message of the assistant, or the prompt and that, not {roles}")
    if "tool_calls" in found[0]:
        raise Fault(f"{column} calls a tool; answers are read as text, and tool calls in the prompt alone")
    return found[0]["content"]


def asked(value: Any, column: str, tags: Tags) -> list[Message]:
    """A prompt of whichever kind: a text, a transcript of Human and Assistant that is to go on, or messages."""
    value = chat(value, tags)
    if isinstance(value, dict | list):
        return messages(value, column, tags)
    if is_transcript(value):
        return open_end(transcript(value, column))
    return [user(text(value, column))]


def in_full(prompt: list[Message], column: str, row: Row, rules: Rules) -> list[Message]:
    """The prompt that stood in `column` between the turns of `history` and the text of `input`, as alpaca has them."""
    more = row.get("input")
    if column != "input" and isinstance(more, str) and more and [m["role"] for m in prompt] == ["user"]:
        prompt = joined(prompt[0]["content"], text(more, "input"))
    return [*earlier(row["history"], rules.tags), *prompt] if column != "history" and row.get("history") else prompt


def joined(instruction: str, more: str) -> list[Message]:
    """One turn of the user: an instruction, and what it is about where that is something else."""
    parts = [instruction] if instruction == more else [instruction, more]
    return [user("\n".join(part for part in parts if part))]


def earlier(history: Any, tags: Tags) -> list[Message]:
    """The turns before the prompt, of a list of [question, answer] or of messages; of anything else none."""
    history = decoded(history)
    if not isinstance(history, list):
        return []
    if history and all(isinstance(turn, dict) for turn in history):
        return messages(history, "history", tags)
    if not all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in history):
        return []
    turns: list[Message] = []
    for turn in history:
        question, answered = (text(said, "history") for said in turn)
        turns += [user(question), Message(role="assistant", content=answered)]
    return turns


def open_end(turns: list[Message]) -> list[Message]:
    """Turns without a last one of the assistant in which nothing is said yet."""
    return turns[:-1] if len(turns) > 1 and turns[-1] == {"role": "assistant", "content": ""} else turns


def common_prompt(chosen: str, rejected: str) -> str:
    """What two texts begin with, up to the last word that is whole: the prompt that both go on from.

    Raises:
        Fault: they are the same, or begin with different words.
    """
    if chosen == rejected:
        raise Fault("prompt is missing, and chosen and rejected are the same text, so that it cannot be told")
    end = bisect_right(range(1, min(len(chosen), len(rejected)) + 1), False, key=lambda n: chosen[:n] != rejected[:n])
    if end and chosen[end - 1].isspace():
        end -= 1
    elif end in (len(chosen), len(rejected)) or _within_word(chosen, end) or _within_word(rejected, end):
        end = max((i for i in range(end) if chosen[i].isspace()), default=0)
    if not chosen[:end].strip():
        raise Fault("prompt is missing, and chosen and rejected are not conversations or texts that begin with it")
    return chosen[:end]


def looks_asked(begin: str) -> bool:
    """Whether a common beginning may be a prompt, more than a word or two with which both answers happen to begin."""
    return begin.rstrip().endswith(("?", ":", "\uff1f", "\uff1a")) or len(WORD.findall(begin)) >= WORDS


def _within_word(value: str, at: int) -> bool:
    """Whether a place in a text is between two letters of a word; each Chinese character is one of its own."""
    around = value[max(0, at - 1) : at + 1]
    return len(around) == 2 and all(c.isalnum() and ord(c) < 0x2E80 for c in around)


def require_list(value: Any, column: str) -> list[Any]:
    """A value that must be a list with something in it.

    Raises:
        Fault: it is none.
    """
    if not isinstance(value, list) or not value:
        raise Fault(f"{column} must be a non-empty list, not {kind(value)}")
    return value
