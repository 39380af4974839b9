"""python -m dpo_lab: align one model on preference pairs, or with --multirun a sweep of them."""

import sys

import hydra
from omegaconf import DictConfig

from dpo_lab.config import cli
from dpo_lab.config.jobs import Job, Jobs
from dpo_lab.config.paths import CONF_DIR


def main() -> None:
    """Check the command line, train what it asks for, and exit with a code that a script can use."""
    jobs = Jobs()

    @hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
    def job(cfg: DictConfig) -> None:
        jobs.run(cfg, _train)

    try:
        sys.argv[1:] = cli.prepare(sys.argv[1:])
        job()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if len(jobs.outcomes) > 1:
            jobs.summary()
    sys.exit(jobs.exit_code() if jobs.outcomes else 0)


def _train() -> Job:
    from dpo_lab.training.run import train

    return train


if __name__ == "__main__":
    main()
