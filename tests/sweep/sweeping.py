"""Sweeps of tiny runs, through the door."""

import contextlib
import multiprocessing.util
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from runs import Child, Lab, fork

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


def fork_the_server() -> None:
    """Have the sweep's fork server forked from this process, where the imports are done; it saves ten seconds."""
    real = multiprocessing.util.spawnv_passfds

    def forked(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
        command = str(args[-1])
        if "forkserver" not in command:
            return real(path, args, passfds)

        def serve() -> None:
            for name in os.listdir("/proc/self/fd"):  # what a new program would not inherit
                if int(name) > 2 and int(name) not in passfds:
                    with contextlib.suppress(OSError):
                        os.close(int(name))
            sys.argv = ["-c"]
            exec(command, {"__name__": "__main__"})  # what `python -c` would do

        return fork(serve)

    multiprocessing.util.spawnv_passfds = forked


def start(lab: Lab, *words: str, first: Callable[[], None] | None = fork_the_server) -> Child:
    """A sweep in a child, in which `first` is called first; with None the fork server is the one that a user has."""
    return lab.start(*QUICK, *words, flags=("--multirun",), first=first)


def call(lab: Lab, *words: str, code: int = 0, first: Callable[[], None] | None = fork_the_server) -> str:
    """The output of a sweep that ends with this exit code."""
    child = start(lab, *words, first=first)
    child.wait(280)
    assert child.code == code, child.text
    assert "Traceback" not in child.text
    return child.text
