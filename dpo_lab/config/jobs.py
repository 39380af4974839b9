"""The jobs of one command: each isolated from the others, and how they ended."""

import gc
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from dpo_lab.config.resolvers import plain
from dpo_lab.config.schema import Config
from dpo_lab.runtime.errors import ConfigError, DataError, Interrupted, LabError

Job = Callable[[Config, dict[str, Any], Path], dict[str, float]]  # what a door does with one configuration


@dataclass(frozen=True)
class Outcome:
    """How a job ended: done, failed, stopped or pruned, with the exit code that a single run would have."""

    run: str
    overrides: tuple[str, ...]
    status: str
    exit_code: int = 0
    reason: str = ""


class Jobs:
    """Runs the jobs that Hydra hands over, and remembers how they ended."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def run(self, cfg: DictConfig, load: Callable[[], Job]) -> None:
        """Run one configuration. An error ends this job alone; a signal ends the command.

        `load` returns the function that does the work; importing it is part of the job.
        """
        hydra = HydraConfig.get()
        folder = Path(hydra.runtime.output_dir)
        sweep = hydra.mode == RunMode.MULTIRUN
        status, code, reason = "done", 0, ""
        try:
            tree = plain(cfg)
            load()(Config.model_validate(tree), tree, folder)
        except (Interrupted, KeyboardInterrupt) as e:
            interrupted = e if isinstance(e, Interrupted) else Interrupted("stopped", "interrupted", 130)
            status, code, reason = interrupted.status, interrupted.exit_code, str(interrupted)
            sys.stderr.write(f"{status.capitalize()}: {reason}\n")
        except LabError as e:
            status, code, reason = "failed", 2 if isinstance(e, ConfigError | DataError) else 1, str(e)
            sys.stderr.write(f"{f'{folder.name}: ' if sweep else ''}Error: {e}\n")
            if sweep and not _here(hydra.launcher):
                raise
        except Exception as e:
            status, code, reason = "failed", 1, f"{type(e).__name__}: {e}".removesuffix(": ")
            if sweep and not _here(hydra.launcher):
                raise
            traceback.print_exc()
        self.outcomes.append(Outcome(folder.name, tuple(hydra.overrides.task), status, code, reason))
        if code >= 128:
            raise SystemExit(code)
        gc.collect()  # a failed job's tensors, before the next one loads its model

    def exit_code(self) -> int:
        """Of the command: the job's own, or 1 where a job of a sweep failed."""
        codes = [o.exit_code for o in self.outcomes]
        return codes[0] if len(codes) == 1 else int(any(codes))

    def summary(self) -> None:
        """A table of the jobs of a sweep, to stderr."""
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        shared = set.intersection(*(set(o.overrides) for o in self.outcomes))
        table = Table("run", "overrides", "result", box=None, header_style="bold", pad_edge=False)
        for o in self.outcomes:
            own = " ".join(text for text in o.overrides if text not in shared)
            reason = o.reason.splitlines()[0] if o.reason else ""
            color = {"done": "green", "failed": "red"}.get(o.status, "yellow")
            result = f"[{color}]{o.status}[/{color}]{f': {escape(reason)}' if reason else ''}"
            table.add_row(o.run, escape(own), result)
        Console(stderr=True).print(table)


def _here(launcher: DictConfig) -> bool:
    """Whether jobs run in this process; from another one only an exception tells that a job failed."""
    return str(launcher.get("_target_", "")).endswith(".BasicLauncher")
