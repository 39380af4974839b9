"""What other calls of a sweep have left in its folder, as far as pruning looks at it."""

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from dpo_lab.runtime.files import read_json
from dpo_lab.sweep.prune import History
from dpo_lab.sweep.state import state_of
from dpo_lab.sweep.tail import Tail
from dpo_lab.sweep.trial import FILE


@dataclass
class _Other:
    folder: Path
    number: int
    state: str
    tail: Tail


class Past:
    """The trials of the folder that the command at hand does not ask for.

    Args:
        folder: of the sweep.
        asked: ids of the trials that the command asks for; some may be added later.
    """

    def __init__(self, folder: Path, asked: Container[str]) -> None:
        self._asked, self._others = asked, list[_Other]()
        for file in sorted(folder.glob(f"*/{FILE}")):
            known = read_json(file)
            number = known.get("number") if isinstance(known, dict) else None
            if file.parent.name not in asked and isinstance(number, int):
                other = _Other(file.parent, number, state_of(file.parent).name, Tail(file.parent / "metrics.jsonl"))
                other.tail.look()
                self._others.append(other)

    def histories(self, metric: str) -> list[History]:
        """What each has recorded of a metric by now; jobs of a cluster may outlive the call that started them."""
        for other in self._others:
            if other.state == "running":
                other.state = state_of(other.folder).name  # before the metrics: these are then all there
                other.tail.look()
        return [
            History(other.folder.name, other.number, other.state, other.tail.history.get(metric, {}))
            for other in self._others
            if other.folder.name not in self._asked
        ]
