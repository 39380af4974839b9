"""The bytes of a file, unpacked, a block at a time; what is no data, is damaged or unpacks without end is told."""

import zlib
from collections.abc import Iterator
from pathlib import Path

from dpo_lab.runtime.errors import DataError

BLOCK = 2**20
ROW_BYTES = 64 * 2**20  # a longer row is no preference pair
UNPACKED_RATIO = 200  # text packs 3 to 20 times smaller; what grows more than this, and beyond ROW_BYTES, is a bomb
BLANK_BYTES = 2 * 2**20  # of nothing but spaces and line breaks in a row: no text has so many
PACKED = (".gz", ".zst")

BOMS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
UNPACK = "Unpack it and give the file inside"
NEVER = "Such a file can run code when it is opened, so it is never read: save the data as .jsonl or .parquet"
EXPORT = "Save the data as .csv, .jsonl or .parquet"
# What a file begins with, what that makes it, and what to do; the first two are read by arrow_rows.
SIGNS: dict[bytes, tuple[str, str]] = {
    b"PAR1": ("a Parquet file", "Rename it to end in .parquet"),
    b"ARROW1": ("an Arrow file", "Rename it to end in .arrow"),
    b"FEA1": ("a Feather file of version 1", "Write it again with pyarrow.feather.write_feather, as version 2"),
    b"\x1f\x8b": ("packed with gzip", "Rename it to end in .gz, e.g. data.jsonl.gz"),
    b"\x28\xb5\x2f\xfd": ("packed with zstd", "Rename it to end in .zst, e.g. data.jsonl.zst"),
    b"PK\x03\x04": ("a zip archive (or an .xlsx table)", f"{UNPACK}, or save the table as .csv"),
    b"BZh": ("packed with bzip2", UNPACK),
    b"\xfd7zXZ\x00": ("packed with xz", UNPACK),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", UNPACK),
    b"Rar!": ("a rar archive", UNPACK),
    b"SQLite format 3\x00": ("an SQLite database", EXPORT),
    b"\xd0\xcf\x11\xe0": ("an old Office document", EXPORT),
    b"\x80\x02": ("a Python pickle", NEVER),
    b"\x80\x03": ("a Python pickle", NEVER),
    b"\x80\x04": ("a Python pickle", NEVER),
    b"\x80\x05": ("a Python pickle", NEVER),
    b"\x93NUMPY": ("a numpy array", EXPORT),
    b"version https://git-lfs": ("a pointer of Git LFS, not the file itself", "Get the file with 'git lfs pull'"),
}


class Damaged(DataError):
    """The rest of a file cannot be read; what came before is whole."""


def kind_of(path: Path) -> tuple[str, str]:
    """The type of a file and how it is packed, by its name: A.JSONL.gz -> (".jsonl", ".gz")."""
    suffixes = [s.lower() for s in path.suffixes]
    packing = suffixes.pop() if suffixes and suffixes[-1] in PACKED else ""
    return (suffixes[-1] if suffixes else ""), packing


def blocks(path: Path) -> Iterator[bytes]:
    """The content of a file, unpacked, in blocks that are not empty.

    Raises:
        Damaged: the packed content is torn or no such content, or grows beyond `UNPACKED_RATIO`; or it is blank.
        OSError: the file cannot be read.
    """
    blank = 0
    for block in _unpacked(path):
        blank = blank + len(block) if block.isspace() else 0
        if blank > BLANK_BYTES:
            raise Damaged(
                f"{path}: holds more than {BLANK_BYTES // 2**20} MiB of nothing but spaces and line breaks. Get or write "
                "it again."
            )
        yield block


def _unpacked(path: Path) -> Iterator[bytes]:
    packing = kind_of(path)[1]
    if not packing:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                yield block
        return
    limit = max(ROW_BYTES, UNPACKED_RATIO * path.stat().st_size)
    done = 0
    for block in {".gz": _gzip, ".zst": _zstd}[packing](path):
        done += len(block)
        if done > limit:
            raise Damaged(
                f"{path}: unpacks to more than {UNPACKED_RATIO} times its size, as no preference data does; reading "
                f"stopped after {limit // 2**20} MiB. If it is what you want, unpack it yourself and give the file inside."
            )
        yield block


