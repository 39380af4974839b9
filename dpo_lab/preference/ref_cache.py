"""The reference's log-probs on disk, shared by every run that has the same reference.

One SQLite file a reference, about 2 KB an answer. What holds at any moment, whoever is killed:

- what `write` returned from is there, whole; what it had not finished is not there at all;
- no damaged number is ever returned: each row carries a checksum, and a row that fails it counts as missing;
- a file damaged as a whole is moved aside and filled anew.

Nothing stays open between calls: a connection that lives on does not survive a fork, and would go on writing into
a file that another process has moved aside. Opening one takes 0.2 ms.
"""

import errno
import fcntl
import json
import logging
import os
import sqlite3
import threading
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from dpo_lab.runtime.errors import Guarded, LabError, OutputError
from dpo_lab.runtime.files import digest, file_lock, write_error

log = logging.getLogger(__name__)

FORMAT = 1  # of the file, in its user_version
BUSY_SECONDS = 120  # how long SQLite waits for a lock of a program that does not know our gate
CHUNK = 500  # keys a query; SQLite takes 999 variables at least
DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}  # ERROR: a table is not there

# The default rollback journal stays, because WAL needs shared memory, which network file systems lack. An answer
# of 500 tokens takes 2 KB: large pages waste 13 % where the default of 4 KB wastes 39 %.
SCHEMA = f"""
    PRAGMA page_size = 16384;
    BEGIN IMMEDIATE;
    CREATE TABLE logps (key BLOB PRIMARY KEY, checksum BLOB NOT NULL, payload BLOB NOT NULL);
    CREATE TABLE texts (key BLOB PRIMARY KEY, checksum BLOB NOT NULL, payload BLOB NOT NULL);
    CREATE TABLE facts (json TEXT NOT NULL);
    PRAGMA user_version = {FORMAT};
"""

T = TypeVar("T")

# A process must not fork in the middle of an operation of another thread: the child would inherit its locks.
_operation = threading.RLock()
os.register_at_fork(before=_operation.acquire, after_in_parent=_operation.release, after_in_child=_operation.release)


class _Damaged(Exception):
    """The file cannot be used as it is."""


