"""What is written into the folder of a run whose process is gone, and that a run which goes on is let be."""

import signal
from pathlib import Path

import pytest

from dpo_lab.runtime.files import file_lock, read_json, write_json
from dpo_lab.sweep.death import mark_dead
from dpo_lab.sweep.pool import Ended
from dpo_lab.sweep.state import state_of


@pytest.mark.parametrize(
    ("ended", "kind", "reason"),
    [
        (Ended("x", 128 + signal.SIGKILL), "killed", "killed by the system (signal 9)"),
        (Ended("x", 128 + signal.SIGSEGV), "error", "ended by signal 11 (SIGSEGV)"),
        (Ended("x", 1), "error", "it ended with exit code 1: the last words"),
        (Ended("x", 1, "the node is gone"), "error", "the node is gone"),
    ],
)
def test_how_a_process_ended_is_written_down(tmp_path: Path, ended: Ended, kind: str, reason: str) -> None:
    (tmp_path / "console.log").write_text("first\nthe last words\n")
    assert mark_dead(tmp_path, ended)
    state = state_of(tmp_path)
    assert (state.name, state.kind) == ("failed", kind)
    assert state.reason.startswith(reason)


def test_a_run_that_somebody_holds_is_not_marked(tmp_path: Path) -> None:
    """A second process was started, and turned away by the lock. Fails where its exit code becomes the run's failure."""
    write_json(tmp_path / "status.json", {"status": "running"})
    with file_lock(tmp_path / "run.lock", wait=False):
        assert not mark_dead(tmp_path, Ended("x", 1))
        assert read_json(tmp_path / "status.json") == {"status": "running"}
    assert state_of(tmp_path).name == "interrupted"
    assert mark_dead(tmp_path, Ended("x", 1)), "the lock was not given back"
