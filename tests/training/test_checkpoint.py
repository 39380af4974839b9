"""Checkpoints: a damaged one costs steps, never the result."""

import errno
import logging
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Lab, at, same_result, send

from dpo_lab.runtime.errors import OutputError
from dpo_lab.training.checkpoint import last_checkpoint, last_step, save_checkpoint


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "one flipped bit": flip,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: path.write_bytes(b""),
    "no checksum": lambda path: path.with_suffix(".json").unlink(),
    "a broken checksum file": lambda path: path.with_suffix(".json").write_text("[", encoding="utf-8"),
    "another checksum": lambda path: path.with_suffix(".json").write_text(
        '{"step": 4, "sha256": "0"}', encoding="utf-8"
    ),
}


def state(step: int) -> dict[str, Any]:
    return {"step": step, "trained": {"w": torch.full((8, 8), float(step))}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for step in (2, 4):
        save_checkpoint(tmp_path / "checkpoints", state(step), step=step)
    return tmp_path / "checkpoints"


def test_the_two_newest_are_kept(folder: Path) -> None:
    save_checkpoint(folder, state(6), step=6)
    names = {path.name for path in folder.iterdir()}
    assert names == {"step_00000004.pt", "step_00000004.json", "step_00000006.pt", "step_00000006.json"}
    assert last_step(folder) == 6
    step, loaded = last_checkpoint(folder) or (0, {})
    assert step == 6
    assert torch.equal(loaded["trained"]["w"], torch.full((8, 8), 6.0))


def test_no_folder_is_no_checkpoint(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "none") is None
    assert last_step(tmp_path / "none") is None


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_one_is_said_and_passed_over(folder: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    DAMAGE[how](folder / "step_00000004.pt")
    with caplog.at_level(logging.WARNING):
        found = last_checkpoint(folder)
    assert found is not None
    assert found[0] == 2
    assert "step_00000004.pt" in caplog.text
    assert "going back to the one before" in caplog.text
    assert {path.name for path in folder.iterdir()} == {"step_00000002.pt", "step_00000002.json"}


def test_all_damaged_is_none(folder: Path) -> None:
    for path in folder.glob("*.pt"):
        flip(path)
    assert last_checkpoint(folder) is None
    assert last_step(folder) is None


def test_a_failed_write_says_why_and_leaves_the_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = {"w": torch.zeros(100_000)}
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # Python ignores SIGXFSZ: a write fails
        with pytest.raises(OutputError, match=os.strerror(errno.EFBIG)):
            save_checkpoint(folder, big, step=6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(list(folder.iterdir())) == 4, "nothing half-written is left"
    assert (last_checkpoint(folder) or (0,))[0] == 4


def test_a_run_with_damaged_checkpoints_ends_bit_identical(lab: Lab, tmp_path: Path) -> None:
    kill = at("dpo_lab.training.trackers:MetricsFile.log", send(signal.SIGKILL), call=8)  # before the row of step 6
    assert lab.train_in_child(first=kill).code == 137
    assert {path.name for path in lab.folder().checkpoints.glob("*.pt")} == {"step_00000002.pt", "step_00000004.pt"}
    straight = Lab(tmp_path / "straight", lab.model, lab.data)
    straight.train()
    for name, damaged, first in (("one", ["4"], "going on from step 2"), ("all", ["2", "4"], "dpo_lab  run")):
        copy = Lab(tmp_path / name, lab.model, lab.data)
        shutil.copytree(lab.output, copy.output)
        shutil.copytree(lab.cache, copy.cache)
        for step in damaged:
            flip(copy.folder().checkpoints / f"step_0000000{step}.pt")
        child = copy.train_in_child()
        assert child.code == 0, child.text
        assert first in child.text
        assert ("going on" in child.text) == (name == "one")
        assert child.text.count("is damaged") == len(damaged)
        same_result(copy.folder(), straight.folder())
