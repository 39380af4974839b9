"""Jobs through submitit: on this machine for real, and through a stand-in for SLURM's commands."""

import errno
import logging
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import slurm
from runs import Lab, rows, same_result, status, steps_done
from sweeping import call

from dpo_lab.runtime.errors import DiskFull, LabError
from dpo_lab.runtime.files import is_locked
from dpo_lab.sweep import cluster
from dpo_lab.sweep.cluster import SubmititPool
from dpo_lab.sweep.pool import Ended, Order, Pool, Refused
from dpo_lab.sweep.remote import Mail
from dpo_lab.training.folder import RunFolder

pytest.importorskip("submitit")

LOCAL = {"timeout_min": 60}
SHOW = ("--cfg", "job")  # a second of work, exit code 0
WRONG = ("optim.lrr=1",)  # exit code 2


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[SubmititPool]:
    """Jobs on this machine."""
    made = SubmititPool(2, folder=tmp_path / "s", local=True, options=LOCAL)
    yield made
    made.close()


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a SLURM's jobs, with its commands on PATH."""
    monkeypatch.setenv("TEST_SLURM", str(tmp_path / "queue"))
    monkeypatch.setenv("PATH", os.pathsep.join([str(slurm.install(tmp_path)), os.environ["PATH"]]))
    monkeypatch.setattr(cluster, "PATIENCE", 0.5)
    (tmp_path / "queue").mkdir()
    return tmp_path / "queue"


@pytest.fixture
def on_slurm(tmp_path: Path, queue: Path) -> Iterator[SubmititPool]:
    made = SubmititPool(2, folder=tmp_path / "s", local=False, options={"timeout_min": 60, "partition": "small"})
    yield made
    made.close()
    for job in queue.glob("[0-9]*"):
        slurm.end(job, "CANCELLED")


def order(tmp_path: Path, *words: str, trial: str = "ab12", **more: Any) -> Order:
    return Order(trial, words, (tmp_path / "s" / trial).absolute(), tmp_path, **more)


def long(lab: Lab, tmp_path: Path, *, steps: int = 2000) -> Order:
    """A run of many quick steps."""
    folder = tmp_path / "s" / "ab12"
    words = lab.overrides(f"optim.max_steps={steps}", "trainer.eval_every=0", f"hydra.run.dir={folder}")
    return order(tmp_path, *words, threads=1)


def ends(pool: Pool, count: int = 1, seconds: float = 90.0) -> list[Ended]:
    """The ends of so many trials, in the order of their ids."""
    found: list[Ended] = []
    deadline = time.monotonic() + seconds
    while len(found) < count:
        asked = time.monotonic()
        found += pool.ended()
        assert time.monotonic() - asked < 5, "it must not wait"
        assert time.monotonic() < deadline, f"still waiting; ended so far: {found}"
        time.sleep(0.05)
    assert pool.ended() == []
    return sorted(found, key=lambda end: end.trial)


def until(condition: Any, what: str, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.01)


def job_of(queue: Path) -> Path:
    """SLURM's first job."""
    return min(queue.glob("[0-9]*"))


def begun(tmp_path: Path) -> bool:
    return bool([*(tmp_path / "s").glob(".submitit/*/*/order.json")])


def console(tmp_path: Path, trial: str = "ab12") -> str:
    return (tmp_path / "s" / trial / "console.log").read_text(encoding="utf-8")


def test_jobs_end_with_their_own_exit_codes_and_write_to_their_consoles(pool: SubmititPool, tmp_path: Path) -> None:
    pool.start(order(tmp_path, *SHOW, trial="a"))
    pool.start(order(tmp_path, *WRONG, trial="b"))
    assert ends(pool, 2) == [Ended("a", 0), Ended("b", 2)]
    assert "optim:" in console(tmp_path, "a")
    assert "optim.lrr" in console(tmp_path, "b")
    assert [*(tmp_path / "s" / ".submitit" / "a" / "1").glob("*_log.out")]


def test_a_trial_started_again_has_a_folder_of_its_own(pool: SubmititPool, tmp_path: Path) -> None:
    for words in (WRONG, SHOW):
        pool.start(order(tmp_path, *words, trial="a"))
        (end,) = ends(pool)
    assert end.code == 0
    assert sorted(path.name for path in (tmp_path / "s" / ".submitit" / "a").iterdir()) == ["1", "2"]


