"""What preference data is, before and after tokenisation."""

from dataclasses import dataclass, field
from typing import TypedDict


class Message(TypedDict):
    """One turn of a conversation; role is system, user or assistant (or tool)."""

    role: str
    content: str


@dataclass(frozen=True)
class Pair:
    """A prompt and two answers to it, the chosen one preferred."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    row: int  # where it stands in its source, from 1

    def prompt_key(self) -> tuple[tuple[str, str], ...]:
        """The prompt as something hashable."""
        return tuple((m["role"], m["content"]) for m in self.prompt)


@dataclass(frozen=True)
class Example:
    """A pair as token ids: prompt with generation prompt, and each answer with its end of turn."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    pair: Pair

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Tokens of prompt, chosen and rejected answer."""
        return len(self.prompt_ids), len(self.chosen_ids), len(self.rejected_ids)


@dataclass
class Counts:
    """What became of the pairs of one split."""

    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict[str, int])
    cut: dict[str, int] = field(default_factory=dict[str, int])
    first_row: dict[str, int] = field(default_factory=dict[str, int])  # where each reason first occurred

    def drop(self, reason: str, row: int) -> None:
        """Count a pair that is left out."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        self.first_row.setdefault(reason, row)

    def __str__(self) -> str:
        parts = [f"{self.kept} kept"]
        parts += [
            f"{n} dropped ({reason}, first in row {self.first_row[reason]})" for reason, n in self.dropped.items()
        ]
        parts += [f"{n} {what}" for what, n in self.cut.items()]
        return ", ".join(parts)
