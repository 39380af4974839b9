"""Tiny runs for the tests: in this process, or through the door in a child that can be killed."""

import contextlib
import importlib
import itertools
import json
import logging
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo_lab.config import resolvers
from dpo_lab.config.paths import CONF_DIR
from dpo_lab.config.schema import Config
from dpo_lab.runtime.files import read_json, read_jsonl
from dpo_lab.training.folder import RunFolder

VOLATILE = ("time", "train/pairs_per_second")  # columns of metrics.jsonl that no two runs share
PATIENCE = 120.0  # seconds, for a child on a busy machine
BASE = (
    "model=hf",
    "data=file",
    "logger=none",
    "data.eval_fraction=0.3",
    "optim.batch_size=2",
    "optim.lr=1e-2",
    "optim.max_steps=6",
    "trainer.accelerator=cpu",
    "trainer.precision=32",
    "trainer.eval_every=3",
    "trainer.checkpoint_every=2",
    "generation.max_new_tokens=4",
    "prompts.count=1",
)

HEAVY = (
    *("hydra.main", "hydra.compose", "hydra.core.utils", "logging.config", "transformers.optimization"),
    *("lightning", "peft", "transformers.generation", "transformers.models.llama.modeling_llama", "accelerate"),
    *("dpo_lab.inference.setup", "dpo_lab.training.module", "dpo_lab.training.callbacks", "dpo_lab.data.module"),
    *(
        "dpo_lab.training.align",
        "dpo_lab.training.plan",
        "dpo_lab.training.run",
        "dpo_lab.models.save",
        "dpo_lab.inference.scoring",
        "dpo_lab.inference.generate",
    ),
)


def preload() -> None:
    """Import here what forked children would each import for themselves."""
    for module in HEAVY:
        importlib.import_module(module)


