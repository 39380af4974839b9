"""Calls of one sweep that sweep over different keys: no trial loses an axis, and none passes for a seed of another setting.

The sweep is real but for its trials, which are over at once: their folders say what they were asked, and scores by that.
"""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from folders import write_trial
from omegaconf import OmegaConf

from dpo_lab.config import cli
from dpo_lab.config.resolvers import plain
from dpo_lab.config.sources import Sources, composed
from dpo_lab.runtime.files import read_json, write_json
from dpo_lab.sweep import launch, master
from dpo_lab.sweep.advice import advise
from dpo_lab.sweep.leaderboard import rank
from dpo_lab.sweep.master import Master
from dpo_lab.sweep.multirun import _place
from dpo_lab.sweep.pool import Ended, Order
from dpo_lab.sweep.results import load
from dpo_lab.sweep.statistics import answer

PAIRS = 40
Call = Callable[..., Path]


class Instant:
    """A launcher whose trials are done when they are started.

    Args:
        right: of a configuration, how many of the pairs come out right.
    """

    n = 8

    def __init__(self, right: Callable[[dict[str, Any]], int], scratch: Path) -> None:
        self.right, self.scratch, self.over = right, scratch, list[str]()

    def start(self, order: Order) -> None:
        words = tuple(word for word in order.words if not word.startswith(("sweep.", "hydra.")))
        cfg = composed(Sources(), words)
        tree = plain(cfg)
        margins = [1.0 + 0.01 * i if i < self.right(tree) else -1.0 for i in range(PAIRS)]
        made = write_trial(self.scratch, axes={}, margins=margins, name=order.trial, config=tree)
        shutil.copytree(made, order.folder, dirs_exist_ok=True, ignore=lambda *_: ["trial.json"])
        choices = OmegaConf.to_container(OmegaConf.select(cfg, "hydra.runtime.choices"))
        notes = {"hydra": {"hydra": {"runtime": {"choices": choices}}}, "config": tree, "overrides": [*words]}
        for name, content in notes.items():
            (order.folder / ".hydra").mkdir(exist_ok=True)
            (order.folder / ".hydra" / f"{name}.yaml").write_text(yaml.safe_dump(content))
        self.over.append(order.trial)

    def ended(self) -> list[Ended]:
        over, self.over = self.over, []
        return [Ended(trial, 0) for trial in over]

    def signal(self, trial: str, number: int) -> None:
        raise AssertionError("nothing runs")

    def close(self) -> None:
        pass


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """One call of the sweep s with these words; returns its folder."""
    monkeypatch.setattr(master, "TICK", 0.0)
    monkeypatch.setattr(Master, "_report", lambda self: None)

    def run(*words: str, right: Callable[[dict[str, Any]], int] = lambda tree: 20) -> Path:
        monkeypatch.setattr(launch, "open_pool", lambda launcher, folder: Instant(right, tmp_path / "scratch"))
        folder = tmp_path / "s"
        own = [] if any(word.startswith("sweep.dir=") for word in words) else [f"sweep.dir={folder}"]
        own += [word for word in [f"cache_dir={tmp_path / 'cache'}"] if word not in words]
        command = cli.read_command(["--multirun", *own, *words])
        assert command.cfg is not None
        place, name, config = _place(command, command.cfg)
        assert place == folder
        assert Master(command, config, folder, name).go() == 0
        return folder

    return run


def settings(folder: Path) -> list[dict[str, Any]]:
    """Of each row of the leaderboard the axes."""
    sweep = load(folder)
    return [row.axes for row in rank(sweep, answer(sweep))]


def recorded(folder: Path) -> list[dict[str, Any]]:
    """Every trial.json, in the order of the starts."""
    return sorted((read_json(file) for file in folder.glob("*/trial.json")), key=lambda known: known["number"])


def test_a_call_that_sweeps_less_takes_no_axis_from_done_trials(call: Call) -> None:
    """Fails where trial.json gets the axes of the last call alone."""
    folder = call("optim.lr=1e-4,5e-5", "lora.r=8,16")
    before = recorded(folder)
    call("optim.lr=1e-4,5e-5", "lora.r=16")
    assert [(known["axes"], known["params"]) for known in recorded(folder)] == [
        (known["axes"], known["params"]) for known in before
    ]
    assert len(settings(folder)) == 4


def test_a_value_held_fixed_is_one_more_of_its_axis(call: Call) -> None:
    """Fails where rank 16 and rank 32 at one learning rate count as two seeds of one setting."""
    call("optim.lr=1e-4,5e-5", "lora.r=8,16")
    folder = call("optim.lr=1e-4,5e-5", "lora.r=32")
    found = settings(folder)
    expected = [{"optim.lr": lr, "lora.r": r} for r in (8, 16, 32) for lr in (1e-4, 5e-5)]
    assert sorted(found, key=str) == sorted(expected, key=str)
    assert [known["axes"]["lora.r"] for known in recorded(folder)[4:]] == [32, 32]
    assert yaml.safe_load((folder / "sweep.yaml").read_text())["axes"]["lora.r"] == [8, 16, 32]


