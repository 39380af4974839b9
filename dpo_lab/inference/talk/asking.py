"""One question to several speakers, in one batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event

from dpo_lab.inference.generate import Answer, Asked, OnText, answers
from dpo_lab.inference.sampler import Sampling
from dpo_lab.inference.stage import Stage
from dpo_lab.inference.talk.clean import whole
from dpo_lab.inference.talk.context import fit, room_for
from dpo_lab.inference.talk.conversation import Conversation
from dpo_lab.runtime.errors import ConfigError


@dataclass(frozen=True)
class Said:
    """The answers to one question."""

    question: str
    answers: dict[str, Answer]  # by name
    left_out: dict[str, int]  # old turns that did not fit into the context, by name


def ask(
    stage: Stage,
    conversation: Conversation,
    names: Sequence[str],
    question: str,
    sampling: Sampling,
    *,
    on_text: OnText | None = None,
    stop: Event | None = None,
) -> Said:
    """What each of `names` says to a question; the conversation stays as it is.

    Args:
        stage: who is loaded.
        conversation: what was said before.
        names: who answers.
        question: what is asked.
        sampling: how tokens are chosen.
        on_text: called with the place in `names` and each piece of text.
        stop: ends the answers where they are.

    Raises:
        ConfigError: the question is empty, or longer than the model takes.
        Refusal: the template does not take the conversation.
    """
    question = whole(question)
    if not question.strip():
        raise ConfigError("The prompt is empty. Ask something.")
    room = room_for(stage.context, sampling.max_new_tokens)
    fitted = [fit(conversation.messages(name, question), stage.template, room) for name in names]
    asked = [Asked(name, ids) for name, (_, ids, _) in zip(names, fitted, strict=True)]
    found = answers(stage, asked, sampling, on_text=on_text, stop=stop)
    left_out = {name: gone for name, (_, _, gone) in zip(names, fitted, strict=True) if gone}
    return Said(question, dict(zip(names, found, strict=True)), left_out)
