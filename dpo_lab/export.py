"""python -m dpo_lab.export: a result to take away, checked by loading it back."""

from dpo_lab.config import door
from dpo_lab.config.jobs import Job


def main() -> None:
    """Check the command line, export what it names, and exit with a code that a script can use."""
    door.enter("export", _export)


def _export() -> Job:
    from dpo_lab.inference.export import export

    return export


if __name__ == "__main__":
    main()
