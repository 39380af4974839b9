"""python -m dpo_lab.preview: the pairs as the model will see them, and what is wrong with them. Nothing is trained."""

import sys

import hydra
from omegaconf import DictConfig

from dpo_lab.config import cli
from dpo_lab.config.jobs import Job, Jobs
from dpo_lab.config.paths import CONF_DIR


def main() -> None:
    """Check the command line, show the data that it names, and exit with a code that a script can use."""
    jobs = Jobs()

    @hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="preview")
    def job(cfg: DictConfig) -> None:
        jobs.run(cfg, _preview)

    try:
        sys.argv[1:] = cli.prepare(sys.argv[1:], "preview")
        job()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if len(jobs.outcomes) > 1:
            jobs.summary()
    sys.exit(jobs.exit_code() if jobs.outcomes else 0)


def _preview() -> Job:
    from dpo_lab.inference.preview import preview

    return preview


if __name__ == "__main__":
    main()
