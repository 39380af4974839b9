"""A sweep whose disk fills up, and one whose clock jumps."""

import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from runs import Lab, at, same_result, status
from sweeping import QUICK, call, fork_the_server, trials


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_ends_the_sweep_which_goes_on_when_there_is_room(lab: Lab, small_disk: Path) -> None:
    small = replace(lab, output=small_disk / "outputs")
    words = ("optim.lr=1e-2,5e-3,2e-3,1e-3", "lora.r=16", "trainer.checkpoint_every=0")
    said = " ".join(call(small, *words, code=1).split())
    assert "No space left" in said or "disk is full" in said.lower(), said
    finished = {axes: f for axes, f in trials(small).items() if f.done}
    assert len(finished) < 4, "the disk was too large for the test"
    ends = {axes: (f.path / "status.json").stat().st_mtime_ns for axes, f in finished.items()}
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    call(small, *words)
    found = trials(small)
    assert len(found) == 4
    assert {axes: (found[axes].path / "status.json").stat().st_mtime_ns for axes in ends} == ends
    for (lr,), trial in found.items():
        same_result(trial, lab.train(*QUICK[2:], f"optim.lr={lr}", *words[1:]))


def test_a_trial_that_leaves_with_code_0_before_its_end_has_failed(lab: Lab) -> None:
    """A loss that calls sys.exit(), say. Fails where it counts as interrupted, and is started anew by each later call."""

    def leave() -> None:
        fork_the_server()
        at("dpo_lab.training.align:Run.fit", lambda *_: sys.exit(0))()

    call(lab, "seed=0,1", "sweep.on_failure=stop", code=1, first=leave)
    (folder,) = trials(lab).values()
    said = status(folder)
    assert (said["status"], said["kind"]) == ("failed", "error")
    assert said["reason"].startswith("it ended with exit code 0")
    call(lab, "seed=0,1", "sweep.retry=none", code=1)
    assert sorted(status(f)["status"] for f in trials(lab).values()) == ["done", "failed"]


def test_a_clock_that_jumps_changes_nothing(lab: Lab) -> None:
    def jump() -> None:
        fork_the_server()
        real, calls = time.time, itertools.count()
        time.time = lambda: real() + (86400 if next(calls) % 3 else -86400)

    words = ("optim.lr=1e-2,5e-3", "prune=median", "prune.first_step=2")
    call(lab, *words, first=jump)
    found = trials(lab)
    for (lr,), trial in found.items():
        same_result(trial, lab.train(*QUICK[2:], f"optim.lr={lr}"))
    assert "2 done" in call(lab, *words, first=jump)
    assert all(status(f)["status"] == "done" for f in found.values())
