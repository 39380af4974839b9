"""How many trials at a time, and what of the machine each of them gets."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dpo_lab.config.sweep_schema import Launcher
from dpo_lab.sweep import launch
from dpo_lab.sweep.pool import Ended, Order, Refused
from dpo_lab.sweep.processes import ProcessPool

ROOT = Path(__file__).resolve().parents[2]


def launcher(**changes: Any) -> Launcher:
    settings = {"name": "processes", "n": "auto", "threads": "auto", "address": None, "options": {}}
    return Launcher.model_validate(settings | changes)


def test_trials_share_the_cores_and_one_alone_has_what_a_run_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert launch.count(launcher()) == 2
    assert launch.threads(launcher()) == 4
    assert launch.threads(launcher(n=3)) == 2
    assert launch.threads(launcher(n=20)) == 1
    assert launch.threads(launcher(n=3, threads=5)) == 5
    assert launch.count(launcher(name="serial", n=1)) == 1
    assert launch.threads(launcher(name="serial", n=1)) is None
    assert launch.environment(launcher(n=2), 0) == {}


def test_each_trial_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,GPU-7")
    assert launch.count(launcher()) == 3
    slots = [launch.environment(launcher(), slot)["CUDA_VISIBLE_DEVICES"] for slot in range(4)]
    assert slots == ["2", "5", "GPU-7", "2"]
    assert launch.environment(launcher(name="serial", n=1), 0) == {}


def orders(tmp_path: Path, *words: str) -> Order:
    return Order("trial", words, tmp_path / "run", tmp_path, threads=1)


def ended(pool: ProcessPool) -> list[Ended]:
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        if found := pool.ended():
            return found
        time.sleep(0.05)
    raise TimeoutError


def test_a_forked_trial_has_its_own_exit_code_output_and_group(tmp_path: Path) -> None:
    pool = ProcessPool(1)
    try:
        pool.start(orders(tmp_path, "nonsense"))
        assert ended(pool) == [Ended("trial", 2)]
        assert "an override has the form KEY=VALUE" in (tmp_path / "run" / "console.log").read_text()
        assert pool.ended() == []
        pool.signal("trial", signal.SIGKILL)  # it is gone
        pool.start(orders(tmp_path, "--cfg", "job"))
        assert ended(pool) == [Ended("trial", 0)]
        assert "collapse_nats" in (tmp_path / "run" / "console.log").read_text()
    finally:
        pool.close()
    pool.close()


@pytest.mark.parametrize("error", [OSError(11, "no more processes"), EOFError("unexpected EOF")])
def test_a_trial_that_cannot_be_forked_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Fails where the error leaves the sweep, which then kills the trials that run."""

    def fail(*_: Any) -> None:
        raise error

    pool = ProcessPool(1)
    monkeypatch.setattr(ProcessPool, "warm_up", lambda self: None)
    monkeypatch.setattr("multiprocessing.context.ForkServerProcess._Popen", fail)
    with pytest.raises(Refused, match=r"trial could not be started: .*\. Take a lower launcher\.n"):
        pool.start(orders(tmp_path))
    assert pool.ended() == []


def test_the_server_that_is_forked_from_has_one_thread_and_no_gpu(tmp_path: Path) -> None:
    """Threads do not come along in a fork, and whatever waits for one of them would wait for ever."""
    script = """
import multiprocessing, os, sys
from multiprocessing import forkserver
from dpo_lab.sweep.processes import PRELOAD

def look(folder):
    import torch
    names = [open(f"/proc/{os.getppid()}/task/{t}/comm").read().strip() for t in os.listdir(f"/proc/{os.getppid()}/task")]
    loaded = "dpo_lab.training.align" in sys.modules and "peft" in sys.modules
    open(folder, "w").write(f"{len(names)} {torch.cuda.is_initialized()} {loaded}")

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    child = context.Process(target=look, args=(sys.argv[1],))
    child.start()
    child.join()
"""
    file = tmp_path / "look.py"
    file.write_text(script)
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"} | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, str(file), str(tmp_path / "seen")], env=environment, check=True, timeout=200)
    assert (tmp_path / "seen").read_text() == "1 False True"
