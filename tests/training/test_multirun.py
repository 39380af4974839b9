"""--multirun: a W&B run each, in one group."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import Lab, rows

from dpo_lab.training.folder import RunFolder

WANDB = ("logger=wandb", "logger.mode=offline", "optim.max_steps=4")


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("WANDB_", "XDG_", "NETRC"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()


def runs_of(lab: Lab) -> dict[Any, RunFolder]:
    """The run folders of the only sweep, by learning rate."""
    (sweep,) = (lab.output / "sweeps").iterdir()
    found = {}
    for path in sweep.iterdir():
        if (path / "status.json").exists():
            overrides = (path / ".hydra" / "overrides.yaml").read_text(encoding="utf-8")
            (lr,) = [line.split("=")[1] for line in overrides.splitlines() if "optim.lr=" in line]
            found[float(lr)] = RunFolder(path)
    return found


def read_wandb(folder: RunFolder) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    (file,) = (folder.path / "wandb").glob("offline-run-*/*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    records = [json.loads(line) for line in output.splitlines()]
    (run,) = [r["run"] for r in records if r["type"] == "run"][:1]
    return run, [r["history"]["item"] for r in records if r["type"] == "history"]


def test_each_job_has_its_folder_and_its_own_wandb_run_in_one_group(lab: Lab) -> None:
    child = lab.call(*WANDB, "optim.lr=1e-2,5e-3", flags=("--multirun",))
    assert child.code == 0, child.text
    found = runs_of(lab)
    assert found.keys() == {1e-2, 5e-3}
    groups, ids = set(), set()
    for lr, folder in found.items():
        assert folder.done
        run, history = read_wandb(folder)
        groups.add(run.get("run_group") or run.get("group"))
        ids.add(run["run_id"])
        assert run["run_id"] == folder.path.name
        logged = {row["_step"]: row for row in history if "train/loss" in row}
        for row in rows(folder, "train/"):
            assert logged[row["step"]]["train/loss"] == pytest.approx(row["train/loss"]), lr
            assert logged[row["step"]]["train/lr"] == pytest.approx(row["train/lr"]), lr
    assert len(ids) == 2
    assert len(groups) == 1
    assert groups != {None}
    assert {path.name for path in found[1e-2].path.parent.iterdir()} >= {f.path.name for f in found.values()}

    before = {f.path: (f.path / "status.json").stat().st_mtime_ns for f in found.values()}
    again = lab.call(*WANDB, "optim.lr=1e-2,5e-3", flags=("--multirun",))
    assert again.code == 0
    assert "2 done" in again.text
    assert {path: (path / "status.json").stat().st_mtime_ns for path in before} == before
