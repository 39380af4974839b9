"""The text of JSON: a window of a long one, values with what is wrong in them, and errors with what to do."""

import codecs
import json
import re
from pathlib import Path
from typing import Any

from dpo_lab.data.blocks import BLOCK, ROW_BYTES, bad_byte, blocks
from dpo_lab.data.types import Row
from dpo_lab.runtime.errors import DataError

LONGEST_INTEGER = 4300  # digits; Python's own limit
SPACE = re.compile(r"[ \t\n\r]*")
ESCAPED = re.compile("[\udc80-\udcff]")  # a byte that is not UTF-8, as `surrogateescape` decodes it

# What the parser says (its beginning), what stands there, and what to do.
FIXES = (
    ("Expecting property name", "'", "Texts stand in double quotes: write the file with json.dumps, not with str()"),
    ("Expecting property name", "}", "Take out the comma before }"),
    ("Illegal trailing comma", "", "Take out the comma before the } or ]"),
    ("", "/", "JSON has no comments: take them out"),
    ("", "#", "JSON has no comments: take them out"),
    ("Expecting value", "]", "Take out the comma before ]"),
    ("Expecting value", "'", "Texts stand in double quotes: write the file with json.dumps, not with str()"),
    ("Extra data", ",", "Take out the comma between the lines"),
    ("Extra data", "{", "Put every object on a line of its own"),
    ("Extra data", "", "Take out what follows the value, or put every object on a line of its own"),
    ("Unterminated string", "", r"The text has no closing quote: write its line breaks as \n, or get the whole file"),
    ("Invalid control character", "", r"Write it as \n, \t or \u00XX"),
    ("Invalid \\escape", "", r"Write a backslash in a text as \\"),
    ("Invalid \\uXXXX", "", r"Write \u and four hexadecimal digits, and a backslash in a text as \\"),
    ("Expecting ',' delimiter", "", r"A comma is missing, or a quote inside a text is not written \""),
)
DEFAULT_FIX = "Write the file with a JSON library"


class Window:
    """The text of a JSON file, from where it is read to where it is needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = ""
        self.at = 0  # the next character to read
        self._line, self._column = 1, 0  # where the text begins in the file
        self._blocks = blocks(path)
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._bad = False  # some byte was not UTF-8
        self._over = False
        self._parser = Parser()

    def peek(self) -> str:
        """The next character that is no space, which stays the next; nothing at the end."""
        while True:
            self.at = SPACE.match(self.text, self.at).end()  # pyright: ignore[reportOptionalMemberAccess]
            if self.at < len(self.text):
                return self.text[self.at]
            self._forget()
            if not self._more(1):
                return ""

    def value(self) -> Any:
        """The value that begins here, or a DataError in place of one that is wrong only in itself.

        Raises:
            ValueError: where it ends cannot be told.
        """
        self._forget()
        while True:
            try:
                value, end = self._parser.parse(self.text, self.at)
                if not isinstance(value, int | float) or len(self.text) - end > 2 or not self._more(1):
                    break  # a number might go on: 1.5 and e+3
            except json.JSONDecodeError as e:
                pending = len(self.text) - self.at
                torn = e.msg.startswith("Unterminated") or e.pos > len(self.text) - 16
                if torn and pending > ROW_BYTES:
                    raise ValueError(f"a value that begins here is longer than {ROW_BYTES // 2**20} MiB") from e
                if pending > ROW_BYTES or not self._more(pending):
                    raise
        begin, self.at = self.at, end
        if self._bad and (found := ESCAPED.search(self.text, begin, end)):
            return bad_byte(self.path, self._place(found.start())[0], ord(found[0]) & 0xFF)
        if fault := self._parser.fault:
            return DataError(
                f"{self.path}: broken JSON in the row that begins in line {self._place(begin)[0]}: {fault}."
            )
        return value

    def broken(self, e: ValueError) -> DataError:
        """What the user is told of an error where reading stands."""
        pos = e.pos if isinstance(e, json.JSONDecodeError) else self.at
        if self._bad and (found := ESCAPED.search(self.text, 0, pos + 1)):
            return bad_byte(self.path, self._place(found.start())[0], ord(found[0]) & 0xFF)
        return broken(self.path, e, *self._place(pos))

    def _more(self, least: int) -> bool:
        """Read on for at least so many bytes; False at the end of the file."""
        parts: list[str] = []
        got = 0
        while got < least and not self._over:
            block = next(self._blocks, b"")
            self._over = not block
            part = self._decoder.decode(block, final=self._over)
            self._bad = self._bad or _has_bad_bytes(part)
            parts.append(part)
            got += len(block)
        self.text += "".join(parts)
        return got > 0

    def _forget(self) -> None:
        """Let go of the text that is read; positions change."""
        if self.at >= BLOCK // 4:
            self._line, column = self._place(self.at)
            self._column = column - 1
            self.text, self.at = self.text[self.at :], 0

    def _place(self, pos: int) -> tuple[int, int]:
        """Line and column of a position, both from 1."""
        text = self.text
        ends = text.count("\n", 0, pos) or text.count("\r", 0, pos)
        last = max(text.rfind("\n", 0, pos), text.rfind("\r", 0, pos))
        return self._line + ends, pos - last if last >= 0 else self._column + pos + 1


class Parser:
    """JSON, with a memory of what is wrong with a value that could be read to its end."""

    def __init__(self) -> None:
        self.fault = ""
        self._raw_decode = json.JSONDecoder(object_pairs_hook=self._object, parse_int=self._integer).raw_decode

    def parse(self, text: str, start: int) -> tuple[Any, int]:
        """The value that begins at `start`, and where it ends; `fault` says what is wrong with it."""
        self.fault = ""
        try:
            return self._raw_decode(text, start)
        except RecursionError as e:
            raise ValueError("nested too deeply to be preference data") from e

    def _object(self, pairs: list[tuple[str, Any]]) -> Row:
        """An object; Python would let the last of two equal keys win."""
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            key = next(k for k in keys if keys.count(k) > 1)
            self.fault = f"the key {key[:100]!r} stands twice in one object, the last time with {repr(found[key])[:60]}. Keep one"
        return found

    def _integer(self, digits: str) -> int:
        if len(digits) > LONGEST_INTEGER:
            self.fault = f"an integer of {len(digits)} digits. Write it as text, or take it out"
            return 0
        return int(digits)


def _has_bad_bytes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def broken(path: Path, e: ValueError, line: int, column: int | None = None) -> DataError:
    """What the user is told of broken JSON; without a column the text is one line of the file."""
    if not isinstance(e, json.JSONDecodeError):
        return DataError(f"{path}: broken JSON in line {line}: {e}. Take it out.")
    char = e.doc[e.pos : e.pos + 1].strip("\r\n")
    msg = e.msg.removesuffix(" at").removesuffix(" starting")
    if line == 1 and (column or e.colno) == 1 and e.msg == "Expecting value":
        fix = "This is no JSON: name the file by what it holds (.csv, .tsv), or write it with a JSON library"
    elif char or e.msg.startswith("Extra"):
        fix = _fix(e.msg, char)
    elif column is None:
        fix = "The line ends within the object: write every object on one line, or get the whole file"
    else:
        fix = "The file ends there: get or write it again"
    return DataError(f"{path}: broken JSON in line {line}, column {column or e.colno}: {msg}. {fix}.")


def _fix(msg: str, char: str) -> str:
    return next((fix for start, at, fix in FIXES if msg.startswith(start) and char.startswith(at)), DEFAULT_FIX)
