"""python -m dpo_lab.preview: the pairs as the model will see them, and what is wrong with them. Nothing is trained."""

from dpo_lab.config import door
from dpo_lab.config.jobs import Job


def main() -> None:
    """Check the command line, show the data that it names, and exit with a code that a script can use."""
    door.enter("preview", _preview)


def _preview() -> Job:
    from dpo_lab.inference.preview import preview

    return preview


if __name__ == "__main__":
    main()
