"""What a sweep reads from run folders and command lines, piece by piece."""

import json
from pathlib import Path

import pytest

from dpo_lab.config import cli
from dpo_lab.runtime.errors import ConfigError
from dpo_lab.runtime.files import file_lock, write_json
from dpo_lab.sweep.book import Book, in_common
from dpo_lab.sweep.points import Points, trial_words
from dpo_lab.sweep.state import State, is_to_run, state_of
from dpo_lab.sweep.tail import Tail


def test_the_state_of_a_folder(tmp_path: Path) -> None:
    assert state_of(tmp_path / "absent").name == "new"
    assert state_of(tmp_path).name == "new"
    (tmp_path / "metrics.jsonl").write_text("")
    assert state_of(tmp_path).name == "interrupted"
    for status, state in (
        ("running", "interrupted"),
        ("stopped", "interrupted"),
        ("pruned", "pruned"),
        ("done", "interrupted"),
    ):
        write_json(tmp_path / "status.json", {"status": status, "reason": "why"})
        assert state_of(tmp_path).name == state, status
    (tmp_path / "final").mkdir()
    write_json(tmp_path / "status.json", {"status": "done", "metrics": {"val/loss": 0.5}})
    assert state_of(tmp_path).metrics == {"val/loss": 0.5}
    write_json(tmp_path / "status.json", {"status": "failed", "reason": "full", "kind": "disk"})
    assert (state_of(tmp_path).kind, state_of(tmp_path).reason) == ("disk", "full")
    with file_lock(tmp_path / "run.lock", wait=False):
        assert state_of(tmp_path).name == "running"
    (tmp_path / "status.json").write_text('{"status": "do')
    assert state_of(tmp_path).name == "interrupted"


@pytest.mark.parametrize(
    ("state", "retried"),
    [
        (State("new"), ("failed", "oom", "none")),
        (State("interrupted"), ("failed", "oom", "none")),
        (State("done"), ()),
        (State("pruned"), ()),
        (State("running"), ()),
        (State("failed", kind="error"), ("failed",)),
        (State("failed", kind="disk"), ("failed",)),
        (State("failed", kind="oom"), ("failed", "oom")),
        (State("failed", kind="killed"), ("failed", "oom")),
        (State("failed", kind="guard"), ()),
    ],
    ids=lambda value: f"{value.name} {value.kind}".strip() if isinstance(value, State) else "",
)
def test_what_a_sweep_starts_again(state: State, retried: tuple[str, ...]) -> None:
    assert tuple(retry for retry in ("failed", "oom", "none") if is_to_run(state, retry)) == retried


