"""Which format rows are in, by their columns and what these hold; and which columns it leaves out."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpo_lab.data.columns import MAP_HINT, renamed, told
from dpo_lab.data.labels import ANSWERS as REPLIES
from dpo_lab.data.labels import LABELS
from dpo_lab.data.messages import Tags, chat, decoded, first, is_conversation, is_transcript, reply
from dpo_lab.data.prompts import SYSTEMS, WORD, WORDS, looks_asked
from dpo_lab.data.ranking import PROMPTS, RANK, RANKS, SCORE, SCORES, holds, two_of
from dpo_lab.data.types import Message, Row
from dpo_lab.runtime.errors import DataError

SHAPES = {  # format -> the columns that tell it
    "trl": "prompt, chosen, rejected; or chosen, rejected with the prompt in both",
    "alpaca": "instruction, input, chosen, rejected (system, history)",
    "sharegpt": "conversations of {from, value}, chosen, rejected",
    "openai": "messages of {role, content}, chosen, rejected",
    "v1": "chosen_messages, rejected_messages",
    "orca": "system, question, chosen, rejected",
    "argilla": "instruction, chosen_response, rejected_response",
    "icr": "system, input, chosen, rejected",
    "hh": "chosen, rejected as texts of 'Human:' and 'Assistant:'",
    "ultrafeedback": "prompt, chosen, rejected, score_chosen, score_rejected",
    "ranked": "prompt, answers of {answer, rank}; or prompt, answers, ranks",
    "scored": "prompt, answers, scores; or two answers and a verdict (response_0, response_1, better_response_id)",
    "kto": "prompt, completion, label; or messages, label",
}
CHOSEN_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_reward", "rejected_reward"),
    ("chosen_avg_rating", "rejected_avg_rating"),
)
LIKE = (
    *("instruction", "question", "query", "problem", "input", "context", "passage"),
    *("history", "messages", "conversations"),
)
JOINED = ("trl", "ultrafeedback", "alpaca", "argilla", "orca", "icr", "ranked", "scored", "kto")  # take a mapped query
READ = ("prompt", "chosen", "rejected", "tools", *SYSTEMS)
Prompt = tuple[Message, ...]


@dataclass(frozen=True)
class Detected:
    """The format that a source's first rows are in."""

    name: str
    columns: Mapping[str, str]  # data.columns
    where: str  # the source, for messages
    prompt_of: Callable[[Row], Prompt | None]  # None where a row is faulty or makes no pair


def detect(rows: Sequence[Row], columns: Mapping[str, str]) -> str | None:
    """The format of the first row that has all that a format needs, else what the first rows resemble.

    Args:
        rows: the first rows, their columns renamed.
        columns: the names that were asked for: a mapped `query` is alpaca's.
    """
    filled = [{name: value for name, value in row.items() if value is not None} for row in rows]
    for row in filled:
        if name := _certain(row, columns):
            return name
    for row in rows:
        if name := _certain(row, columns) or _likely(row):
            return name
    return None


def scores_of(row: Row) -> tuple[str, str] | None:
    """The columns of the scores that chosen and rejected have, if they have any."""
    return next((both for both in CHOSEN_SCORES if both[0] in row and both[1] in row), None)


def _certain(row: Row, columns: Mapping[str, str]) -> str | None:
    """The format of a row that is complete."""
    if {"chosen_messages", "rejected_messages"} <= row.keys():
        return "v1"
    if {"chosen_response", "rejected_response"} <= row.keys():
        return "argilla"
    if {"chosen", "rejected"} <= row.keys():
        return _of_pairs(row, columns)
    return _of_answers(row)


def _of_pairs(row: Row, columns: Mapping[str, str]) -> str | None:
    chosen, rejected = (reply(row[name], Tags()) for name in ("chosen", "rejected"))
    whole = is_conversation(chosen) and is_conversation(rejected)
    if (is_transcript(chosen) and is_transcript(rejected)) or (is_transcript(row.get("prompt")) and not whole):
        return "hh"
    if whole or "prompt" in row:
        text = not whole and not isinstance(chat(row["prompt"], Tags()), dict | list)
        if text and ("history" in row or "query" in columns or "instruction" in row):
            return "alpaca"
        return "ultrafeedback" if scores_of(row) else "trl"
    for column, name in (
        ("conversations", "sharegpt"),
        ("messages", "openai"),
        ("instruction", "alpaca"),
        ("question", "orca"),
        ("input", "icr"),
    ):
        if column in row:
            return name
    return None


def _of_answers(row: Row) -> str | None:
    if any(name in row for name in LABELS) and _labelled(row):
        return "kto"
    output = decoded(row.get("output"))
    if "instruction" in row and isinstance(output, list) and len(output) == 2:
        return "alpaca"
    if any(name in row for name in PROMPTS):
        if two_of(row) or holds(row, SCORES, SCORE):
            return "scored"
        if holds(row, RANKS, RANK):
            return "ranked"
    return None


def _labelled(row: Row) -> bool:
    said = first(row, ("messages", "conversations", "prompt"))
    return any(name in row for name in REPLIES) or isinstance(decoded(said), list)


def _likely(row: Row) -> str | None:
    """What an incomplete row resembles, so that its fault can be told."""
    if "conversations" in row:
        return "sharegpt"
    if "instruction" in row:
        return "alpaca"
    if "messages" in row and ("chosen" in row or "rejected" in row):
        return "openai"
    if ("prompt" in row and ("chosen" in row or "rejected" in row)) or {"chosen", "rejected"} <= row.keys():
        return "trl"
    return None


