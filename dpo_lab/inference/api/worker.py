"""The thread that owns the models."""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence

from dpo_lab.inference.api.orders import Ending, Ticket
from dpo_lab.inference.api.problems import Problem
from dpo_lab.inference.generate import Answer, OnText, answers
from dpo_lab.inference.stage import Stage
from dpo_lab.models import mixed

log = logging.getLogger(__name__)
TOGETHER = 8  # rows of a batch: more cost little time on an accelerator, and memory everywhere
GATHER_SECONDS = 0.01  # an idle worker waits so long for what comes with the first: policy and reference, side by side


class Worker:
    """Answers tickets in their order; those that wait and are sampled alike go through the base in one batch.

    The models are touched by its thread alone. Every other method may be called from any thread.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._mixes = mixed.mixes(stage.model)
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._batch: list[Ticket] = []
        self._stop = threading.Event()  # of the batch
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def load(self) -> dict[str, int]:
        """How many answers are being written, and how many wait."""
        with self._changed:
            return {"answering": sum(not t.over for t in self._batch), "waiting": len(self._waiting)}

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Take tickets on."""
        with self._changed:
            if not self._closing:
                self._waiting.extend(tickets)
                self._changed.notify()
                return
        for ticket in tickets:
            ticket.fail(_closed())

    def drop(self, tickets: Sequence[Ticket]) -> None:
        """Nobody waits for these any more."""
        for ticket in tickets:
            ticket.fail(Problem(499, "The client has gone."))
        with self._changed:
            self._waiting = deque(t for t in self._waiting if not t.over)
            self._settle()

    def close(self) -> None:
        """Tell all who wait that nothing comes any more, and end the thread after its next token."""
        with self._changed:
            self._closing = True
            left = [*self._batch, *self._waiting]
            self._waiting.clear()
            self._stop.set()
            self._changed.notify()
        for ticket in left:
            ticket.fail(_closed())

    def join(self) -> None:
        """Wait for the end of the thread."""
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            self._answer(batch)
            with self._changed:
                self._batch = []

    def _next(self) -> list[Ticket]:
        """The oldest ticket and those that go with it; [] at the end."""
        with self._changed:
            idle = not self._waiting
            self._changed.wait_for(lambda: self._waiting or self._closing)
        if idle:
            time.sleep(GATHER_SECONDS)
        with self._changed:
            while not self._waiting:  # all who were there have gone
                if self._closing:
                    return []
                self._changed.wait()
            batch: list[Ticket] = []
            for ticket in self._waiting:
                if len(batch) < TOGETHER and all(self._together(ticket, other) for other in batch):
                    batch.append(ticket)
            self._waiting = deque(t for t in self._waiting if t not in batch)
            self._batch, self._stop = batch, threading.Event()
            return batch

    def _together(self, ticket: Ticket, other: Ticket) -> bool:
        a, b = ticket.asked.name, other.asked.name
        shared = a == b or (self._mixes and not {a, b} & self.stage.wholes.keys())
        return shared and ticket.sampling == other.sampling

    def _answer(self, batch: list[Ticket]) -> None:
        begun = time.monotonic()
        asked = [ticket.asked for ticket in batch]
        try:
            made = answers(self.stage, asked, batch[0].sampling, on_text=self._speaker(batch), stop=self._stop)
        except Exception as e:  # whatever it is: clients wait to hear of it, and the next batch may be well
            log.exception("no answer of %s", ", ".join(a.name for a in asked))
            for ticket in batch:
                ticket.fail(Problem(500, f"{type(e).__name__}: {e}"))
            return
        _report(batch, made, time.monotonic() - begun)
        for ticket, answer in zip(batch, made, strict=True):
            ticket.end(Ending("stop" if answer.ended else "length", answer.tokens))

    def _speaker(self, batch: list[Ticket]) -> OnText:
        def on_text(row: int, text: str) -> None:
            ticket = batch[row]
            if ticket.take(text):
                ids = self.stage.template.encode([ticket.said], special=False)[0]
                ticket.end(Ending("stop", len(ids)))
                with self._changed:
                    self._settle()

        return on_text

    def _settle(self) -> None:
        """End the batch once nobody waits for any of it."""
        if self._batch and all(ticket.over for ticket in self._batch):
            self._stop.set()


def _report(batch: list[Ticket], made: list[Answer], seconds: float) -> None:
    names = ", ".join(sorted({ticket.asked.name for ticket in batch}))
    gone = sum(ticket.over and not ticket.cut.hit for ticket in batch)
    left = f", {gone} of them for nobody: the client had gone" if gone else ""
    tokens = sum(answer.tokens for answer in made)
    log.info("%d answers of %s: %d tokens in %.1f s%s", len(batch), names, tokens, seconds, left)


def _closed() -> Problem:
    return Problem(503, "The server is shutting down.")
