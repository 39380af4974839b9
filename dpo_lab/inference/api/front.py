"""From a request to the tickets that answer it."""

import asyncio
import copy
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from dpo_lab.data.types import Message
from dpo_lab.inference.api.orders import Order
from dpo_lab.inference.api.problems import Problem
from dpo_lab.inference.api.requests import ChatRequest
from dpo_lab.inference.api.worker import Worker
from dpo_lab.inference.generate import Asked
from dpo_lab.inference.sampler import Sampling
from dpo_lab.inference.stage import Stage
from dpo_lab.inference.talk.context import fit, room_for
from dpo_lab.runtime.errors import ConfigError, DataError
from dpo_lab.runtime.files import digest

POLICY = "policy"  # the result, where there is one


@dataclass(frozen=True)
class Taken:
    """A request that was understood."""

    model: str  # who answers
    order: Order
    prompt_tokens: int
    dropped: int  # messages that were too many for the context


class Front:
    """What the server says of its models, and how it asks them."""

    def __init__(self, stage: Stage, worker: Worker) -> None:
        self.stage, self.worker = stage, worker
        self.template = copy.deepcopy(stage.template)  # a tokenizer is not to be used by two threads at once
        self.created = int(time.time())

    def models(self) -> list[dict[str, Any]]:
        """The models as the API lists them."""
        return [self._described(name) for name in self.stage.names]

    def model(self, name: str) -> dict[str, Any]:
        """One of them.

        Raises:
            Problem: there is none of this name.
        """
        return self._described(self._known(name))

    def take(self, request: ChatRequest) -> Taken:
        """What there is to answer. Called in the event loop.

        Raises:
            Problem: the model is unknown, or the prompt not one that it takes.
        """
        name = self._known(request.model)
        sampling = self._sampling(request)
        ids, dropped = self._prompt([turn.message() for turn in request.messages], sampling.max_new_tokens)
        seed = secrets.randbits(62) if request.seed is None else request.seed
        seeds = [seed] + [_another(seed, i) for i in range(1, request.n)]
        order = Order([Asked(name, ids, seed) for seed in seeds], sampling, stops=request.stop)
        return Taken(name, order, len(ids), dropped)

    @asynccontextmanager
    async def answering(self, taken: Taken, receive: Any) -> AsyncIterator[Order]:
        """The order is being answered while the block runs, unless the client goes away."""
        tickets = taken.order.tickets

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.worker.drop(tickets)

        self.worker.submit(tickets)
        watching = asyncio.create_task(watch())
        try:
            yield taken.order
        finally:
            watching.cancel()
            self.worker.drop(tickets)

    def _described(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self.created, "owned_by": "dpo_lab"}

    def _known(self, name: str) -> str:
        names = self.stage.names
        if name == POLICY and name not in names and len(names) == 2:
            return names[1]
        if name not in names:
            raise Problem(
                404,
                f"There is no model {name!r} here. There are: {', '.join(names)}.",
                param="model",
                code="model_not_found",
            )
        return name

    def _sampling(self, request: ChatRequest) -> Sampling:
        """As `generation` has it, but for what the request says. The seed is not in it: each answer has its own."""
        asked = {"max_new_tokens": request.limit, "temperature": request.temperature, "top_p": request.top_p}
        generation = self.stage.config.generation.model_copy(update={k: v for k, v in asked.items() if v is not None})
        return Sampling.of(generation, seed=0)

    def _prompt(self, messages: list[Message], max_new_tokens: int) -> tuple[list[int], int]:
        """Token ids that fit, and how many messages do not."""
        try:
            _, ids, dropped = fit(messages, self.template, room_for(self.stage.context, max_new_tokens))
        except ConfigError as e:
            text = str(e).replace("generation.max_new_tokens", "max_tokens")
            raise Problem(400, text, param="messages", code="context_length_exceeded") from e
        except DataError as e:  # the template has rules of its own, such as turns that alternate
            raise Problem(400, str(e), param="messages") from e
        return ids, dropped


def _another(seed: int, choice: int) -> int:
    """The seed of a further choice: no small number, which could be that of another request."""
    return int(digest(f"{seed} {choice}"), 16) % 2**62