def refuse_unread(rows: Iterable[tuple[int, Row]], found: Detected) -> None:
    """Refuse to guess what the prompt is, and to leave out a part of it, where nobody asked for that.

    Args:
        rows: the first ones with their numbers, as they are in the source.
        found: the format that they are in.

    Raises:
        DataError: a filled column of a prompt's name is not part of the prompt; or there is no prompt, and another text
            column could be it, or both answers merely begin with the same word or two.
    """
    ours = [(n, renamed(row, found.columns), told(row)) for n, row in rows if isinstance(row, dict)]
    implicit = found.name in ("trl", "ultrafeedback") and not any("prompt" in row for _, row, _ in ours)
    for number, row, there in ours:
        at, prompt = f"{found.where}: row {number}", found.prompt_of(row)
        if implicit and not _whole(row):
            _refuse_guess(row, prompt, found, at, there)
        elif prompt is not None:
            _refuse_loss(row, prompt, found, at, there)


def _refuse_guess(row: Row, prompt: Prompt | None, found: Detected, at: str, there: str) -> None:
    begin = _said(prompt or ())
    if others := [column for column in row if _may_be_asked(row, column, begin)]:
        others.sort(key=lambda column: column not in LIKE)
        raise DataError(
            f"{at}: which column is the prompt: {' or '.join(others)}? {there} Name it: "
            f"{_mapped(found.columns, prompt=others[0])}. If chosen and rejected themselves begin with the prompt: "
            f"data.format={found.name}."
        )
    if prompt is not None and not looks_asked(begin):
        raise DataError(
            f"{at}: prompt is missing, and chosen and rejected both begin with {begin!r:.60} alone, which may be the "
            f"answers' own. {there} {MAP_HINT} If that is the prompt: data.format={found.name}."
        )


def _refuse_loss(row: Row, prompt: Prompt, found: Detected, at: str, there: str) -> None:
    said = _said(prompt)
    lost = [column for column in LIKE if any(text not in said for text in _texts(row.get(column)))]
    lost = [column for column in lost if found.prompt_of(_without(row, column)) == prompt]
    if not lost:
        return
    what = f"columns {', '.join(lost)} are" if len(lost) > 1 else f"column {lost[0]} is"
    more = _below(row, lost[0], prompt, found)
    add = f"To put {lost[0]} below the prompt: {more}. " if more else ""
    raise DataError(
        f"{at}: the {what} not read (format {found.name}), and may belong to the prompt. {there} {add}To leave "
        f"{'them' if len(lost) > 1 else 'it'} out: data.format={found.name}."
    )


def _below(row: Row, lost: str, prompt: Prompt, found: Detected) -> str:
    """The mapping that joins a column to the prompt, where there is one."""
    if found.name not in JOINED or not isinstance(row.get(lost), str) or any(m["role"] == "assistant" for m in prompt):
        return ""
    if {"prompt", "instruction"} & row.keys():
        return "" if row.get("input") and lost != "input" else _mapped(found.columns, query=lost)
    read = [column for column in LIKE if row.get(column) and found.prompt_of(_without(row, column)) != prompt]
    return _mapped(found.columns, prompt=read[0], query=lost) if len(read) == 1 else ""  # a second one would give way


def _without(row: Row, column: str) -> Row:
    return {name: value for name, value in row.items() if name != column}


def _mapped(columns: Mapping[str, str], **more: str) -> str:
    named = {ours: theirs or '""' for ours, theirs in {**columns, **more}.items()}
    return "'data.columns={" + ", ".join(f"{ours}: {theirs}" for ours, theirs in named.items()) + "}'"


def _may_be_asked(row: Row, column: str, begin: str) -> bool:
    """Whether a column that is not read could be the prompt: by its name, or as it holds more than a word or two."""
    value = row[column]
    if column in READ or (column not in LIKE and not isinstance(value, str)):
        return False
    if isinstance(value, str) and value in (row.get("chosen"), row.get("rejected")):
        return False
    texts = [text for text in _texts(value) if text not in begin]
    return any(column in LIKE or text.endswith("?") or len(WORD.findall(text)) >= WORDS for text in texts)


def _whole(row: Row) -> bool:
    """Whether both answers are conversations that begin with the prompt."""
    return all(is_conversation(reply(row.get(column), Tags())) for column in ("chosen", "rejected"))


def _texts(value: Any) -> list[str]:
    """The filled texts that a column holds, without the answer that ends a conversation."""
    value = chat(value, Tags())
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        role = first(value[-1], Tags.role)
        value = value[:-1] if role in ("assistant", "gpt", "model") else value
    return [even for text in _flat(value) if (even := _even(text))]


def _flat(value: Any, depth: int = 4) -> Iterator[str]:
    """The texts in a value, down to those of the parts of a message's content."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict) and depth:
        yield from _flat(first(value, (*Tags.content, "text")), depth - 1)
    elif isinstance(value, list | tuple) and depth:
        for item in value:
            yield from _flat(item, depth - 1)


def _said(prompt: Prompt) -> str:
    return _even("\n".join(m["content"] for m in prompt))


def _even(text: str) -> str:
    return " ".join(text.split())
