"""Files that other processes may read at any moment: atomic writes, locks, content fingerprints."""

import errno
import fcntl
import glob
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from dpo_lab.runtime.errors import DiskFull, OutputError
from dpo_lab.runtime.forks import forget, keep_from_children

log = logging.getLogger(__name__)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replace `path` as one step: a reader sees the old content or the new, a kill leaves one of them."""
    data = content.encode() if isinstance(content, str) else content
    atomic_produce(path, lambda temporary: _write_synced(temporary, data))


def atomic_produce(path: Path, produce: Callable[[Path], None]) -> None:
    """Let `produce` write a temporary sibling of `path` (a file or a folder), then put it in place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_litter(path)
        remove(temporary)
        produce(temporary)
        if path.is_dir() and not path.is_symlink():
            remove(path)
        os.replace(temporary, path)
    except OSError as e:
        remove(temporary)
        raise write_error(path, e) from e
    except BaseException:
        remove(temporary)
        raise


def _clear_litter(path: Path) -> None:
    """Delete what processes left that were killed while they wrote `path`."""
    for litter in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        pid = litter.name.removesuffix(".tmp").rpartition(".")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            remove(litter)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    atomic_write(path, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None where there is none or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Every whole row of a JSON-lines file; a last line torn by a kill is left out."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")  # a text may hold other line ends
    except OSError:
        return []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def filled(page: str, parts: Mapping[str, str]) -> str:
    """The page with each {{name}} replaced, in one pass: a part that holds such a mark is left alone."""
    first, *rest = page.split("{{")
    return first + "".join(parts[name] + after for name, after in (piece.split("}}", 1) for piece in rest))


def remove(path: Path) -> None:
    """Delete a file, a link or a folder; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_error(path: Path, e: OSError) -> OutputError:
    """The user's message for a failed write to `path`."""
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        folder = next(p for p in (path, *path.parents) if p.exists())
        free = shutil.disk_usage(folder).free / 2**20
        return DiskFull(
            f"The disk is full: {path} could not be written ({free:.0f} MiB free). Free some space and run the "
            "same command again: it goes on where it was. Or choose another folder with output_dir or cache_dir."
        )
    return OutputError(f"Cannot write {path}: {e.strerror or e}. Choose another folder with output_dir=FOLDER.")


@contextmanager
def file_lock(path: Path, *, wait: bool, on_wait: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold an exclusive lock on `path` while the block runs; the system drops it if the process dies.

    Yields True if the lock is held. With `wait=False` a lock held elsewhere yields False at once; with
    `wait=True` the block starts when it is free, after `on_wait` was called once.

    Raises:
        OutputError: the file cannot be written, or its file system has no locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - closed below, after the block
    except OSError as e:
        raise write_error(path, e) from e
    keep_from_children(handle)
    try:
        try:
            held = _try_lock(handle.fileno(), fcntl.LOCK_EX)
        except OSError as e:
            raise OutputError(
                f"Cannot lock {path}: {e.strerror or e}. Choose a folder on a file system that has locks, with "
                "output_dir=FOLDER or cache_dir=FOLDER."
            ) from e
        for _ in range(3):  # `is_locked` holds it for a moment too
            if not held:
                time.sleep(0.02)
                held = _try_lock(handle.fileno(), fcntl.LOCK_EX)
        if not held and wait:
            if on_wait:
                on_wait()
            fcntl.flock(handle, fcntl.LOCK_EX)
            held = True
        if held:
            with suppress(OSError):  # who holds it is a courtesy; a full disk must not prevent the lock
                os.ftruncate(handle.fileno(), 0)
                os.write(handle.fileno(), f"{os.getpid()}\n".encode())
        yield held
    finally:
        forget(handle)
        with suppress(OSError, ValueError):  # ValueError: a forked process that comes by here has closed it already
            fcntl.flock(handle, fcntl.LOCK_UN)
        handle.close()


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock on `path`.

    Where that cannot be found out it counts as held, with a warning: what is taken for dead is started a second time.
    """
    try:
        with open(path, encoding="utf-8") as handle:
            # NFS makes byte-range locks of these: an exclusive one, which a shared one is stopped by as well, would
            # need a file that is open for writing (flock(2)), and a report may be read by who cannot write.
            return not _try_lock(handle.fileno(), fcntl.LOCK_SH)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as e:
        _say_unknown(path, e.strerror or str(e))
        return True


@cache  # once a file: a sweep looks again and again
def _say_unknown(path: Path, why: str) -> None:
    log.warning(
        "Whether a process holds %s cannot be found out (%s), so it counts as running. Delete the file if none does.",
        path,
        why,
    )


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the second is what file systems with byte-range locks may say instead
        return False
    return True


def short(path: Path) -> Path:
    """Relative to the current folder where it lies below it."""
    try:
        return path.resolve().relative_to(Path.cwd())
    except ValueError:
        return path


def digest(*parts: str | bytes) -> str:
    """A 16-digit hash of its parts, each delimited by its length."""
    h = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        h.update(len(data).to_bytes(8, "big"))
        h.update(data)
    return h.hexdigest()


def fingerprint(path: Path, memo: Path | None = None) -> str:
    """A hash of the content of a file, or of all the files of a folder with their relative names.

    Hashing gigabytes of weights takes seconds, so `memo` (a folder) remembers the hash of a file by its
    inode, size and times.
    """
    if path.is_dir():
        files = sorted(
            p for p in path.rglob("*") if p.is_file() and not any(x.startswith(".") for x in p.relative_to(path).parts)
        )
        return digest(*(part for p in files for part in (p.relative_to(path).as_posix(), fingerprint(p, memo))))
    stat = path.stat()
    note = None
    if memo is not None and stat.st_size > 2**20:
        state = f"{stat.st_dev} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
        note = memo / digest(str(path.resolve()), state)
        try:
            if len(known := note.read_text(encoding="ascii")) == 16:
                return known
        except OSError:
            pass
    with open(path, "rb") as handle:
        value = hashlib.file_digest(handle, "sha256").hexdigest()[:16]
    if note is not None:
        with suppress(OutputError):  # an unwritable cache only costs the time to hash again
            atomic_write(note, value)
    return value


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
