"""What was said: the questions, and each speaker's own answers to them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo_lab.data.types import Message
from dpo_lab.runtime.errors import ConfigError
from dpo_lab.runtime.files import write_json


@dataclass(frozen=True)
class Turn:
    """A question and who said what to it."""

    user: str
    answers: dict[str, str]  # by name


@dataclass
class Conversation:
    """A conversation with several speakers who do not hear each other.

    Attributes:
        system: what stands before all turns, if anything does.
        turns: the oldest first.
    """

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)

    def messages(self, name: str, question: str) -> list[Message]:
        """The prompt of one speaker: the turns with its own answers, and the question.

        Turns that it did not answer, because it was not asked or was stopped at once, are not part of it.
        """
        said = [Message(role="system", content=self.system)] if self.system else []
        for turn in self.turns:
            if answer := turn.answers.get(name):
                said += [Message(role="user", content=turn.user), Message(role="assistant", content=answer)]
        return [*said, Message(role="user", content=question)]

    def record(self, question: str, answers: Mapping[str, str]) -> None:
        """Add a turn, if anybody said anything."""
        if given := {name: text for name, text in answers.items() if text}:
            self.turns.append(Turn(question, given))

    @property
    def speakers(self) -> list[str]:
        """Who said something, in the order of their first words."""
        return list(dict.fromkeys(name for turn in self.turns for name in turn.answers))

    def save(self, path: Path) -> None:
        """Write it as JSON.

        Raises:
            OutputError: the file cannot be written.
        """
        turns = [{"user": turn.user, "answers": turn.answers} for turn in self.turns]
        write_json(path, {"system": self.system, "turns": turns})

    @classmethod
    def load(cls, path: Path) -> "Conversation":
        """Read what `save` wrote.

        Raises:
            ConfigError: there is no such file, or something else is in it.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as e:
            raise ConfigError(f"The conversation {path} cannot be read: {e.strerror or e}.") from e
        except ValueError as e:
            raise ConfigError(f"{path} is not a conversation: it is no JSON ({e}).") from e
        if not _is_conversation(content):
            raise ConfigError(
                f'{path} is not a conversation as /save writes it: {{"system": text or null, "turns": '
                '[{"user": text, "answers": {name: text}}]}.'
            )
        return cls(content["system"], [Turn(turn["user"], dict(turn["answers"])) for turn in content["turns"]])


def _is_conversation(content: Any) -> bool:
    if not isinstance(content, dict) or not isinstance(content.get("system"), str | None):
        return False
    turns = content.get("turns")
    return "system" in content and isinstance(turns, list) and all(_is_turn(turn) for turn in turns)


def _is_turn(turn: Any) -> bool:
    if not isinstance(turn, dict) or not isinstance(turn.get("user"), str) or not turn["user"].strip():
        return False
    answers = turn.get("answers")
    return isinstance(answers, dict) and all(isinstance(text, str) and text for text in answers.values())
