"""Texts, messages and tools as rows give them -> as a Pair holds them.

A null where a text is expected is an empty text: tokenisation drops and counts empty prompts and answers. What is
of a wrong type or not there at all is a Fault.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from dpo_lab.data.types import Message, Row

ROLES = {
    "human": "user",
    "gpt": "assistant",
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "ipython": "tool",
    "function_call": "function_call",
}
TAGS = {  # LLaMA-Factory's name of a tag -> the role that it names
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
    "observation_tag": "tool",
    "function_tag": "function_call",
}
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # where messages keep what was thought before the answer
CALLS = ("tool_calls", "function_call")
ASSISTANT = re.compile(r"\n\n[ \t]*Assistant:")
TURN = re.compile(r"\n\n[ \t]*(Human|Assistant):")


class Fault(Exception):
    """What is wrong with a row; the caller says which row."""


class NoPair(Fault):
    """A sound row that makes no pair; the reason is one to count by."""


@dataclass(frozen=True)
class Tags:
    """How the messages of a source name their parts and roles."""

    role: tuple[str, ...] = ("role", "from")
    content: tuple[str, ...] = ("content", "value")
    roles: Mapping[str, str] = field(default_factory=lambda: ROLES)

    @classmethod
    def of(cls, tags: Mapping[str, str]) -> "Tags":
        """From LLaMA-Factory's role_tag, content_tag, user_tag and so on; what they leave out is told by itself."""
        named = {tags[tag]: role for tag, role in TAGS.items() if tags.get(tag)}
        role, content = tags.get("role_tag"), tags.get("content_tag")
        return cls((role,) if role else cls.role, (content,) if content else cls.content, ROLES | named)


def user(text: str) -> Message:
    """A turn of the user."""
    return {"role": "user", "content": text}


def messages(value: Any, column: str, tags: Tags) -> list[Message]:
    """A list of messages, or one message, of whichever source.

    Raises:
        Fault: it is none, or one of them has an unknown role, no content, or a picture.
    """
    value = chat(value, tags)
    items = [value] if isinstance(value, dict) else value
    if not isinstance(items, list) or not items:
        raise Fault(f"{column} must be a non-empty list of messages, not {kind(value)}")
    return [_message(item, column, tags) for item in items]


def _message(item: Any, column: str, tags: Tags) -> Message:
    if not isinstance(item, dict):
        raise Fault(f"{column} holds {kind(item)} where a message is expected")
    given, content = first(item, tags.role), first(item, tags.content)
    role = tags.roles.get(given) if isinstance(given, str) else None
    if role is None or not isinstance(given, str):
        raise Fault(f"{column} holds a message with the role {given!r:.60}; known are {', '.join(tags.roles)}")
    if role == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": _calls(content, column)}
    calls = item.get("tool_calls") or item.get("function_call")
    if content is None and not calls:
        raise Fault(f"{column} holds a message of {given} without content")
    if isinstance(content, list):
        content, parts = _joined(content, column)
        calls = calls or parts
    if role == "assistant" and (thought := first(item, THOUGHTS)):
        content = _thought(text(thought, f"a message's thoughts in {column}")) + (content or "")
    found: Message = {"role": role, "content": text(content, f"a message's content in {column}")}
    if calls:
        found["tool_calls"] = _calls(calls, column)
    if role == "tool" and isinstance(item.get("name"), str):
        found["name"] = text(item["name"], "a tool's name")
    return found


def _joined(parts: list[Any], column: str) -> tuple[str, list[Any]]:
    """The text of a content that is given in parts, and the tool calls among them."""
    texts: list[str] = []
    calls: list[Any] = []
    for part in parts:
        if not isinstance(part, dict):
            raise Fault(f"a message's content in {column} must be text, or parts such as {{type: text, text: ...}}")
        what, value = part.get("type"), first(part, ("text", "value"))
        if what == "text":
            texts.append(text(value, f"a message's content in {column}"))
        elif what in ("reasoning", "thinking"):
            texts.append(_thought(text(value or part.get(what), f"a message's thoughts in {column}")))
        elif what == "tool_call":
            calls.append(value)
        else:
            raise Fault(
                f"{column} holds a part of the type {what!r:.40}; text alone is read, no images, video or sound"
            )
    return "".join(texts), calls


def _thought(thought: str) -> str:
    return f"<think>\n{thought.strip()}\n</think>\n\n" if thought.strip() else ""


def _calls(value: Any, column: str) -> list[dict[str, Any]]:
    """Tool calls as chat templates take them: [{type: function, function: {name, arguments: an object}}]."""
    value = decoded(value)
    found = []
    for item in value if isinstance(value, list) else [value]:
        call = decoded(item)
        call = call.get("function") or call if isinstance(call, dict) else None
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise Fault(f"{column} holds a tool call that is not {{name: ..., arguments: ...}}: {str(item)!r:.60}")
        arguments = decoded(call.get("arguments"))
        function = {
            "name": text(call["name"], "a tool's name"),
            "arguments": {} if arguments is None else _dense(arguments),
        }
        found.append({"type": "function", "function": function})
    return found


