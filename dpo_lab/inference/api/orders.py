"""What a client waits for: the answers to one request, each written by the worker's thread and read in the event loop."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from dpo_lab.inference.api.problems import Problem
from dpo_lab.inference.api.stops import Cut
from dpo_lab.inference.generate import Asked
from dpo_lab.inference.sampler import Sampling


@dataclass(frozen=True)
class Ending:
    """How an answer ended: by itself or at a stop text (stop), or cut at its last token (length)."""

    reason: Literal["stop", "length"]
    tokens: int  # generated, the end or the stop text included


News = str | Ending | Problem


class Order:
    """The answers to one request. It is made in the event loop that reads it.

    Args:
        asked: model, prompt and seed of each answer.
        sampling: of all of them.
        stops: texts that end an answer.
    """

    def __init__(self, asked: Sequence[Asked], sampling: Sampling, *, stops: Sequence[str]) -> None:
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[tuple[int, News]] = asyncio.Queue()
        self.tickets = [Ticket(self, i, one, sampling, Cut(stops)) for i, one in enumerate(asked)]

    def tell(self, place: int, news: News) -> None:
        """Called from any thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody reads it any more
            self._loop.call_soon_threadsafe(self._news.put_nowait, (place, news))

    async def news(self) -> AsyncIterator[tuple[int, str | Ending]]:
        """(which answer, text that came on or how it ended), until all have ended.

        Raises:
            Problem: one of them cannot be had.
        """
        missing = len(self.tickets)
        while missing:
            place, news = await self._news.get()
            if isinstance(news, Problem):
                raise news
            missing -= isinstance(news, Ending)
            yield place, news


@dataclass(eq=False)
class Ticket:
    """One answer of an order.

    Attributes:
        over: nobody waits for more of it: it has ended, or its client has gone.
    """

    order: Order
    place: int
    asked: Asked
    sampling: Sampling
    cut: Cut
    over: bool = False
    said: str = field(default="", repr=False)

    def take(self, text: str) -> bool:
        """The next piece of the answer. Returns whether it ended with it, at a stop text."""
        if self.over:
            return False
        self.said += text
        if through := self.cut.take(text):
            self.order.tell(self.place, through)
        return self.cut.hit

    def end(self, ending: Ending) -> None:
        """The answer is there, up to what it held back."""
        if not self.over:
            self.over = True
            if rest := self.cut.rest():
                self.order.tell(self.place, rest)
            self.order.tell(self.place, ending)

    def fail(self, problem: Problem) -> None:
        """There will be no answer."""
        if not self.over:
            self.over = True
            self.order.tell(self.place, problem)
