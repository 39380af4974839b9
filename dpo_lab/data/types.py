"""What preference data is, before and after tokenisation."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

from dpo_lab.runtime.errors import DataError

Row = dict[str, Any]
OnBad = Callable[[DataError], None]  # takes what is wrong with a row that is left out


class Message(TypedDict):
    """One turn of a conversation."""

    role: str  # system, user, assistant or tool
    content: str
    tool_calls: NotRequired[list[dict[str, Any]]]  # of the assistant: [{"type": "function", "function": {...}}]
    name: NotRequired[str]  # of the tool whose result this is


@dataclass(frozen=True)
class Pair:
    """A prompt and two answers to it, the chosen one preferred."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    row: int  # where it stands in its source, from 1
    source: str = ""  # the file or the dataset
    tools: tuple[dict[str, Any], ...] = ()  # functions that the model may call, as JSON schemas


@dataclass(frozen=True)
class Reading:
    """How the rows of a source become pairs."""

    format: str = "auto"  # a name in formats.FORMATS, or auto
    columns: Mapping[str, str] = field(default_factory=dict[str, str])  # our name -> the source's
    tags: Mapping[str, str] = field(default_factory=dict[str, str])  # LLaMA-Factory's role_tag, user_tag, ...
    ranking: str = "all"  # all | best_worst | adjacent: which pairs k ranked answers make
    min_margin: float = 0.0  # least difference of the scores of two answers that make a pair
    mixed: bool = False  # one of several sources, for which not every option need have an effect


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
    first_file: dict[str, str] = field(default_factory=dict[str, str])  # the same, where there are several files
    kinds: dict[str, str] = field(default_factory=dict[str, str])  # reason -> faulty | unpaired, for rows of no pair
    named: int = 0  # pairs whose texts hold names of special tokens
    first_named: int = 0

    def drop(self, reason: str, row: int, n: int = 1, file: str = "", kind: str = "") -> None:
        """Count pairs that are left out; with a kind, rows that gave no pair: faulty, or sound but unpaired."""
        self.dropped[reason] = self.dropped.get(reason, 0) + n
        if kind:
            self.kinds[reason] = kind
        self.found(reason, row, file)

    def found(self, what: str, row: int, file: str = "") -> None:
        """Remember where something occurred first; a file is named where there are several."""
        if what not in self.first_row:
            self.first_row[what] = row
            if file:
                self.first_file[what] = file

    def add(self, row: int, dropped: str | None, cuts: Iterable[str] = (), named: bool = False) -> None:
        """Count one pair: what was cut of it, or why it was left out."""
        if named:
            self.first_named = self.first_named or row
            self.named += 1
        if dropped is not None:
            self.drop(dropped, row)
            return
        self.kept += 1
        for what in cuts:
            self.cut[what] = self.cut.get(what, 0) + 1
            self.found(what, row)

    def __str__(self) -> str:
        parts = [f"{self.kept} kept"]
        parts += [f"{n} dropped ({reason}, first in {self._place(reason)})" for reason, n in self.dropped.items()]
        parts += [f"{n} {what}" for what, n in self.cut.items()]
        return ", ".join(parts)

    def _place(self, what: str) -> str:
        file = self.first_file.get(what, "").rpartition("/")[2]
        return f"row {self.first_row[what]}{f' of {file}' if file else ''}"
