"""Pairs in memory-mapped Arrow tables: any of them at once, a million for the price of a thousand."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np

from dpo_lab.data.types import Message, Pair
from dpo_lab.runtime.files import digest

Bad = dict[str, tuple[int, int, str, str]]  # reason -> how many, the first's row, its file, faulty | unpaired


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


def SCHEMA() -> list[tuple[str, Any]]:  # noqa: N802 - a constant that needs pyarrow
    """Columns of a table of pairs; prompt and tools hold JSON."""
    import pyarrow

    text = pyarrow.large_string()
    return [
        *(("prompt", text), ("tools", text), ("chosen", text), ("rejected", text)),
        *(("source", pyarrow.string()), ("row", pyarrow.int64())),
        *((f"{what}_hash", pyarrow.uint64()) for what in ("prompt", "chosen", "rejected")),
    ]


def cells_of(pairs: list[Pair]) -> dict[str, list[Any]]:
    """The columns of a table that holds these pairs."""
    return {
        "prompt": [json.dumps(p.prompt, ensure_ascii=False) for p in pairs],
        "tools": [json.dumps(p.tools, ensure_ascii=False) if p.tools else None for p in pairs],
        "chosen": [p.chosen for p in pairs],
        "rejected": [p.rejected for p in pairs],
        "source": [p.source for p in pairs],
        "row": [p.row for p in pairs],
        "prompt_hash": [prompt_hash(p.prompt, p.tools) for p in pairs],
        "chosen_hash": [_hash(p.chosen.strip()) for p in pairs],
        "rejected_hash": [_hash(p.rejected.strip()) for p in pairs],
    }


def prompt_hash(prompt: Iterable[Message], tools: Sequence[dict[str, Any]] = ()) -> int:
    """64 bits that depend on the prompt alone."""
    turns: list[Any] = [[m["role"], m["content"], *([calls] if (calls := m.get("tool_calls")) else [])] for m in prompt]
    return _hash(json.dumps([*turns, *([{"tools": tools}] if tools else [])], ensure_ascii=False))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


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

    def once(self) -> "Pairs":
        """Without the repeats that a mixture or `num_samples` makes."""
        return self.at(np.sort(np.unique(self.rows, return_index=True)[1]))

    def hashes(self) -> np.ndarray:
        """(N,) a number for each prompt that depends on the prompt alone."""
        return self.keys()[:, 0]

    def keys(self) -> np.ndarray:
        """(N, 3) hashes of the prompt, and of chosen and rejected answer without spaces around them."""
        names = ("prompt_hash", "chosen_hash", "rejected_hash")
        return np.stack([self.columns.numbers(name).astype(np.uint64)[self.rows] for name in names], axis=1)

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
