"""Questions that are answered once: of the command line, a file, a pipe, or conf/prompts."""

import sys
from collections.abc import Collection, Sequence
from copy import deepcopy
from typing import Any

from rich.console import Console

from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Config
from dpo_lab.inference.sampler import Sampling
from dpo_lab.inference.stage import Stage
from dpo_lab.inference.talk.asking import Said, ask
from dpo_lab.inference.talk.clean import printable, safe_json
from dpo_lab.inference.talk.conversation import Conversation
from dpo_lab.inference.talk.screen import Screen
from dpo_lab.inference.talk.speakers import label
from dpo_lab.runtime.errors import ConfigError

GROUP = ("prompts", "prompts.own", "prompts.count")


def questions(config: Config, given: Collection[str]) -> list[str] | None:
    """What is asked on the command line, in a file or by a pipe; None where the user is to ask.

    Args:
        config: of the door.
        given: keys of the command line.

    Raises:
        ConfigError: there is nothing to ask, or the file cannot be read.
    """
    own = config.prompts.own
    if not own and not {*GROUP}.isdisjoint(given):
        raise ConfigError(
            "These prompts have none of their own, and chat asks no others. Use prompts=tutorial, or prompt=."
        )
    if config.prompt is not None:
        found, where = [config.prompt], "prompt"
    elif config.prompt_file is not None:
        found, where = [_of_file(config.prompt_file)], f"prompt_file={config.prompt_file}"
    elif own:
        found, where = own, "prompts.own"
    elif sys.stdin is not None and sys.stdin.isatty():
        return None
    else:
        found, where = [_piped()], "The standard input"
    if any(not text.strip() for text in found):
        raise ConfigError(f"{where} is empty. Ask something.")
    return found


def _of_file(name: str) -> str:
    path = expand(name)
    try:
        return _text(path.read_bytes(), f"prompt_file={name}")
    except OSError as e:
        raise ConfigError(f"prompt_file={name} cannot be read: {e.strerror or e}.") from e


def _piped() -> str:
    return "" if sys.stdin is None else _text(sys.stdin.buffer.read(), "The standard input")


def _text(data: bytes, where: str) -> str:
    """The content without the line break that ends a file."""
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").rstrip("\n")
    except UnicodeDecodeError as e:
        raise ConfigError(f"{where} is no text in UTF-8 ({e.reason} at byte {e.start}).") from e


def answer_once(
    stage: Stage,
    conversation: Conversation,
    names: Sequence[str],
    asked: Sequence[str],
    sampling: Sampling,
    console: Console,
    *,
    as_json: bool,
) -> list[Said]:
    """Answer each question by itself, all names in one batch, and write the answers to stdout.

    Args:
        stage: who is loaded.
        conversation: what stands before each question.
        names: who answers.
        asked: the questions.
        sampling: how tokens are chosen.
        console: shows that work goes on.
        as_json: JSON and nothing else; else the texts, and names where there are several.
    """
    said = []
    for question in asked:
        if console.is_terminal and not as_json:
            with console.status("answering"):
                said.append(ask(stage, conversation, names, question, sampling))
        else:
            said.append(ask(stage, conversation, names, question, sampling))
        if not as_json:
            _show(said[-1], stage, console, with_question=len(asked) > 1, first=len(said) == 1)
    if as_json:
        sys.stdout.write(safe_json(to_json(stage, conversation, names, said, sampling)) + "\n")
        sys.stdout.flush()
    return said


def to_json(
    stage: Stage, conversation: Conversation, names: Sequence[str], said: Sequence[Said], sampling: Sampling
) -> dict[str, Any]:
    """The answers and all that decided them."""
    rows = [
        {
            "prompt": one.question,
            "answers": {
                name: {
                    "text": answer.text,
                    "tokens": answer.tokens,
                    "ended": answer.ended,
                    "left_out": one.left_out.get(name, 0),
                }
                for name, answer in one.answers.items()
            },
        }
        for one in said
    ]
    before = deepcopy(conversation.turns)
    return {
        "model": stage.start.located.name,
        "names": list(names),
        "results": {subject.name: str(subject.path) for subject in stage.subjects},
        "template": stage.template.name,
        "sampling": vars(sampling),
        "system": conversation.system,
        "turns": [vars(turn) for turn in before],
        "rows": rows,
    }


def _show(said: Said, stage: Stage, console: Console, *, with_question: bool, first: bool) -> None:
    """Texts as they are where a program reads them; at a terminal two speakers stand side by side."""
    names = list(said.answers)
    if console.is_terminal and len(names) > 1:
        screen = Screen(console, stage.names)
        if with_question:
            screen.say(said.question)
        screen.show(
            said.answers, {n: "" if a.ended else "cut at generation.max_new_tokens" for n, a in said.answers.items()}
        )
        return
    parts = [] if first else [""]
    parts += [f"=== question ===\n{printable(said.question)}\n"] if with_question else []
    heads = [
        f"=== {printable(label(name, stage.names))} ===\n" if len(names) > 1 or with_question else "" for name in names
    ]
    texts = [head + printable(answer.text) for head, answer in zip(heads, said.answers.values(), strict=True)]
    sys.stdout.write("\n".join([*parts, "\n\n".join(texts)]) + "\n")
    sys.stdout.flush()
