"""From the configuration of the data to the examples of both splits."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Data
from dpo_lab.data.formats import to_pairs
from dpo_lab.data.sources import read_file, read_rows
from dpo_lab.data.templates import Template
from dpo_lab.data.tokenize import tokenize
from dpo_lab.data.types import Counts, Example, Message, Pair
from dpo_lab.runtime.errors import DataError
from dpo_lab.runtime.files import digest


@dataclass(frozen=True)
class Split:
    """Pairs to train on, pairs held out, and the format they were in."""

    train: list[Pair]
    heldout: list[Pair]
    format: str


@dataclass(frozen=True)
class Prepared:
    """Both splits as token ids, and how they came about."""

    train: list[Example]
    heldout: list[Example]
    train_counts: Counts
    heldout_counts: Counts
    format: str

    def facts(self) -> dict[str, Any]:
        """What facts.json says of the data; the fingerprint is of the token ids, in order."""
        return {
            "format": self.format,
            "train": self.train_counts.__dict__,
            "heldout": self.heldout_counts.__dict__,
            "fingerprint": digest(*(str([e.prompt_ids, e.chosen_ids, e.rejected_ids]) for e in self.train)),
            "heldout_fingerprint": digest(*(str([e.prompt_ids, e.chosen_ids, e.rejected_ids]) for e in self.heldout)),
        }


def read_pairs(data: Data) -> Split:
    """Read and split the source; needs no tokenizer, so faults show before anything heavy loads.

    Without a file of held-out pairs, a hash of the prompt alone decides: the same prompt falls on the same side
    whatever the seed, the order and the number of pairs, and a higher `data.eval_fraction` only adds to the held-out
    ones.

    Raises:
        DataError: a file or row cannot be used; says which and why.
    """
    where = str(expand(data.path)) if data.path else (data.hub.name if data.hub else "data")
    pairs, name = to_pairs(read_rows(data), format=data.format, columns=data.columns, where=where)
    if data.eval_path is not None:
        path = expand(data.eval_path)
        heldout, _ = to_pairs(read_file(path), format=data.format, columns=data.columns, where=str(path))
        return Split(pairs, heldout, name)
    train: list[Pair] = []
    heldout = []
    for pair in pairs:
        (heldout if prompt_share(pair.prompt) < data.eval_fraction else train).append(pair)
    return Split(train, heldout, name)


def prompt_share(prompt: tuple[Message, ...]) -> float:
    """A number in [0, 1) that depends on the prompt alone."""
    text = json.dumps([[m["role"], m["content"]] for m in prompt], ensure_ascii=False)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def prepare(split: Split, data: Data, template: Template) -> Prepared:
    """Tokenise both splits; a prompt that is held out is not trained on.

    Raises:
        DataError: nothing is left to train on, or nothing of a file of held-out pairs.
    """
    known = {p.prompt_key() for p in split.heldout}
    length, truncation = data.max_length, data.truncation
    train, counts = tokenize(
        split.train, template, max_length=length, truncation=truncation, limit=data.max_pairs, heldout=known
    )
    if not train:
        held = f"{len(split.heldout)} held out, {counts}"
        raise DataError(f"No pair is left to train on ({held}). {_advice(counts, data)}")
    heldout, heldout_counts = tokenize(
        split.heldout, template, max_length=length, truncation=truncation, limit=data.max_eval_pairs
    )
    if data.eval_path is not None and not heldout:
        raise DataError(
            f"No pair of {data.eval_path} is left to evaluate on ({heldout_counts}). {_advice(heldout_counts, data)}"
        )
    return Prepared(train, heldout, counts, heldout_counts, split.format)


def _advice(counts: Counts, data: Data) -> str:
    """What to do where nothing is left, by the commonest reason."""
    reason = max(counts.dropped, key=lambda r: counts.dropped[r], default="")
    if "longer" in reason or "cutting" in reason:
        return f"Raise data.max_length={data.max_length}, or set data.truncation=cut_both."
    if "refused" in reason:
        return "Choose another template=, or take out what it refuses."
    if not reason or "held out" in reason:
        return (
            "Give more prompts, or other files."
            if data.eval_path
            else "Give more prompts, or lower data.eval_fraction."
        )
    return "Check the data: the row named first shows what is wrong with it."
