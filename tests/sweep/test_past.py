"""What former calls of a sweep have left for later ones: what pruning compares with, and what a search takes up."""

from pathlib import Path

import pytest
from folders import write_trial

from dpo_lab.config import cli
from dpo_lab.config.sweep_schema import Sweeper
from dpo_lab.runtime.files import file_lock, write_json, write_jsonl
from dpo_lab.sweep.past import Past
from dpo_lab.sweep.plan import Plan
from dpo_lab.sweep.points import Points

METRIC = "val/rewards/accuracies"


def test_trials_that_are_not_asked_for_show_their_histories(tmp_path: Path) -> None:
    """Fails where those of the call count twice, or those without a number or a history are in the way."""
    mine = write_trial(tmp_path, axes={"seed": 0}, margins=[1.0])
    other = write_trial(tmp_path, axes={"seed": 1}, margins=[1.0, -1.0], state="pruned")
    write_trial(tmp_path, axes={"seed": 2}, state="failed")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "trial.json").write_text('{"number"')
    asked = {mine.name}
    found = {history.id: history for history in Past(tmp_path, asked).histories(METRIC)}
    assert len(found) == 2
    assert (found[other.name].state, found[other.name].number) == ("pruned", 1)
    assert found[other.name].values == {10: 0.5}
    past = Past(tmp_path, asked)
    asked.add(other.name)  # a search came to it
    assert other.name not in {history.id for history in past.histories(METRIC)}


def test_a_job_of_a_former_call_that_still_runs_is_followed_to_its_end(tmp_path: Path) -> None:
    """Fails where histories are only read at the start, or where the last evaluation before its end is lost."""
    folder = write_trial(tmp_path, axes={"seed": 0}, margins=[1.0], state="interrupted")
    rows = [{"step": step, METRIC: step / 100} for step in (10, 20, 30)]
    write_jsonl(folder / "metrics.jsonl", rows[:1])
    with file_lock(folder / "run.lock", wait=False):
        past = Past(tmp_path, ())
        write_jsonl(folder / "metrics.jsonl", rows[:2])
        (history,) = past.histories(METRIC)
        assert (history.state, history.values) == ("running", {10: 0.1, 20: 0.2})
        write_jsonl(folder / "metrics.jsonl", rows)
    (history,) = past.histories(METRIC)
    assert (history.state, history.values) == ("interrupted", {10: 0.1, 20: 0.2, 30: 0.3})


def points(*words: str) -> Points:
    return Points(cli.read_command(["--multirun", *words]))


def leave(folder: Path, *words: str, number: int, **point: str) -> None:
    """The folder of a trial that a call with these words has started."""
    params = {key.replace("__", "."): text for key, text in point.items()}
    asked = points(*words).ask(params)
    content = {"id": asked.id, "number": number, "axes": asked.axes, "params": params}
    write_json(folder / asked.id / "trial.json", content)


def test_a_search_takes_up_the_trials_that_it_would_train_and_no_others(tmp_path: Path) -> None:
    """Three calls in one folder: with loss=dpo, over the losses, with loss=ipo. Fails where the points of the first are
    taken up by the third, which would train them anew, and where those of the second are not."""
    pytest.importorskip("optuna")
    axes = ("lora.r=8,16", "optim.lr=1e-4,5e-5")
    leave(tmp_path, *axes, "loss=dpo", number=0, lora__r="8", optim__lr="1e-4")
    leave(tmp_path, *axes, "loss=dpo,ipo", number=1, lora__r="8", optim__lr="5e-5", loss="ipo")
    leave(tmp_path, *axes, "loss=dpo,ipo", number=2, lora__r="8", optim__lr="5e-5", loss="dpo")
    leave(tmp_path, *axes, "loss=ipo", number=3, optim__lr="1e-4", lora__r="16")
    sweeper = Sweeper(name="optuna", trials=4, points=3, seed=0, objective=["accuracy"])
    for loss, found in {
        "ipo": [{"lora.r": "8", "optim.lr": "5e-5"}, {"lora.r": "16", "optim.lr": "1e-4"}],
        "dpo": [{"lora.r": "8", "optim.lr": "1e-4"}, {"lora.r": "8", "optim.lr": "5e-5"}],
    }.items():
        plan = Plan(sweeper, points(*axes, f"loss={loss}"), tmp_path)
        assert plan.points == found
        assert [[*point] for point in plan.points] == [["lora.r", "optim.lr"]] * 2, "columns of the screen"
        assert plan.total == 4


def test_a_trial_whose_option_is_no_longer_there_is_left_out(tmp_path: Path) -> None:
    """Fails where a folder of old ends the command."""
    pytest.importorskip("optuna")
    asked = points("loss=dpo,ipo")
    write_json(tmp_path / "0123456789ab" / "trial.json", {"number": 0, "axes": {}, "params": {"loss": "mine"}})
    assert Plan(Sweeper(name="optuna", trials=4, points=3, seed=0, objective=["loss"]), asked, tmp_path).points == []