def write_pairs(path: Path, n: int = 24) -> Path:
    """Pairs of a few dozen bytes; what is chosen is long, what is rejected short."""
    rng = random.Random(0)
    rows = [
        {
            "prompt": f"Question {i}: " + "why? " * rng.randint(1, 4),
            "chosen": "Because " + "of this. " * rng.randint(1, 3),
            "rejected": "No" + "!" * rng.randint(1, 5),
        }
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@dataclass
class Child:
    """A forked process in which the door runs; what it writes to stdout and stderr goes to a file."""

    pid: int
    log: Path
    code: int | None = None  # as a shell would show it: 137 after kill -9

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)

    @property
    def alive(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = _shell_code(status)
        return self.code is None

    def wait(self, seconds: float = PATIENCE) -> int:
        deadline = time.monotonic() + seconds
        while self.alive:
            if time.monotonic() > deadline:
                self.kill(signal.SIGKILL)
                self.code = _shell_code(os.waitpid(self.pid, 0)[1])
                raise TimeoutError(f"still running after {seconds:.0f} s:\n{self.text}")
            time.sleep(0.01)
        assert self.code is not None
        return self.code

    @property
    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


@dataclass(frozen=True)
class Lab:
    """A tiny model, a few pairs, a cache and an output folder: what the runs of one test share."""

    root: Path
    model: Path
    data: Path
    base: tuple[str, ...] = BASE
    output: Path = Path()  # ROOT/outputs, if not given
    children: list[Child] = field(default_factory=list)
    jobs: dict[tuple[str, ...], tuple[Config, dict[str, Any], Path]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root.mkdir(exist_ok=True)
        if self.output == Path():
            object.__setattr__(self, "output", self.root / "outputs")

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def overrides(self, *more: str) -> list[str]:
        """The words of a command line; a later word of a key takes the place of an earlier one."""
        own = [
            f"model.path={self.model}",
            f"data.path={self.data}",
            f"output_dir={self.output}",
            f"cache_dir={self.cache}",
        ]
        words = {word.partition("=")[0].lstrip("+~"): word for word in [*self.base, *own, *more]}
        return [word for word in words.values() if not word.endswith("=-")]

    def job(self, *more: str) -> tuple[Config, dict[str, Any], Path]:
        """What the door hands to `train`."""
        from hydra import compose, initialize_config_dir

        from dpo_lab.config.identity import run_id

        if more not in self.jobs:
            resolvers.register()
            with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
                tree = resolvers.plain(compose("train", overrides=self.overrides(*more)))
            self.jobs[more] = Config.model_validate(tree), tree, self.output / "runs" / run_id(tree)
        return self.jobs[more]

    def folder(self, *more: str) -> RunFolder:
        return RunFolder(self.job(*more)[2])

    def train(self, *more: str) -> RunFolder:
        """Train in this process."""
        from dpo_lab.training.run import train

        config, tree, run_dir = self.job(*more)
        train(config, tree, run_dir)
        return RunFolder(run_dir)

    def start(self, *more: str, first: Callable[[], None] | None = None, flags: tuple[str, ...] = ()) -> Child:
        """`python -m dpo_lab` in a forked child, which saves the seconds that the imports take."""
        argv = ["dpo_lab", *flags, *self.overrides(*more)]

        def door() -> None:
            from dpo_lab.__main__ import main

            sys.argv = argv
            main()

        return self._start(door, first)

    def call(self, *more: str, **how: Any) -> Child:
        """Go through the door in a child and wait for its end."""
        child = self.start(*more, **how)
        child.wait()
        return child

    def train_in_child(self, *more: str, first: Callable[[], None] | None = None) -> Child:
        """`train` alone, in a child: quicker than the door, and no exit code but 0, 1 and those of signals."""
        from dpo_lab.training.run import train

        job = self.job(*more)
        child = self._start(lambda: train(*job), first)
        child.wait()
        return child

    def _start(self, work: Callable[[], object], first: Callable[[], None] | None) -> Child:
        log = self.root / f"child{len(self.children)}.log"
        child = Child(fork(lambda: _apart(work, log, first)), log)
        self.children.append(child)
        return child


def fork(work: Callable[[], None]) -> int:
    """The pid of a child that does `work` and leaves with its exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, 0)  # the test's own timeout is not the child's
        work()
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _apart(work: Callable[[], object], log: Path, first: Callable[[], None] | None) -> None:
    """Work as in a process of its own: one thread, own descriptors, no capture."""
    import torch

    torch.set_num_threads(1)  # the threads of the parent's pool did not come along
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the process
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr, force=True)
    if first is not None:
        first()
    work()


def at(where: str, act: Callable[..., object], *, call: int = 1) -> Callable[[], None]:
    """For `Lab.start(first=...)`: do `act` just before a function, `module:name`, is called for the call-th time.

    `act` gets the arguments of that call.
    """

    def patch() -> None:
        module, _, path = where.partition(":")
        owner: Any = importlib.import_module(module)
        *outer, name = path.split(".")
        for part in outer:
            owner = getattr(owner, part)
        original, calls = getattr(owner, name), itertools.count(1)

        def patched(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == call:
                act(*args, **kwargs)
            return original(*args, **kwargs)

        setattr(owner, name, patched)

    return patch


def send(*numbers: int) -> Callable[..., None]:
    """For `at`: this process gets these signals."""

    def act(*_: Any, **__: Any) -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    return act


def _shell_code(status: int) -> int:
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def until(condition: Callable[[], Any], child: Child | None = None, seconds: float = PATIENCE) -> None:
    """Wait for a condition, or for the child's end."""
    deadline = time.monotonic() + seconds
    while not condition():
        if child is not None and not child.alive:
            raise AssertionError(f"it ended before, with code {child.code}:\n{child.text}")
        if time.monotonic() > deadline:
            raise TimeoutError("the condition never came true" + (f":\n{child.text}" if child else ""))
        time.sleep(0.002)


def rows(folder: RunFolder, prefix: str = "") -> list[dict[str, Any]]:
    """metrics.jsonl without what no two runs share; with a prefix, the rows that have such metrics."""
    plain = [{k: v for k, v in row.items() if k not in VOLATILE} for row in read_jsonl(folder.metrics)]
    return [row for row in plain if any(k.startswith(prefix) for k in row if k != "step")]


def weights(folder: RunFolder) -> bytes:
    """The trained adapter, byte by byte."""
    return (folder.final / "adapter_model.safetensors").read_bytes()


def status(folder: RunFolder) -> dict[str, Any]:
    return read_json(folder.path / "status.json") or {}


def steps_done(folder: RunFolder) -> int:
    """Optimizer steps in metrics.jsonl."""
    return max((row["step"] for row in rows(folder, "train/")), default=0)


def same_result(folder: RunFolder, other: RunFolder) -> None:
    """Bit-identical adapters, and equal rows of metrics, held-out pairs and samples."""
    assert status(folder)["status"] == status(other)["status"] == "done"
    assert rows(folder) == rows(other)
    assert read_jsonl(folder.eval_pairs) == read_jsonl(other.eval_pairs)
    assert read_jsonl(folder.samples) == read_jsonl(other.samples)
    assert weights(folder) == weights(other)
