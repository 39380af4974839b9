"""Writing an export's folder: as one step, within the room that there is, never over something else."""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dpo_lab.runtime.errors import ConfigError, DiskFull, OutputError
from dpo_lab.runtime.files import atomic_produce

RECORD = "export.json"  # in each export; what lacks it is not overwritten


def check_output(output: Path, *, overwrite: bool, used: Iterable[Path]) -> None:
    """Whether a folder may be made at `output`.

    Args:
        output: the folder.
        overwrite: an earlier export may give way.
        used: folders that are read from.

    Raises:
        ConfigError: there is something, or the folder would swallow what it is made of.
        OutputError: it cannot be written.
    """
    check_apart(output, used, "the export is made of")
    if output.exists() or output.is_symlink():
        empty = output.is_dir() and not any(output.iterdir())
        if not empty and not overwrite:
            raise ConfigError(f"output={output} exists already. Choose another folder, or add overwrite=true.")
        if not empty and not (output / RECORD).is_file():
            raise ConfigError(
                f"output={output} is no earlier export (it has no {RECORD}), so overwrite=true does not delete it. Choose "
                "another folder."
            )
    parent = next(p for p in output.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        what = "no permission to write there" if parent.is_dir() else f"{parent} is no folder"
        raise OutputError(f"Cannot write output={output}: {what}. Choose another folder with output=FOLDER.")


def check_apart(output: Path, used: Iterable[Path], what: str) -> None:
    """Whether an output lies neither in what is read nor around it.

    Args:
        output: the folder that is written.
        used: what is read.
        what: it is, as words after "which".

    Raises:
        ConfigError: one lies in the other.
    """
    for path in used:
        one, other = output.resolve(), path.resolve()
        if one == other or other.is_relative_to(one) or one.is_relative_to(other):
            raise ConfigError(f"output={output} and {path}, which {what}, lie in one another. Choose another output.")


def check_room(output: Path, needed: int) -> None:
    """Whether the disk has room for so many bytes.

    Raises:
        DiskFull: it has not.
    """
    parent = next(p for p in output.absolute().parents if p.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise DiskFull(
            f"The disk is full: {output} needs about {size(needed)}, and {size(free)} are free. Free some space, or choose "
            "another folder with output=FOLDER."
        )


def produce(output: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make the folder beside its place, and put it there; what fails leaves nothing.

    Raises:
        DiskFull, OutputError: it cannot be written.
    """
    try:
        atomic_produce(output, write)
    except OutputError as e:
        cause = e.__cause__
        if not isinstance(cause, OSError):
            raise
        if isinstance(e, DiskFull):
            raise DiskFull(
                f"The disk is full: {output} could not be written, and nothing of it was kept. Free some space, or choose "
                "another folder with output=FOLDER."
            ) from cause
        raise OutputError(
            f"Cannot write output={output}: {cause.strerror or cause}. Choose another folder with output=FOLDER."
        ) from cause


@contextmanager
def disk_errors() -> Iterator[None]:
    """The system's errors out of safetensors' own."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as e:  # "I/O error: No space left on device (os error 28)" is no OSError
        number = re.search(r"os error (\d+)", str(e))
        raise OSError(int(number[1]) if number else errno.EIO, os.strerror(int(number[1])) if number else str(e)) from e


def folder_size(folder: Path) -> int:
    """Bytes of all files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def size(n: float) -> str:
    """270.5 MB, as shops count."""
    for unit in ("bytes", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "bytes" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.2f} GB"


def size_of(text: str) -> int:
    """5GB or 500MiB in bytes.

    Raises:
        ConfigError: it is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B", text.strip(), re.IGNORECASE)
    if found is None or (n := float(found[1])) == 0:
        raise ConfigError(f"export.shard_size={text} is no size. Write it like 5GB or 500MB.")
    return int(n * (1024 if found[3] else 1000) ** " KMGT".index(found[2].upper() or " "))