def text(value: Any, what: str) -> str:
    """Null is an empty text; half of a surrogate pair, which no tokenizer takes, becomes U+FFFD.

    Raises:
        Fault: it is something else than text.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Fault(f"{what} must be text, not {kind(value)}")
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def tools(value: Any) -> tuple[dict[str, Any], ...]:
    """The `tools` of a row: a list of JSON schemas, or that as JSON; bare functions get the usual wrapping.

    Raises:
        Fault: it is something else.
    """
    if not value:
        return ()
    return _tools_of_text(value) if isinstance(value, str) else _tools(value)


@lru_cache(maxsize=256)  # the same few lists stand in many rows
def _tools_of_text(value: str) -> tuple[dict[str, Any], ...]:
    return _tools(decoded(value)) if value.strip() else ()


def _tools(value: Any) -> tuple[dict[str, Any], ...]:
    found = []
    for item in value if isinstance(value, list) else [value]:
        tool = decoded(item)
        if not isinstance(tool, dict) or not (isinstance(tool.get("function"), dict) or "name" in tool):
            raise Fault(f"tools must be a list of JSON schemas, or that as JSON, and holds {str(item)!r:.60}")
        tool = _dense(tool)
        found.append(tool if "function" in tool else {"type": "function", "function": tool})
    return tuple(found)


def _dense(value: Any) -> Any:
    """Without the nulls that Arrow puts where another row of the table has a key; texts as `text` gives them."""
    if isinstance(value, dict):
        return {key: _dense(item) for key, item in value.items() if item is not None}
    if isinstance(value, str):
        return text(value, "")
    return [_dense(item) for item in value] if isinstance(value, list) else value


def chat(value: Any, tags: Tags) -> Any:
    """Text that is JSON of messages as these messages; any other value, other JSON too, as it is."""
    if not isinstance(value, str) or value[:1] not in "[{ \t\r\n" or not value[:40].lstrip().startswith(("[", "{")):
        return value
    if not any(f'"{name}"' in value for name in tags.role):
        return value
    found = decoded(value)
    items = found if isinstance(found, list) else [found]
    return found if items and all(_is_message(item, tags) for item in items) else value


def _is_message(item: Any, tags: Tags) -> bool:
    if not isinstance(item, dict):
        return False
    role = first(item, tags.role)
    said = any(name in item for name in (*tags.content, *CALLS))
    return said and isinstance(role, str) and role in tags.roles


def reply(value: Any, tags: Tags) -> Any:
    """An answer as messages where it is JSON of messages that end with the assistant's; else as it is."""
    found = chat(value, tags)
    if found is value:
        return value
    last = found[-1] if isinstance(found, list) else found
    return found if tags.roles[first(last, tags.role)] in ("assistant", "function_call") else value


def transcript(value: str, column: str) -> list[Message]:
    r"""The turns of a text `\n\nHuman: Why?\n\nAssistant: So.`, without the spaces around them.

    Raises:
        Fault: it does not begin with a turn.
    """
    before, *parts = TURN.split("\n\n" + text(value, column).lstrip())
    if before or not parts:
        raise Fault(f"{column} must be a transcript that begins with 'Human:', and begins with {value.strip()!r:.40}")
    roles = ("user" if who == "Human" else "assistant" for who in parts[::2])
    return [{"role": role, "content": said.strip()} for role, said in zip(roles, parts[1::2], strict=True)]


def is_transcript(value: Any) -> bool:
    """Whether a text is one of turns of Human and Assistant."""
    return isinstance(value, str) and value[:40].lstrip().startswith("Human:") and ASSISTANT.search(value) is not None


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages that begins before the answer."""
    if not isinstance(value, list) or len(value) < 2 or not isinstance(value[0], dict):
        return False
    role = first(value[0], Tags.role)
    return not isinstance(role, str) or ROLES.get(role) != "assistant"


def refuse_media(row: Row) -> None:
    """Refuse a row that comes with pictures, video or sound.

    Raises:
        Fault: it does.
    """
    for name in MEDIA:
        if row.get(name):
            raise Fault(f"{name} is not empty; pairs of text alone are read, none with images, video or sound")


def decoded(value: Any) -> Any:
    """A value that cannot be mere text may be JSON, as in CSV files; whatever else it is stays as it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def first(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The value of the first of several columns that is there and not null."""
    for name in names:
        if (value := row.get(name)) is not None:
            return value
    return None


def given(row: Row, *names: str) -> tuple[str, Any]:
    """The first of several columns that is there and not null, else the first that is there, and its value.

    Raises:
        Fault: none is there.
    """
    for name in names:
        if row.get(name) is not None:
            return name, row[name]
    for name in names:
        if name in row:
            return name, None
    raise Fault(f"{names[0]} is missing")


def get(row: Row, *names: str) -> Any:
    """The value of the first of several columns that is there, be it null.

    Raises:
        Fault: none is there.
    """
    for name in names:
        if name in row:
            return row[name]
    raise Fault(f"{names[0]} is missing")


def kind(value: Any) -> str:
    """What a value is, in words."""
    if value == [] and isinstance(value, list):
        return "an empty list"
    names = {list: "a list", dict: "an object", str: "text", type(None): "null", bool: "true or false"}
    number = "a number" if isinstance(value, int | float) else f"a {type(value).__name__}"
    return names.get(type(value)) or number
