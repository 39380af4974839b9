"""What a conversation takes besides questions: /reset, /save and so on."""

import math
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from dpo_lab.config.names import listed, nearest
from dpo_lab.config.paths import expand
from dpo_lab.inference.sampler import Sampling
from dpo_lab.inference.talk.conversation import Conversation
from dpo_lab.inference.talk.speakers import find_speaker, label
from dpo_lab.runtime.errors import ConfigError, OutputError


@dataclass
class Talk:
    """A conversation that goes on, and how.

    Attributes:
        names: who is there, the reference first.
        speaking: who answers.
        sampling: how tokens are chosen.
        conversation: what was said.
        overwrite: whether /save may replace a file that it did not write.
        written: files that this conversation was saved to or loaded from.
        over: whether the user left.
    """

    names: tuple[str, ...]
    speaking: tuple[str, ...]
    sampling: Sampling
    conversation: Conversation
    overwrite: bool = False
    written: set[Path] = field(default_factory=set)
    over: bool = False

    @property
    def called(self) -> str:
        """Who answers, in words."""
        return listed([label(name, self.names) for name in self.speaking], "and")


def obey(talk: Talk, line: str) -> str:
    """Do what a line that begins with / says; returns what to tell the user.

    Raises:
        LabError: there is no such command, or it cannot be done.
    """
    word, argument = [*line.strip().removeprefix("/").split(maxsplit=1), "", ""][:2]
    if word not in COMMANDS:
        raise ConfigError(_unknown(word))
    return COMMANDS[word].act(talk, argument.strip())


def _unknown(word: str) -> str:
    guesses = nearest(word, COMMANDS) if word else []
    hint = (
        f"Did you mean {listed(_slashed(guesses), 'or')}?"
        if guesses
        else f"There is {listed(_slashed(COMMANDS), 'and')}."
    )
    return f'There is no command /{word}. {hint} A question that begins with / goes between """ and """.'


def _slashed(words: Iterable[str]) -> list[str]:
    return [f"/{word}" for word in words]


def _reset(talk: Talk, _: str) -> str:
    n = len(talk.conversation.turns)
    talk.conversation = Conversation(talk.conversation.system)
    return f"{_turns(n)} forgotten; the system prompt stays." if talk.conversation.system else f"{_turns(n)} forgotten."


def _save(talk: Talk, argument: str) -> str:
    path = _path(argument, "/save")
    if path.is_dir():
        raise OutputError(f"{path} is a folder. Give a file.")
    if path.exists() and path.resolve() not in talk.written and not talk.overwrite:
        raise OutputError(f"There is a file {path} already. Choose another name.")
    talk.conversation.save(path)
    talk.written.add(path.resolve())
    return f"{_turns(len(talk.conversation.turns))} saved to {path}."


def _load(talk: Talk, argument: str) -> str:
    path = _path(argument, "/load")
    talk.conversation = Conversation.load(path)
    talk.written.add(path.resolve())
    return told_of_load(talk, path)


def told_of_load(talk: Talk, path: Path) -> str:
    """What was loaded, and whose answers nobody goes on from."""
    strangers = [name for name in talk.conversation.speakers if name not in talk.names]
    text = f"{_turns(len(talk.conversation.turns))} of {path}."
    if strangers:
        text += f" The answers of {listed(strangers, 'and')} stay in it, but nobody here goes on from them."
    return text


def _system(talk: Talk, argument: str) -> str:
    if argument:
        talk.conversation.system = None if argument == "off" else argument
    system = talk.conversation.system
    return "There is no system prompt." if system is None else f"System prompt: {system}"


def _temp(talk: Talk, argument: str) -> str:
    if argument:
        try:
            value = float(argument)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise ConfigError(f"/temp {argument}: a temperature is a number from 0, such as 0.7. Nothing changed.")
        talk.sampling = replace(talk.sampling, temperature=value)
    greedy = ": the most probable token each time" if talk.sampling.greedy else ""
    return f"Temperature {talk.sampling.temperature:g}{greedy}."


def _only(talk: Talk, argument: str) -> str:
    talk.speaking = talk.names if argument in ("", "all") else (find_speaker(argument, talk.names),)
    return f"{talk.called} {'answers' if len(talk.speaking) == 1 else 'answer'} from here on."


def _help(talk: Talk, _: str) -> str:
    width = max(len(f"/{name} {c.takes}") for name, c in COMMANDS.items())
    lines = [f"{f'/{name} {c.takes}'.ljust(width)}  {c.does}" for name, c in COMMANDS.items()]
    lines += ["", 'Several lines: paste them, end each but the last with \\, or put """ before and after.']
    lines += ["Ctrl-C stops an answer. At the prompt Ctrl-D leaves, and so does Ctrl-C twice."]
    return "\n".join(lines)


def _quit(talk: Talk, _: str) -> str:
    talk.over = True
    return ""


@dataclass(frozen=True)
class Command:
    """A command: what it does, in words and in deed."""

    takes: str
    does: str
    act: Callable[[Talk, str], str]


COMMANDS = {
    "reset": Command("", "begins anew, with the same system prompt", _reset),
    "save": Command("FILE", "writes the conversation as JSON", _save),
    "load": Command("FILE", "goes on with a saved conversation", _load),
    "system": Command("TEXT", "sets the system prompt; off takes it away", _system),
    "temp": Command("NUMBER", "sets the temperature; 0 takes the most probable token", _temp),
    "only": Command("NAME", "policy, reference or a name: who answers; all for everybody", _only),
    "help": Command("", "says this", _help),
    "quit": Command("", "leaves", _quit),
}


def _path(argument: str, command: str) -> Path:
    """A file name, in quotes or not."""
    name = argument
    if argument[:1] in ("'", '"'):
        try:
            name = " ".join(shlex.split(argument))
        except ValueError as e:
            raise ConfigError(f"{command} {argument}: {e}.".replace("..", ".")) from e
    if not name:
        raise ConfigError(f"{command} needs the name of a file.")
    return expand(name)


def _turns(n: int) -> str:
    return f"{n} turn{'' if n == 1 else 's'}"
