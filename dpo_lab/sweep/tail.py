"""A metrics.jsonl that grows, read as it grows."""

import json
import os
from pathlib import Path
from typing import Any

from dpo_lab.sweep.state import number


class Tail:
    """The rows of a file of metrics; each look reads only what was appended since the last one.

    Attributes:
        last: the newest value of every metric, with its prefix.
        step: the last one with a train/ metric.
        history: of each val/ metric by step, without step 0, which is before training.
        times: first and last (step, time) of training that this object saw.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begin()

    def _begin(self) -> None:
        self._offset, self._file = 0, 0
        self.last: dict[str, float] = {}
        self.history: dict[str, dict[int, float]] = {}
        self.step = 0
        self.times: list[tuple[int, float]] = []

    def look(self) -> None:
        """Read what is new. A file that was replaced, as a resumed run does, is read from its beginning."""
        try:
            with open(self.path, "rb") as handle:
                stat = os.fstat(handle.fileno())
                if stat.st_ino != self._file or stat.st_size < self._offset:
                    self._begin()
                    self._file = stat.st_ino
                handle.seek(self._offset)
                data = handle.read()
        except OSError:
            return
        whole = data.rfind(b"\n") + 1  # the last line may not be all there yet
        self._offset += whole
        for line in data[:whole].splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                self._take(row)

    def _take(self, row: dict[str, Any]) -> None:
        step = row["step"]
        self.last |= {name: number(value) for name, value in row.items() if "/" in name}
        if any(name.startswith("train/") for name in row):
            self.step = step
            self.times = [*self.times[:1], (step, number(row.get("time")))]
        for name, value in row.items():
            if name.startswith("val/") and step > 0:
                self.history.setdefault(name, {})[step] = number(value)

    def seconds_per_step(self) -> float | None:
        """Of training as far as it was seen, evaluations in between included; None before its second step."""
        if len(self.times) < 2 or self.times[1][0] <= self.times[0][0]:
            return None
        (first, begin), (last, end) = self.times
        seconds = (end - begin) / (last - first)
        return seconds if seconds > 0 else None  # the clock may have been set back
