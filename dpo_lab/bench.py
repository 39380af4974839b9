"""python -m dpo_lab.bench: how fast this machine trains a configuration, and where the time goes. Nothing is kept of it."""

import os

from dpo_lab.config import door
from dpo_lab.config.jobs import Job


def main() -> None:
    """Check the command line, measure what it names, and exit with a code that a script can use."""
    # The profiler's library reads it when torch is loaded, and else speaks of each start.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    door.enter("bench", _bench)


def _bench() -> Job:
    from dpo_lab.training.bench import bench

    return bench


if __name__ == "__main__":
    main()
