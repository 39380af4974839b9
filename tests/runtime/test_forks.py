"""Locks end with the process that took them, and bound children with their parent, however it dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_lab.runtime.files import atomic_write, file_lock, is_locked

HOLDER = """
import os, sys, time
from pathlib import Path
from dpo_lab.runtime.files import file_lock
from dpo_lab.runtime.forks import bound_children
with file_lock(Path(sys.argv[1]), wait=True):
    if sys.argv[2] == "bound":
        with bound_children():
            child = os.fork()
    else:
        child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""


def holder(lock: Path, how: str) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock), how], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True


def soon(holds: Callable[[], bool]) -> bool:
    """Within half a minute: a child closes its parent's locks when it first runs, and that may take a while."""
    for _ in range(600):
        if holds():
            return True
        time.sleep(0.05)
    return False


def test_a_lock_ends_with_its_holder_even_where_a_child_lives_on(tmp_path: Path) -> None:
    process, child = holder(tmp_path / "lock", "free")
    try:
        assert is_locked(tmp_path / "lock")
        process.kill()
        process.wait()
        assert soon(lambda: not is_locked(tmp_path / "lock"))
        assert not gone(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_the_end_of_a_child_leaves_the_lock(tmp_path: Path) -> None:
    with file_lock(tmp_path / "lock", wait=False) as held:
        assert held
        if (child := os.fork()) == 0:
            os._exit(0)
        os.waitpid(child, 0)
        checked = subprocess.run(
            [sys.executable, "-c", "import sys; from pathlib import Path; from dpo_lab.runtime.files import is_locked;"
             "sys.exit(not is_locked(Path(sys.argv[1])))", str(tmp_path / "lock")]
        )  # fmt: skip
        assert checked.returncode == 0
    assert not is_locked(tmp_path / "lock")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's end")
def test_bound_children_are_killed_with_their_parent(tmp_path: Path) -> None:
    process, child = holder(tmp_path / "lock", "bound")
    process.kill()
    process.wait()
    assert soon(lambda: gone(child))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc to tell who is alive")
def test_what_a_killed_process_left_half_written_is_cleared_by_the_next_and_not_that_of_a_living_one(
    tmp_path: Path,
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid in (dead.pid, os.getppid()):
        (tmp_path / f".table.{pid}.tmp").mkdir()
    atomic_write(tmp_path / "table", "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".table.{os.getppid()}.tmp", "table"]
