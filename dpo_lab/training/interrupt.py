"""Requests to end a run: signals and control.json. Both end it at a safe point, with a checkpoint."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from dpo_lab.runtime.errors import Interrupted
from dpo_lab.runtime.files import read_json

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Remembers a request until the run comes to a point where it can end."""

    def __init__(self, control: Path) -> None:
        self.control = control
        self.received: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM while the block runs. A second one ends the process at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {s: signal.getsignal(s) for s in SIGNALS}
        self.listen()
        try:
            yield
        finally:
            for s, handler in former.items():
                signal.signal(s, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Where nothing is lost by it, signals end the run in the middle of what it does while the block runs.

        Processes that are forked meanwhile leave the end to this one.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        owner = os.getpid()

        def end(number: int, frame: FrameType | None) -> None:
            if os.getpid() == owner:
                self.received = number
                self.check()
            elif number == signal.SIGTERM:
                os._exit(128 + number)

        former = {s: signal.signal(s, end) for s in SIGNALS}
        try:
            self.check()
            yield
        finally:
            for s, handler in former.items():
                signal.signal(s, handler)

    def listen(self) -> None:
        """Install the handlers (again: Lightning puts its own in their place)."""
        if threading.current_thread() is threading.main_thread():
            for s in SIGNALS:
                signal.signal(s, self._on_signal)

    def check(self) -> None:
        """Raise Interrupted if somebody asked for the end."""
        if self.received is not None:
            name = signal.Signals(self.received).name
            raise Interrupted("stopped", f"{name} received", 128 + self.received)
        if self.control.exists() and isinstance(order := read_json(self.control), dict):
            action, why = order.get("action"), order.get("reason", "no reason given")
            if action in ("stop", "prune"):
                status = "pruned" if action == "prune" else "stopped"
                raise Interrupted(status, f"control.json: {why}", 0)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        log.warning("%s: ending at the next step, with a checkpoint (again: at once)", signal.Signals(number).name)
