"""python -m dpo_lab.serve: results and their reference behind OpenAI's chat API."""

from dpo_lab.config import door
from dpo_lab.config.jobs import Job


def main() -> None:
    """Check the command line, serve what it names, and exit with a code that a script can use."""
    door.enter("serve", _serve)


def _serve() -> Job:
    from dpo_lab.inference.serve import serve

    return serve


if __name__ == "__main__":
    main()
