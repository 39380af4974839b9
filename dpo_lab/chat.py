"""python -m dpo_lab.chat: talk to a result beside its reference."""

from dpo_lab.config import door
from dpo_lab.config.jobs import Job


def main() -> None:
    """Check the command line, talk, and exit with a code that a script can use."""
    door.enter("chat", _chat)


def _chat() -> Job:
    from dpo_lab.inference.chat import chat

    return chat


if __name__ == "__main__":
    main()
