"""Pairs on disk: each source becomes one Arrow table, written once and read as a memory-mapped file."""

import hashlib
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, overload

import numpy as np

from dpo_lab.data.formats import BadRow, Unpaired, to_pairs
from dpo_lab.data.gather import Source
from dpo_lab.data.types import Message, Pair, Row
from dpo_lab.runtime.errors import DataError
from dpo_lab.runtime.files import atomic_produce, digest, file_lock, read_json, write_json

BATCH = 1000  # pairs of a record batch
# Shows how far something is: progress(what, total or None, unit=...) gives an object with advance(n).
Bad = dict[str, tuple[int, int, str]]
Progress = Callable[..., AbstractContextManager[Any]]


@dataclass(frozen=True)
class PairTable:
    """The pairs of one source, in its order.

    Attributes:
        files: Arrow streams.
        key: changes when a pair does.
        format: the format that was taken.
        bad: of the rows that gave no pair: reason -> (how many, the first's row, its file).
    """

    files: tuple[Path, ...]
    key: str
    format: str
    bad: Bad
    several: bool  # files


def pair_table(source: Source, cache_dir: Path, *, drop: bool, progress: Progress | None = None) -> PairTable:
    """The pairs of a source; from the cache if they are there.

    Args:
        source: a file, a folder or a dataset of a hub.
        cache_dir: tables lie in its folder data/.
        drop: leave out and count rows that cannot be used, instead of raising.
        progress: shows how far a first reading is.

    Raises:
        DataError: the source or a row of it cannot be used; says where and why.
    """
    key = digest(code_version(), source.fingerprint(cache_dir / "fingerprints"), repr(source.reading), f"drop {drop}")
    folder = cache_dir / "data" / f"pairs-{key}"
    with file_lock(folder.with_suffix(".lock"), wait=True):
        if (facts := whole(folder)) is None:
            atomic_produce(folder, lambda place: _write(source, place, drop=drop, progress=progress))
            facts = read_json(folder / "facts.json")
    bad = {reason: (n, row, file) for reason, (n, row, file) in facts["bad"].items()}
    return PairTable((folder / "pairs.arrow",), key, facts["format"], bad, facts["files"] > 1)


def _write(source: Source, folder: Path, *, drop: bool, progress: Progress | None) -> None:
    import pyarrow

    folder.mkdir()
    bad: Bad = {}

    def on_bad(e: DataError) -> None:
        if isinstance(e, BadRow):
            e = rows.placed(e)
        if not drop and not isinstance(e, Unpaired):
            raise e
        reason, row = _reason(e)
        n, first, file = bad.get(reason, (0, row, rows.file))
        bad[reason] = (n + 1, first, file)

    rows = _Rows(source.parts(on_bad), source.name)
    pairs, name = to_pairs(rows, source.reading, where=source.name, on_bad=on_bad)
    schema = pyarrow.schema(SCHEMA())
    with (
        pyarrow.OSFile(str(folder / "pairs.arrow"), "wb") as sink,
        pyarrow.ipc.new_stream(sink, schema) as writer,
        progress(f"reading {source.title}", None, unit="pairs") if progress else nullcontext() as bar,
    ):
        while batch := list(islice(pairs, BATCH)):
            writer.write_batch(pyarrow.record_batch(_columns(batch, rows), schema=schema))
            if bar is not None:
                bar.advance(len(batch))
    finish(folder, {"source": source.name, "files": len(rows.files), "format": name, "bad": bad})


def finish(folder: Path, facts: dict[str, Any]) -> None:
    """Say of a folder's tables that they are all there."""
    sizes = {file.name: file.stat().st_size for file in sorted(folder.glob("*.arrow"))}
    write_json(folder / "facts.json", facts | {"bytes": sizes})


