"""A trial as its sweep sees it while it goes on."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo_lab.runtime.files import read_json, write_json
from dpo_lab.sweep.points import Asked
from dpo_lab.sweep.state import State, state_of
from dpo_lab.sweep.tail import Tail

FILE = "trial.json"


@dataclass
class Live:
    """One trial of the command at hand.

    Attributes:
        number: the order of the first starts in the sweep, from 0; None before the first.
        queued: it is to be started.
    """

    asked: Asked
    folder: Path
    state: State
    tail: Tail
    number: int | None = None
    queued: bool = False
    began: float = 0.0  # time.monotonic() of its start
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def at(cls, asked: Asked, folder: Path) -> "Live":
        """What is known of a trial from its folder."""
        known = read_json(folder / FILE)
        known = known if isinstance(known, dict) else {}
        live = cls(asked, folder, state_of(folder), Tail(folder / "metrics.jsonl"), known.get("number"))
        live.tail.look()
        if known and known.get("axes") != asked.axes:  # an axis has come or gone since
            live.write(known.get("exit_code"))
        return live

    @property
    def id(self) -> str:
        """The run's."""
        return self.asked.id

    def look(self) -> None:
        """Read the state and the metrics anew."""
        self.state = state_of(self.folder)
        self.tail.look()

    def write(self, code: int | None = None) -> None:
        """trial.json: what the sweep knows of the run and the run does not.

        Raises:
            OutputError: it cannot be written.
        """
        content = {"id": self.id, "number": self.number, "axes": self.asked.axes}
        content |= {"overrides": list(self.asked.words), "params": self.asked.point, "exit_code": code}
        write_json(self.folder / FILE, content)

    def steps(self) -> int | None:
        """Of the whole run, where it has said so."""
        if "steps" not in self.facts:
            facts = read_json(self.folder / "facts.json")
            self.facts = facts if isinstance(facts, dict) else {}
        steps = self.facts.get("steps")
        return steps if isinstance(steps, int) else None
