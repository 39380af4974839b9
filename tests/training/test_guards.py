"""Runs whose numbers mean nothing stop and say so; so do runs that cannot be written."""

import errno
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import Child, Lab, at, same_result, send, status, steps_done, weights

from dpo_lab.preference.ref_cache import RefCache
from dpo_lab.runtime.files import read_json
from dpo_lab.training.folder import RunFolder

SAVE = "dpo_lab.training.checkpoint:_write"
LOSSES = """
import torch

def nothing(chosen_logratios, rejected_logratios):
    return 0 * (chosen_logratios - rejected_logratios)

def apart(chosen_logratios):
    return torch.ones(len(chosen_logratios))

def broken(chosen_logratios):
    return chosen_logratios * float("nan")

def sinking(chosen_logratios):
    return chosen_logratios

def steep(chosen_logratios, rejected_logratios):
    return (chosen_logratios - rejected_logratios).abs().clamp_min(0).sqrt()  # finite, but its slope at 0 is not
"""


@pytest.fixture
def own(tmp_path: Path) -> tuple[str, ...]:
    """--config-dir with losses of the user's own."""
    folder = tmp_path / "own"
    (folder / "loss").mkdir(parents=True)
    (folder / "own_losses.py").write_text(LOSSES, encoding="utf-8")
    for name in ("nothing", "apart", "broken", "steep", "sinking"):
        text = f"_target_: own_losses.{name}\nbeta: null\naverage: sum\n"
        (folder / "loss" / f"{name}.yaml").write_text(text, encoding="utf-8")
    return ("--config-dir", str(folder))


def only_folder(lab: Lab) -> Path:
    (folder,) = (lab.output / "runs").iterdir()
    return folder


def refused(child: Child, folder: Path, *said: str) -> None:
    """Exit code 1, the reason on the terminal and in status.json, and no traceback on the terminal."""
    found: Any = read_json(folder / "status.json")
    assert child.code == 1, child.text
    assert "Traceback" not in child.text
    assert found["status"] == "failed"
    for words in said:
        assert words in " ".join(child.text.split())
        assert words in found["reason"]
    assert "Traceback" in found["traceback"]
    assert not (folder / "final").exists()


def test_a_loss_that_is_not_a_number_stops_the_run(lab: Lab, own: tuple[str, ...]) -> None:
    refused(lab.call("loss=broken", flags=own), only_folder(lab), "The loss of step 1 is nan", "optim.lr")


def test_a_constant_loss_stops_the_run_at_its_first_step(lab: Lab, own: tuple[str, ...]) -> None:
    refused(lab.call("loss=nothing", flags=own), only_folder(lab), "gradient of the first step is zero")


def test_a_loss_without_any_gradient_stops_the_run_at_its_first_step(lab: Lab, own: tuple[str, ...]) -> None:
    refused(lab.call("loss=apart", flags=own), only_folder(lab), "gradient of the first step is zero")


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_spoils_the_weights(
    lab: Lab, own: tuple[str, ...]
) -> None:
    """Here the loss of the only step is finite: without a guard a run of NaN weights would be `done`."""
    refused(lab.call("loss=steep", "optim.max_steps=1", flags=own), only_folder(lab), "gradient")


def test_an_absurd_learning_rate_stops_the_run(lab: Lab) -> None:
    options = ("optim.lr=1e6", "trainer.collapse_nats=1e9", "optim.max_steps=20", "trainer.eval_every=0")
    refused(lab.call(*options), lab.folder(*options).path, "of step", "Lower optim.lr")


def test_collapsed_log_probs_stop_the_run(lab: Lab, own: tuple[str, ...]) -> None:
    options = ("loss=sinking", "trainer.collapse_nats=0.5", "optim.max_steps=20", "trainer.eval_every=0")
    refused(lab.call(*options, flags=own), only_folder(lab), "log-probs have collapsed", "trainer.collapse_nats=0.5")
    assert steps_done(RunFolder(only_folder(lab))) < 20


def cache_file(lab: Lab) -> Path:
    (file,) = lab.cache.rglob("*.sqlite")
    return file


def test_a_reference_that_is_not_the_start_policy_stops_the_run(lab: Lab) -> None:
    lab.train()
    file = cache_file(lab)
    cache = RefCache(file.parent.parent, file.stem, facts={})
    with sqlite3.connect(file) as db:
        keys = [key for (key,) in db.execute("SELECT key FROM logps")]
    cache.write({key: logps - 1e-3 for key, logps in zip(keys, cache.read(keys), strict=True)})
    folder = lab.folder("seed=1")
    refused(lab.call("seed=1"), folder.path, "policy and reference differ by 1.00e-03 nats per token")
    assert steps_done(folder) == 0


