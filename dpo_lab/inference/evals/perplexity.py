"""How probable each model finds the chosen answers."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from dpo_lab.data.collate import collate, microbatches
from dpo_lab.data.types import Example, Pair
from dpo_lab.inference.evals.answering import fitted
from dpo_lab.inference.evals.ledger import Ledger
from dpo_lab.inference.evals.prompts import PromptRow
from dpo_lab.inference.evals.sureness import Additive, Floats, ratio
from dpo_lab.inference.setup import microbatch_tokens, reference_tokens
from dpo_lab.inference.stage import Stage
from dpo_lab.models.memory import NO_ROOM
from dpo_lab.preference.forward import Forward, causal_lm
from dpo_lab.preference.layout import Layout
from dpo_lab.runtime.errors import NoRoom
from dpo_lab.runtime.terminal import Terminal

log = logging.getLogger(__name__)


def fill_nats(
    stage: Stage, todo: Sequence[tuple[str, PromptRow]], ledger: Ledger, terminal: Terminal, *, total: int
) -> None:
    """Keep in the ledger the negative log-prob of each chosen answer under each model, and its tokens.

    The end of turn is one of the tokens. An answer that is too long for the context beside what must stay of its prompt
    is kept with none.

    Args:
        stage: whose log-probs.
        todo: names and prompts of what is not in the ledger yet; each prompt has a chosen answer.
        ledger: takes the numbers.
        terminal: shows how far it is.
        total: answers in the end, with those that are there.

    Raises:
        NoRoom: a single answer does not fit into the GPU's memory.
    """
    rows = list({row.key: row for _, row in todo}.values())
    examples = {row.key: example for row, example in zip(rows, _examples(stage, rows), strict=True)}
    lm, config = causal_lm(stage.model), stage.config
    tokens = microbatch_tokens(config, lm.config, stage.precision, stage.device)
    tokens = reference_tokens(tokens, lm.config, stage.precision, stage.device)
    with terminal.progress("chosen answers", total, total - len(todo), unit="answers") as bar:
        for name in stage.names:
            own = [row for who, row in todo if who == name]
            for row in own:
                if examples[row.key] is None:
                    ledger.add({"name": name, "key": row.key, "nats": 0.0, "tokens": 0})
                    bar.advance()
            there = [(row, e) for row in own if (e := examples[row.key]) is not None]
            if not there:
                continue
            layouts = microbatches([e for _, e in there], range(len(there)), tokens=tokens, shared=stage.passes.shared)
            with stage.speaking(name) as model:
                while layouts:
                    layout = layouts.pop()  # the longest first
                    if (nats := _nats(stage, model, layout)) is None:
                        layouts += _halves(layout, [e for _, e in there])
                        continue
                    for place, value in zip(layout.index, nats, strict=True):
                        row, example = there[place]
                        ledger.add({"name": name, "key": row.key, "nats": value, "tokens": len(example.chosen_ids)})
                    bar.advance(len(layout))


def perplexity(rows: Sequence[Mapping[str, Any] | None]) -> Additive:
    """The exponential of the mean negative log-prob of a token, over all tokens of all answers; None adds nothing."""
    found = [(0.0, 0) if row is None else (row["nats"], row["tokens"]) for row in rows]
    mean = ratio(np.array([nats for nats, _ in found]), np.array([n for _, n in found], dtype=np.float64))

    def of(sums: Floats) -> Floats:
        with np.errstate(over="ignore"):
            return np.exp(mean.of(sums))

    return Additive(mean.sums, of)


def _examples(stage: Stage, rows: Sequence[PromptRow]) -> list[Example | None]:
    """Each prompt with its chosen answer, twice: a pack holds it once. None where it does not fit."""
    found: list[Example | None] = []
    for row, ids in zip(rows, stage.template.answer_ids([row.chosen or "" for row in rows]), strict=True):
        room = None if stage.context is None else stage.context - len(ids)
        item = fitted(row, stage.template, room) if room is None or room > 0 else None
        if item is None or item.left_out is not None:
            found.append(None)
            continue
        chosen = row.chosen or ""
        found.append(Example(item.ids, ids, ids, Pair(row.messages, chosen, chosen, 0)))
    return found


@torch.no_grad()
def _nats(stage: Stage, model: nn.Module, layout: Layout) -> list[float] | None:
    """Negative log-probs of the answers of a layout; None where the GPU's memory is too small."""
    try:
        moved = layout.to(stage.device)
        logps = Forward(stage.precision.autocast).logps(model, moved).double()
        return (-moved.answer_sums(logps)[0::2]).tolist()
    except torch.OutOfMemoryError:
        return None


def _halves(layout: Layout, examples: Sequence[Example]) -> list[Layout]:
    if len(layout) == 1:
        raise NoRoom(NO_ROOM)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    log.warning("The GPU is out of memory: %d chosen answers are computed as two halves.", len(layout))
    middle = len(layout) // 2
    return [collate([examples[i] for i in rows], rows) for rows in (layout.index[:middle], layout.index[middle:])]
