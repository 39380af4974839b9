"""From the configuration of the data to the examples of both splits."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dpo_lab.config.schema import Data
from dpo_lab.data.gather import heldout_sources, training_sources
from dpo_lab.data.mix import mixed
from dpo_lab.data.pairs import Bad, Pairs, prompt_hash
from dpo_lab.data.tables import Progress, added, pair_table
from dpo_lab.data.templates import Template
from dpo_lab.data.tokenize import LONG_PAIR, LONG_PROMPT, REFUSED, SAME_AFTER_CUT, Encoder
from dpo_lab.data.tokens import Examples, Tokenised, tokenise
from dpo_lab.data.types import Counts, Message
from dpo_lab.runtime.errors import DataError

HELD_OUT = "prompt is held out"
ADVICE = {  # for rows that gave no pair, by kind
    "faulty": "Look at the row named first: correct it, or data.columns and data.format if they misread it.",
    "unpaired": (
        "A pair needs two answers to one prompt: with labels (kto) a good and a bad one, with scores or ranks two that "
        "differ, by data.min_margin at least."
    ),
}


@dataclass(frozen=True)
class Split:
    """Pairs to train on, pairs held out, and the format they were in.

    Attributes:
        train_bad: of rows that gave no pair: reason -> (how many, the first's row, its file).
        heldout_bad: the same of the sources of held-out pairs.
    """

    train: Pairs
    heldout: Pairs
    format: str
    train_bad: Bad
    heldout_bad: Bad


@dataclass(frozen=True)
class Prepared:
    """Both splits as token ids, and how they came about."""

    train: Examples
    heldout: Examples
    train_counts: Counts
    heldout_counts: Counts
    format: str
    looked: dict[str, Tokenised]  # by split: also what was left out

    def facts(self) -> dict[str, Any]:
        """What facts.json says of the data; the fingerprint is of the token ids, in order."""
        return {
            "format": self.format,
            "train": self.train_counts.__dict__,
            "heldout": self.heldout_counts.__dict__,
            "fingerprint": self.train.digest(),
            "heldout_fingerprint": self.heldout.digest(),
        }


def read_pairs(data: Data, cache_dir: Path, progress: Progress | None = None) -> Split:
    """Read and split the source; needs no tokenizer, so faults show before anything heavy loads.

    Without a source of held-out pairs, a hash of the prompt alone decides: the same prompt falls on the same side
    whatever the seed, the order and the number of pairs, and a higher `data.eval_fraction` only adds to the held-out
    ones.

    Args:
        data: what to read.
        cache_dir: a second call reads what the first wrote there.
        progress: shows how far a first reading is.

    Raises:
        DataError: a file or row cannot be used; says which and why.
    """
    read = partial(
        pair_table, cache_dir=cache_dir, drop=data.on_error == "drop", workers=_workers(data), progress=progress
    )
    sources = training_sources(data)
    tables = [read(source) for source in sources]
    pairs = mixed(tables, sources, data, how=data.mix)
    formats = ", ".join(dict.fromkeys(table.format for table in tables))
    bad = added(table.bad for table in tables)
    if apart := heldout_sources(data):
        held = [read(source) for source in apart]
        return Split(
            pairs, mixed(held, apart, data, how="concat").once(), formats, bad, added(table.bad for table in held)
        )
    # The same comparison as of two fractions: a hash is a number below 2^64.
    heldout = pairs.hashes() / 2.0**64 < data.eval_fraction
    return Split(pairs.where(~heldout), pairs.where(heldout).once(), formats, bad, {})


def prompt_share(prompt: Sequence[Message]) -> float:
    """A number in [0, 1) that depends on the prompt alone."""
    return prompt_hash(prompt) / 2**64


def prepare(split: Split, data: Data, template: Template, cache_dir: Path) -> Prepared:
    """Tokenise both splits; a prompt that is held out is not trained on.

    Raises:
        DataError: nothing is left to train on, or nothing of a source of held-out pairs.
    """
    encoder = Encoder(template, data.max_length, data.truncation)
    workers = _workers(data)
    train = tokenise(
        split.train, encoder, cache_dir, limit=data.max_pairs, workers=workers, heldout=split.heldout.hashes()
    )
    _add_bad(train.counts, split.train_bad, split.train)
    if not train.examples:
        held = f"{len(split.heldout)} held out, {train.counts}"
        raise DataError(f"No pair is left to train on ({held}). {_advice(train.counts, data)}")
    heldout = tokenise(split.heldout, encoder, cache_dir, limit=data.max_eval_pairs, workers=workers)
    _add_bad(heldout.counts, split.heldout_bad, split.heldout)
    apart = data.eval_path or data.eval_names
    if apart and not heldout.examples:
        raise DataError(
            f"No pair of {apart} is left to evaluate on ({heldout.counts}). {_advice(heldout.counts, data)}"
        )
    looked = {"train": train, "heldout": heldout}
    return Prepared(train.examples, heldout.examples, train.counts, heldout.counts, split.format, looked)


def _workers(data: Data) -> int | None:
    return None if data.workers == "auto" else data.workers


def _add_bad(counts: Counts, bad: Bad, pairs: Pairs) -> None:
    for reason, (n, row, file, kind) in bad.items():
        counts.drop(reason, row, n, file if pairs.several else "", kind)


def _advice(counts: Counts, data: Data) -> str:
    """What to do where nothing is left, by the commonest reason."""
    reason = max(counts.dropped, key=lambda r: counts.dropped[r], default="")
    if kind := counts.kinds.get(reason):
        return ADVICE[kind]
    if reason in (LONG_PROMPT, LONG_PAIR, SAME_AFTER_CUT):
        more = "" if data.truncation == "cut_both" else ", or set data.truncation=cut_both"
        return f"Raise data.max_length={data.max_length}{more}."
    if reason.startswith(REFUSED):
        return "Choose another template=, or take out what it refuses."
    if reason in ("", HELD_OUT):
        return (
            "Give more prompts, or other files."
            if data.eval_path
            else "Give more prompts, or lower data.eval_fraction."
        )
    return "Check the data: the row named first shows what is wrong with it."
