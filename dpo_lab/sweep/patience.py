"""What becomes of a sweep whose launcher takes no more trials for now: a full queue, a scheduler that does not answer."""

import logging
import time

from dpo_lab.sweep.pool import Refused

log = logging.getLogger(__name__)
AGAIN = 30.0  # seconds until the launcher is asked again, unless a trial ends before
LIMIT = 1800.0  # seconds of refusals while nothing runs, after which the sweep ends


class Patience:
    """When a launcher that refused a trial is asked again, and when no longer."""

    def __init__(self) -> None:
        self._taken = self._said = False
        self._until = 0.0
        self._since: float | None = None  # the first of the refusals in a row while nothing runs

    def asks(self) -> bool:
        """Whether the launcher is asked now."""
        return time.monotonic() >= self._until

    def taken(self) -> None:
        """It has taken a trial."""
        self._taken, self._since = True, None

    def freed(self) -> None:
        """A trial has ended, and there may be room."""
        self._until = 0.0

    def refused(self, why: Refused, *, idle: bool) -> bool:
        """Whether to give up. Who starts a sweep and gets nothing has asked for what cannot be had, and is told at once.

        Args:
            why: the refusal; it is said once, and then only that it is the end.
            idle: nothing runs whose end would make room.
        """
        now = time.monotonic()
        self._until = now + AGAIN
        self._since = (self._since or now) if idle else None
        if self._since is not None and (not self._taken or now - self._since >= LIMIT):
            return True
        if not self._said:
            self._said = True
            log.warning("%s It is tried again every %.0f s, and when a trial ends. What runs goes on.", why, AGAIN)
        return False
