"""Writing pairs: each source becomes Arrow tables in the cache, once, its files side by side where they are large."""

import logging
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

from dpo_lab.data.formats import BadRow, Unpaired, to_pairs
from dpo_lab.data.gather import Source
from dpo_lab.data.pairs import SCHEMA, Bad, PairTable, cells_of
from dpo_lab.data.types import Pair, Row
from dpo_lab.runtime.errors import DataError
from dpo_lab.runtime.files import atomic_produce, digest, file_lock, read_json, write_json
from dpo_lab.runtime.forks import bound_children

log = logging.getLogger(__name__)
BATCH = 1000  # pairs of a record batch
PARALLEL = 2**26  # bytes of several files from which on it pays to start processes
WAITING = "waiting for another process that prepares the same data (in %s)"
# Shows how far something is: progress(what, total or None, unit=...) gives an object with advance(n).
Progress = Callable[..., AbstractContextManager[Any]]


def pair_table(
    source: Source, cache_dir: Path, *, drop: bool, workers: int | None = None, progress: Progress | None = None
) -> PairTable:
    """The pairs of a source; from the cache if they are there.

    Args:
        source: a file, a folder or a dataset of a hub.
        cache_dir: tables lie in its folder data/.
        drop: leave out and count rows that cannot be used, instead of raising.
        workers: processes that read the files of a folder; None chooses.
        progress: shows how far a first reading is.

    Raises:
        DataError: the source or a row of it cannot be used; says where and why.
    """
    key = digest(code_version(), source.fingerprint(cache_dir / "fingerprints"), repr(source.reading), f"drop {drop}")
    folder = cache_dir / "data" / f"pairs-{key}"
    with file_lock(folder.with_suffix(".lock"), wait=True, on_wait=partial(log.warning, WAITING, cache_dir)):
        if (facts := whole(folder)) is None:
            atomic_produce(folder, lambda place: _write(source, place, drop=drop, workers=workers, progress=progress))
            facts = read_json(folder / "facts.json")
    bad: Bad = {reason: (n, row, file, kind) for reason, (n, row, file, kind) in facts["bad"].items()}
    return PairTable(tuple(sorted(folder.glob("*.arrow"))), key, facts["format"], bad, facts["files"] > 1)


@dataclass(frozen=True)
class _Part:
    """What came of reading some files: the format, how many files, what was left out, and why it ended early."""

    format: str = ""
    files: int = 0
    bad: Bad | None = None
    pairs: int = 0
    error: str = ""


def _write(source: Source, folder: Path, *, drop: bool, workers: int | None, progress: Progress | None) -> None:
    folder.mkdir()
    with progress(f"reading {source.title}", None, unit="pairs") if progress else nullcontext() as bar:
        advance = bar.advance if bar is not None else (lambda n: None)
        if alone := _apart(source, workers):
            parts = _side_by_side(alone, folder, drop=drop, workers=workers, advance=advance)
        else:
            parts = [_write_part(source, folder / "pairs.arrow", drop=drop, advance=advance)]
    bad = added(part.bad or {} for part in parts)
    files = sum(part.files for part in parts)
    finish(folder, {"source": source.name, "files": files, "format": parts[0].format, "bad": bad})


def _apart(source: Source, workers: int | None) -> list[Source]:
    """The files of a folder as sources of their own, where they can be read side by side and it pays; else none.

    Answers that wait for a partner may find it in another file, and so may a column that is mapped.
    """
    files = source.files()
    if len(files) < 2 or workers == 1 or (os.cpu_count() or 1) < 2 or source.reading.columns:
        return []
    if workers is None and sum(file.stat().st_size for file in files) < PARALLEL:
        return []
    rows = _Rows(source.parts(_ignored), source.name)
    name = to_pairs(rows, source.reading, where=source.name, on_bad=_ignored)[1]
    if name == "kto":
        return []
    reading = replace(source.reading, format=name)
    return [replace(source, name=str(file), path=file, reading=reading) for file in files]


def _side_by_side(
    sources: list[Source], folder: Path, *, drop: bool, workers: int | None, advance: Callable[[int], None]
) -> list[_Part]:
    """Each source in a process.

    Raises:
        DataError: what is wrong with the first faulty one.
    """
    todo = [(source, folder / f"pairs-{i:05d}.arrow") for i, source in enumerate(sources)]
    parts: list[_Part] = []
    with bound_children(), ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("fork")) as pool:
        try:
            for part in pool.map(partial(_told, drop=drop), todo):
                if part.error:
                    raise DataError(part.error)
                parts.append(part)
                advance(part.pairs)
        except BrokenProcessPool as e:
            raise DataError("A process that reads was killed, maybe for lack of memory. Try data.workers=1.") from e
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():
                process.terminate()
            raise
    return parts


def _told(task: tuple[Source, Path], *, drop: bool) -> _Part:
    """In a process of its own; an error travels as its message."""
    try:
        return _write_part(*task, drop=drop)
    except DataError as e:
        return _Part(error=str(e))


def _write_part(source: Source, file: Path, *, drop: bool, advance: Callable[[int], None] = lambda n: None) -> _Part:
    """One table of all pairs of a source."""
    import pyarrow

    bad: Bad = {}

    def on_bad(e: DataError) -> None:
        file = rows.file
        if isinstance(e, BadRow):
            file = rows.place(e.row)[0]
            e = rows.placed(e)
        if not drop and not isinstance(e, Unpaired):
            raise e
        reason, row = _reason(e)
        kind = "unpaired" if isinstance(e, Unpaired) else "faulty"
        n, first, where, _ = bad.get(reason, (0, row, file, kind))
        bad[reason] = (n + 1, first, where, kind)

    rows = _Rows(source.parts(on_bad), source.name)
    pairs, name = to_pairs(rows, source.reading, where=source.name, on_bad=on_bad)
    schema, done = pyarrow.schema(SCHEMA()), 0
    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
        while batch := [rows.at_home(pair) for pair in islice(pairs, BATCH)]:
            writer.write_batch(pyarrow.record_batch(cells_of(batch), schema=schema))
            done += len(batch)
            advance(len(batch))
    return _Part(name, len(rows.files), bad, done)


def _ignored(e: DataError) -> None:
    pass


def added(parts: Iterable[Bad]) -> Bad:
    """What was left out of several parts."""
    total: Bad = {}
    for reason, (n, row, file, kind) in (found for part in parts for found in part.items()):
        before, first, where, _ = total.get(reason, (0, row, file, kind))
        total[reason] = (before + n, first, where, kind)
    return total


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

    def at_home(self, pair: Pair) -> Pair:
        """The same pair with its file and the row there."""
        file, row = self.place(pair.row)
        return Pair(pair.prompt, pair.chosen, pair.rejected, row, file, pair.tools)

    def placed(self, e: BadRow) -> BadRow:
        """The same fault with the file and the row there."""
        file, row = self.place(e.row)
        message = str(e).replace(f"{self.name}: row {e.row}:", f"{file}: row {row}:", 1)
        return type(e)(message, row, e.reason)


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
