"""Rows of JSON: one object a line, a list of objects, or an object that holds such a list; never a whole file at once.

Readers yield rows, and a DataError in place of a row that cannot be read; where nothing after it can be, they end.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpo_lab.data.blocks import bad_byte, blocks, lines, too_long
from dpo_lab.data.json_text import SPACE, Parser, Window, broken
from dpo_lab.data.types import Row
from dpo_lab.runtime.errors import DataError

BOM = b"\xef\xbb\xbf"
WRAPPERS = ("data", "rows", "train", "examples", "instances", "items", "records")


def json_rows(path: Path, *, by_line: bool) -> Iterator[Row | DataError]:
    """The rows of a JSON file.

    Args:
        path: the file.
        by_line: its name says that it holds one object a line; otherwise the content decides.

    Raises:
        DataError: it holds no rows at all, but text, a number, or an object without a list of rows.
    """
    begin = next((start for block in blocks(path) if (start := block.removeprefix(BOM).lstrip())), b"")
    if begin.startswith(b"[") or (not by_line and not (begin.startswith(b"{") and _lines_of_objects(path))):
        return _whole(path)
    return _by_line(path)


def _lines_of_objects(path: Path) -> bool:
    """Whether the first line is an object of its own, followed by others or broken in itself."""
    found = (line for line in lines(blocks(path)) if line is None or line.removeprefix(BOM).strip())
    first = next(found)
    if first is None or not first.rstrip().endswith(b"}"):
        return False
    try:
        json.loads(first.removeprefix(BOM))
    except (ValueError, RecursionError):
        return True
    return next(found, b"") != b""


def _by_line(path: Path) -> Iterator[Row | DataError]:
    parser = Parser()
    for number, line in enumerate(lines(blocks(path)), 1):
        if line is None:
            yield too_long(path, number)
            continue
        line = line.removeprefix(BOM)  # also of a file that was appended to another
        if not line or line.isspace():
            continue
        try:
            text = line.decode().rstrip("\r\n")
        except UnicodeDecodeError as e:
            yield bad_byte(path, number, e.object[e.start])
            continue
        yield _line(path, parser, text, number)


def _line(path: Path, parser: Parser, text: str, number: int) -> Any:
    try:
        value, end = parser.parse(text, SPACE.match(text).end())  # pyright: ignore[reportOptionalMemberAccess]
        end = SPACE.match(text, end).end()  # pyright: ignore[reportOptionalMemberAccess]
        if end < len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except ValueError as e:
        return broken(path, e, number)
    if parser.fault:
        return DataError(f"{path}: broken JSON in line {number}: {parser.fault}.")
    return value


def _whole(path: Path) -> Iterator[Row | DataError]:
    """The items of the one list that a file holds."""
    window = Window(path)
    try:
        char = window.peek()
        if char == "[":
            yield from _items(window)
        elif char == "{":
            wrapper, fault = _wrapper(Window(path))
            yield from [fault] if fault else _wrapped(window, wrapper)
            if fault:
                return
        elif char:
            value = window.value()
            yield from [value] if isinstance(value, DataError) else []
            raise DataError(f"{path}: holds {kind(value)}, not a list of rows. Write one object a row.")
        if window.peek():
            raise json.JSONDecodeError("Extra data", window.text, window.at)
    except ValueError as e:
        yield window.broken(e)


def _items(window: Window) -> Iterator[Any]:
    """The items of the list that begins here."""
    window.at += 1
    if window.peek() == "]":
        window.at += 1
        return
    while True:
        yield window.value()
        char = window.peek()
        window.at += 1
        if char == "]":
            return
        if char != ",":
            raise json.JSONDecodeError("Expecting ',' delimiter", window.text, window.at - 1)
        window.peek()


def _keys(window: Window) -> Iterator[str]:
    """The keys of the object that begins here; whoever asks reads the value before the next one."""
    window.at += 1
    if window.peek() == "}":
        window.at += 1
        return
    while True:
        if window.peek() != '"':
            raise json.JSONDecodeError("Expecting property name enclosed in double quotes", window.text, window.at)
        key = window.value()
        if window.peek() != ":":
            raise json.JSONDecodeError("Expecting ':' delimiter", window.text, window.at)
        window.at += 1
        window.peek()
        yield str(key)
        char = window.peek()
        window.at += 1
        if char == "}":
            return
        if char != ",":
            raise json.JSONDecodeError("Expecting ',' delimiter", window.text, window.at - 1)


def _wrapper(window: Window) -> tuple[str, DataError | None]:
    """The key of the list of rows: the only list in the object, and its only key or one with a usual name.

    Returns:
        The key, and what is wrong with an object that is broken.

    Raises:
        DataError: there is no such list, or more than one.
    """
    keys: list[str] = []
    lists: list[str] = []
    window.peek()
    try:
        for key in _keys(window):
            keys.append(key)
            if window.peek() == "[":
                lists.append(key)
                for _ in _items(window):
                    pass
            else:
                window.value()
    except ValueError as e:
        return "", window.broken(e)
    if len(lists) == 1 and (len(keys) == 1 or lists[0] in WRAPPERS):
        return lists[0], None
    if not lists:
        advice = "Put the rows in a list, [{...}, {...}], or name a file with one object a line .jsonl"
    elif len(lists) == 1:
        advice = f"Save the list {lists[0][:100]} as a file of its own"
    else:
        advice = (
            "Save one of its lists as a file of its own; columns side by side become rows with pandas' orient='records'"
        )
    names = " ".join(", ".join(keys[:20]).split())[:300] or "(none)"
    raise DataError(
        f"{window.path}: holds one object with the keys {names}; a list of rows is needed, or one row a line. {advice}."
    )


def _wrapped(window: Window, wrapper: str) -> Iterator[Any]:
    for key in _keys(window):
        if key == wrapper:
            yield from _items(window)
        else:
            window.value()


def kind(value: Any) -> str:
    """What a value of JSON is called."""
    names = {list: "a list", str: "text", bool: "true or false", type(None): "null", int: "a number", float: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")
