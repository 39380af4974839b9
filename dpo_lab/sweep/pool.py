"""What starts trials, each in a process of its own, here or elsewhere."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dpo_lab.runtime.errors import LabError


@dataclass(frozen=True)
class Order:
    """A trial to start: what `python -m dpo_lab WORDS` would do."""

    trial: str  # its id
    words: tuple[str, ...]
    folder: Path  # of the run, absolute
    cwd: Path
    threads: int | None = None  # None: as many as a run alone would take
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """A trial whose process is gone, with its exit code as a shell shows it: 137 after kill -9."""

    trial: str
    code: int
    reason: str = ""  # where the launcher knows more


class Refused(LabError):
    """A trial was not started: there is no room for it now, and there may be later."""


class Pool(Protocol):
    """Processes of trials. Whoever asks keeps to `n` at a time."""

    n: int

    def start(self, order: Order) -> None:
        """Start one trial.

        Raises:
            Refused: not now.
            OutputError: what the trial needs cannot be written.
        """
        ...

    def ended(self) -> list[Ended]:
        """Those that ended since the last call; never waits."""
        ...

    def signal(self, trial: str, number: int) -> None:
        """Send SIGINT, SIGTERM or SIGKILL to a trial; to one that is gone: nothing."""
        ...

    def close(self) -> None:
        """Kill what is left; a second call does nothing."""
        ...
