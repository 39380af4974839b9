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

Train = Callable[[Config, dict[str, Any], Path], dict[str, float]]


@dataclass(frozen=True)
class Outcome:
    """How a job ended; exit code 0 is success."""

    run: str
    overrides: tuple[str, ...]
    exit_code: int
    reason: str = ""


class Jobs:
    """Runs the jobs that Hydra hands over, one after the other, in this process."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def run(self, cfg: DictConfig, train: Callable[[], Train]) -> None:
        """Train one configuration. An error ends this job alone; an interruption ends the command.

        `train` returns the function that trains; importing it is part of the job.
        """
        hydra = HydraConfig.get()
        folder = Path(hydra.runtime.output_dir)
        sweep = hydra.mode == RunMode.MULTIRUN
        reason, code = "", 0
        try:
            tree = plain(cfg)
            train()(Config.model_validate(tree), tree, folder)
        except (Interrupted, KeyboardInterrupt) as e:
            code = e.exit_code if isinstance(e, Interrupted) else 130
            reason = str(e) or "interrupted"
            sys.stderr.write(f"Stopped: {reason}\n")
        except LabError as e:
            code = 2 if isinstance(e, ConfigError | DataError) else 1
            reason = str(e)
            sys.stderr.write(f"{f'{folder.name}: ' if sweep else ''}Error: {e}\n")
        except Exception as e:  # noqa: BLE001 - the other jobs of a sweep go on
            code, reason = 1, f"{type(e).__name__}: {e}".removesuffix(": ")
            traceback.print_exc()
        self.outcomes.append(Outcome(folder.name, tuple(hydra.overrides.task), code, reason))
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
            word = "stopped" if o.exit_code >= 128 else "failed"
            result = f"[red]{word}[/red]: {escape(reason)}" if o.exit_code else "[green]done[/green]"
            table.add_row(o.run, escape(own), result)
        Console(stderr=True).print(table)
