"""What a sweep shows while it runs: what is there, a live table, and how each trial ended."""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live as LiveView
from rich.table import Table
from rich.text import Text

from dpo_lab.runtime.files import short
from dpo_lab.runtime.terminal import duration
from dpo_lab.sweep.trial import Live

ROWS = 24  # of a table; the rest is counted
COLORS = {"done": "green", "failed": "red", "pruned": "yellow", "running": "cyan", "interrupted": "yellow"}
WIDTH = 110  # where there is no terminal


class Screen:
    """Writes to stdout: on a terminal a table that lives, elsewhere a line whenever a trial begins or ends."""

    def __init__(self, name: str, folder: Path, trials: Mapping[str, Live], *, n: int) -> None:
        self.name, self.folder, self.trials, self.n = name, folder, trials, n
        self.console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
        self.begun = time.monotonic()
        self.total = len(trials)
        self._view: LiveView | None = None
        self._spent: list[float] = []  # seconds of the trials that ended

    def table(self, plans: Mapping[str, str], others: int) -> None:
        """Before anything is started: every trial and what becomes of it.

        Args:
            plans: trial -> what becomes of it; without those that are new.
            others: trials in the folder that this command does not ask for.
        """
        new = len(self.trials) - len(plans)
        counts = Counter(plan.partition(":")[0].partition(",")[0] for plan in plans.values())
        said = [f"{n} {what}" for what, n in counts.items()] + ([f"{new} new"] if new else [])
        more = f"; {others} more of former calls stay as they are" if others else ""
        trials = f"{len(self.trials)} trial{'s' if len(self.trials) != 1 else ''}"
        ahead = f", {self.total} in all" if self.total > len(self.trials) else ""
        self.console.print(Text(f"sweep {self.name}: {trials}{ahead}", style="bold"))
        self.console.print(Text(f"{', '.join(said) or 'nothing yet'}{more}. {short(self.folder)}", style="dim"))
        if plans:
            table = self._table("what becomes of it")
            for live in [self.trials[id] for id in plans][:ROWS]:
                table.add_row(*self._head(live), Text(plans[live.id]))
            self.console.print(table)
            if len(plans) > ROWS:
                self.console.print(Text(f"... and {len(plans) - ROWS} more", style="dim"))
        self.console.print()

    @contextmanager
    def live(self) -> Iterator[None]:
        """On a terminal: keep a table of what runs at the end of the output while the block runs."""
        if not self.console.is_terminal:
            yield
            return
        with LiveView(console=self.console, get_renderable=self._render, refresh_per_second=2, transient=True) as view:
            self._view = view
            try:
                yield
            finally:
                self._view = None

    def began(self, live: Live) -> None:
        """A trial was started."""
        if not self.console.is_terminal:
            self.say(f"{self._name(live)} begins{f' (from step {live.tail.step})' if live.tail.step else ''}")

    def ended(self, live: Live) -> None:
        """A trial is over."""
        if live.seconds:
            self._spent.append(live.seconds)
        self.say(f"{self._name(live)} {outcome(live)}")

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(Text(text))

    def outcome(self, halt: str) -> None:
        """At the end: how many trials came to what, and why each that failed did."""
        counts = Counter(live.state.name for live in self.trials.values())
        said = ", ".join(f"{counts[name]} {name}" for name in (*COLORS, "new") if counts[name])
        self.say(f"{said} after {duration(time.monotonic() - self.begun)}{f'. {halt}' if halt else ''}")
        failed = [live for live in self.trials.values() if live.state.name == "failed"]
        for live in failed[:ROWS]:
            self.say(f"  {self._name(live)}: {first_line(live.state.reason)}\n    {short(live.folder)}/console.log")
        if halt:
            self.say("The same command goes on from here.")

    def _render(self) -> RenderableType:
        table = self._table("step", "loss", "accuracy", "margin", "time left")
        trials = tuple(self.trials.values())  # drawn in a thread of its own, while trials are added
        running = [live for live in trials if live.state.name == "running"]
        for live in running[:ROWS]:
            steps, last = live.steps(), live.tail.last
            left = live.tail.seconds_per_step()
            remaining = duration(left * (steps - live.tail.step)) if left and steps else ""
            accuracy = last.get("val/rewards/accuracies", last.get("train/rewards/accuracies"))
            margin = last.get("val/logratios/margins", last.get("train/logratios/margins"))
            step = f"{live.tail.step}/{steps}" if steps else "starting"
            cells = [step, shown(last.get("train/loss"), 4), shown(accuracy, 3), shown(margin, 2), remaining]
            table.add_row(*self._head(live), *cells)
        over = Counter(live.state.name for live in trials)
        ended = sum(over[name] for name in ("done", "failed", "pruned"))
        ahead = max(self.total, len(trials)) - ended
        line = f"{ended} of {ended + ahead} trials"
        line += "".join(f", {over[name]} {name}" for name in ("failed", "pruned") if over[name])
        if self._spent and ahead:
            mean = sum(self._spent) / len(self._spent)
            line += f", about {duration(mean * ahead / min(self.n, ahead))} left"
        return Group(table, Text(line, style="dim"))

    def _table(self, *more: str) -> Table:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in ("trial", *self._names(), *more):
            table.add_column(name, no_wrap=name == "trial")
        return table

    def _names(self) -> list[str]:
        return short_names([*next(iter(self.trials.values())).asked.axes]) if self.trials else []

    def _head(self, live: Live) -> list[str]:
        return [live.id[:8], *(value_text(value) for value in live.asked.axes.values())]

    def _name(self, live: Live) -> str:
        axes = zip(short_names([*live.asked.axes]), live.asked.axes.values(), strict=True)
        return f"{live.id[:8]}  " + "  ".join(f"{name} {value_text(value)}" for name, value in axes)


def outcome(live: Live) -> str:
    """How a trial ended, with its numbers or its reason."""
    state, metrics = live.state, live.state.metrics or {}
    if state.name == "done":
        accuracy = metrics.get("val/rewards/accuracies")
        margin = metrics.get("val/logratios/margins")
        found = f": accuracy {shown(accuracy, 3)}" if accuracy is not None else ""
        found += f", margin {shown(margin, 2)} nats" if margin is not None else ""
        return f"is done{found} ({duration(live.seconds)})" if live.seconds else f"is done{found}"
    words = {"failed": "failed", "pruned": "was pruned", "interrupted": "was interrupted"}
    return f"{words.get(state.name, state.name)}{f': {first_line(state.reason)}' if state.reason else ''}"


def short_names(keys: list[str]) -> list[str]:
    """The last parts of keys, or the whole of those that would be alike."""
    last = [key.rpartition(".")[2] for key in keys]
    return [name if last.count(name) == 1 else key for name, key in zip(last, keys, strict=True)]


def value_text(value: Any) -> str:
    """A value of an axis, as short as it can be."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def shown(value: Any, digits: int) -> str:
    """A number, or nothing."""
    try:
        return f"{float(value):.{digits}f}"
    except (TypeError, ValueError):
        return ""


def first_line(text: str) -> str:
    """The first line of a reason."""
    return text.splitlines()[0] if text else ""
