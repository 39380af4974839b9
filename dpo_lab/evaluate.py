"""python -m dpo_lab.evaluate: scores, answers and comparisons of results. Nothing is trained."""

from dpo_lab.config import door
from dpo_lab.config.jobs import Job


def main() -> None:
    """Check the command line, evaluate what it names, and exit with a code that a script can use."""
    door.enter("evaluate", _evaluate)


def _evaluate() -> Job:
    from dpo_lab.inference.evaluate import evaluate

    return evaluate


if __name__ == "__main__":
    main()
