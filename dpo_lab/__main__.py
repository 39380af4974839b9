"""python -m dpo_lab: align one model on preference pairs, or with --multirun a sweep of them."""

from dpo_lab.config import door
from dpo_lab.config.door import Sweep
from dpo_lab.config.jobs import Job


def main() -> None:
    """Check the command line, train what it asks for, and exit with a code that a script can use."""
    door.enter("train", _train, _sweep)


def trial(words: list[str]) -> None:
    """The same for one trial of a sweep, whose command line was checked with the others'."""
    door.run_trial(words, _train)


def _train() -> Job:
    from dpo_lab.training.run import train

    return train


def _sweep() -> Sweep:
    from dpo_lab.sweep.multirun import sweep

    return sweep


if __name__ == "__main__":
    main()
