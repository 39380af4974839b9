"""Answers of every model to every prompt, each kept as soon as it is there and never generated twice."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dpo_lab.data.templates import Refusal, Template
from dpo_lab.inference.evals.ledger import Ledger
from dpo_lab.inference.evals.prompts import PromptRow
from dpo_lab.inference.generate import Asked, answers
from dpo_lab.inference.sampler import Sampling
from dpo_lab.inference.stage import Stage
from dpo_lab.inference.talk.context import fit, room_for
from dpo_lab.models.memory import NO_ROOM
from dpo_lab.runtime.errors import ConfigError, NoRoom
from dpo_lab.runtime.terminal import Bar, Terminal

log = logging.getLogger(__name__)
Known = Mapping[tuple[str, str], dict[str, Any]]  # (name, key of the prompt) -> row


@dataclass(frozen=True)
class Fitted:
    """A prompt as the model gets it.

    Attributes:
        ids: what is left of it; none where it does not fit.
        dropped: turns that went.
        left_out: why it is not answered.
    """

    row: PromptRow
    ids: list[int]
    dropped: int = 0
    left_out: str | None = None


def fitted(row: PromptRow, template: Template, room: int | None) -> Fitted:
    """A prompt without the oldest turns that there is no room for."""
    if room is None or len(row.ids) <= room:
        return Fitted(row, list(row.ids))
    if row.tools:
        return Fitted(
            row, [], left_out=f"The prompt has {len(row.ids)} tokens with its tools; there is room for {room}."
        )
    try:
        _, ids, dropped = fit(row.messages, template, room)
    except (ConfigError, Refusal) as e:
        return Fitted(row, [], left_out=str(e))
    return Fitted(row, ids, dropped)


def by_name_and_key(ledger: Ledger) -> Known:
    """The rows of a ledger; of several of a prompt and a model the first."""
    return {(row["name"], row["key"]): row for row in reversed(ledger.rows)}


def answer_prompts(
    stage: Stage, todo: Sequence[tuple[str, PromptRow]], ledger: Ledger, terminal: Terminal, *, total: int
) -> None:
    """Generate answers, in batches of similar length, and keep each in the ledger.

    A prompt that the model has no room for is kept with the reason instead of an answer.

    Args:
        stage: who answers.
        todo: names and prompts of what is not in the ledger yet.
        ledger: takes the answers.
        terminal: shows how far it is.
        total: answers in the end, with those that are there.

    Raises:
        NoRoom: a single prompt does not fit into the GPU's memory.
    """
    config = stage.config
    assert config.evaluate is not None
    asker = _Asker(stage, ledger, Sampling.of(config.generation, seed=config.seed))
    room = room_for(stage.context, config.generation.max_new_tokens)
    fits = {row.key: fitted(row, stage.template, room) for row in {row.key: row for _, row in todo}.values()}
    with terminal.progress("answers", total, total - len(todo), unit="answers") as bar:
        for name, row in todo:
            if (why := fits[row.key].left_out) is not None:
                ledger.add(
                    {"name": name, "key": row.key, "prompt": list(row.messages), "answer": None, "left_out": why}
                )
                bar.advance(numbers=asker.rate)
        left = [(name, fits[row.key]) for name, row in todo if fits[row.key].left_out is None]
        size = config.evaluate.batch_size
        for batch in batches(left, stage.names, size):
            asker.ask(batch, bar)


def batches(left: Sequence[tuple[str, Fitted]], names: Sequence[str], size: int) -> list[list[tuple[str, Fitted]]]:
    """Prompts of similar length together, one model after the other; the first begins with the longest.

    Every other model goes the other way, so that a batch in which one ends and the next begins is of one length too.
    """
    turn = {name: -1 if place % 2 == 0 else 1 for place, name in enumerate(names)}
    place_of = {name: place for place, name in enumerate(names)}
    order = sorted(left, key=lambda item: (place_of[item[0]], turn[item[0]] * len(item[1].ids), item[1].row.key))
    return [order[i : i + size] for i in range(0, len(order), size)]


@dataclass
class _Asker:
    """Generates batches and knows how fast."""

    stage: Stage
    ledger: Ledger
    sampling: Sampling
    tokens: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> str:
        """For the progress bar."""
        return f"{self.tokens / self.seconds:.0f} tokens/s" if self.seconds else ""

    def ask(self, batch: Sequence[tuple[str, Fitted]], bar: Bar) -> None:
        """Generate the answers of a batch; in halves where the GPU's memory is too small for it."""
        began = time.perf_counter()
        try:
            made = answers(self.stage, [Asked(name, item.ids) for name, item in batch], self.sampling)
        except torch.OutOfMemoryError as e:
            if len(batch) == 1:
                raise NoRoom(NO_ROOM) from e
            made = None
        if made is None:
            torch.cuda.empty_cache()
            log.warning("The GPU is out of memory: %d prompts are answered as two halves.", len(batch))
            middle = len(batch) // 2
            for half in (batch[:middle], batch[middle:]):
                self.ask(half, bar)
            return
        seconds = time.perf_counter() - began
        tokens = sum(a.tokens for a in made)
        self.seconds, self.tokens = self.seconds + seconds, self.tokens + tokens
        for (name, item), answer in zip(batch, made, strict=True):
            self.ledger.add(
                {
                    "name": name,
                    "key": item.row.key,
                    "prompt": list(item.row.messages),
                    "answer": answer.text,
                    "chosen": item.row.chosen,
                    "ended": answer.ended,
                    "tokens": answer.tokens,
                    "prompt_tokens": len(item.ids),
                    "dropped_turns": item.dropped,
                    "seconds": round(seconds * answer.tokens / tokens if tokens else seconds / len(batch), 6),
                }
            )
        bar.advance(len(batch), numbers=self.rate)


def tokens_per_second(rows: Sequence[Mapping[str, Any]]) -> float:
    """Of generated answers, over all calls that generated them."""
    seconds = sum(row["seconds"] for row in rows)
    return sum(row["tokens"] for row in rows) / seconds if seconds else 0.0
