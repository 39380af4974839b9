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
        axes: the sweep's axes and this trial's values: those of the command, and what else is known.
        params: of the axes that any command swept, the text of the value.
        number: the order of the first starts in the sweep, from 0; None before the first.
        queued: it is to be started.
    """

    asked: Asked
    folder: Path
    state: State
    tail: Tail
    axes: dict[str, Any]
    params: dict[str, str]
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
        axes = _dict(known.get("axes")) | asked.held | asked.axes  # a command that sweeps less takes nothing away
        params = _dict(known.get("params")) | asked.point
        live = cls(asked, folder, state_of(folder), Tail(folder / "metrics.jsonl"), axes, params, known.get("number"))
        live.tail.look()
        if known and (known.get("axes"), known.get("params")) != (axes, params):  # an axis has come since
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
        content = {"id": self.id, "number": self.number, "axes": self.axes}
        content |= {"overrides": list(self.asked.words), "params": self.params, "exit_code": code}
        write_json(self.folder / FILE, content)

    def steps(self) -> int | None:
        """Of the whole run, where it has said so."""
        if "steps" not in self.facts:
            facts = read_json(self.folder / "facts.json")
            self.facts = facts if isinstance(facts, dict) else {}
        steps = self.facts.get("steps")
        return steps if isinstance(steps, int) else None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