def test_a_damaged_cache_is_said_and_computed_again(lab: Lab) -> None:
    straight = lab.train()
    file = cache_file(lab)
    data = bytearray(file.read_bytes())
    data[len(data) // 2 :] = bytes(b ^ 0xFF for b in data[len(data) // 2 :])
    file.write_bytes(data)
    child = lab.call("trainer.kl_pairs=63")
    assert child.code == 0, child.text
    assert "computed again" in " ".join(child.text.split())
    folder = lab.folder("trainer.kl_pairs=63")
    assert folder.done
    assert weights(folder) == weights(straight)


# -- what cannot be written ----------------------------------------------------------------------------------------


def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_leaves_the_one_before(lab: Lab, tmp_path: Path) -> None:
    def limit(*_: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))  # a checkpoint takes 130 KB

    folder = lab.folder()
    child = lab.call(first=at(SAVE, limit, call=2))
    refused(child, folder.path, "Cannot write", "step_00000004.pt", os.strerror(errno.EFBIG))
    assert {p.name for p in folder.checkpoints.iterdir()} == {"step_00000002.pt", "step_00000002.json"}
    straight = Lab(tmp_path / "straight", lab.model, lab.data)
    assert lab.train_in_child().code == 0
    same_result(folder, straight.train())


def test_a_result_that_cannot_be_written_ends_the_run_without_a_result(lab: Lab) -> None:
    def limit(*_: Any, **__: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))  # an adapter takes 36 KB

    folder = lab.folder()
    child = lab.call(first=at("dpo_lab.training.align:save_final", limit))
    refused(child, folder.path, "final", os.strerror(errno.EFBIG))
    assert not list(folder.path.glob(".*.tmp")), "nothing half-written is left"
    assert lab.train().done


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, check=False
    ).returncode == 0  # fmt: skip
    if not mounted:
        pytest.skip("mounting a small file system takes root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> Any:
    """For `at`: leave 16 KB on the disk."""

    def act(*_: Any, **__: Any) -> None:
        ballast = os.open(disk / "ballast", os.O_CREAT | os.O_WRONLY)
        while shutil.disk_usage(disk).free:
            os.write(ballast, b"x" * 4096)
        os.truncate(ballast, os.fstat(ballast).st_size - 16_384)  # so that it is the weights that do not fit

    return act


@pytest.mark.parametrize("where", [SAVE, "dpo_lab.training.align:save_final"], ids=["at a checkpoint", "at the end"])
def test_a_full_disk_is_said_and_costs_nothing_once_there_is_room(lab: Lab, small_disk: Path, where: str) -> None:
    full = Lab(lab.root, lab.model, lab.data, output=small_disk)
    child = full.call(first=at(where, fill(small_disk), call=2 if where == SAVE else 1))
    assert child.code == 1, child.text
    assert "disk is full" in " ".join(child.text.split())
    assert "Traceback" not in child.text
    folder = full.folder()
    assert not folder.done
    assert (folder.checkpoints / "step_00000002.json").exists() or where != SAVE
    (small_disk / "ballast").unlink()
    again = full.train_in_child()
    assert again.code == 0, again.text
    assert "going on from step" in again.text
    same_result(folder, lab.train())


def test_a_file_in_the_place_of_the_output_folder_is_refused(lab: Lab) -> None:
    lab.output.write_text("mine", encoding="utf-8")
    child = lab.call()
    assert child.code == 2
    assert "output_dir" in child.text
    assert "Traceback" not in child.text


def test_a_file_in_the_place_of_the_runs_is_refused(lab: Lab) -> None:
    path = lab.output / "runs"
    path.parent.mkdir()
    path.write_text("mine", encoding="utf-8")
    child = lab.call()
    assert child.code in (1, 2), child.text
    assert "Traceback" not in child.text
    assert str(path) in child.text
    assert path.read_text(encoding="utf-8") == "mine"


def test_running_without_a_holder_is_an_interrupted_run(lab: Lab) -> None:
    child = lab.train_in_child(first=at("dpo_lab.training.align:Run.fit", send(signal.SIGKILL)))
    assert child.code == 137
    assert status(lab.folder())["status"] == "running"
    assert lab.train().done
