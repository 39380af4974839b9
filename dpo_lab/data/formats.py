"""Rows of the formats in use -> Pair; one small function a format.

A null where a text is expected is an empty text: tokenisation drops and counts empty prompts and answers. What is
of a wrong type or not there at all is an error.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from dpo_lab.data.types import Message, Pair
from dpo_lab.runtime.errors import DataError

Row = dict[str, Any]
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
MAP_HINT = "Map other names with data.columns, e.g. 'data.columns={prompt: question, chosen: good, rejected: bad}'."


def to_pairs(rows: list[Row], *, format: str, columns: Mapping[Any, str], where: str) -> tuple[list[Pair], str]:
    """Every row as a Pair, and the name of the format they were read in.

    Args:
        rows: the source's rows, at least one.
        format: trl, alpaca, sharegpt, or auto to tell by the columns of the first row.
        columns: our name -> the source's name of a column; our `prompt` is alpaca's instruction and sharegpt's
            conversations.
        where: the source, for messages.

    Raises:
        DataError: a row lacks a column or holds something else than the format says.
    """
    absent = [theirs for theirs in columns.values() if not any(theirs in row for row in rows)]
    if absent:
        raise DataError(f"{where}: no row has a column {', '.join(absent)} (data.columns). {_columns(rows[0])}")
    name = _detect(_renamed(rows[0], columns), where, rows[0]) if format == "auto" else format
    pairs = []
    for number, row in enumerate(rows, 1):
        try:
            pairs.append(FORMATS[name](_renamed(row, columns), number))
        except _Fault as e:
            raise DataError(f"{where}: row {number}: {e} (format {name}). {_columns(row)} {MAP_HINT}") from e
    return pairs, name


def trl(row: Row, number: int) -> Pair:
    """TRL: `prompt`, `chosen`, `rejected`, each a string or a list of {role, content}; `system` if there.

    Without `prompt`, chosen and rejected are whole conversations with the same beginning.
    """
    if "prompt" not in row:
        return _implicit(row, number)
    prompt = row["prompt"]
    messages = _messages(prompt, "prompt") if isinstance(prompt, list | dict) else [_user(_text(prompt, "prompt"))]
    return _pair(messages, row, number)


def alpaca(row: Row, number: int) -> Pair:
    """LLaMA-Factory's alpaca ranking: `instruction`, `input`, `chosen`, `rejected`; `system`, `history` if there."""
    messages: list[Message] = []
    for turn in _history(row.get("history")):
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise _Fault("history must be a list of [question, answer]")
        question, answer = (_text(text, "history") for text in turn)
        messages += [_user(question), Message(role="assistant", content=answer)]
    column = "instruction" if "instruction" in row or "prompt" not in row else "prompt"
    parts = [_text(_get(row, column), column), _text(row.get("input"), "input")]
    return _pair([*messages, _user("\n".join(part for part in parts if part))], row, number)


def sharegpt(row: Row, number: int) -> Pair:
    """LLaMA-Factory's sharegpt ranking: `conversations` of {from, value}, `chosen`, `rejected`; `system` if there."""
    column = "conversations" if "conversations" in row or "prompt" not in row else "prompt"
    return _pair(_messages(_decoded(_get(row, column)), column), row, number)


FORMATS: dict[str, Callable[[Row, int], Pair]] = {"trl": trl, "alpaca": alpaca, "sharegpt": sharegpt}


class _Fault(Exception):
    """What is wrong with a row; the caller says which row."""


def _detect(row: Row, where: str, original: Row) -> str:
    if "conversations" in row:
        return "sharegpt"
    if "instruction" in row or {"prompt", "history"} <= row.keys():
        return "alpaca"
    if "prompt" in row or {"chosen", "rejected"} <= row.keys():
        return "trl"
    raise DataError(
        f"{where}: row 1 is in none of the formats trl (prompt, chosen, rejected), alpaca (instruction, input, chosen, "
        f"rejected), sharegpt (conversations, chosen, rejected). {_columns(original)} {MAP_HINT}"
    )


