"""The master alone: trials are but folders, and a launcher of the tests refuses them, ends them, or has them end oddly."""

import logging
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from folders import write_book, write_trial

from dpo_lab.config import cli
from dpo_lab.runtime.errors import DiskFull
from dpo_lab.runtime.files import file_lock, read_json, write_json, write_jsonl
from dpo_lab.sweep import launch, master
from dpo_lab.sweep.master import Master
from dpo_lab.sweep.multirun import _place
from dpo_lab.sweep.pool import Ended, Order, Refused

FULL = "The job of trial x could not be submitted: job submit limit."
PRUNED = ("prune=asha", "prune.first_step=10", "optim.max_steps=20", "trainer.eval_every=10")


class Launcher:
    """Trials that are but their folders, which end one by one, the oldest first.

    Args:
        n: trials at a time that the sweep may ask for.
        room: trials at a time that there is room for; more are refused.
        end: of a trial whose time has come: writes what that would write, and returns its exit code.
    """

    def __init__(self, n: int = 1, *, room: int = 1000, end: Callable[[Path], int] | None = None) -> None:
        self.n, self.room, self.end = n, room, end or done
        self.alive: dict[str, tuple[Path, int]] = {}  # trial -> its folder, and the look at which it began
        self.started: list[str] = []
        self.told: list[tuple[str, int]] = []
        self.refusals = self.looks = 0
        self.on_start: Callable[[Order], object] = lambda order: None
        self.on_look: Callable[[], object] = lambda: None

    def start(self, order: Order) -> None:
        if len(self.alive) >= self.room:
            self.refusals += 1
            raise Refused(FULL)
        self.started.append(order.trial)
        self.alive[order.trial] = order.folder, self.looks
        self.on_start(order)

    def ended(self) -> list[Ended]:
        self.looks += 1
        assert self.looks < 2000, "the sweep does not end"
        self.on_look()
        for trial, (folder, begun) in self.alive.items():
            if self.looks - begun > 3:
                del self.alive[trial]
                return [Ended(trial, self.end(folder))]
        return []

    def signal(self, trial: str, number: int) -> None:
        self.told.append((trial, number))

    def close(self) -> None:
        assert not self.alive, "what runs would be killed"


def done(folder: Path) -> int:
    (folder / "final").mkdir()
    write_json(folder / "status.json", {"status": "done", "metrics": {}})
    return 0


def says(status: str, code: int) -> Callable[[Path], int]:
    """A trial that ends with this code, and this in its status.json."""

    def end(folder: Path) -> int:
        write_json(folder / "status.json", {"status": status, "reason": ""})
        return code

    return end


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Master]:
    """The master of a command line that has this launcher; the sweep's folder is s."""
    monkeypatch.setattr(master, "TICK", 0.0)
    monkeypatch.setattr(master, "BETWEEN", 0.0)
    monkeypatch.setattr(Master, "_report", lambda self: None)

    def make(pool: Launcher, *words: str) -> Master:
        own = (f"sweep.dir={tmp_path / 's'}", f"cache_dir={tmp_path / 'cache'}")
        command = cli.read_command(["--multirun", *own, *words])
        assert command.cfg is not None
        monkeypatch.setattr(launch, "open_pool", lambda launcher, folder: pool)
        folder, name, config = _place(command, command.cfg)
        return Master(command, config, folder, name)

    return make


def states(made: Master) -> list[str]:
    return [live.state.name for live in made.trials.values()]


def test_a_trial_that_is_refused_waits_until_another_has_ended(
    sweep: Callable[..., Master], caplog: pytest.LogCaptureFixture
) -> None:
    """Fails where a refusal ends the sweep or loses the trial, or where it is repeated at each look or said each time."""
    pool = Launcher(1000, room=1)
    made = sweep(pool, "seed=0,1,2")
    with caplog.at_level(logging.WARNING):
        assert made.go() == 0
    assert states(made) == ["done"] * 3
    assert pool.started == [*made.trials], "not in their order"
    assert pool.refusals == 2
    assert [read_json(live.folder / "trial.json")["number"] for live in made.trials.values()] == [0, 1, 2]
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"{FULL} It is tried again every 30 s")


