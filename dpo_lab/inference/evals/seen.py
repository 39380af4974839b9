"""How many of the scored pairs a result was trained on: a score on them is no score on held-out pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpo_lab.config.brought import Subject
from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Config, Data
from dpo_lab.data.pairs import prompt_hash
from dpo_lab.data.prepare import prepare, read_pairs
from dpo_lab.data.templates import Template
from dpo_lab.data.tokens import Examples
from dpo_lab.data.types import Example
from dpo_lab.runtime.errors import LabError

IDLE = {"workers", "max_eval_pairs"}  # of conf/data: they change neither what is trained on nor what is held out
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Seen:
    """What is known of a result and the pairs that are scored.

    Attributes:
        pairs: how many of them have a prompt that it was trained on; None where nobody can tell.
        note: what the reader must know of it; empty where there is nothing.
    """

    pairs: int | None
    note: str = ""


def seen_by(config: Config, subject: Subject, examples: Sequence[Example], template: Template) -> Seen:
    """Count the scored pairs whose prompts a result was trained on, from the data that its run recorded.

    A run on the very data that is scored has kept apart what it held out, so nothing is counted; of an adapter without
    a run nothing is known.

    Args:
        config: what is scored.
        subject: the result.
        examples: the pairs that are scored.
        template: of the result.
    """
    recorded = (subject.recorded or {}).get("data")
    if recorded is None:
        return Seen(None)
    try:
        data = Data.model_validate({**config.data.model_dump(by_alias=True), **recorded})
        if data.model_dump(exclude=IDLE) == config.data.model_dump(exclude=IDLE):
            return Seen(0 if config.evaluate is not None and config.evaluate.split == "heldout" else None)
        if data.hub is not None and data.hub != config.data.hub:
            return _unknown(subject, f"{data.hub.name} on the hub, which is not read again")
        asked = _prompts(examples)
        trained, fingerprint = _trained_on(data, template, expand(config.cache_dir), asked)
    except (LabError, OSError, ValueError) as e:
        return _unknown(subject, f"data that cannot be read again: {str(e).splitlines()[0][:200]}")
    n = int(np.isin(asked, trained).sum())
    if not n:
        return Seen(0)
    changed = fingerprint != (subject.facts.get("data") or {}).get("fingerprint")
    return Seen(
        n,
        f"{subject.name} was trained on the prompts of {n:,} of these {len(asked):,} pairs"
        f"{' (by its data as they are now)' if changed else ''}: its numbers are not those of held-out pairs. Score pairs "
        "that no result has seen, with data=file data.path=FILE evaluate.split=all.",
    )


def _unknown(subject: Subject, why: str) -> Seen:
    return Seen(
        None,
        f"{subject.name} was trained on {why}. Nobody knows which of these pairs it has seen: make sure of it before you "
        "compare.",
    )


def _trained_on(data: Data, template: Template, cache_dir: Path, asked: Hashes) -> tuple[Hashes, str | None]:
    """Hashes of the prompts of a training, and the fingerprint of its pairs where any of them is asked for.

    Tokenising tells which pairs were too long, or beyond `data.max_pairs`; it is needed only where prompts meet.
    """
    split = read_pairs(data, cache_dir)
    possible = np.setdiff1d(split.train.hashes(), split.heldout.hashes())
    if not np.isin(asked, possible).any():
        return possible[:0], None
    train = prepare(split, data, template, cache_dir).train
    return train.keys()[:, 0], train.digest()


def _prompts(examples: Sequence[Example]) -> Hashes:
    """(N,) a hash of each pair's prompt."""
    if isinstance(examples, Examples):
        return examples.keys()[:, 0]
    return np.array([prompt_hash(e.pair.prompt, e.pair.tools) for e in examples], dtype=np.uint64)