def test_a_trial_gets_its_environment_and_sees_the_gpus_of_the_sweep(
    pool: SubmititPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dpo_lab").mkdir()
    (tmp_path / "dpo_lab" / "nothing").touch()  # not a package: the installed one is found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("SLURM_NTASKS", "4")  # Lightning would take part in a job of four
    told = tmp_path / "told"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(
        "import json, os, sys\n"
        "if 'dpo_lab.sweep.remote' in ' '.join(sys.orig_argv):\n"
        f"    open({str(told)!r}, 'w').write(json.dumps(dict(os.environ)))\n"
    )
    pool.start(order(tmp_path, "--cfg", "job", "output_dir=${oc.env:OWN}", env={"OWN": "word"}))
    assert ends(pool) == [Ended("ab12", 0)]
    environment = told.read_text()
    assert '"SLURM_NTASKS"' not in environment
    assert "output_dir: ${oc.env:OWN}" in console(tmp_path)


def test_sigterm_before_the_trial_began_ends_it_unstarted(pool: SubmititPool, tmp_path: Path) -> None:
    pool.start(order(tmp_path, *SHOW))
    pool.signal("ab12", signal.SIGTERM)
    assert ends(pool) == [Ended("ab12", 143)]
    assert not (tmp_path / "s" / "ab12").exists()


def test_a_signal_to_a_trial_that_is_gone_does_nothing(pool: SubmititPool, tmp_path: Path) -> None:
    pool.start(order(tmp_path, *WRONG))
    ends(pool)
    pool.signal("ab12", signal.SIGKILL)
    pool.signal("never there", signal.SIGTERM)
    assert pool.ended() == []


def test_a_ctrl_c_at_the_terminal_reaches_the_sweep_only(pool: SubmititPool, tmp_path: Path) -> None:
    pool.start(order(tmp_path, *SHOW))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ((job, _),) = pool._jobs.values()
    for _ in range(20):
        os.kill(int(job.job_id), signal.SIGINT)
        time.sleep(0.02)
    assert ends(pool) == [Ended("ab12", 0)]


def test_closing_kills_what_is_left(pool: SubmititPool, tmp_path: Path, lab: Lab) -> None:
    work = long(lab, tmp_path)
    pool.start(work)
    until(lambda: begun(tmp_path), "the trial")
    pool.close()
    pool.close()
    assert not is_locked(work.folder / "run.lock")
    assert pool.ended() == []


def test_a_trial_that_is_killed_ends_with_137_and_nothing_of_it_stays(
    pool: SubmititPool, tmp_path: Path, lab: Lab
) -> None:
    work = long(lab, tmp_path)
    folder = RunFolder(work.folder)
    pool.start(work)
    until(lambda: steps_done(folder) >= 1, "a step")
    pool.signal("ab12", signal.SIGKILL)
    assert ends(pool) == [Ended("ab12", 137)]
    assert status(folder)["status"] == "running"  # it had no time to say otherwise
    assert not is_locked(work.folder / "run.lock")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_trial_with_a_checkpoint_and_it_goes_on_when_started_again(
    pool: SubmititPool, tmp_path: Path, lab: Lab, number: int, code: int
) -> None:
    work = long(lab, tmp_path, steps=60)
    folder = RunFolder(work.folder)
    pool.start(work)
    until(lambda: steps_done(folder) >= 2, "two steps")
    pool.signal("ab12", number)
    assert ends(pool) == [Ended("ab12", code)]
    assert status(folder)["status"] == "stopped"
    done = steps_done(folder)
    assert 2 <= done < 60
    pool.start(work)
    assert ends(pool) == [Ended("ab12", 0)]
    assert status(folder)["status"] == "done"
    alone = lab.train("optim.max_steps=60", "trainer.eval_every=0")
    assert len(rows(folder, "train/")) == 60
    same_result(folder, alone)


def test_the_end_of_the_time_is_announced_and_costs_nothing(pool: SubmititPool, tmp_path: Path, lab: Lab) -> None:
    work = long(lab, tmp_path)
    folder = RunFolder(work.folder)
    pool.start(work)
    until(lambda: steps_done(folder) >= 1, "a step")
    keeper = int(next((tmp_path / "s").glob(".submitit/*/*/begun")).read_text())
    for _ in range(3):  # SLURM says it more than once; a second one would end the trial without a checkpoint
        os.kill(keeper, signal.SIGUSR2)
        os.kill(keeper, signal.SIGTERM)
    (end,) = ends(pool)
    assert (end.code, status(folder)["status"]) == (143, "stopped")
    assert "SIGUSR2" in end.reason or "SIGTERM" in end.reason
    assert [*folder.checkpoints.iterdir()]


def test_jobs_of_this_machine_end_with_their_sweep(tmp_path: Path, lab: Lab) -> None:
    from runs import fork

    work = long(lab, tmp_path)
    folder = RunFolder(work.folder)

    def master() -> None:
        SubmititPool(1, folder=tmp_path / "s", local=True, options=LOCAL).start(work)
        time.sleep(120)

    pid = fork(master)
    until(lambda: steps_done(folder) >= 1, "a step")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    until(lambda: not is_locked(work.folder / "run.lock"), "the end of the trial", seconds=10)


def test_slurm_gets_the_options_and_hands_back_exit_codes(on_slurm: SubmititPool, tmp_path: Path, queue: Path) -> None:
    on_slurm.start(order(tmp_path, *SHOW, trial="a", threads=3))
    on_slurm.start(order(tmp_path, *WRONG, trial="b"))
    assert ends(on_slurm, 2) == [Ended("a", 0), Ended("b", 2)]
    script = (job_of(queue) / "script").read_text()
    for line in ("--partition=small", "--time=60", "--cpus-per-task=3", "--job-name=dpo_lab-a", "--no-requeue"):
        assert f"#SBATCH {line}\n" in script
    assert "#SBATCH --signal=USR2@90" in script


def test_a_job_that_waits_in_the_queue_is_cancelled(on_slurm: SubmititPool, tmp_path: Path, queue: Path) -> None:
    (queue / "full").touch()
    on_slurm.start(order(tmp_path, *SHOW))
    on_slurm.signal("ab12", signal.SIGTERM)
    assert ends(on_slurm) == [Ended("ab12", 143)]
    assert (job_of(queue) / "state").read_text().startswith("CANCELLED")


def test_a_job_that_sbatch_refuses_leaves_nothing_and_takes_no_other(
    on_slurm: SubmititPool, tmp_path: Path, queue: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Fails where it cannot be told from a mistake, where each refusal leaves a folder, or where submitit writes to stderr."""
    (queue / "limit").write_text("1")
    on_slurm.start(order(tmp_path, *SHOW, trial="a"))
    with pytest.raises(Refused, match=r"The job of trial b could not be submitted: .*: job limit\. Look at launcher\."):
        on_slurm.start(order(tmp_path, *SHOW, trial="b"))
    assert not [*(tmp_path / "s" / ".submitit" / "b").iterdir()]
    assert capfd.readouterr() == ("", "")
    assert ends(on_slurm) == [Ended("a", 0)]
    on_slurm.start(order(tmp_path, *SHOW, trial="b"))
    assert ends(on_slurm) == [Ended("b", 0)]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EAGAIN])
def test_a_full_disk_is_no_refusal(pool: SubmititPool, tmp_path: Path, monkeypatch: Any, error: int) -> None:
    """Fails where the sweep waits for a full disk, or ends because no process could be forked."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("submitit.local.local.start_controller", fail)
    with pytest.raises(Refused if error == errno.EAGAIN else DiskFull):
        pool.start(order(tmp_path, *SHOW))


def test_a_signal_that_cannot_be_written_reaches_a_slurm_job_by_scancel(
    on_slurm: SubmititPool, tmp_path: Path, queue: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On a full disk. Fails where the error ends the sweep, or where the trial goes on for hours after a Ctrl-C."""
    (queue / "full").touch()
    on_slurm.start(order(tmp_path, *SHOW))
    ((_, mail),) = on_slurm._jobs.values()
    mail.begin()
    on_slurm.signal("ab12", signal.SIGTERM)
    assert (job_of(queue) / "state").read_text() == "PENDING"
    (mail.folder / "signals").unlink()
    (mail.folder / "signals").mkdir()
    on_slurm.signal("ab12", signal.SIGTERM)
    assert "SIGTERM could not be sent to a trial" in caplog.text
    assert (job_of(queue) / "state").read_text().startswith("CANCELLED")
    assert ends(on_slurm) == [Ended("ab12", 143)]


def test_mail_that_cannot_be_sent_is_no_error(tmp_path: Path) -> None:
    mail = Mail.create(tmp_path, "a")
    assert mail.send(signal.SIGTERM)
    assert mail.received() == [signal.SIGTERM]
    (mail.folder / "signals").unlink()
    (mail.folder / "signals").mkdir()
    assert not mail.send(signal.SIGTERM)


@pytest.mark.slow
def test_a_sweep_larger_than_the_queue_comes_to_its_end(lab: Lab, queue: Path) -> None:
    """Fails where the refused job of the second trial ends the first."""
    (queue / "limit").write_text("1")
    text = call(lab, "launcher=slurm", "seed=0,1")
    assert text.count("is done: accuracy") == 2
    assert text.count("It is tried again") == 1


@pytest.mark.parametrize(
    ("state", "code"),
    [("TIMEOUT", 143), ("PREEMPTED", 143), ("OUT_OF_MEMORY", 137), ("CANCELLED by 7", 143), ("BOOT_FAIL", 1)],
)
def test_a_job_that_slurm_ended_before_it_could_say_anything_says_why(
    on_slurm: SubmititPool, tmp_path: Path, queue: Path, state: str, code: int
) -> None:
    (queue / "full").touch()
    on_slurm.start(order(tmp_path, *SHOW))
    assert on_slurm.ended() == []
    (job_of(queue) / "state").write_text(state)
    (end,) = ends(on_slurm)
    assert end.code == code
    assert end.reason.startswith(f"ended by SLURM: {state.split()[0]}")


def test_a_job_unknown_to_accounting_is_looked_for_in_the_queue(
    on_slurm: SubmititPool, tmp_path: Path, queue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "SILENCE", 0.2)
    (tmp_path / "bin" / "sacct").write_text("#!/bin/sh\nexit 1\n")
    (queue / "full").touch()
    on_slurm.start(order(tmp_path, *SHOW))
    time.sleep(0.5)
    assert on_slurm.ended() == []
    (job_of(queue) / "state").write_text("COMPLETED")
    (end,) = ends(on_slurm)
    assert (end.code, end.reason[:20]) == (1, "ended by SLURM: GONE")


def test_a_slurm_trial_that_is_told_to_end_saves_a_checkpoint(
    on_slurm: SubmititPool, tmp_path: Path, lab: Lab, queue: Path
) -> None:
    work = long(lab, tmp_path)
    folder = RunFolder(work.folder)
    on_slurm.start(work)
    until(lambda: steps_done(folder) >= 1, "a step")
    on_slurm.signal("ab12", signal.SIGTERM)
    assert ends(on_slurm) == [Ended("ab12", 143)]
    assert status(folder)["status"] == "stopped"
    assert (job_of(queue) / "state").read_text() != "CANCELLED"


def test_a_result_that_is_half_written_is_none_yet(tmp_path: Path) -> None:
    whole = pickle.dumps(("success", (3, "")))
    (tmp_path / "a").write_bytes(whole[:-4])
    assert cluster._result(tmp_path / "a") is None
    (tmp_path / "a").write_bytes(whole)
    assert cluster._result(tmp_path / "a") == (3, "")
    (tmp_path / "a").write_bytes(pickle.dumps(("error", "Traceback ...\nOutputError: the disk is full\n")))
    assert cluster._result(tmp_path / "a") == (1, "OutputError: the disk is full")


@pytest.mark.parametrize(
    ("local", "options", "said"),
    [
        (True, {"timeout_mins": 5}, r"launcher\.options\.timeout_mins: launcher=submitit_local has no such option"),
        (True, {"timeout_min": 5, "partition": "x"}, r"options\.partition.*It takes gpus_per_node, setup, timeout_min"),
        (True, {}, r"needs launcher\.options\.timeout_min"),
        (True, {"timeout_min": "soon"}, r'launcher\.options: Parameter "timeout_min" expected type'),
        (False, {"timeout_min": 5, "partion": "x"}, r"options\.partion.*Did you mean .*partition"),
        (False, {"timeout_min": 5, "nodes": 2}, r"options\.nodes: launcher=slurm has no such option"),
    ],
)
def test_a_wrong_option_is_named_before_anything_starts(
    local: bool, options: dict[str, Any], said: str, tmp_path: Path, queue: Path
) -> None:
    with pytest.raises(LabError, match=said):
        SubmititPool(1, folder=tmp_path / "s", local=local, options=options)
    assert not (tmp_path / "s" / "ab12").exists()


def test_options_that_are_null_count_as_not_given(tmp_path: Path) -> None:
    SubmititPool(1, folder=tmp_path, local=True, options=LOCAL | {"partition": None, "setup": None})


def test_without_slurm_its_launcher_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="there is no srun here"):
        SubmititPool(1, folder=tmp_path, local=False, options=LOCAL)


def test_without_submitit_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(LabError, match=r'pip install "dpo_lab\[cluster\]"'):
        SubmititPool(1, folder=tmp_path, local=True, options=LOCAL)


def test_submitit_does_not_write_to_the_terminal(pool: SubmititPool, capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("submitit").warning("accounting is away")
    assert capsys.readouterr() == ("", "")
