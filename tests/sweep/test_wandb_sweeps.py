"""sweeps/*.yaml as W&B's agent would run them, and the workspace that is defined in code."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpo_lab.config import cli

SWEEPS = Path(__file__).resolve().parent.parent.parent / "sweeps"
FILES = sorted(SWEEPS.glob("wandb_*.yaml"))


def spec(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def corners(parameter: dict[str, Any]) -> list[Any]:
    """The values of a parameter; of a range its ends and a number between them, as W&B draws them."""
    if "value" in parameter:
        return [parameter["value"]]
    if "values" in parameter:
        return parameter["values"]
    low, high = parameter["min"], parameter["max"]
    return [low, (low * high) ** 0.5, high]


def points(path: Path) -> list[dict[str, Any]]:
    parameters = spec(path)["parameters"]
    return [
        dict(zip(parameters, values, strict=True)) for values in itertools.product(*map(corners, parameters.values()))
    ]


def agents_command(path: Path, point: dict[str, Any]) -> list[str]:
    """The command line of `wandb agent`, put together as in wandb/wandb_agent.py by the functions that it uses."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    command = utils.create_sweep_command(utils.load_sweep_config(str(path))["command"])
    macros = utils.create_sweep_command_args({"args": {key: {"value": value} for key, value in point.items()}})
    macros["env"] = ["/usr/bin/env"]
    words: list[str] = []
    for word in command:
        words += macros[word[2:-1]] if word.startswith("${") else [word]
    return words


def test_there_is_a_bayesian_sweep_and_a_grid() -> None:
    assert {spec(path)["method"] for path in FILES} >= {"bayes", "grid"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_door_takes_every_command_of_the_agent(path: Path) -> None:
    todo = points(path)
    assert len(todo) > 10
    for point in todo:
        env, python, *rest = agents_command(path, point)
        assert (env, python, rest[:2]) == ("/usr/bin/env", "python", ["-m", "dpo_lab"])
        words = cli.prepare(rest[2:])  # exits where something is wrong with them
        assert {f"{key}={value}" for key, value in point.items()} <= set(words)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_value_out_of_range_would_be_refused(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    point = points(path)[0] | {"loss.beta": -1.0}
    with pytest.raises(SystemExit):
        cli.prepare(agents_command(path, point)[4:])
    assert "loss.beta" in capsys.readouterr().err


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_optimised_is_a_metric_that_runs_log(path: Path) -> None:
    from dpo_lab.config.sweep_schema import Prune

    metric = spec(path)["metric"]
    assert metric == {"name": "val/rewards/accuracies", "goal": "maximize"}
    assert Prune(name="none", metric=metric["name"], first_step=1, startup=0, factor=2)


def test_the_agents_command_starts_the_door(tmp_path: Path) -> None:
    words = agents_command(FILES[0], points(FILES[0])[0])
    words[words.index("python")] = sys.executable
    done = subprocess.run([*words, "--cfg", "job"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    assert config["logger"]["group"] == spec(FILES[0])["name"]
    assert config["sweep"]["name"] is None, "the run lands in no folder of a sweep"


def test_no_group_of_a_wandb_sweep_is_that_of_a_study() -> None:
    """Fails where the runs of both would be shown as one sweep in W&B."""
    studies = {name for file in SWEEPS.glob("*.sh") for name in re.findall(r"sweep\.name=(\w+)", file.read_text())}
    groups = {spec(path)["parameters"]["logger.group"]["value"] for path in FILES}
    assert len(studies) >= 5
    assert len(groups) == len(FILES)
    assert not studies & groups


def workspace(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("wandb_workspaces")
    command = [sys.executable, str(SWEEPS / "workspace.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd)


def panels(shown: str) -> dict[str, dict[str, Any]]:
    sections = json.loads(shown)["spec"]["section"]["panelBankConfig"]["sections"]
    found = [panel for section in sections for panel in section["panels"]]
    return {panel["config"].get("chartTitle") or panel["viewType"]: panel for panel in found}


def test_the_workspace_holds_curves_parallel_coordinates_and_accuracy_against_kl(tmp_path: Path) -> None:
    done = workspace("team/lab", "my-sweep", "--axes", "optim.lr,loss", "--print", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = panels(done.stdout)
    curves = {title: found[title]["config"]["metrics"] for title in found if title.startswith("held-out")}
    assert curves["held-out accuracy"] == ["val/rewards/accuracies"]
    assert curves["held-out margin, nats"] == ["val/logratios/margins"]
    assert curves["held-out loss"] == ["val/loss"]
    assert found["KL(policy || reference)"]["config"]["metrics"] == ["val/kl"]
    whole = found["held-out accuracy: mean and range"]["config"]
    assert (whole["groupBy"], whole["groupAgg"], whole["groupArea"]) == ("group", "mean", "minmax")
    columns = [column["accessor"] for column in found["Every trial"]["config"]["columns"]]
    assert columns == ["config:optim.value.lr", "config:loss.value", "summary:val/rewards/accuracies", "summary:val/kl"]
    scatter = found["Accuracy against KL"]["config"]
    assert (scatter["xAxis"], scatter["yAxis"]) == ("summary:val/kl", "summary:val/rewards/accuracies")
    (runs,) = json.loads(done.stdout)["spec"]["section"]["runSets"]
    assert [(f["key"]["name"], f["op"], f["value"]) for f in runs["filters"]["filters"]] == [
        ("group", "=", "my-sweep"),
        ("jobType", "!=", "report"),
    ]


def test_the_workspace_takes_its_axes_from_the_sweeps_folder(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "sweeps" / "mine"
    folder.mkdir(parents=True)
    (folder / "sweep.yaml").write_text("name: mine\naxes: {loss.beta: [0.1, 0.3], seed: [0, 1]}\n", encoding="utf-8")
    done = workspace("team/lab", "mine", "--print", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    columns = panels(done.stdout)["Every trial"]["config"]["columns"]
    assert [column["accessor"] for column in columns][:-2] == ["config:loss.value.beta"]


def test_a_project_without_an_entity_is_refused(tmp_path: Path) -> None:
    done = workspace("lab", "mine", "--print", cwd=tmp_path)
    assert done.returncode == 2
    assert "ENTITY/PROJECT" in done.stderr
