"""--multirun with real trials: what is left behind, what a second call repeats, and what it survives."""

import csv
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import yaml
from runs import Lab, same_result, status, steps_done, until, write_pairs
from sweeping import QUICK, call, start, trials

from dpo_lab.runtime.files import file_lock, is_locked, read_json, write_json
from dpo_lab.training.folder import RunFolder


def ended_at(folders: dict[tuple[Any, ...], RunFolder]) -> dict[tuple[Any, ...], int]:
    return {axes: (folder.path / "status.json").stat().st_mtime_ns for axes, folder in folders.items()}


def console(folder: RunFolder) -> str:
    return (folder.path / "console.log").read_text(encoding="utf-8")


def processes_of(lab: Lab) -> list[int]:
    """Processes that have a file of the lab open."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                targets = [os.readlink(fd) for fd in (entry / "fd").iterdir()]
            except OSError:
                continue
            if any(str(lab.output) in target for target in targets):
                found.append(int(entry.name))
    return found


def test_a_sweep_leaves_an_answer_and_goes_on_with_a_larger_grid(lab: Lab) -> None:
    text = call(lab, "optim.lr=1e-2,5e-3", "seed=0,1", first=None)
    folder = lab.output / "sweeps" / "s"
    first = trials(lab)
    assert first.keys() == {(1e-2, 0), (1e-2, 1), (5e-3, 0), (5e-3, 1)}
    assert text.count("is done: accuracy") == 4
    assert sorted(read_json(f.path / "trial.json")["number"] for f in first.values()) == [0, 1, 2, 3]
    for (lr, seed), trial in first.items():  # each is the run that it would be alone
        same_result(trial, lab.train(*QUICK[2:], f"optim.lr={lr}", f"seed={seed}"))
    assert len({f.path.name for f in first.values()} & {p.name for p in (lab.output / "runs").iterdir()}) == 4

    book = yaml.safe_load((folder / "sweep.yaml").read_text(encoding="utf-8"))
    assert book["axes"] == {"optim.lr": [1e-2, 5e-3], "seed": [0, 1]}
    assert book["fixed"]["optim.max_steps"] == 4
    assert "optim.lr" not in book["fixed"]
    assert {p.name for p in folder.iterdir()} >= {"report.html", "report.md", "leaderboard.csv", "winner"}
    with open(folder / "leaderboard.csv", encoding="utf-8", newline="") as file:
        assert len([*csv.DictReader(file)]) == 4
    assert (folder / "winner").resolve().parent.parent == folder
    assert (folder / "winner" / "adapter_config.json").is_file()

    before = ended_at(first)
    text = call(lab, "optim.lr=1e-2,5e-3", "seed=0,1")
    assert "4 done" in text
    assert ended_at(trials(lab)) == before

    text = call(lab, "optim.lr=1e-2,5e-3,2e-3", "seed=0,1")
    assert "4 done, 2 new" in " ".join(text.split())
    larger = trials(lab)
    assert larger.keys() == before.keys() | {(2e-3, 0), (2e-3, 1)}
    after = ended_at(larger)
    assert {axes: after[axes] for axes in before} == before
    book = yaml.safe_load((folder / "sweep.yaml").read_text(encoding="utf-8"))
    assert book["axes"]["optim.lr"] == [1e-2, 5e-3, 2e-3]
    assert len(book["calls"]) == 3

    child = start(lab, "optim.lr=1e-2,5e-3", "optim.grad_clip=0.5")
    assert child.wait() == 2
    assert "other fixed settings: optim.grad_clip is 1 there and 0.5 here" in " ".join(child.text.split())
    assert trials(lab).keys() == larger.keys()


def test_a_sweep_killed_again_and_again_ends_as_if_it_had_not_been(lab: Lab) -> None:
    words = ("optim.lr=1e-2,5e-3", "lora.r=4,8", "launcher=processes", "launcher.n=2")
    rng = random.Random(1)
    finished: dict[tuple[Any, ...], int] = {}
    for _ in range(10):
        child = start(lab, *words)
        until(lambda: trials(lab), child)
        time.sleep(rng.uniform(0.0, 2.0))
        if child.alive:
            child.kill(signal.SIGKILL)
            child.wait()
        until(lambda: not processes_of(lab))  # nothing survives it
        now = ended_at({axes: folder for axes, folder in trials(lab).items() if folder.done})
        assert {axes: now[axes] for axes in finished} == finished, "a finished trial was touched"
        finished = now
    call(lab, *words)
    found = trials(lab)
    assert len(found) == 4
    for (lr, r), trial in found.items():
        same_result(trial, lab.train(*QUICK[2:], f"optim.lr={lr}", f"lora.r={r}"))
    ends = ended_at(found)
    assert {axes: ends[axes] for axes in finished} == finished


def test_parallel_trials_compute_the_reference_once_also_after_a_kill(lab: Lab) -> None:
    """The one that computes it is killed in the middle; the one that waits for it goes on, and the next one has nothing to do."""
    write_pairs(lab.data, 1500)
    words = ("data.eval_fraction=0.9", "trainer.eval_every=0", "trainer.kl_pairs=0", "doctor.enabled=false")
    words += ("launcher=processes", "launcher.n=2")
    child = start(lab, *words, "seed=0,1")

    def waiting() -> list[RunFolder]:
        there = [f for f in trials(lab).values() if (f.path / "console.log").exists()]
        return [f for f in there if "waiting for another run" in console(f)]

    until(waiting, child)
    (computes,) = [f for f in trials(lab).values() if f.path != waiting()[0].path]
    assert "reference: " not in console(computes), "it was too quick"
    os.kill(int((computes.path / "run.lock").read_text()), signal.SIGKILL)
    assert child.wait() == 1, child.text
    assert status(computes)["kind"] == "killed"
    assert waiting()[0].done
    call(lab, *words, "seed=0,1,2")
    found = trials(lab)
    assert all(f.done for f in found.values())
    said = {seed: console(f) for (seed,), f in found.items()}
    assert sum("pairs in" in text for text in said.values()) == 1
    assert "are in the cache" in said[2]
    assert len([*(lab.cache / "reference").glob("*.sqlite")]) == 1


def test_a_killed_trial_takes_no_other_and_is_tried_again(lab: Lab) -> None:
    words = ("seed=0,1", "optim.max_steps=40")
    child = start(lab, *words)
    until(lambda: any(steps_done(f) > 2 for f in trials(lab).values()), child)
    (pid,) = [int((f.path / "run.lock").read_text()) for f in trials(lab).values() if is_locked(f.path / "run.lock")]
    os.kill(pid, signal.SIGKILL)
    assert child.wait() == 1, child.text
    states = {axes: status(folder) for axes, folder in trials(lab).items()}
    assert sorted(state["status"] for state in states.values()) == ["done", "failed"]
    (killed,) = [state for state in states.values() if state["status"] == "failed"]
    assert killed["kind"] == "killed"
    assert "signal 9" in killed["reason"]
    assert "killed by the system (signal 9)" in child.text
    text = call(lab, *words, "sweep.retry=oom")
    assert "failed, runs again" in text
    assert all(status(folder)["status"] == "done" for folder in trials(lab).values())


def test_ctrl_c_saves_what_runs_and_starts_no_more(lab: Lab) -> None:
    words = ("seed=0,1", "optim.max_steps=60", "trainer.checkpoint_every=50")
    child = start(lab, *words)
    until(lambda: any(steps_done(f) > 2 for f in trials(lab).values()), child)
    child.kill(signal.SIGINT)
    assert child.wait() == 130, child.text
    (interrupted,) = trials(lab).values()
    assert status(interrupted)["status"] == "stopped"
    reached = steps_done(interrupted)
    assert 2 < reached < 60
    assert "The same command goes on from here" in child.text
    text = call(lab, *words)
    assert f"interrupted, goes on from step {reached}" in text
    assert len(trials(lab)) == 2


def test_failures_end_alone_or_end_the_sweep(lab: Lab) -> None:
    words = ("optim.lr=50,1e-2", "trainer.collapse_nats=3", "optim.max_steps=8", "optim.grad_clip=null")
    text = call(lab, *words, "sweep.on_failure=stop", code=1)
    assert trials(lab).keys() == {(50.0,)}
    assert "sweep.on_failure=stop" in text
    text = call(lab, *words, code=1)
    states = {axes: status(folder) for axes, folder in trials(lab).items()}
    assert {axes: state["status"] for axes, state in states.items()} == {(50.0,): "failed", (1e-2,): "done"}
    assert states[50.0,]["kind"] == "guard"
    assert "failed, left as it is" in text, "what a guard stopped would be stopped again"
    assert " ".join(states[50.0,]["reason"].split()[:3]) in text


def test_a_second_sweep_in_the_folder_is_refused(lab: Lab) -> None:
    folder = lab.output / "sweeps" / "s"
    with file_lock(folder / "sweep.lock", wait=False) as alone:
        assert alone
        assert "Another process is running the sweep" in call(lab, "seed=0,1", code=1)
    assert not trials(lab)
    (folder / "notes.txt").write_text("mine")
    assert "is not a sweep" in call(lab, "seed=0,1", code=2)
    assert sorted(p.name for p in folder.iterdir()) == ["notes.txt", "sweep.lock"]


def test_a_run_that_another_process_holds_is_waited_for(lab: Lab) -> None:
    """A trial of a cluster, say, that outlived the sweep which started it."""
    words = ("seed=0,1",)
    call(lab, *words)
    (folder,) = [f for axes, f in trials(lab).items() if axes == (0,)]
    former = status(folder)
    write_json(folder.path / "status.json", {"status": "running"})
    with file_lock(folder.path / "run.lock", wait=False):
        child = start(lab, *words)
        until(lambda: child.log.exists() and "running in another process: waited for" in child.text, child)
        time.sleep(1.5)
        assert child.alive
        write_json(folder.path / "status.json", former)
    assert child.wait() == 0
    assert "1 done" in child.text
