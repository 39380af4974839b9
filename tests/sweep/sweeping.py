"""Sweeps of tiny runs, through the door."""

from typing import Any

from runs import Child, Lab

from dpo_lab.runtime.files import read_json
from dpo_lab.training.folder import RunFolder

QUICK = (
    "launcher.threads=1",
    "sweep.name=s",
    "optim.max_steps=4",
    "trainer.eval_every=2",
    "trainer.checkpoint_every=1",
)


def trials(lab: Lab) -> dict[tuple[Any, ...], RunFolder]:
    """The run folders of the sweep by the values of their axes."""
    files = sorted((lab.output / "sweeps" / "s").glob("*/trial.json"))
    return {tuple(read_json(file)["axes"].values()): RunFolder(file.parent) for file in files}


def start(lab: Lab, *words: str) -> Child:
    return lab.start(*QUICK, *words, flags=("--multirun",))


def call(lab: Lab, *words: str, code: int = 0) -> str:
    """The output of a sweep that ends with this exit code."""
    child = start(lab, *words)
    child.wait(280)
    assert child.code == code, child.text
    assert "Traceback" not in child.text
    return child.text
