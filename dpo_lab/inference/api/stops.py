"""Texts that end an answer."""

from collections.abc import Sequence


class Cut:
    """Lets an answer through, piece by piece, up to the first of some texts, which is left out.

    What may be the beginning of one waits until it is known: with the stop "END", of "the E" only "the " goes on.

    Attributes:
        hit: whether one of them came.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops, self.hit = tuple(stops), False
        self._held = ""

    def take(self, text: str) -> str:
        """The next piece; returns what can go on."""
        if self.hit:
            return ""
        text = self._held + text
        places = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if places:
            self.hit, self._held = True, ""
            return text[: min(places)]
        waits = max((_overlap(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - waits :]
        return text[: len(text) - waits]

    def rest(self) -> str:
        """What waited when the answer ended by itself."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text are the beginning of the stop."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
