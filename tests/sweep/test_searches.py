"""Sweeps that search, prune, or run elsewhere, with real trials."""

import signal

import pytest
from runs import Lab, status, steps_done, until
from sweeping import call, start, trials

from dpo_lab.runtime.files import read_json

SPACE = "optim.lr=tag(log,interval(1e-4,1e-1))"


def test_a_random_search_goes_on_where_it_ended(lab: Lab) -> None:
    call(lab, "sweeper=random", "sweeper.trials=2", SPACE)
    first = {axes: (f.path / "status.json").stat().st_mtime_ns for axes, f in trials(lab).items()}
    assert len(first) == 2
    assert all(1e-4 <= lr <= 1e-1 for (lr,) in first)
    text = call(lab, "sweeper=random", "sweeper.trials=3", SPACE)
    assert "2 done, 1 new" in text
    after = {axes: (f.path / "status.json").stat().st_mtime_ns for axes, f in trials(lab).items()}
    assert len(after) == 3
    assert {axes: after[axes] for axes in first} == first


def test_a_search_by_optuna_is_rebuilt_from_the_run_folders(lab: Lab) -> None:
    pytest.importorskip("optuna")
    words = ("sweeper=optuna", "sweeper.trials=3", "sweeper.objective=[margin]", SPACE)
    child = start(lab, *words)
    until(lambda: any(f.done for f in trials(lab).values()), child)
    child.kill(signal.SIGKILL)
    child.wait()
    done = {axes for axes, f in trials(lab).items() if f.done}
    text = call(lab, *words)
    assert f"{len(done)} done" in text
    found = trials(lab)
    assert len(found) == 3
    assert done <= found.keys()
    assert all(f.done for f in found.values())
    assert sorted(read_json(f.path / "trial.json")["number"] for f in found.values()) == [0, 1, 2]


def test_pruning_saves_half_of_a_grid_with_bad_settings_and_keeps_the_winner(lab: Lab) -> None:
    """Rates so small that nothing is learnt, and one that learns."""
    pytest.importorskip("optuna")
    steps = 1500
    words = ("optim.lr=1e-2,1e-6,1e-7,1e-8", f"optim.max_steps={steps}", "trainer.eval_every=25", "trainer.kl_pairs=0")
    words += ("trainer.checkpoint_every=0", "optim.schedule=constant")
    prune = ("prune=asha", "prune.metric=val/logratios/margins", "prune.first_step=25", "prune.startup=2")
    text = call(lab, *words, *prune)
    found = trials(lab)
    states = {axes: status(folder) for axes, folder in found.items()}
    assert {axes: state["status"] for axes, state in states.items()} == {
        (1e-2,): "done",
        (1e-6,): "pruned",
        (1e-7,): "pruned",
        (1e-8,): "pruned",
    }
    assert sum(steps_done(folder) for folder in found.values()) <= len(found) * steps / 2
    assert all("held-out log-ratio margin" in states[lr,]["reason"] for lr in (1e-6, 1e-7, 1e-8))
    assert text.count("was pruned: control.json: held-out log-ratio margin") == 3
    winner = (lab.output / "sweeps" / "s" / "winner").resolve().parent
    assert winner.name == found[1e-2,].path.name


def test_submitit_runs_a_sweep_without_slurm(lab: Lab) -> None:
    pytest.importorskip("submitit")
    call(lab, "launcher=submitit_local", "launcher.n=2", "seed=0,1")
    assert all(f.done for f in trials(lab).values())
    assert len(trials(lab)) == 2


@pytest.mark.slow
def test_ray_runs_a_sweep_on_a_cluster_of_its_own(lab: Lab) -> None:
    pytest.importorskip("ray")
    call(lab, "launcher=ray", "launcher.n=2", "seed=0,1")
    assert all(f.done for f in trials(lab).values())
    assert len(trials(lab)) == 2
