"""A conversation in the terminal: speakers side by side where there is room for it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dpo_lab.inference.generate import Answer
from dpo_lab.inference.talk.clean import shown
from dpo_lab.inference.talk.speakers import label

COLOURS = ("yellow", "green", "blue", "magenta", "cyan", "red")  # the reference is the first
WIDE = 80  # terminal columns from which speakers stand side by side
BESIDE = 3  # speakers that do at most
FRAME = 4  # lines of a table besides its text: border, names, rule, border
RHYTHM = 0.08  # seconds between two drawings
SHARE = 0.1  # of the time that drawing may take


class Screen:
    """Draws answers.

    Args:
        console: the terminal.
        names: everybody who is there; decides their colours and what they are called.
    """

    def __init__(self, console: Console, names: Sequence[str]) -> None:
        self.console, self.names = console, tuple(names)

    def say(self, text: str) -> None:
        """Something of the lab's own."""
        self.console.print(shown(text, "dim"))

    def fault(self, text: str) -> None:
        """Something that went wrong, and the conversation goes on."""
        self.console.print(shown(text, "red"))

    @contextmanager
    def answering(self, names: Sequence[str]) -> Iterator["Streams"]:
        """Answers that grow while the context is open; afterwards nothing of them is left to see."""
        streams = Streams(self, names)
        with Live(
            get_renderable=streams.tail,
            console=self.console,
            auto_refresh=False,
            transient=True,
            vertical_overflow="crop",
        ) as live:
            streams.live = live
            yield streams

    def show(self, answers: dict[str, Answer], notes: dict[str, str]) -> None:
        """Whole answers, each with a note below it."""
        bodies = [
            Group(
                shown(answer.text) if answer.text else Text("(nothing)", style="dim italic"), shown(notes[name], "dim")
            )
            for name, answer in answers.items()
        ]
        self.console.print(self.arranged(list(answers), bodies))

    def arranged(self, names: Sequence[str], bodies: Sequence[RenderableType]) -> RenderableType:
        """What belongs to each name, side by side or one below the other."""
        heads = [self.head(name) for name in names]
        if not self.beside(len(names)):
            return Group(*(part for pair in zip(heads, bodies, strict=True) for part in pair))
        table = Table(box=box.ROUNDED, expand=True)
        for head in heads:
            table.add_column(head, ratio=1, overflow="fold")
        table.add_row(*bodies)
        return table

    def head(self, name: str) -> Text:
        """A name in its colour."""
        colour = COLOURS[self.names.index(name) % len(COLOURS)]
        return shown(label(name, self.names), f"bold {colour}")

    def beside(self, n: int) -> bool:
        """Whether so many speakers stand side by side."""
        return 1 < n <= BESIDE and self.console.width >= WIDE

    def measures(self, n: int) -> tuple[int, int]:
        """Columns and lines that each of so many answers has while it grows."""
        width, height = self.console.width, self.console.height
        if self.beside(n):
            return (width - 3 * n - 1) // n, max(1, height - FRAME - 1)
        return width, max(1, (height - 1) // n - 1)


class Streams:
    """Answers that grow: of each the last lines that fit."""

    def __init__(self, screen: Screen, names: Sequence[str]) -> None:
        self.screen, self.names = screen, tuple(names)
        self.texts = [""] * len(self.names)
        self.first: list[float | None] = [None] * len(self.names)
        self.last = [0.0] * len(self.names)
        self.live: Live | None = None
        self.drawn, self.cost = 0.0, 0.0

    def add(self, place: int, text: str) -> None:
        """More of an answer."""
        self.texts[place] += text
        now = time.monotonic()
        if self.first[place] is None:
            self.first[place] = now
        self.last[place] = now
        if self.live is not None and now - self.drawn >= max(RHYTHM, self.cost / SHARE):
            self.live.refresh()
            self.drawn = time.monotonic()
            self.cost = self.drawn - now

    def tail(self) -> RenderableType:
        """What is to be seen now."""
        width, lines = self.screen.measures(len(self.names))
        bodies = []
        for text in self.texts:
            wrapped = shown(text).wrap(self.screen.console, width, overflow="fold")
            bodies.append(Text("\n").join(wrapped[-lines:]))
        return self.screen.arranged(self.names, bodies)

    def note(self, place: int, answer: Answer, *, stopped: bool, limit: int, left_out: int) -> str:
        """What is told below an answer: how long, how fast, and whether it is whole."""
        begun = self.first[place]
        parts = [f"{answer.tokens} token{'' if answer.tokens == 1 else 's'}"]
        if begun is not None and answer.tokens > 1 and self.last[place] > begun:
            parts.append(f"{(answer.tokens - 1) / (self.last[place] - begun):.0f} tokens/s")
        if not answer.ended:
            cut = answer.tokens >= limit
            parts.append(f"cut at generation.max_new_tokens={limit}" if cut or not stopped else "stopped")
        if left_out:
            parts.append(f"{left_out} old messages left out")
        return ", ".join(parts)