def test_metrics_are_read_as_they_grow_and_anew_where_the_file_was_replaced(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    tail = Tail(file)
    tail.look()
    assert tail.step == 0
    rows = [
        {"step": 0, "time": 10.0, "val/rewards/accuracies": 0.5},
        {"step": 1, "time": 12.0, "train/loss": 0.7},
        {"step": 2, "time": 15.0, "train/loss": "nan", "val/rewards/accuracies": 0.75},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    file.write_text(text[:-5])  # the last row is still being written
    tail.look()
    assert (tail.step, tail.last["train/loss"]) == (1, 0.7)
    assert tail.seconds_per_step() is None
    with open(file, "a") as handle:
        handle.write(text[-5:])
    tail.look()
    assert tail.step == 2
    assert tail.last["train/loss"] != tail.last["train/loss"]
    assert tail.history == {"val/rewards/accuracies": {2: 0.75}}
    assert tail.seconds_per_step() == 3.0
    other = tmp_path / "other"
    other.write_text(json.dumps(rows[1]) + "\n")
    other.replace(file)  # a resumed run drops rows beyond its checkpoint
    tail.look()
    assert (tail.step, tail.history) == (1, {})


def test_a_clock_that_was_set_back_gives_no_speed(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "metrics.jsonl")
    rows = [{"step": step, "time": when, "train/loss": 1.0} for step, when in ((1, 100.0), (2, 40.0))]
    tail.path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tail.look()
    assert tail.seconds_per_step() is None


def test_what_trials_have_in_common() -> None:
    trees = [{"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 1, "c": 3}, "d": [1]}, {"a": {"b": 1}, "d": [1]}]
    assert in_common(trees) == {"a.b": 1, "d": [1]}
    assert in_common([]) == {}


def test_a_book_takes_more_axes_and_refuses_other_settings(tmp_path: Path) -> None:
    book = Book.open(tmp_path / "s", "s")
    book.agree({"beta": 0.1, "steps": 4, "clip": None})
    book.meet({"lr": [1e-4, 5e-5]})
    book.calls_now("one")
    book.write()
    again = Book.open(tmp_path / "s", "s")
    assert again.axes == {"lr": [1e-4, 5e-5]}
    again.agree({"steps": 4, "clip": None})  # beta is an axis now
    again.meet({"lr": [5e-5, 2e-5], "beta": [0.1, 0.2]})
    again.write()
    third = Book.open(tmp_path / "s", "s")
    assert third.axes == {"lr": [1e-4, 5e-5, 2e-5], "beta": [0.1, 0.2]}
    assert third.fixed == {"steps": 4, "clip": None}
    with pytest.raises(ConfigError, match="steps is 4 there and 8 here"):
        third.agree({"steps": 8, "clip": None})
    (tmp_path / "s" / "sweep.yaml").write_text("name: [")
    with pytest.raises(ConfigError, match=r"sweep\.yaml cannot be read"):
        Book.open(tmp_path / "s", "s")


@pytest.mark.parametrize("litter", [".sweep.yaml.999999.tmp", ".submitit", "sweep.lock"])
def test_what_a_first_call_left_that_was_killed_before_it_wrote_its_book_is_no_sweep_of_others(
    tmp_path: Path, litter: str
) -> None:
    """Fails where the same command refuses the folder for good: half a sweep.yaml, or what a launcher set up before."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / litter).write_text("")
    book = Book.open(tmp_path / "s", "s")
    book.write()
    assert Book.open(tmp_path / "s", "s").fixed == {}
    assert not (tmp_path / "s" / ".sweep.yaml.999999.tmp").exists()


def test_a_folder_of_something_else_is_no_sweep(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / ".sweep.yaml.999999.tmp").write_text("")
    with pytest.raises(ConfigError, match=r"has no sweep\.yaml, but notes\.txt\. Choose another sweep\.name\."):
        Book.open(tmp_path, "s")


def points(*words: str) -> Points:
    return Points(cli.read_command(["--multirun", *words]))


def test_trials_have_the_ids_and_words_of_runs_alone() -> None:
    asked = points("optim.lr=1e-4,5e-5", "loss=dpo,ipo", "lora.r=8", "sweeper.points=4", "sweep.on_failure=stop")
    assert [axis.key for axis in asked.axes] == ["optim.lr", "loss"]
    one = asked.ask({"optim.lr": "5e-5", "loss": "ipo"})
    assert one.words == ("optim.lr=5e-5", "loss=ipo", "lora.r=8")
    assert one.axes == {"optim.lr": 5e-5, "loss": "ipo"}
    assert one.id != asked.ask({"optim.lr": "1e-4", "loss": "ipo"}).id
    assert one.id == asked.ask({"optim.lr": "5e-5", "loss": "ipo"}).id
    assert one.id == asked.ask({"optim.lr": "0.00005", "loss": "ipo"}).id
    words = trial_words(one, ["--multirun", "--config-dir", "x"], sweep="a b", folder="/o/it's")
    assert words == ("--config-dir", "x", *one.words, "sweep.name='a b'", r"hydra.run.dir='/o/it\'s'")


def test_what_the_axes_change_is_no_fixed_setting() -> None:
    fixed = in_common(points("lora.r=8,16", "optim.lr=interval(1e-5,1e-4)", "seed=3").corners())
    assert not {"lora.r", "lora.alpha", "optim.lr"} & fixed.keys()
    assert fixed["seed"] == 3


def test_a_study_gives_the_axes_and_the_command_line_has_the_last_word() -> None:
    asked = points("study=beta_lr_rank")
    assert {axis.key for axis in asked.axes} == {"optim.lr", "loss.beta", "lora.r"}
    asked = points("study=beta_lr_rank", "lora.r=8", "loss.beta=0.1,0.5")
    assert {axis.key: axis.values for axis in asked.axes if axis.key != "optim.lr"} == {"loss.beta": ("0.1", "0.5")}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["study=beta_lr_rank"], "needs --multirun"),
        (["launcher=processes"], "is for sweeps"),
        (["prune=asha"], "is for sweeps"),
        (["-m", "seed=0,1", "launcher.n=2"], "Use launcher=processes"),
        (["-m", "seed=0,1", "sweeper=random", "sweeper.trials=null"], "needs sweeper.trials"),
        (["-m", "seed=0,1", "sweeper.objective=[accuracy,kl]"], "only sweeper=optuna"),
        (["-m", "seed=0,1", "prune=asha", "trainer.eval_every=0"], "compares evaluations"),
        (["-m", "seed=0,1", "launcher.address=x:1"], "is for launcher=ray"),
        (["-m", "seed=0,1", "+launcher.options.partition=x"], "means nothing to launcher=serial"),
        (["-m", "study=beta_lr_rank", "optim.lrr=1,2"], "optim.lrr"),
        (["-m", "study=beta"], "study=beta"),
        (["-m", "optim.lr=interval(-1,1e-3)"], "optim.lr"),
        (["-m", "loss.beta=range(0,0)"], "nothing to sweep over"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.read_command(words)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err
