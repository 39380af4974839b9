"""Conversations that fit what a model was made for: the oldest turns go, never half of one."""

from collections.abc import Sequence

from dpo_lab.data.templates import Refusal, Template
from dpo_lab.data.types import Message
from dpo_lab.runtime.errors import ConfigError


def room_for(context: int | None, max_new_tokens: int) -> int | None:
    """Tokens that a prompt may have beside its answer; None where the model does not say how many it takes.

    Raises:
        ConfigError: the answer alone is as long as the context.
    """
    if context is None:
        return None
    if max_new_tokens >= context:
        raise ConfigError(
            f"generation.max_new_tokens={max_new_tokens} leaves no room for a prompt: the model takes {context} tokens in "
            "all. Choose a lower number."
        )
    return context - max_new_tokens


def fit(messages: Sequence[Message], template: Template, room: int | None) -> tuple[list[Message], list[int], int]:
    """The conversation without its oldest turns, its token ids, and how many turns went.

    As few go as needed; system messages stay, and the last message of the user with what follows it. What is left
    begins with a message of the user.

    Args:
        messages: a conversation that ends before the answer.
        template: writes it.
        room: most tokens that the prompt may have; None for any number. See `room_for`.

    Raises:
        ConfigError: what must stay is too long.
        Refusal: the template does not take the conversation.
    """
    [ids] = template.prompt_ids([messages])
    if room is None or len(ids) <= room:
        return list(messages), ids, 0
    least = len(ids)
    turns = [i for i, m in enumerate(messages) if m["role"] != "system"]
    starts = [start for start in turns[1:] if messages[start]["role"] == "user"]
    found: tuple[list[Message], list[int], int] | None = None
    low, high = 0, len(starts)
    while low < high:  # the later it begins the shorter it is
        middle = (low + high) // 2
        shorter, ids = _begun_at(messages, starts[middle], template)
        if ids is None:  # what is refused has no length: the next one that is not stands in for it
            starts.pop(middle)
            high -= 1
            continue
        least = min(least, len(ids))
        if len(ids) <= room:
            found, high = (shorter, ids, len(messages) - len(shorter)), middle
        else:
            low = middle + 1
    if found is not None:
        return found
    raise ConfigError(
        f"The prompt has {least} tokens with its system message and no earlier turns; the model has room for {room} beside "
        "the answer. Shorten it, or lower generation.max_new_tokens."
    )


def _begun_at(messages: Sequence[Message], start: int, template: Template) -> tuple[list[Message], list[int] | None]:
    """The system messages and what follows from `start` on; no ids where the template does not take it."""
    shorter = [m for i, m in enumerate(messages) if i >= start or m["role"] == "system"]
    [ids] = template.try_prompt_ids([shorter])
    return shorter, None if isinstance(ids, Refusal) else ids
