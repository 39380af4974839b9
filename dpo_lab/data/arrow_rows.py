"""Rows of Parquet and Arrow files, a few at a time, whatever the size of the file and of its batches."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_lab.data.blocks import ROW_BYTES, blocks, kind_of
from dpo_lab.data.types import Row
from dpo_lab.runtime.errors import DataError

if TYPE_CHECKING:
    import pyarrow

ROWS = 128  # that are Python objects at once
FEW_ROWS = 1_000_000  # so many may stand in a file of any size, e.g. all alike
ROWS_A_BYTE = 100
CONTINUATION = b"\xff\xff\xff\xff"  # how an Arrow stream begins


def parquet_rows(path: Path) -> Iterator[Row | DataError]:
    """The rows of a Parquet file, and a DataError in place of one that cannot be read.

    Raises:
        DataError: it is no whole Parquet file.
    """
    import pyarrow
    import pyarrow.parquet

    with _seekable(path, mapped=False) as file:
        try:
            table = pyarrow.parquet.ParquetFile(file, buffer_size=2**20, pre_buffer=False)
            _check(path, table.schema_arrow.names, table.metadata.num_rows, file.size())
        except (pyarrow.ArrowException, OSError, ValueError) as e:
            raise _unreadable(path, "Parquet", e) from e
        yield from _rows(path, "Parquet", table.iter_batches(batch_size=ROWS))


def arrow_rows(path: Path) -> Iterator[Row | DataError]:
    """The rows of an Arrow IPC file or stream (Feather, the files of `datasets`), as `parquet_rows`.

    Raises:
        DataError: it is no Arrow file.
    """
    import pyarrow

    with _seekable(path, mapped=True) as file:
        try:
            head = file.read(8)
            file.seek(0)
            if head.startswith(b"ARROW1"):
                reader = pyarrow.ipc.open_file(file)
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            elif head.startswith(CONTINUATION):
                reader = pyarrow.ipc.open_stream(file)
                batches = iter(reader)
            else:
                raise ValueError("it does not begin as one" if head else "it is empty")
            _check(path, reader.schema.names, 0, file.size())
        except (pyarrow.ArrowException, OSError, ValueError) as e:
            raise _unreadable(path, "Arrow", e) from e
        yield from _rows(path, "Arrow", _sound(path, batches, file.size()))


def _sound(path: Path, batches: "Iterator[pyarrow.RecordBatch]", size: int) -> "Iterator[pyarrow.RecordBatch]":
    """Batches whose offsets lie inside their data: Arrow itself trusts them and would read other memory."""
    rows = 0
    for batch in batches:
        rows += batch.num_rows
        _check(path, (), rows, size)
        batch.validate(full=False)
        yield batch


@contextmanager
def _seekable(path: Path, *, mapped: bool) -> "Iterator[pyarrow.NativeFile]":
    """The file as Arrow reads it; one that is packed is unpacked to the disk, and gone afterwards."""
    import pyarrow

    if not kind_of(path)[1]:
        if not path.stat().st_size:
            yield pyarrow.BufferReader(b"")
            return
        with _opened(str(path), mapped) as file:
            yield file
        return
    with tempfile.NamedTemporaryFile(prefix="dpo_lab-") as unpacked:
        for block in blocks(path):
            unpacked.write(block)
        unpacked.flush()
        with _opened(unpacked.name, mapped) as file:
            yield file


def _opened(name: str, mapped: bool) -> "pyarrow.NativeFile":
    import pyarrow

    return pyarrow.memory_map(name) if mapped else pyarrow.OSFile(name)


def _check(path: Path, names: "tuple[str, ...] | list[str]", rows: int, size: int) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(
            f"{path}: names the column {', '.join(twice)[:300]} more than once. Give each a name of its own."
        )
    if rows > FEW_ROWS and rows > ROWS_A_BYTE * size:
        raise DataError(
            f"{path}: says that it holds {rows} rows in {size} bytes, as no preference data does. Get or write it again."
        )


def _rows(path: Path, title: str, batches: "Iterator[pyarrow.RecordBatch]") -> Iterator[Row | DataError]:
    import pyarrow

    done = 0
    while True:
        try:
            batch = next(batches, None)
        except (pyarrow.ArrowException, OSError, ValueError) as e:
            yield DataError(
                f"{path}: not a readable {title} file after row {done}: {_first_line(e)}. Get or write it again."
            )
            return
        if batch is None:
            return
        for start in range(0, batch.num_rows, ROWS):
            yield from _part(path, batch.slice(start, ROWS), done + start)
        done += batch.num_rows


def _part(path: Path, batch: "pyarrow.RecordBatch", done: int) -> Iterator[Row | DataError]:
    """The rows of a small batch; one after the other where something in it is large or cannot be read."""
    try:
        batch.validate(full=True)
        rows = batch.to_pylist() if batch.nbytes <= ROW_BYTES else None
    except Exception:  # invalid UTF-8, times that Python does not have, ...: pyarrow raises what it likes
        rows = None
    if rows is not None:
        yield from rows
        return
    for i in range(batch.num_rows):
        yield _one(path, batch.slice(i, 1), done + i + 1)


def _one(path: Path, batch: "pyarrow.RecordBatch", number: int) -> Any:
    try:
        batch.validate(full=True)
        if batch.nbytes <= ROW_BYTES:
            return batch.to_pylist()[0]
    except Exception as e:  # as above
        return DataError(
            f"{path}: row {number} cannot be read: {_first_line(e)}. Write the file again, texts as UTF-8."
        )
    return DataError(
        f"{path}: row {number} is larger than {ROW_BYTES // 2**20} MiB, as no preference pair is. Shorten it."
    )


def _unreadable(path: Path, title: str, e: BaseException) -> DataError:
    return DataError(f"{path}: not a readable {title} file: {_first_line(e)}. Get or write it again.")


def _first_line(e: BaseException) -> str:
    line = (str(e).strip().splitlines() or [type(e).__name__])[0][:300].rstrip(".")
    return "".join(c if c.isprintable() else "?" for c in line)
