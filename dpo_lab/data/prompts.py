"""The prompt of a row and the answers to it: what the formats have in common."""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from dpo_lab.data.messages import (
    Fault,
    Tags,
    get,
    is_transcript,
    kind,
    messages,
    refuse_media,
    text,
    tools,
    transcript,
    user,
)
from dpo_lab.data.types import Message, Pair, Row


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
        raise Fault(f"prompt is missing, and {columns[0]} and {columns[1]} differ in more than their last message")
    prompt = finished(good[:-1], row)
    chosen, rejected = (one_answer(m[-1:], column) for m, column in zip((good, bad), columns, strict=True))
    return Pair(tuple(prompt), chosen, rejected, number, tools=tools(row.get("tools")))


def finished(prompt: list[Message], row: Row) -> list[Message]:
    """The prompt with the row's `system`, where it has no such message, if it is one that can be answered."""
    refuse_media(row)
    system = text(row.get("system"), "system")
    if system and prompt[0]["role"] != "system":
        prompt = [{"role": "system", "content": system}, *prompt]
    last = prompt[-1]["role"]
    if last not in ("user", "tool"):
        raise Fault(f"the prompt must end with a user's turn or a tool's, not with the {last}'s")
    return prompt


def answer(value: Any, column: str, prompt: list[Message], tags: Tags) -> str:
    """The text of an answer: a text, one message, or a list of messages (that may repeat the prompt)."""
    if value is None or isinstance(value, str):
        return text(value, column)
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
    if isinstance(value, dict | list):
        return messages(value, column, tags)
    if is_transcript(value):
        return open_end(transcript(value, column))
    return [user(text(value, column))]


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
