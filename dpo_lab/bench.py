"""python -m dpo_lab.bench: how fast this machine trains a configuration, and where the time goes. Nothing is kept of it."""

import os
import sys

import hydra
from omegaconf import DictConfig

from dpo_lab.config import cli
from dpo_lab.config.jobs import Job, Jobs
from dpo_lab.config.paths import CONF_DIR


def main() -> None:
    """Check the command line, measure what it names, and exit with a code that a script can use."""
    jobs = Jobs()

    @hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="bench")
    def job(cfg: DictConfig) -> None:
        jobs.run(cfg, _bench)

    # The profiler's library reads it when torch is loaded, and else speaks of each start.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    try:
        sys.argv[1:] = cli.prepare(sys.argv[1:], "bench")
        job()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if len(jobs.outcomes) > 1:
            jobs.summary()
    sys.exit(jobs.exit_code() if jobs.outcomes else 0)


def _bench() -> Job:
    from dpo_lab.training.bench import bench

    return bench


if __name__ == "__main__":
    main()
