"""What every entry point does: check the command line, run its jobs, exit with a code that a script can use."""

import copy
import sys
from collections.abc import Callable
from typing import NoReturn

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.utils import run_job, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig

from dpo_lab.config import cli
from dpo_lab.config.jobs import Job, Jobs
from dpo_lab.config.paths import CONF_DIR

Sweep = Callable[[cli.Command], int]  # does a multirun and returns the exit code


def enter(primary: str, load: Callable[[], Job], sweep: Callable[[], Sweep] | None = None) -> None:
    """Run what the command line asks for, and exit.

    Args:
        primary: name of the primary file in conf/, without suffix.
        load: returns the function that does the work; importing it is part of the job.
        sweep: returns what does a multirun. Without it, and where the command line names a sweeper or launcher of
            Hydra's, Hydra does it: one job after the other in this process, unless a plugin knows better.
    """
    jobs = Jobs()

    @hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=primary)
    def job(cfg: DictConfig) -> None:
        jobs.run(cfg, load)

    try:
        command = cli.read_command(sys.argv[1:], primary)
        if sweep is not None and command.multirun and not _hydras(command):
            sys.exit(sweep()(command))
        sys.argv[1:] = command.words
        job()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if len(jobs.outcomes) > 1:
            jobs.summary()
    sys.exit(jobs.exit_code() if jobs.outcomes else 0)


def run_trial(words: list[str], load: Callable[[], Job]) -> NoReturn:
    """Run one job of a sweep, in a process of its own, and exit; `words` name its folder with hydra.run.dir.

    What Hydra's main would do, without composing once more what has just been composed to be checked.
    """
    jobs = Jobs()
    try:
        cfg = cli.read_command(words).cfg
        assert cfg is not None
        setup_globals()
        context = HydraContext(config_loader=None, callbacks=Callbacks(cfg))  # type: ignore[arg-type] # for launchers
        done = run_job(
            lambda cfg: jobs.run(cfg, load),
            copy.deepcopy(cfg),
            job_dir_key="hydra.run.dir",
            job_subdir_key=None,
            hydra_context=context,
        )
        _ = done.return_value  # or its exception
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(jobs.exit_code() if jobs.outcomes else 1)


def _hydras(command: cli.Command) -> bool:
    """Whether Hydra itself does the multirun: where its own parts are asked for, and where nothing is trained."""
    parts = ("hydra/sweeper", "hydra/launcher", "hydra.sweeper", "hydra.launcher")
    asked = any(given.key.startswith(parts) for given in command.given)
    return asked or command.cfg is None or bool(command.cfg.plan or command.cfg.hydra.sweeper.get("params"))
