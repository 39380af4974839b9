"""What a run shows: a header, one progress bar, a footer."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

PLAIN_SECONDS = 15.0  # between lines of progress where there is no terminal


class Terminal:
    """Writes to stdout; where that is no terminal, progress is a line now and then."""

    def __init__(self, *, quiet: bool = False) -> None:
        width = None if sys.stdout.isatty() else 110
        self.console = Console(width=width, highlight=False, soft_wrap=False, quiet=quiet)

    def say(self, text: str) -> None:
        """One line on what is going on."""
        self.console.print(Text(text, style="dim"))

    def header(self, title: str, rows: Mapping[str, str]) -> None:
        """The facts of the run."""
        self.console.print()
        self.console.print(Text(title, style="bold"))
        self.facts(rows)

    def facts(self, rows: Mapping[str, str]) -> None:
        """Names and values in two columns."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows.items():
            table.add_row(name, Text(value))
        self.console.print(table)
        self.console.print()

    @contextmanager
    def working(self, text: str) -> Iterator[Callable[[str], None]]:
        """A spinner while something without steps goes on; yields a function that says what."""
        if not self.console.is_terminal:
            yield self.say
            return
        with self.console.status(text) as status:
            yield lambda news: status.update(news)

    @contextmanager
    def progress(
        self, what: str, total: int | None, done: int = 0, *, unit: str, summary: bool = True
    ) -> Iterator["Bar"]:
        """A bar for `total` steps, of which `done` are behind; with `summary` it leaves a line of what was done.

        Where nobody knows the total it is None, and the line appears only after what took a while.
        """
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}" if total is None else "{task.completed}/{task.total}"),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
        )
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal, transient=True) as drawn:
            task = drawn.add_task(what, total=total, completed=done, numbers="")
            bar = Bar(self, drawn, task, what=what, total=total, done=done, unit=unit)
            yield bar
        if summary:
            bar.close()

    def results(self, start: Mapping[str, float], end: Mapping[str, float], seconds: float, steps: int) -> None:
        """Held-out numbers before and after."""
        if end:
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            table.add_column("held-out pairs")
            table.add_column("before", justify="right")
            table.add_column("after", justify="right")
            names = {
                "rewards/accuracies": "reward accuracy",
                "logratios/margins": "log-ratio margin (nats)",
                "loss": "loss",
                "logratios/chosen": "log-ratio of chosen (nats)",
                "logratios/rejected": "log-ratio of rejected (nats)",
            }
            if "logratios/margins" not in end:  # without a reference
                names |= {
                    "rewards/margins": "reward margin",
                    "logps/chosen": "log-prob of chosen (nats)",
                    "logps/rejected": "log-prob of rejected (nats)",
                }
            names |= {
                "kl": "KL(policy || reference) per token (nats)",
            }
            for key, name in names.items():
                if key in end:
                    before = f"{start[key]:.3f}" if key in start else ""
                    table.add_row(name, before, f"{end[key]:.3f}")
            self.console.print(table)
        self.say(f"{steps} steps in {duration(seconds)}")

    def samples(self, rows: list[dict[str, Any]], before: str) -> None:
        """Answers of two models side by side; `before` says whose the first are."""
        for row in rows:
            table = Table(box=box.ROUNDED, expand=True, show_lines=True)
            table.add_column(f"before ({before})", ratio=1)
            table.add_column("after (policy)", ratio=1)
            table.add_row(Text(row["reference"]), Text(row["policy"]))
            question = "\n".join(f"{m['role']}: {m['content']}" for m in row["prompt"])
            self.console.print(Text(question, style="italic"))
            self.console.print(table)


class Bar:
    """One progress bar."""

    def __init__(
        self, terminal: Terminal, drawn: Progress, task: Any, *, what: str, total: int | None, done: int, unit: str
    ):
        self.terminal, self.drawn, self.task = terminal, drawn, task
        self.what, self.total, self.done, self.unit = what, total, done, unit
        self.first, self.begun, self.said, self.numbers = done, time.monotonic(), time.monotonic(), ""

    def advance(self, n: int = 1, numbers: str = "") -> None:
        """Go on by n, with the newest numbers."""
        self.done += n
        self.numbers = numbers
        self.drawn.update(self.task, advance=n, numbers=numbers)
        now = time.monotonic()
        if not self.terminal.console.is_terminal and now - self.said >= PLAIN_SECONDS and self.done != self.total:
            self.said = now
            self._line()

    def close(self) -> None:
        """Leave one line of what was done."""
        seconds = time.monotonic() - self.begun
        fresh = self.done - self.first
        if fresh and (self.total is not None or seconds >= PLAIN_SECONDS):
            self.terminal.say(
                f"{self.what}: {self._count()} {self.unit} in {duration(seconds)} {self.numbers}".rstrip()
            )

    def _line(self) -> None:
        rate = (self.done - self.first) / max(1e-9, self.said - self.begun)
        left = f" ({duration((self.total - self.done) / rate) if rate else '?'} left)" if self.total is not None else ""
        self.terminal.say(f"{self.what}: {self._count()} {self.unit} {self.numbers}{left}")

    def _count(self) -> str:
        return f"{self.done}" if self.total is None else f"{self.done}/{self.total}"


def duration(seconds: float) -> str:
    """Seconds as a reader wants them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"
