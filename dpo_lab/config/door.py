"""What every entry point does: check the command line, run its jobs, exit with a code that a script can use."""

import sys
from collections.abc import Callable

import hydra
from omegaconf import DictConfig

from dpo_lab.config import cli
from dpo_lab.config.jobs import Job, Jobs
from dpo_lab.config.paths import CONF_DIR


def enter(primary: str, load: Callable[[], Job]) -> None:
    """Run what the command line asks for, and exit.

    Args:
        primary: name of the primary file in conf/, without suffix.
        load: returns the function that does the work; importing it is part of the job.
    """
    jobs = Jobs()

    @hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=primary)
    def job(cfg: DictConfig) -> None:
        jobs.run(cfg, load)

    try:
        sys.argv[1:] = cli.prepare(sys.argv[1:], primary)
        job()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if len(jobs.outcomes) > 1:
            jobs.summary()
    sys.exit(jobs.exit_code() if jobs.outcomes else 0)
