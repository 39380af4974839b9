"""What POST /v1/chat/completions takes. What it does not take is refused: an answer without it would look like one with it."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dpo_lab.data.types import Message

CHOICES = 16  # answers to one request
STOPS = 4
ANY = object()  # any value


class Taken(BaseModel):
    """Unknown keys are errors; null is the same as nothing, and values that ask for nothing are let pass."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    idle: ClassVar[dict[str, tuple[Any, ...]]] = {}  # keys that are not taken, with the values that change nothing

    @model_validator(mode="before")
    @classmethod
    def _drop_idle(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: v for k, v in value.items() if v is not None and not _is_idle(v, cls.idle.get(k, ()))}


def _is_idle(value: Any, idle: tuple[Any, ...]) -> bool:
    return ANY in idle or value in idle


class Turn(Taken):
    """One message."""

    idle = {"annotations": ([],), "tool_calls": ([],)}
    role: Literal["system", "developer", "user", "assistant"]
    content: str

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        """Parts of text become one text."""
        if not isinstance(value, list):
            return value
        for part in value:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind != "text" or not isinstance(part.get("text"), str):
                raise ValueError(f"only parts of text are understood, not {kind or type(part).__name__}")
        return "\n".join(part["text"] for part in value)

    def message(self) -> Message:
        """As templates take it."""
        return Message(role="system" if self.role == "developer" else self.role, content=self.content)


class StreamOptions(Taken):
    """What a stream ends with."""

    idle = {"include_obfuscation": (False,)}
    include_usage: bool = False


class ChatRequest(Taken):
    """The body. What it does not say of the sampling is as `generation` has it."""

    idle = {
        **dict.fromkeys(("user", "metadata", "safety_identifier", "prompt_cache_key"), (ANY,)),
        **dict.fromkeys(("tools", "functions"), ([],)),
        **dict.fromkeys(("frequency_penalty", "presence_penalty", "top_logprobs"), (0,)),
        **dict.fromkeys(("logprobs", "store"), (False,)),
        "tool_choice": ("none",),
        "logit_bias": ({},),
        "modalities": (["text"],),
        "parallel_tool_calls": (True, False),
        "response_format": ({"type": "text"},),
        "service_tier": ("auto", "default"),
    }
    model: str
    messages: Annotated[list[Turn], Field(min_length=1)]
    temperature: Annotated[float | None, Field(ge=0, le=2, allow_inf_nan=False)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    seed: int | None = None
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=STOPS)] = []
    n: Annotated[int, Field(ge=1, le=CHOICES)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("messages")
    @classmethod
    def _asks(cls, turns: list[Turn]) -> list[Turn]:
        if turns[-1].role != "user":
            raise ValueError(f"the last message must be the user's, not the {turns[-1].role}'s")
        if not turns[-1].content.strip():
            raise ValueError("the last message is empty")
        return turns

    @model_validator(mode="after")
    def _agrees(self) -> "ChatRequest":
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens are the same: give one of them")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream=true alone")
        return self

    @property
    def limit(self) -> int | None:
        """Most tokens of the answer; None where it does not say."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