def answer_key(prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> bytes:
    """16 bytes for the token ids of a prompt and one of its answers."""
    return blake2b(array("q", (len(prompt_ids), *prompt_ids, *answer_ids)).tobytes(), digest_size=16).digest()


class RefCache:
    """Per-token log-probs, and sampled answers, of one reference.

    Args:
        folder: the cache folder; the file is `reference/<reference_id>.sqlite` in it.
        reference_id: hash of everything that the reference's numbers depend on.
        facts: what the reference is, kept in the file for whoever looks into it.
    """

    def __init__(self, folder: Path, reference_id: str, *, facts: dict[str, Any]) -> None:
        self.path = folder / "reference" / f"{reference_id}.sqlite"
        self._facts = facts
        self._damaged: set[tuple[str, bytes]] = set()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise self._unusable(e) from e
        self._run(lambda _: None)

    @property
    def damaged(self) -> int:
        """How many rows were found damaged so far, and so had to be computed again."""
        return len(self._damaged)

    def missing(self, keys: Iterable[bytes]) -> list[bytes]:
        """The keys that are not there or damaged, in their order and without repeats."""
        wanted = list(dict.fromkeys(keys))
        there = {key for key, _ in self._sound_rows("logps", wanted)}
        return [key for key in wanted if key not in there]

    def read(self, keys: Sequence[bytes]) -> list[Tensor]:
        """The log-probs (tokens,) of each key, float32."""
        payloads = dict(self._sound_rows("logps", list(dict.fromkeys(keys))))
        absent = {key for key in keys if key not in payloads}
        if absent:
            damaged = sum(("logps", key) in self._damaged for key in absent)
            raise LabError(
                f"The reference cache {self.path} lacks the log-probs of {len(absent)} of {len(set(keys))} answers "
                f"({damaged} of them damaged): it was changed while it was in use. Run the same command again: what is "
                "missing is computed first."
            )
        return [_to_tensor(payloads[key]) for key in keys]

    def write(self, entries: Mapping[bytes, Tensor]) -> None:
        """Keep the log-probs (tokens,) of each key, all or none; those that are there are replaced."""
        payloads = {key: logps.detach().to("cpu", torch.float32) for key, logps in entries.items()}
        broken = sum(not bool(logps.isfinite().all()) for logps in payloads.values())
        if broken:
            raise Guarded(
                f"The reference gave log-probs that are not finite for {broken} of {len(payloads)} answers. They are "
                "not kept. Load the reference in fp32 or bf16 (fp16 overflows), or check its weights."
            )
        self._write("logps", {key: logps.numpy().tobytes() for key, logps in payloads.items()})

    def read_text(self, key: bytes) -> str | None:
        """The text kept under `key`; None if it is not there or damaged."""
        payload = dict(self._sound_rows("texts", [key])).get(key)
        return None if payload is None else payload.decode()

    def write_text(self, key: bytes, text: str) -> None:
        """Keep a text under `key`; one that is there is replaced."""
        self._write("texts", {key: text.encode()})

    def filling(self, on_wait: Callable[[], None] | None = None) -> AbstractContextManager[bool]:
        """Let one process at a time compute what is missing: ask for `missing` inside, the others may have filled it.

        `on_wait` is called once if another process is filling.
        """
        return file_lock(self.path.with_suffix(".lock"), wait=True, on_wait=on_wait)

    def _sound_rows(self, table: str, keys: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """Key and payload of each row whose checksum holds; the others are counted and reported."""
        before = self.damaged
        for start in range(0, len(keys), CHUNK):
            chunk = keys[start : start + CHUNK]
            marks = ",".join("?" * len(chunk))
            query = f"SELECT key, checksum, payload FROM {table} WHERE key IN ({marks})"
            for key, checksum, payload in self._run(lambda db, q=query, c=chunk: db.execute(q, c).fetchall()):
                if isinstance(key, bytes) and isinstance(payload, bytes) and checksum == _checksum(table, key, payload):
                    yield key, payload
                else:
                    self._damaged.add((table, key))
        if self.damaged > before:
            log.warning(
                "%d of %d entries in the reference cache %s are damaged and will be computed again; check the disk",
                self.damaged - before,
                len(keys),
                self.path,
            )

    def _write(self, table: str, payloads: Mapping[bytes, bytes]) -> None:
        rows = [(key, _checksum(table, key, payload), payload) for key, payload in payloads.items()]

        def replace(db: sqlite3.Connection) -> None:
            with db:  # commits, or rolls back after an exception
                db.execute("BEGIN IMMEDIATE")
                db.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)", rows)

        if rows:
            self._run(replace, exclusive=True)

    def _run(self, work: Callable[[sqlite3.Connection], T], *, exclusive: bool = False) -> T:
        """Do `work` on a sound file; one that is damaged as a whole is replaced by a new one first.

        A reader that meets damage tries again alone, since another process may have replaced the file meanwhile.
        Only damage that is met alone moves the file aside, so that a sound one never is.
        """
        problem = ""
        for _ in range(3):
            with _operation, self._gate(exclusive):
                try:
                    with closing(sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)) as db:
                        db.text_factory = bytes  # damage may have turned a payload into text that is not UTF-8
                        self._prepare(db, exclusive)
                        return work(db)
                except (sqlite3.DatabaseError, UnicodeDecodeError, _Damaged) as e:  # names in the schema may be damaged
                    if isinstance(e, sqlite3.DatabaseError) and e.sqlite_errorcode & 0xFF not in DAMAGE:
                        raise self._unusable(e) from e
                    problem = str(e)
                    if exclusive:
                        self._move_aside(problem)
            exclusive = True
        raise self._unusable(problem)

    def _prepare(self, db: sqlite3.Connection, exclusive: bool) -> None:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == FORMAT:
            return
        if version or db.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise _Damaged(f"its format is {version}, not {FORMAT}")
        if not exclusive:
            raise _Damaged("it is empty")  # made by the next try, alone
        with db:
            db.executescript(SCHEMA)
            db.execute("INSERT INTO facts VALUES (?)", [json.dumps(self._facts, ensure_ascii=False, default=str)])

    def _move_aside(self, problem: str) -> None:
        aside = next(p for n in count(1) if not (p := self.path.with_name(f"{self.path.name}.damaged-{n}")).exists())
        try:
            os.replace(self.path, aside)  # a journal may stay: beside an empty file SQLite deletes it unread
        except OSError as e:
            raise self._unusable(e) from e
        log.warning(
            "The reference cache %s cannot be used (%s): it was moved to %s, which may be deleted, and the log-probs "
            "will be computed again",
            self.path,
            problem,
            aside.name,
        )

    @contextmanager
    def _gate(self, exclusive: bool) -> Generator[None, None, None]:
        """Readers together, writers alone, through a lock that stays in place when the file itself is replaced."""
        try:
            flags = os.O_CREAT | os.O_CLOEXEC | (os.O_RDWR if exclusive else os.O_RDONLY)
            descriptor = os.open(self.path.with_suffix(".gate"), flags, 0o666)
        except OSError as e:
            if exclusive or e.errno not in (errno.EROFS, errno.EACCES):
                raise self._unusable(e) from e
            descriptor = None  # a read-only folder: what is there can be read
        try:
            if descriptor is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _unusable(self, problem: Exception | str) -> OutputError:
        code = getattr(problem, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL or (isinstance(problem, OSError) and problem.errno == errno.ENOSPC):
            return write_error(self.path, OSError(errno.ENOSPC, "disk full"))
        if code == sqlite3.SQLITE_BUSY:
            return OutputError(
                f"The reference cache {self.path} has been locked by another program for {BUSY_SECONDS} s. Close what "
                "has it open, or choose another folder with cache_dir=FOLDER."
            )
        return OutputError(
            f"Cannot use the reference cache {self.path}: {problem}. Make its folder writable, check the free space "
            "and your quota there, or choose another folder with cache_dir=FOLDER."
        )


def _checksum(table: str, key: bytes, payload: bytes) -> bytes:
    return digest(table, key, payload).encode()


def _to_tensor(payload: bytes) -> Tensor:
    return torch.frombuffer(bytearray(payload), dtype=torch.float32) if payload else torch.empty(0)