def test_where_nothing_runs_and_nothing_was_ever_taken_the_sweep_ends_at_once(
    sweep: Callable[..., Master], capsys: pytest.CaptureFixture[str]
) -> None:
    """A partition that does not exist, say. Fails where the sweep waits, or does not say why it ends."""
    pool = Launcher(room=0)
    made = sweep(pool, "seed=0,1")
    assert made.go() == 1
    assert pool.refusals == 1
    assert states(made) == ["new", "new"]
    said = " ".join(capsys.readouterr().out.split())
    assert FULL in said
    assert "The same command goes on from here" in said


def test_the_queue_may_be_full_of_the_jobs_of_a_former_call(sweep: Callable[..., Master]) -> None:
    """Fails where they do not count as running: then the first refusal ends the sweep."""
    pool = Launcher(1000, room=0)
    made = sweep(pool, "seed=0,1")
    former = made.folder / made.points.ask({"seed": "0"}).id
    write_book(made.folder, {"seed": [0, 1]}, fixed={})
    write_json(former / "trial.json", {"id": former.name, "number": 0, "axes": {"seed": 0}, "params": {"seed": "0"}})
    with ExitStack() as stack:
        stack.enter_context(file_lock(former / "run.lock", wait=False))

        def job_ends() -> None:
            if pool.looks == 20:
                assert pool.refusals == 1
                done(former)
                stack.close()
                pool.room = 1

        pool.on_look = job_ends
        assert made.go() == 0
    assert states(made) == ["done", "done"]


def test_any_other_error_of_a_launcher_lets_what_runs_end(sweep: Callable[..., Master]) -> None:
    """Fails where it leaves the loop: `close` then kills the first trial."""
    pool = Launcher(3)
    made = sweep(pool, "seed=0,1,2")

    def fill(order: Order) -> None:
        if len(pool.started) == 2:
            del pool.alive[order.trial]
            raise DiskFull("The disk is full.")

    pool.on_start = fill
    assert made.go() == 1
    assert states(made) == ["done", "new", "new"]
    assert made.halt == "The disk is full."


