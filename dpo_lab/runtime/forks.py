"""What a forked process must not keep of its parent: locks that would outlive it, and the wish to go on without it."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

PR_SET_PDEATHSIG = 1  # linux/prctl.h
_locks: set[IO[str]] = set()
_bound = 0
_parent = 0  # of the processes being forked


def keep_from_children(handle: IO[str]) -> None:
    """Close a locked file in every process that is forked from now on: a lock ends with the last process that has it."""
    _locks.add(handle)


def forget(handle: IO[str]) -> None:
    """The file is closed here too."""
    _locks.discard(handle)


@contextmanager
def bound_children() -> Iterator[None]:
    """Processes that are forked while the block runs are killed when this one dies, however it dies (on Linux)."""
    global _bound
    _bound += 1
    try:
        yield
    finally:
        _bound -= 1


def _before() -> None:
    global _parent
    _parent = os.getpid()


def _in_child() -> None:
    for handle in _locks:
        with suppress(OSError, ValueError):
            handle.close()
    _locks.clear()
    if _bound:
        die_with(_parent)


def die_with(parent: int) -> None:
    """This process is killed when its parent, of this number, dies, however it dies (on Linux)."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before it could be asked for
                os.kill(os.getpid(), signal.SIGKILL)


os.register_at_fork(before=_before, after_in_child=_in_child)
