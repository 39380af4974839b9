"""Trials as tasks of Ray, which is started here."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import Lab, status, steps_done

from dpo_lab.runtime.errors import LabError
from dpo_lab.runtime.files import is_locked
from dpo_lab.sweep.pool import Ended, Order
from dpo_lab.sweep.ray_pool import RayPool
from dpo_lab.training.folder import RunFolder

SHOW = ("--cfg", "job")  # a second of work, exit code 0
WRONG = ("optim.lrr=1",)  # exit code 2
needs_ray = [pytest.mark.slow, pytest.mark.timeout(600)]


def start_pool(folder: Path, n: int = 2, **more: Any) -> RayPool:
    pytest.importorskip("ray")
    return RayPool(n, **({"folder": folder, "threads": 1, "address": None, "options": {}} | more))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayPool]:
    """A Ray with room for two trials; it takes seconds to start."""
    made = start_pool(tmp_path_factory.mktemp("ray") / "s")
    yield made
    made.close()


@pytest.fixture
def pool(shared: RayPool) -> RayPool:
    return shared


def order(tmp_path: Path, *words: str, trial: str = "ab12", **more: Any) -> Order:
    return Order(trial, words, (tmp_path / "s" / trial).absolute(), tmp_path, **more)


def long(lab: Lab, tmp_path: Path, *, steps: int = 2000) -> Order:
    """A run of many quick steps."""
    folder = tmp_path / "s" / "ab12"
    words = lab.overrides(f"optim.max_steps={steps}", "trainer.eval_every=0", f"hydra.run.dir={folder}")
    return order(tmp_path, *words, threads=1)


def ends(pool: RayPool, count: int = 1, seconds: float = 180.0) -> list[Ended]:
    found: list[Ended] = []
    deadline = time.monotonic() + seconds
    while len(found) < count:
        found += pool.ended()
        assert time.monotonic() < deadline, f"still waiting; ended so far: {found}"
        time.sleep(0.05)
    return sorted(found, key=lambda end: end.trial)


def until(condition: Any, what: str, seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.01)


def console(tmp_path: Path, trial: str) -> str:
    return (tmp_path / "s" / trial / "console.log").read_text(encoding="utf-8")


class TestWithRay:
    pytestmark = needs_ray

    def test_tasks_end_with_their_own_exit_codes_and_write_to_their_consoles(
        self, pool: RayPool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        pool.start(order(tmp_path, *SHOW, trial="a"))
        pool.start(order(tmp_path, *WRONG, trial="b"))
        assert ends(pool, 2) == [Ended("a", 0), Ended("b", 2)]
        assert "optim:" in console(tmp_path, "a")
        assert "optim.lrr" in console(tmp_path, "b")
        assert capfd.readouterr().out == ""

    def test_every_trial_has_a_process_of_its_own(self, pool: RayPool, tmp_path: Path) -> None:
        for trial in ("c", "d"):
            pool.start(order(tmp_path, *SHOW, trial=trial))
            ends(pool)
        keepers = [(pool._place / trial / "1" / "begun").read_text() for trial in ("c", "d")]
        assert keepers[0] != keepers[1]

    def test_a_third_trial_waits_for_its_turn_and_can_be_taken_back(
        self, pool: RayPool, tmp_path: Path, lab: Lab
    ) -> None:
        for trial in ("e", "f"):
            words = long(lab, tmp_path).words[:-1]
            pool.start(
                order(tmp_path, *words, f"hydra.run.dir={tmp_path / trial}", "seed=" + str(ord(trial)), trial=trial)
            )
        pool.start(order(tmp_path, *SHOW, trial="g"))
        until(lambda: all((pool._place / trial / "1" / "begun").exists() for trial in ("e", "f")), "two trials")
        assert not (pool._place / "g" / "1" / "begun").exists()
        pool.signal("g", signal.SIGTERM)
        assert ends(pool) == [Ended("g", 143)]
        for trial in ("e", "f"):
            pool.signal(trial, signal.SIGKILL)
        assert ends(pool, 2) == [Ended("e", 137), Ended("f", 137)]

    def test_sigterm_ends_a_trial_with_a_checkpoint_and_it_goes_on_when_started_again(
        self, pool: RayPool, tmp_path: Path, lab: Lab
    ) -> None:
        work = long(lab, tmp_path, steps=60)
        folder = RunFolder(work.folder)
        pool.start(work)
        until(lambda: steps_done(folder) >= 2, "two steps")
        pool.signal("ab12", signal.SIGTERM)
        assert ends(pool) == [Ended("ab12", 143)]
        assert status(folder)["status"] == "stopped"
        pool.start(work)
        assert ends(pool) == [Ended("ab12", 0)]
        assert status(folder)["status"] == "done"

    def test_a_worker_that_is_killed_takes_its_trial_along_and_no_other(
        self, pool: RayPool, tmp_path: Path, lab: Lab
    ) -> None:
        work = Order("h", long(lab, tmp_path).words, tmp_path / "s" / "ab12", tmp_path, threads=1)
        folder = RunFolder(work.folder)
        pool.start(work)
        until(lambda: steps_done(folder) >= 1, "a step")
        os.kill(int((pool._place / "h" / "1" / "begun").read_text()), signal.SIGKILL)
        (end,) = ends(pool)
        assert (end.trial, end.code) == ("h", 137)
        assert end.reason
        until(lambda: not is_locked(work.folder / "run.lock"), "the end of the trial", seconds=10)
        pool.start(order(tmp_path, *SHOW, trial="i"))
        assert ends(pool) == [Ended("i", 0)]


def in_a_process(script: str, *words: str) -> str:
    """What a script writes; a process has one Ray at most, and here there is one already."""
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_closing_kills_what_is_left(tmp_path: Path, lab: Lab) -> None:
    pytest.importorskip("ray")
    work = long(lab, tmp_path)
    script = """
import os, pathlib, sys, time
from dpo_lab.sweep.pool import Order
from dpo_lab.sweep.ray_pool import RayPool
place, folder, *words = sys.argv[1:]
pool = RayPool(1, folder=pathlib.Path(place), threads=1, address=None, options={})
pool.start(Order("ab12", tuple(words), pathlib.Path(folder), pathlib.Path.cwd(), threads=1))
while not os.path.exists(folder + "/metrics.jsonl"):
    time.sleep(0.05)
pool.close()
pool.close()
print(pool.ended())
"""
    assert in_a_process(script, str(tmp_path / "s"), str(work.folder), *work.words).splitlines()[-1] == "[]"
    assert not is_locked(work.folder / "run.lock")
    assert status(RunFolder(work.folder))["status"] == "running"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cluster_that_is_not_there_is_named(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    script = """
import pathlib, sys
from dpo_lab.runtime.errors import LabError
from dpo_lab.sweep.ray_pool import RayPool
try:
    RayPool(1, folder=pathlib.Path(sys.argv[1]), threads=1, address="127.0.0.1:9", options={})
except LabError as e:
    print(e)
"""
    said = in_a_process(script, str(tmp_path))
    assert "launcher=ray: the Ray cluster at 127.0.0.1:9 cannot be reached" in said


def test_a_wrong_option_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        LabError, match=r"launcher\.options\.num_gpu: launcher=ray has no such option\. Did you mean num_gpus"
    ):
        RayPool(1, folder=tmp_path, threads=1, address=None, options={"num_gpu": 1})


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LabError, match=r'pip install "dpo_lab\[ray\]"'):
        RayPool(1, folder=tmp_path, threads=1, address=None, options={"num_gpus": None})
