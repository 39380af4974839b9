"""Rows of preference data from files of every type, with the place of a fault where there is one."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dpo_lab.data.arrow_rows import arrow_rows, parquet_rows
from dpo_lab.data.blocks import EXPORT, NEVER, UNPACK, Damaged, blocks, check_content, kind_of
from dpo_lab.data.csv_rows import csv_rows
from dpo_lab.data.folders import folder_files
from dpo_lab.data.json_rows import json_rows, kind
from dpo_lab.data.types import OnBad, Row
from dpo_lab.runtime.errors import DataError

READERS: dict[str, Callable[[Path], Iterator[Row | DataError]]] = {
    ".json": lambda path: json_rows(path, by_line=False),
    ".jsonl": lambda path: json_rows(path, by_line=True),
    ".ndjson": lambda path: json_rows(path, by_line=True),
    ".csv": lambda path: csv_rows(path, ","),
    ".tsv": lambda path: csv_rows(path, "\t"),
    ".parquet": parquet_rows,
    ".arrow": arrow_rows,
    ".feather": arrow_rows,
}
SIGNED = {".parquet": (b"PAR1",), ".arrow": (b"ARROW1",), ".feather": (b"ARROW1",)}  # what the others never begin with
READ = f"Read are {', '.join(READERS)}, also packed as .gz or .zst"
OTHERS = {
    **dict.fromkeys((".zip", ".tar", ".tgz", ".bz2", ".xz", ".lzma", ".7z", ".rar", ".lz4", ".z"), UNPACK),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".npy", ".npz"), NEVER),
    **dict.fromkeys((".xlsx", ".xls", ".ods", ".db", ".sqlite", ".sqlite3", ".orc", ".avro", ".h5"), EXPORT),
}


def read_file(path: Path, *, on_bad: OnBad | None = None) -> Iterator[tuple[int, Row]]:
    """The rows of a file, numbered from 1, as they are asked for.

    Args:
        path: a file of one of the types of `READERS`.
        on_bad: takes what is wrong with a row, whose number is then left out; without it the first fault is raised.

    Raises:
        DataError: it is no such file, or holds no rows, whatever `on_bad`; or a fault, with its line or row.
    """
    suffix, packing = kind_of(path)
    try:
        _check_path(path, suffix, packing)
        check_content(path, next(blocks(path), b"")[:512], SIGNED.get(suffix, ()))
    except OSError as e:
        raise _no_access(path, e) from e
    return _numbered(path, READERS[suffix](path), on_bad)


def _check_path(path: Path, suffix: str, packing: str) -> None:
    if path.is_dir():
        raise DataError(f"{path} is a folder; a file is needed ({', '.join(READERS)}).")
    if not path.is_file():
        if path.is_symlink():
            raise DataError(f"{path}: is a link that leads to no file. Check where it points.")
        if path.exists():
            raise DataError(f"{path}: is no regular file but a device or a pipe. Save the data as a file.")
        raise DataError(f"{path}: there is no such file. Check the path.")
    if suffix in READERS:
        return
    if packing and suffix not in OTHERS:
        raise DataError(
            f"{path}: files of type {packing} are not read without the type of what they hold: name it e.g. "
            f"data.jsonl{packing}. {READ}."
        )
    advice = OTHERS.get(suffix)
    raise DataError(
        f"{path}: files of type {suffix or '(none)'} are not read{f'. {advice}' if advice else ''}. {READ}."
    )


def _numbered(path: Path, found: Iterator[Row | DataError], on_bad: OnBad | None) -> Iterator[tuple[int, Row]]:
    number, sound = 0, False
    first: DataError | None = None
    try:
        for number, row in enumerate(found, 1):
            if isinstance(row, dict):
                yield number, row
                sound = True
            else:
                fault = _fault(path, number, row)
                first = first or fault
                _report(fault, on_bad)
    except Damaged as e:
        first = first or e
        _report(e, on_bad)
    except OSError as e:
        raise _no_access(path, e) from e
    if first and not sound:  # no data at all
        raise first
    if not number:
        raise DataError(f"{path}: holds no rows. Check that it was written to the end.")


def _report(fault: DataError, on_bad: OnBad | None) -> None:
    if on_bad is None:
        raise fault
    on_bad(fault)


def _fault(path: Path, number: int, row: Any) -> DataError:
    if isinstance(row, DataError):
        return row
    return DataError(
        f"{path}: row {number} is {kind(row)}, not an object with named columns. Write it as "
        '{"prompt": ..., "chosen": ..., "rejected": ...}, or take it out.'
    )


def _no_access(path: Path, e: OSError) -> DataError:
    reason = e.strerror or (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
    return DataError(f"{path}: cannot be read ({reason.rstrip('.')}). Check the path and who may read it.")


def data_files(path: Path, *, heldout: bool = False) -> list[Path]:
    """The file itself, or the data files of a folder and its subfolders, as `folder_files` finds them.

    Raises:
        DataError: the folder holds no data, or data of several types, or is of a kind that something else reads.
    """
    try:
        return folder_files(path, heldout=heldout) if path.is_dir() else [path]
    except OSError as e:
        raise _no_access(path, e) from e