def whole(folder: Path) -> dict[str, Any] | None:
    """The facts of a folder of tables; None where it is not there, or a file is not what it was."""
    facts = read_json(folder / "facts.json")
    if not isinstance(facts, dict):
        return None
    there = {file.name: file.stat().st_size for file in folder.glob("*.arrow")}
    return facts if there == facts.get("bytes") else None


class _Rows:
    """The rows of all files of a source, numbered through, and where each number is from."""

    def __init__(self, parts: Iterator[tuple[str, Iterator[tuple[int, Row]]]], name: str) -> None:
        self.parts, self.name = parts, name
        self.files: list[str] = []
        self.before: list[int] = []  # the last number before each file

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        last = 0
        for file, rows in self.parts:
            self.files.append(file)
            self.before.append(start := last)
            for number, row in rows:
                last = start + number
                yield last, row

    @property
    def file(self) -> str:
        """The one that is being read."""
        return self.files[-1] if self.files else self.name

    def place(self, number: int) -> tuple[str, int]:
        """The file of a number, and the row there."""
        i = bisect_left(self.before, number) - 1
        return self.files[i], number - self.before[i]

    def placed(self, e: BadRow) -> BadRow:
        """The same fault with the file and the row there."""
        file, row = self.place(e.row)
        message = str(e).replace(f"{self.name}: row {e.row}:", f"{file}: row {row}:", 1)
        return type(e)(message, row, e.reason)


def SCHEMA() -> list[tuple[str, Any]]:  # noqa: N802 - a constant that needs pyarrow
    """Columns of a table of pairs; prompt and tools hold JSON."""
    import pyarrow

    text = pyarrow.large_string()
    return [
        *(("prompt", text), ("tools", text), ("chosen", text), ("rejected", text)),
        *(("source", pyarrow.string()), ("row", pyarrow.int64()), ("prompt_hash", pyarrow.uint64())),
    ]


def _columns(pairs: list[Pair], rows: _Rows) -> dict[str, list[Any]]:
    places = [rows.place(p.row) for p in pairs]
    return {
        "prompt": [json.dumps(p.prompt, ensure_ascii=False) for p in pairs],
        "tools": [json.dumps(p.tools, ensure_ascii=False) if p.tools else None for p in pairs],
        "chosen": [p.chosen for p in pairs],
        "rejected": [p.rejected for p in pairs],
        "source": [file for file, _ in places],
        "row": [row for _, row in places],
        "prompt_hash": [prompt_hash(p.prompt) for p in pairs],
    }


def prompt_hash(prompt: Iterable[Message]) -> int:
    """64 bits that depend on the prompt alone."""
    turns = [[m["role"], m["content"], *([calls] if (calls := m.get("tool_calls")) else [])] for m in prompt]
    text = json.dumps(turns, ensure_ascii=False)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _reason(e: DataError) -> tuple[str, int]:
    """What is wrong with a row, without where it is, so that equal faults count together; and its number."""
    if isinstance(e, BadRow):
        return e.reason, e.row
    text = str(e)  # of a file: "FILE: line 3 is not UTF-8 text", "FILE: broken JSON in line 3, column 5: ..."
    place = re.search(r"(?:row|line) (\d+)", text)
    said = re.sub(r"^(?:the )?(?:row|line)(?: that ends in line)? \d+[:,]? ", "", text.partition(": ")[2] or text)
    reason = re.split(r" in (?:the )?(?:row|line)|\. |: | \(", said)[0].rstrip(".")
    return reason, int(place[1]) if place else 0


