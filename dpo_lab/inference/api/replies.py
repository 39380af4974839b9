"""What is sent: a completion, or the chunks of one."""

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from dpo_lab.inference.api.orders import Ending

DONE = "data: [DONE]\n\n"


def event(content: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


class Reply:
    """Shapes the answers to one request.

    Args:
        model: who answers.
        prompt_tokens: of the request.
    """

    def __init__(self, model: str, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self._same = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def usage(self, endings: Sequence[Ending]) -> dict[str, int]:
        """Tokens of the prompt, once, and of all answers."""
        made = sum(ending.tokens for ending in endings)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": made,
            "total_tokens": self.prompt_tokens + made,
        }

    def whole(self, texts: Sequence[str], endings: Sequence[Ending]) -> dict[str, Any]:
        """All answers at once."""
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": ending.reason,
            }
            for i, (text, ending) in enumerate(zip(texts, endings, strict=True))
        ]
        return {**self._same, "object": "chat.completion", "choices": choices, "usage": self.usage(endings)}

    def chunk(self, index: int, news: str | Ending, *, first: bool = False) -> dict[str, Any]:
        """What came of one answer; `first` says whose it is."""
        ended = isinstance(news, Ending)
        delta = {} if ended else {"content": news}
        if first:
            delta = {"role": "assistant", **delta}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": news.reason if ended else None}
        return {**self._same, "object": "chat.completion.chunk", "choices": [choice]}

    def last(self, endings: Sequence[Ending]) -> dict[str, Any]:
        """The chunk that holds the usage and no text."""
        return {**self._same, "object": "chat.completion.chunk", "choices": [], "usage": self.usage(endings)}