def _pair(messages: list[Message], row: Row, number: int) -> Pair:
    """The pair of a row whose prompt is `messages`; its `system` column counts where they have no such message."""
    system = _text(row.get("system"), "system")
    if system and messages[0]["role"] != "system":
        messages = [Message(role="system", content=system), *messages]
    if messages[-1]["role"] != "user":
        raise _Fault(f"the prompt must end with a user's turn, not with {messages[-1]['role']}'s")
    return Pair(tuple(messages), _answer(row, "chosen", messages), _answer(row, "rejected", messages), number)


def _implicit(row: Row, number: int) -> Pair:
    chosen, rejected = _get(row, "chosen"), _get(row, "rejected")
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        raise _Fault("prompt is missing, and chosen and rejected are not conversations that begin with it")
    good, bad = _messages(chosen, "chosen"), _messages(rejected, "rejected")
    if len(good) < 2 or good[:-1] != bad[:-1]:
        raise _Fault("prompt is missing, and chosen and rejected differ in more than their last message")
    return _pair(good[:-1], {**row, "chosen": good[-1:], "rejected": bad[-1:]}, number)


def _answer(row: Row, column: str, prompt: list[Message]) -> str:
    """The text of an answer: a string, one message, or a list of messages (that may repeat the prompt)."""
    value = _get(row, column)
    if value is None or isinstance(value, str):
        return _text(value, column)
    messages = _messages(value, column)
    if len(messages) > 1 and messages[:-1] == prompt[-len(messages) + 1 :]:
        messages = messages[-1:]
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise _Fault(
            f"{column} must be one message of the assistant, or the prompt and that, not "
            f"{' + '.join(m['role'] for m in messages)}"
        )
    return messages[0]["content"]


def _messages(value: Any, column: str) -> list[Message]:
    items = [value] if isinstance(value, dict) else value
    if not isinstance(items, list) or not items:
        raise _Fault(f"{column} must be a non-empty list of messages, not {_kind(value)}")
    return [_message(item, column) for item in items]


def _message(item: Any, column: str) -> Message:
    if not isinstance(item, dict):
        raise _Fault(f"{column} holds {_kind(item)} where a message is expected")
    role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    if not isinstance(role, str) or role not in ROLES:
        raise _Fault(f"{column} holds a message with the role {role!r:.60}; known are {', '.join(ROLES)}")
    if content is None:
        raise _Fault(f"{column} holds a message of {role} without content")
    return Message(role=ROLES[role], content=_text(content, f"a message's content in {column}"))


def _user(text: str) -> Message:
    return Message(role="user", content=text)


def _text(value: Any, what: str) -> str:
    """Null is an empty text; half of a surrogate pair, which no tokenizer takes, becomes U+FFFD."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _Fault(f"{what} must be text, not {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def _history(value: Any) -> list[Any]:
    value = _decoded(value) or []
    if not isinstance(value, list):
        raise _Fault(f"history must be a list of [question, answer], not {_kind(value)}")
    return value


def _decoded(value: Any) -> Any:
    """Columns that cannot be mere text may hold JSON, as they do in CSV files."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def _get(row: Row, column: str) -> Any:
    if column not in row:
        raise _Fault(f"{column} is missing")
    return row[column]


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "text", type(None): "null", bool: "true or false"}
    empty = "an empty list" if value == [] else None
    return (
        empty
        or names.get(type(value))
        or ("a number" if isinstance(value, int | float) else f"a {type(value).__name__}")
    )


def _renamed(row: Row, columns: Mapping[Any, str]) -> Row:
    if not columns:
        return row
    taken = set(columns.values())
    ours = {name: row[theirs] for name, theirs in columns.items() if theirs in row}
    return {k: v for k, v in row.items() if k not in taken and k not in columns} | ours


def _columns(row: Row) -> str:
    return f"The columns there are {', '.join(map(str, row)) or '(none)'}."