@cache
def code_version() -> str:
    """A hash of the code that turns files into pairs and pairs into tokens: what an older one wrote is not read."""
    return digest(*(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py"))))


class Columns:
    """Columns of memory-mapped Arrow tables, one after the other, with cheap access to single rows."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = [b for b in batches if b.num_rows]
        self.ends = list(accumulate(b.num_rows for b in self.batches))

    @classmethod
    def of(cls, files: Iterable[Path]) -> "Columns":
        """Of Arrow streams."""
        import pyarrow

        return cls([b for file in files for b in pyarrow.ipc.open_stream(pyarrow.memory_map(str(file)))])

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def place(self, row: int) -> tuple[Any, int]:
        """The record batch of a row, and where in it the row is."""
        i = bisect_right(self.ends, row)
        return self.batches[i], row - (self.ends[i - 1] if i else 0)

    def batched(self, rows: np.ndarray) -> Iterator[tuple[Any, np.ndarray]]:
        """Each record batch that some rows, in rising order, are in, and their places in it."""
        edges = np.searchsorted(rows, [0, *self.ends])
        for i, batch in enumerate(self.batches):
            if edges[i] < edges[i + 1]:
                yield batch, rows[edges[i] : edges[i + 1]] - (self.ends[i - 1] if i else 0)

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers as a whole."""
        parts = [b.column(name).to_numpy(zero_copy_only=False) for b in self.batches]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def text(self, name: str, row: int) -> Any:
        """One cell."""
        batch, i = self.place(row)
        return batch.column(name)[i].as_py()

    def ids(self, name: str, row: int) -> list[int]:
        """One cell of a column of lists of integers."""
        batch, i = self.place(row)
        column = batch.column(name)
        first, last = column.offsets[i].as_py(), column.offsets[i + 1].as_py()
        return column.values[first:last].to_numpy(zero_copy_only=False).tolist()


class Pairs(Sequence[Pair]):
    """Some rows of tables of pairs, in an order; a pair is made when it is asked for.

    Attributes:
        files: of the tables, one after the other.
        key: changes when a pair in the files does.
        rows: places in the tables.
        several: whether the pairs are from more files than one.
    """

    def __init__(
        self, files: tuple[Path, ...], columns: Columns, key: str, rows: np.ndarray, *, several: bool = False
    ) -> None:
        self.files, self.columns, self.key, self.rows, self.several = files, columns, key, rows, several

    @classmethod
    def whole(cls, tables: Sequence[PairTable]) -> "Pairs":
        """All pairs of some tables, one after the other."""
        files = tuple(file for table in tables for file in table.files)
        columns = Columns.of(files)
        several = len(tables) > 1 or any(table.several for table in tables)
        key = digest(*(table.key for table in tables))
        return cls(files, columns, key, np.arange(len(columns)), several=several)

    def at(self, places: np.ndarray) -> "Pairs":
        """Those at some places of this sequence, in their order."""
        return Pairs(self.files, self.columns, self.key, self.rows[places], several=self.several)

    def where(self, mask: np.ndarray) -> "Pairs":
        """Those for which a mask (N,) is true."""
        return self.at(np.flatnonzero(mask))

    def hashes(self) -> np.ndarray:
        """(N,) a number for each prompt that depends on the prompt alone."""
        return self.columns.numbers("prompt_hash").astype(np.uint64)[self.rows]

    def row(self, i: int) -> int:
        """Where a pair stands in its source, from 1."""
        return self.columns.text("row", int(self.rows[i]))

    def file(self, i: int) -> str:
        """The file that a pair is from; empty where there is one alone."""
        return self.columns.text("source", int(self.rows[i])) if self.several else ""

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, i: int) -> Pair: ...
    @overload
    def __getitem__(self, i: slice) -> "Pairs": ...
    def __getitem__(self, i: int | slice) -> "Pair | Pairs":
        if isinstance(i, slice):
            return self.at(np.arange(len(self))[i])
        batch, row = self.columns.place(int(self.rows[i]))
        return pair_of({name: batch.column(name)[row].as_py() for name in batch.schema.names})


def pair_of(cells: dict[str, Any]) -> Pair:
    """The pair of a row of a table."""
    tools = tuple(json.loads(cells["tools"])) if cells["tools"] else ()
    prompt = tuple(json.loads(cells["prompt"]))
    return Pair(prompt, cells["chosen"], cells["rejected"], cells["row"], cells["source"], tools)