def test_a_full_disk_that_takes_no_verdict_of_the_pruner_lets_what_runs_end(
    sweep: Callable[..., Master], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where the error leaves the loop, and where trials are started on the full disk."""

    class Strict:
        def __init__(self, *_: object, **__: object) -> None: ...

        def look(self, histories: list[master.History]) -> dict[str, str]:
            return {history.id: "too bad" for history in histories if history.state == "running"}

    def full(path: Path, content: object) -> None:
        raise DiskFull("The disk is full: control.json could not be written.")

    monkeypatch.setattr(master, "Pruner", Strict)
    monkeypatch.setattr(master, "write_json", full)
    pool = Launcher(2)
    made = sweep(pool, "seed=0,1,2", *PRUNED)
    assert made.go() == 1
    assert states(made) == ["done", "done", "new"]
    assert "The disk is full" in made.halt


def test_a_trial_that_is_being_started_when_a_signal_comes_hears_of_it(sweep: Callable[..., Master]) -> None:
    """sbatch takes seconds. Fails where only those are told that ran before: the sweep would wait for this one's end."""
    pool = Launcher(2, end=says("stopped", 143))
    made = sweep(pool, "seed=0,1")
    pool.on_start = lambda order: os.kill(os.getpid(), signal.SIGTERM)
    assert made.go() == 128 + signal.SIGTERM
    assert pool.told == [(pool.started[0], signal.SIGTERM)]
    assert states(made) == ["interrupted", "new"]


@pytest.mark.parametrize(
    ("status", "code", "state"),
    [("running", 0, "failed"), ("stopped", 0, "interrupted"), ("pruned", 0, "pruned"), ("running", 143, "interrupted")],
)
def test_a_trial_that_leaves_with_code_0_has_failed_unless_it_was_told_to(
    sweep: Callable[..., Master], status: str, code: int, state: str
) -> None:
    """A user's loss that calls sys.exit(0), say. Fails where the code alone decides."""
    made = sweep(Launcher(end=says(status, code)), "seed=0,1")
    assert made.go() == (state != "pruned")
    assert states(made) == [state, state]
    if state == "failed":
        (reason, _) = [live.state.reason for live in made.trials.values()]
        assert reason.startswith("it ended with exit code 0")


def test_a_trial_that_leaves_with_code_0_can_end_the_sweep(sweep: Callable[..., Master]) -> None:
    """Fails where it counts as interrupted, which on_failure=stop lets pass."""
    made = sweep(Launcher(end=says("running", 0)), "seed=0,1", "sweep.on_failure=stop")
    assert made.go() == 1
    assert states(made) == ["failed", "new"]


def test_pruning_compares_with_what_former_calls_have_recorded(sweep: Callable[..., Master]) -> None:
    """Fails where only the trials of the call at hand count: `startup` is not reached by the one new trial."""
    pytest.importorskip("optuna")
    seen: list[bool] = []

    def poor(order: Order) -> None:
        write_jsonl(order.folder / "metrics.jsonl", [{"step": 10, "val/rewards/accuracies": 0.1}])

    def end(folder: Path) -> int:
        seen.append((folder / "control.json").exists())
        return says("pruned", 0)(folder) if seen[-1] else done(folder)

    pool = Launcher(end=end)
    pool.on_start = poor
    made = sweep(pool, "seed=7", *PRUNED, "prune.startup=4")
    write_book(made.folder, {"seed": [0, 1, 2]}, fixed={})
    for seed in range(3):
        write_trial(made.folder, axes={"seed": seed}, margins=[1.0, 2.0])  # its accuracy is 0.5 at step 10
    assert made.go() == 0
    assert seen == [True]
    (live,) = made.trials.values()
    why = read_json(live.folder / "control.json")["reason"]
    assert "of 4 trials there" in why


def evaluated(steps: int, *, every: int) -> Callable[[Order], None]:
    """What a trial does first: it says how many steps its epochs are."""

    def begin(order: Order) -> None:
        facts = {"steps": steps, "config": {"trainer": {"eval_every": every}}}
        write_json(order.folder / "facts.json", facts)

    return begin


@pytest.mark.parametrize(("steps", "every", "said"), [(50, 50, 1), (51, 50, 0), (20, 10, 0), (20, 15, 0)])
def test_where_epochs_leave_no_evaluation_to_prune_by_the_sweep_says_so_once(
    sweep: Callable[..., Master], caplog: pytest.LogCaptureFixture, steps: int, every: int, said: int
) -> None:
    """Fails where it is silent, where each trial says it again, and where the last step counts as one to judge at."""
    pytest.importorskip("optuna")
    pool = Launcher(2)
    pool.on_start = evaluated(steps, every=every)
    with caplog.at_level(logging.WARNING):
        assert sweep(pool, "seed=0,1,2", "prune=asha").go() == 0
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == said
    assert all(text.startswith(f"prune=asha ends no trial of {steps} steps") for text in texts)


def test_a_trial_that_another_process_took_in_the_meantime_is_waited_for(
    sweep: Callable[..., Master], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where the death of a second process is written into the run of the first, which then shows as failed."""
    pool = Launcher(end=says("running", 1))
    made = sweep(pool, "seed=0,1")
    seen: list[Path] = []

    def taken(folder: Path, ended: Ended) -> bool:
        seen.append(folder)
        done(folder)  # what the other process does before the next look
        return False

    monkeypatch.setattr(master, "mark_dead", taken)
    assert made.go() == 0
    assert states(made) == ["done", "done"]
    assert seen == [live.folder for live in made.trials.values()]
