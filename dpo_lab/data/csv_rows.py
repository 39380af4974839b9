"""Rows of CSV and TSV, with messages in cells; never a whole file at once."""

import ast
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpo_lab.data.blocks import ROW_BYTES, bad_byte, blocks, lines, too_long
from dpo_lab.data.types import Row
from dpo_lab.runtime.errors import DataError

PYTHON_LIST = re.compile(r"\s*\[?\s*\{\s*'(role|content|from|value)'\s*:")
PYTHON_BYTES = 2**20  # Python's parser needs a hundred times the size of what it reads
SEPARATORS = {",": "commas", "\t": "tabs"}


def csv_rows(path: Path, separator: str) -> Iterator[Row | DataError]:
    """The rows below the header of a CSV file, and a DataError in place of one that cannot be read.

    Raises:
        DataError: the header cannot be one.
    """
    csv.field_size_limit(ROW_BYTES)  # the default of 128 KB is less than a long answer
    source = _Lines(path)
    reader = csv.reader(source, delimiter=separator, strict=True)
    header: list[str] = []
    done = 0  # lines of rows that are read
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as e:
            yield _broken(path, e, done + 1)
            if not header or "unexpected end" in str(e) or "field limit" in str(e):
                return  # the quote that is open has swallowed the rest
            source.fault, done = None, reader.line_num
            continue
        if source.fault is not None and (source.over or not header):
            yield source.fault
            return
        if fields is None:
            return
        if not header:
            header = _header(path, fields, separator)
        elif fields:
            yield source.fault or _row(path, header, fields, reader.line_num, separator)
        source.fault, done = None, reader.line_num


class _Lines:
    """The lines of a file as text; remembers what was wrong with the last ones, so that their row can be left out."""

    def __init__(self, path: Path) -> None:
        self.fault: DataError | None = None
        self.over = False  # nothing can be read after the fault
        self._path = path
        self._number = 0
        self._lines = lines(blocks(path))

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._number += 1
        if line is None:
            self.fault, self.over = too_long(self._path, self._number), True
            raise StopIteration
        if self._number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        try:
            return line.decode()
        except UnicodeDecodeError as e:
            self.fault = self.fault or bad_byte(self._path, self._number, e.object[e.start])
            return line.decode(errors="replace")


def _header(path: Path, names: list[str], separator: str) -> list[str]:
    names = [name.strip() for name in names]
    while len(names) > 1 and not names[-1]:  # a spreadsheet's empty columns
        names.pop()
    if twice := sorted({name for name in names if names.count(name) > 1}):
        shown = ", ".join(name or "(nothing)" for name in twice)[:300]
        raise DataError(f"{path}: the header names {shown} more than once. Give every column a name of its own.")
    if len(names) == 1:
        other = next((c for c in (";", "\t", "|", ",") if c != separator and c in names[0]), None)
        if other is not None:
            raise DataError(
                f"{path}: the header is one field, {names[0][:200]!r}: the fields seem to be separated by {other!r}, "
                f"where a {path.suffix} file has {SEPARATORS[separator]}. Save it again with {SEPARATORS[separator]}."
            )
    return names


def _row(path: Path, header: list[str], fields: list[str], line: int, separator: str) -> Row | DataError:
    if len(fields) > len(header) and not any(fields[len(header) :]):
        fields = fields[: len(header)]
    if len(fields) != len(header):
        return DataError(
            f"{path}: the row that ends in line {line} has {'more' if len(fields) > len(header) else 'fewer'} fields "
            f"than the header ({', '.join(header)[:300]}). A text with {SEPARATORS[separator]} or line breaks stands in "
            'double quotes, and a quote inside it is doubled ("").'
        )
    try:
        return {
            name: _cell(text, f"{path}: line {line}, {name}") if text.lstrip()[:1] in ("[", "{") else text
            for name, text in zip(header, fields, strict=True)
        }
    except DataError as e:
        return e


def _cell(text: str, where: str) -> Any:
    """A cell holds messages as JSON, or as Python's own notation, which pandas writes; any other text is text."""
    if PYTHON_LIST.match(text):
        return _python(text, where)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    items = value if isinstance(value, list) else [value]
    chat = items and all(
        isinstance(x, dict) and ({"role", "content"} <= x.keys() or {"from", "value"} <= x.keys()) for x in items
    )
    return value if chat else text


def _python(text: str, where: str) -> Any:
    advice = "Save the data as .jsonl or .parquet instead."
    if len(text) > PYTHON_BYTES:
        raise DataError(f"{where}: messages in Python's notation longer than {PYTHON_BYTES // 2**20} MiB. {advice}")
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as e:
        raise DataError(
            f"{where}: looks like messages in Python's notation, but cannot be read as such. {advice}"
        ) from e


def _broken(path: Path, e: csv.Error, line: int) -> DataError:
    return DataError(
        f"{path}: broken CSV in the row that begins in line {line}: {str(e)[:200].rstrip('.')}. A quote inside a quoted "
        'text is doubled ("").'
    )
