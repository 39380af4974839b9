"""`python -m dpo_lab.chat`: a conversation with results and their reference, or answers to given questions."""

import signal
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import torch

from dpo_lab.config.brought import REFERENCE, bring, explicit
from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Config
from dpo_lab.inference.sampler import Sampling
from dpo_lab.inference.stage import Stage, load_stage
from dpo_lab.inference.talk.asking import Said, ask
from dpo_lab.inference.talk.clean import printable
from dpo_lab.inference.talk.commands import Talk, obey, told_of_load
from dpo_lab.inference.talk.conversation import Conversation
from dpo_lab.inference.talk.once import answer_once, questions
from dpo_lab.inference.talk.reading import Reader, silent_keys
from dpo_lab.inference.talk.screen import Screen
from dpo_lab.inference.talk.speakers import find_speakers
from dpo_lab.runtime.errors import ConfigError, LabError
from dpo_lab.runtime.terminal import Terminal


def chat(config: Config, tree: dict[str, Any], folder: Path, given: Collection[str] | None = None) -> dict[str, float]:
    """Talk, or answer and be done.

    Args:
        config: the validated configuration, with its node chat.
        tree: the same as plain containers.
        folder: not used.
        given: keys of the command line; None asks Hydra.

    Returns:
        How many answers there were, and tokens in them.

    Raises:
        LabError: something the user can act on.
    """
    keys = explicit() if given is None else given
    config, tree, subjects = bring(config, tree, keys)
    asked = config.chat
    assert asked is not None
    todo = questions(config, keys)
    names = (REFERENCE, *(s.name for s in subjects))
    speaking = find_speakers(asked.only, names)
    conversation = Conversation() if asked.load is None else Conversation.load(expand(asked.load))
    conversation.system = asked.system or config.prompts.system or conversation.system
    sampling = Sampling.of(config.generation, seed=config.seed)
    if todo is None:
        if asked.json_only:
            raise ConfigError(
                "chat.json_only=true is for answers to prompt=, prompt_file=, prompts= or a pipe. Give one."
            )
        if not sys.stdout.isatty():
            raise ConfigError("A conversation needs a terminal to show it. Give prompt=, prompt_file= or prompts=.")
        terminal = Terminal()
        stage = load_stage(config, subjects, terminal)
        talk = Talk(names, speaking, sampling, conversation, overwrite=config.overwrite)
        return converse(stage, talk, terminal)
    terminal = Terminal(quiet=asked.json_only or not sys.stdout.isatty())
    stage = load_stage(config, [s for s in subjects if s.name in speaking], terminal)
    said = answer_once(stage, conversation, speaking, todo, sampling, terminal.console, as_json=asked.json_only)
    return _counted(said)


def converse(stage: Stage, talk: Talk, terminal: Terminal) -> dict[str, float]:
    """Questions and answers until the user leaves."""
    screen = Screen(terminal.console, talk.names)
    reader = Reader(screen.say)
    _introduce(stage, talk, terminal)
    said: list[Said] = []
    while not talk.over and (typed := reader.read()) is not None:
        text, quoted = typed
        try:
            if text.lstrip().startswith("/") and not quoted:
                if news := obey(talk, text):
                    screen.say(news)
            else:
                said.append(answer(stage, talk, text, screen))
        except LabError as e:
            screen.fault(str(e))
        except torch.OutOfMemoryError:
            screen.fault("There is no memory left for this conversation. /reset begins anew; /only NAME needs less.")
    return _counted(said)


def answer(stage: Stage, talk: Talk, question: str, screen: Screen) -> Said:
    """One question to everybody who speaks; what they say is shown while it comes, and kept."""
    with stopping() as stop, silent_keys(), screen.answering(talk.speaking) as streams:
        said = ask(stage, talk.conversation, talk.speaking, question, talk.sampling, on_text=streams.add, stop=stop)
    notes = {
        name: streams.note(
            place,
            found,
            stopped=stop.is_set(),
            limit=talk.sampling.max_new_tokens,
            left_out=said.left_out.get(name, 0),
        )
        for place, (name, found) in enumerate(said.answers.items())
    }
    screen.show(said.answers, notes)
    talk.conversation.record(said.question, {name: found.text for name, found in said.answers.items()})
    return said


@contextmanager
def stopping() -> Iterator[Event]:
    """An event that Ctrl-C sets while the context is open, instead of ending the program."""
    stop = Event()
    before = signal.signal(signal.SIGINT, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _introduce(stage: Stage, talk: Talk, terminal: Terminal) -> None:
    sampling = talk.sampling
    how = (
        "the most probable token"
        if sampling.greedy
        else f"temperature {sampling.temperature:g}, top_p {sampling.top_p:g}"
    )
    facts = {
        "model": f"{stage.start.located.name}, {stage.precision} on {stage.device}",
        "template": stage.template.name,
        "sampling": f"{how}, at most {sampling.max_new_tokens} tokens, seed {sampling.seed}",
        "answering": talk.called,
    }
    results = [f"{s.name}: {s.path}" for s in stage.subjects]
    facts |= {"results": "\n".join(results)} if results else {}
    facts |= {"system": talk.conversation.system} if talk.conversation.system else {}
    terminal.header("A conversation", {key: printable(value) for key, value in facts.items()})
    loaded = stage.config.chat.load if stage.config.chat is not None else None
    if loaded is not None:
        path = expand(loaded)
        talk.written.add(path.resolve())
        terminal.say(told_of_load(talk, path))
    terminal.say("/help says what can be typed besides questions. Ctrl-C stops an answer, Ctrl-D leaves.")


def _counted(said: list[Said]) -> dict[str, float]:
    found = [one for s in said for one in s.answers.values()]
    return {"answers": float(len(found)), "tokens": float(sum(one.tokens for one in found))}