def test_the_commands_that_the_report_advises_extend_the_leaderboard_and_merge_nothing(call: Call) -> None:
    """Fails where what they hold fixed is no axis: then all their trials are the seeds of `the only setting`."""

    def right(tree: dict[str, Any]) -> int:
        """The higher the rate the better; at the highest, and at beta 0.3 and half of it, about the same."""
        return {5e-5: 12, 1e-4: 30}.get(tree["optim"]["lr"], 31) + (2 if tree["loss"]["beta"] == 0.3 else 0)

    folder = call("optim.lr=5e-5,1e-4,2e-4", "loss.beta=0.1,0.3", right=right)
    sweep = load(folder)
    commands = [command for one in advise(sweep, answer(sweep)) for command in one.commands]
    words = [shlex.split(command)[4:] for command in commands]
    assert any("optim.lr=4e-4" in line for line in words)
    assert any(word.startswith("seed=1,") for line in words for word in line)
    for line in words:
        call(*line, right=right)
    found = load(folder)
    assert len(found.trials) > len(sweep.trials) + 2
    assert all(trial.axes.keys() == {"optim.lr", "loss.beta", "seed"} for trial in found.trials)
    for trial in found.trials:
        config = trial.facts["config"]
        assert trial.axes == {
            "optim.lr": config["optim"]["lr"],
            "loss.beta": config["loss"]["beta"],
            "seed": config["seed"],
        }
    rows = rank(found, answer(found))
    assert {row.axes["optim.lr"] for row in rows} >= {5e-5, 1e-4, 2e-4, 4e-4}
    for row in rows:
        assert len({trial.axes["seed"] for trial in row.trials}) == len(row.trials)
    assert max(len(row.trials) for row in rows) == 3


def test_an_axis_that_came_later_has_the_value_that_earlier_trials_held_fixed(call: Call) -> None:
    """Fails where rows of the first call have no beta: its effect would be read off settings that differ in more."""
    call("optim.lr=1e-4,5e-5")
    folder = call("optim.lr=1e-4,5e-5", "loss.beta=0.3,0.5")
    assert all(axes.keys() == {"optim.lr", "loss.beta"} for axes in settings(folder))
    sweep = load(folder)
    assert sweep.axes == {"optim.lr": [5e-5, 1e-4], "loss.beta": [0.1, 0.3, 0.5]}
    effects = {effect.value: effect for effect in answer(sweep).effects if effect.axis == "loss.beta"}
    assert [effects[beta].settings for beta in (0.1, 0.3, 0.5)] == [2, 2, 2]


def test_a_group_is_an_axis_like_any_other(call: Call) -> None:
    """A resolved configuration does not name its options: fails where the first call's loss is not known."""
    call("optim.lr=1e-4,5e-5")
    folder = call("optim.lr=1e-4", "loss=hinge,ipo")
    assert sorted((axes["loss"], axes["optim.lr"]) for axes in settings(folder)) == [
        ("dpo", 5e-5),
        ("dpo", 1e-4),
        ("hinge", 1e-4),
        ("ipo", 1e-4),
    ]
    call("optim.lr=2e-4", "loss=hinge")
    assert recorded(folder)[-1]["axes"] == {"optim.lr": 2e-4, "loss": "hinge"}


def test_what_followed_an_axis_and_is_then_set_tells_settings_apart(call: Call) -> None:
    """lora.alpha is twice the rank, so it was neither fixed nor swept. Fails where both of rank 8 are seeds of one setting."""
    call("lora.r=8,16")
    folder = call("lora.r=8", "lora.alpha=64")
    assert sorted((axes["lora.r"], axes["lora.alpha"]) for axes in settings(folder)) == [(8, 16), (8, 64), (16, 32)]


def test_what_changes_no_result_makes_no_axis(call: Call) -> None:
    """Seeds that were added with smaller micro-batches, after running out of memory: fails where that splits the setting."""
    call("optim.lr=1e-4,5e-5", "seed=0,1")
    folder = call("optim.lr=1e-4,5e-5", "seed=2", "trainer.microbatch_tokens=512", "trainer.log_every=2")
    sweep = load(folder)
    assert [len(row.trials) for row in rank(sweep, answer(sweep))] == [3, 3]


def test_axes_that_an_older_trial_json_has_lost_are_read_from_the_run(call: Call) -> None:
    folder = call("optim.lr=1e-4,5e-5", "lora.r=8,16", "loss=dpo,ipo")
    expected = {trial.id: trial.axes for trial in load(folder).trials}
    for file in folder.glob("*/trial.json"):
        known = read_json(file)
        write_json(file, known | {"axes": {"optim.lr": known["axes"]["optim.lr"]}})
    assert {trial.id: trial.axes for trial in load(folder).trials} == expected
    for file in folder.glob("*/facts.json"):  # a run that ended before it wrote any
        file.unlink()
    assert {trial.id: trial.axes for trial in load(folder).trials} == expected


def test_a_random_search_counts_what_it_has_tried_when_an_axis_grows(call: Call) -> None:
    """Fails where the larger space is drawn from anew, on top of what was tried: then there are more trials than asked for."""
    words = ("sweeper=random", "seed=0")
    few, many = "loss.beta=0.1,0.2,0.3,0.4,0.5,0.6", "loss.beta=" + ",".join(f"{i / 20}" for i in range(1, 20))
    folder = call(*words, few, "sweeper.trials=5")
    first = {known["id"] for known in recorded(folder)}
    assert len(first) == 5
    call(*words, many, "sweeper.trials=8")
    second = {known["id"] for known in recorded(folder)}
    assert len(second) == 8
    assert first < second
    call(*words, many, "sweeper.trials=8")
    assert {known["id"] for known in recorded(folder)} == second
    call(
        *words, "loss.beta=0.7,0.8", "sweeper.trials=8"
    )  # none of those tried may lie in this space: no more are counted
    assert {known["axes"]["loss.beta"] for known in recorded(folder)} >= {0.7, 0.8}
