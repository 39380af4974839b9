"""python -m dpo_lab.report: what a sweep says, from its run folders. Nothing is trained."""

from dpo_lab.config import door
from dpo_lab.config.jobs import Job


def main() -> None:
    """Check the command line, report on the sweep that it names, and exit with a code that a script can use."""
    door.enter("report", _report)


def _report() -> Job:
    from dpo_lab.sweep.report import report

    return report


if __name__ == "__main__":
    main()
