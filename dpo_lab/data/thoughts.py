"""Thoughts that stand in <think> tags before an answer, where the prompt may have opened or closed them already."""

from typing import Any

from dpo_lab.data.types import Message

OPEN, CLOSE = "<think>", "</think>"
TAGS = (OPEN, CLOSE)
NOTHING = "\n</think>\n\n"  # ends a thought that the prompt has opened and the answer does not have


def ends_open(prompt: str) -> bool:
    """Whether a generation prompt ends within a thought, which the answer is to think on from there."""
    return prompt.rstrip().endswith(OPEN)


def ends_closed(prompt: str) -> bool:
    """Whether a generation prompt ends after a thought: the answer is to have none."""
    return prompt.rstrip().endswith(CLOSE)


def holds_thought(answer: str) -> bool:
    """Whether an answer has a thought, maybe an empty one, or one that never ends."""
    return CLOSE in answer or answer.lstrip().startswith(OPEN)


def thought_of(answer: str) -> str:
    """What was thought before the answer."""
    before, close, _ = answer.partition(CLOSE)
    return before.replace(OPEN, "").strip() if close else ""


def without_thought(answer: str) -> str:
    """What follows the thought."""
    return answer.rpartition(CLOSE)[2].lstrip("\n")


def thought_on(answer: str) -> str:
    """An answer as it goes on from a prompt that has opened its thought."""
    begun = answer.lstrip()
    return begun.removeprefix(OPEN).removeprefix("\n") if begun.startswith(OPEN) else answer


def thought_apart(message: Message) -> dict[str, Any]:
    """A message with its thought in a field of its own, for templates that look for none in its text."""
    text = message["content"].lstrip()
    if message["role"] != "assistant" or not text.startswith(OPEN) or CLOSE not in text:
        return {**message}
    thought, _, answer = text.removeprefix(OPEN).partition(CLOSE)
    return {**message, "content": answer.lstrip("\n"), "reasoning_content": thought.strip("\n")}
