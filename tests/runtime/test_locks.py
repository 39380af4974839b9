"""Who holds a lock, on file systems that make byte-range locks of flock, and where nobody can tell."""

import errno
import fcntl
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from dpo_lab.runtime import files
from dpo_lab.runtime.errors import OutputError
from dpo_lab.runtime.files import file_lock, is_locked

real = fcntl.flock


def as_on_nfs(descriptor: int, kind: int) -> None:
    """What Linux does there (nfs4_proc_lock): a lock needs a file that is open for what the lock is about."""
    number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
    mode = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
    if (kind & fcntl.LOCK_EX and mode == os.O_RDONLY) or (kind & fcntl.LOCK_SH and mode == os.O_WRONLY):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    real(descriptor, kind)


def failing(number: int, kinds: int) -> Callable[[int, int], None]:
    def flock(descriptor: int, kind: int) -> None:
        if kind & kinds:
            raise OSError(number, os.strerror(number))
        real(descriptor, kind)

    return flock


@pytest.mark.parametrize("flock", [real, as_on_nfs], ids=["here", "nfs"])
def test_a_lock_that_is_held_is_seen_and_a_free_one_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: Callable[[int, int], None]
) -> None:
    """Fails on NFS where the question asks for an exclusive lock on a file open for reading: the run then looks dead."""
    monkeypatch.setattr(fcntl, "flock", flock)
    lock = tmp_path / "run.lock"
    assert not is_locked(lock)
    with file_lock(lock, wait=False) as held:
        assert held
        assert is_locked(lock)
        with file_lock(lock, wait=False) as second:
            assert not second
    assert not is_locked(lock)
    assert not is_locked(tmp_path / "run.lock" / "below a file")


def test_two_who_ask_do_not_take_each_other_for_holders(tmp_path: Path) -> None:
    """A report beside a sweep. Fails where the question takes the lock for itself alone."""
    lock = tmp_path / "run.lock"
    lock.touch()
    with open(lock) as handle:
        real(handle, fcntl.LOCK_SH)
        assert not is_locked(lock)


def test_who_may_only_read_can_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report on the sweep of somebody else. Fails where the question opens the file for writing."""

    def opened(path: Path, mode: str = "r", **how: str) -> IO[str]:
        if mode != "r":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return open(path, mode, **how)

    lock = tmp_path / "run.lock"
    with file_lock(lock, wait=False):
        monkeypatch.setattr(files, "open", opened, raising=False)
        assert is_locked(lock)
    assert not is_locked(lock)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EIO, errno.EBADF, errno.EOPNOTSUPP])
def test_a_lock_that_nobody_can_tell_of_counts_as_held_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    """Fails where it counts as free: a sweep would start the run beside itself."""
    monkeypatch.setattr(fcntl, "flock", failing(number, fcntl.LOCK_SH))
    lock = tmp_path / "run.lock"
    assert not is_locked(lock), "there is no file"
    lock.touch()
    with caplog.at_level(logging.WARNING):
        assert is_locked(lock)
        assert is_locked(lock)
    (said,) = [record.getMessage() for record in caplog.records]
    assert str(lock) in said
    assert os.strerror(number) in said


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where the user gets a traceback, or where the run goes on without the lock."""
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK, fcntl.LOCK_EX))
    lock = tmp_path / "run.lock"
    with (
        pytest.raises(
            OutputError, match=r"Cannot lock .*run\.lock: .*\. Choose a folder on a file system that has locks"
        ),
        file_lock(lock, wait=True),
    ):
        raise AssertionError("the block must not run")


def test_the_answer_of_byte_range_locks_to_a_conflict_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EACCES, which POSIX allows beside EAGAIN (fcntl(2)). Fails where it is taken for an error."""
    monkeypatch.setattr(fcntl, "flock", failing(errno.EACCES, fcntl.LOCK_EX | fcntl.LOCK_SH))
    (tmp_path / "run.lock").touch()
    assert is_locked(tmp_path / "run.lock")
    with file_lock(tmp_path / "run.lock", wait=False) as held:
        assert not held