def _gzip(path: Path) -> Iterator[bytes]:
    """Gzip members one after another, each unpacked into blocks of bounded size."""
    with path.open("rb") as file:
        packed = file.read(BLOCK)
        while packed.strip(b"\x00"):  # zeros may follow the last member
            member = zlib.decompressobj(wbits=31)
            while not member.eof:
                if not packed and not (packed := file.read(BLOCK)):
                    raise _damaged(path, "it ends too early")
                try:
                    block = member.decompress(packed, BLOCK)
                except zlib.error as e:
                    raise _damaged(path, str(e).partition(": ")[2] or str(e)) from e
                packed = member.unconsumed_tail
                if block:
                    yield block
            packed = member.unused_data or file.read(BLOCK)


def _zstd(path: Path) -> Iterator[bytes]:
    import pyarrow

    try:
        with pyarrow.input_stream(str(path), compression="zstd") as file:
            while block := file.read(2**16):  # what is read together with damage is lost
                yield block
    except (pyarrow.ArrowException, OSError) as e:
        if isinstance(e, OSError) and e.errno is not None:
            raise
        raise _damaged(path, str(e).removeprefix("ZSTD decompress failed: ")) from e


def _damaged(path: Path, reason: str) -> Damaged:
    title = {".gz": "gzip", ".zst": "zstd"}[kind_of(path)[1]]
    return Damaged(f"{path}: damaged or no {title} file ({reason[:200].rstrip('.')}). Get or write it again.")


def check_content(path: Path, head: bytes, expected: tuple[bytes, ...] = ()) -> None:
    """See that a file is not, by its first bytes, something else than its name says.

    Args:
        path: the file.
        head: its first bytes, unpacked.
        expected: the signs that its type begins with; none for text.

    Raises:
        DataError: it is something else; says what, and what to do.
    """
    name = path.name if not kind_of(path)[1] else f"{path.name}, once unpacked,"
    for sign, (title, advice) in SIGNS.items():
        if head.startswith(sign) and sign not in expected:
            raise DataError(f"{path}: {name} is not what its name says but {title}. {advice}.")
    if head[257:262] == b"ustar":
        raise DataError(f"{path}: {name} is not what its name says but a tar archive. {UNPACK}.")
    if head[:200].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise DataError(
            f"{path}: {name} is a web page, not data. Download the file itself (on a hub: the link 'resolve' or 'raw', "
            "not 'blob')."
        )
    if expected:
        return
    for bom, encoding in BOMS.items():
        if head.startswith(bom):
            raise DataError(_not_utf8(path, encoding, head[0]))
    start = head[:64]
    if len(start) >= 8 and (not any(start[1::2]) or not any(start[::2])) and any(start):
        order = "LE" if any(start[::2]) else "BE"
        raise DataError(_not_utf8(path, f"UTF-16{order}", 0))


def _not_utf8(path: Path, encoding: str, byte: int) -> str:
    return (
        f"{path}: line 1 is not UTF-8 text (byte {byte:#04x}): the file is {encoding}. Convert it, e.g. with "
        f"'iconv -f {encoding} -t UTF-8 OLD > NEW'."
    )


def lines(found: Iterator[bytes]) -> Iterator[bytes | None]:
    r"""Lines with their ends (\n, \r\n or \r); None in place of a line that is longer than `ROW_BYTES`."""
    rest: list[bytes] = []  # the line that is not at its end
    size, overlong = 0, False
    for block in found:
        if b"\n" in block or b"\r" in block or (rest and rest[-1].endswith(b"\r")):  # a \r may be half of \r\n
            parts = b"".join([*rest, block]).splitlines(keepends=True)
            rest = [] if parts[-1].endswith(b"\n") else [parts.pop()]
            size = sum(map(len, rest))
            if overlong and parts:
                parts, overlong = parts[1:], False  # the end of the line that was left out
            yield from parts
        else:
            rest.append(block)
            size += len(block)
        if overlong or size > ROW_BYTES:
            if not overlong:
                yield None
            rest, size, overlong = [], 0, True
    if rest and not overlong:
        yield b"".join(rest)


def bad_byte(path: Path, line: int, byte: int) -> DataError:
    """A line that is not UTF-8."""
    return DataError(
        f"{path}: line {line} is not UTF-8 text (byte {byte:#04x}). Convert the file, e.g. with 'iconv -f ENCODING -t "
        "UTF-8 OLD > NEW' (ENCODING is often LATIN1, CP1252 or GB18030)."
    )


def too_long(path: Path, line: int) -> DataError:
    """A row that is no pair any more."""
    return DataError(
        f"{path}: the row in line {line} is longer than {ROW_BYTES // 2**20} MiB, as no preference pair is. Look at the "
        "quotes and line breaks there, or shorten the row."
    )
