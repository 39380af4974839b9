"""Rows of preference data from local files and the hub, with the place of a fault where there is one."""

import ast
import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Data, HubData
from dpo_lab.runtime.errors import DataError

Row = dict[str, Any]
HUB_SECONDS = 5  # how long the hub may take to say that it is there
PYTHON_LIST = re.compile(r"\s*\[?\s*\{\s*'(role|content|from|value)'\s*:")


def read_rows(data: Data) -> list[Row]:
    """The rows of `data.path`, or of `data.hub` where there is no path.

    Raises:
        DataError: there is nothing to read, or it cannot be read as rows.
    """
    if data.path is not None:
        return read_file(expand(data.path))
    if data.hub is not None:
        return read_hub(data.hub)
    raise DataError("No data: give data=file data.path=FILE, or data=hub data.hub.name=OWNER/NAME.")


def read_file(path: Path) -> list[Row]:
    """The rows of a .json, .jsonl, .csv or .parquet file.

    Raises:
        DataError: it cannot be read as rows; names the line or row.
    """
    readers = {".json": _json, ".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder; a file is needed ({', '.join(readers)}).")
        if not path.is_file():
            raise DataError(f"{path}: there is no such file. Check the path.")
        if path.suffix.lower() not in readers:
            raise DataError(f"{path}: files of type {path.suffix or '(none)'} are not read; use {', '.join(readers)}.")
        rows = list(readers[path.suffix.lower()](path))
    except UnicodeDecodeError as e:
        line = e.object[: e.start].count(b"\n") + 1
        raise DataError(
            f"{path}: line {line} is not UTF-8 text (byte {e.object[e.start]:#04x}). Convert it, e.g. with "
            "'iconv -f ENCODING -t UTF-8'."
        ) from e
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror or _first_line(e)}).") from e
    if not rows:
        raise DataError(f"{path}: holds no rows. Check that it was written to the end.")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{path}: row {number} is {_kind(row)}, not an object with named columns.")
    return rows


def read_hub(hub: HubData) -> list[Row]:
    """The rows of a dataset of the Hugging Face hub; without a network, of its copy on this machine.

    Raises:
        DataError: it cannot be had.
    """
    import datasets
    from datasets import config

    offline = config.HF_HUB_OFFLINE
    silent = not offline and not _hub_answers(hub.name)
    try:
        # `datasets` asks an unreachable hub six times over, for 23 s to 80 s. Offline it goes straight to its copy.
        config.HF_HUB_OFFLINE = offline or silent
        return list(datasets.load_dataset(hub.name, hub.config, split=hub.split))  # type: ignore[arg-type]
    except Exception as e:  # the hub, the network, Arrow, a builder: types differ, the advice is the same
        reason = "the hub does not answer, and no copy is on this machine" if silent else _first_line(e)
        raise DataError(
            f"The dataset {hub.name} (config {hub.config}, split {hub.split}) could not be loaded from the hub: "
            f"{reason}. Check data.hub and the network; offline, download it elsewhere and use "
            "data=file data.path=FILE."
        ) from e
    finally:
        config.HF_HUB_OFFLINE = offline


def _hub_answers(name: str) -> bool:
    """Whether the hub says anything at all, be it that it has no such dataset."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        HfApi().dataset_info(name, timeout=HUB_SECONDS)
    except (HfHubHTTPError, HFValidationError):
        return True
    except Exception:  # whatever a network does
        return False
    return True


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig")


def _json(path: Path) -> Iterator[Row]:
    text = _text(path)
    if not text.strip():
        return
    try:
        content = _loads(text)
    except ValueError as e:
        first = text.lstrip().partition("\n")[0].rstrip()
        if first.startswith("{") and first.endswith("}"):  # JSON lines by another name
            yield from _lines(path, text)
            return
        raise DataError(f"{path}: broken JSON{_place(e)}.") from e
    if isinstance(content, dict):
        raise DataError(
            f"{path}: holds one object with the keys {', '.join(content) or '(none)'}; a list of rows is needed, or "
            "one row a line."
        )
    if not isinstance(content, list):
        raise DataError(f"{path}: holds {_kind(content)}, not a list of rows.")
    yield from content


def _jsonl(path: Path) -> Iterator[Row]:
    text = _text(path)
    yield from _json(path) if text.lstrip().startswith("[") else _lines(path, text)


def _lines(path: Path, text: str) -> Iterator[Row]:
    # Not splitlines(): JSON strings may hold other line separators unescaped.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield _loads(line)
        except ValueError as e:
            raise DataError(f"{path}: broken JSON{_place(e, number)}.") from e


def _loads(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as e:
        raise ValueError("nested too deeply to be preference data") from e


def _object(pairs: list[tuple[str, Any]]) -> Row:
    """An object of JSON; Python would let the last of two equal keys win."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        key = next(k for k in keys if keys.count(k) > 1)
        raise ValueError(f"the key {key!r} stands twice in one object, the last time with {found[key]!r:.60}")
    return found


def _place(e: ValueError, line: int | None = None) -> str:
    if isinstance(e, json.JSONDecodeError):
        return f" in line {line or e.lineno}, column {e.colno}: {e.msg}"
    return f"{f' in line {line}' if line else ''}: {_first_line(e)}"


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KB is less than a long answer
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    done = 0  # lines of rows that are read
    try:
        header = list(reader.fieldnames or [])
        if twice := sorted({name for name in header if header.count(name) > 1}):
            raise DataError(f"{path}: the header names {', '.join(twice)} more than once.")
        done = reader.line_num
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"{path}: the row that ends in line {reader.line_num} has "
                    f"{'more' if None in row else 'fewer'} fields than the header ({', '.join(header)}). A text with "
                    'commas or line breaks stands in double quotes, and a quote inside it is doubled ("").'
                )
            yield {name: _cell(text, f"{path}: line {reader.line_num}, {name}") for name, text in row.items()}
            done = reader.line_num
    except csv.Error as e:
        raise DataError(
            f"{path}: broken CSV in the row that begins in line {done + 1}: {_first_line(e)}. A quote inside a quoted "
            'text is doubled ("").'
        ) from e


def _cell(text: str, where: str) -> Any:
    """A cell holds messages as JSON, or as Python's own notation, which pandas writes; any other text is text."""
    if PYTHON_LIST.match(text):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as e:
            raise DataError(
                f"{where}: looks like messages in Python's notation, but cannot be read as such. Save the data as "
                ".jsonl or .parquet instead."
            ) from e
    if text.lstrip()[:1] not in ("[", "{"):
        return text
    try:
        value = _loads(text)
    except ValueError:
        return text
    items = value if isinstance(value, list) else [value]
    chat = items and all(
        isinstance(x, dict) and ({"role", "content"} <= x.keys() or {"from", "value"} <= x.keys()) for x in items
    )
    return value if chat else text


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        yield from pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as e:
        raise DataError(f"{path}: not a readable Parquet file: {_first_line(e)}. Get or write it again.") from e


def _kind(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "true or false", type(None): "null", int: "a number", float: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")


def _first_line(e: BaseException) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0][:300].rstrip(".")
