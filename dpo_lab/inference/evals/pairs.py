"""Which pairs are scored."""

from collections.abc import Sequence
from dataclasses import dataclass

from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Config
from dpo_lab.data.prepare import read_pairs
from dpo_lab.data.templates import Template
from dpo_lab.data.tokenize import Encoder
from dpo_lab.data.tokens import tokenise
from dpo_lab.data.types import Example
from dpo_lab.preference.ref_cache import answer_key
from dpo_lab.runtime.errors import DataError


@dataclass(frozen=True)
class Scored:
    """The pairs of an evaluation.

    Attributes:
        examples: as token ids.
        prompts: what the prompt of each is called; equal for pairs of one prompt.
        counts: in words, what was kept and what left out.
        format: of the files.
    """

    examples: Sequence[Example]
    prompts: list[str]
    counts: str
    format: str


def pairs_to_score(config: Config, template: Template) -> Scored:
    """The pairs of `evaluate.split`, those held out as training holds them out.

    Raises:
        DataError: there are none, or a file cannot be read.
    """
    assert config.evaluate is not None
    data, wanted, cache_dir = config.data, config.evaluate.split, expand(config.cache_dir)
    split = read_pairs(data, cache_dir)
    encoder = Encoder(template, data.max_length, data.truncation)
    workers = None if data.workers == "auto" else data.workers
    parts = []
    if wanted in ("heldout", "all"):
        parts.append(tokenise(split.heldout, encoder, cache_dir, limit=data.max_eval_pairs, workers=workers))
    if wanted in ("train", "all"):
        train, held = split.train.once(), split.heldout.hashes()
        parts.append(tokenise(train, encoder, cache_dir, limit=data.max_pairs, workers=workers, heldout=held))
    kept = [part.examples for part in parts if len(part.examples)]
    counts = "; ".join(str(part.counts) for part in parts)
    if not kept:
        raise DataError(
            f"evaluate.split={wanted}: there is no pair to score ({counts}). "
            "Try evaluate.split=all, raise data.eval_fraction, or raise data.max_length where pairs are too long."
        )
    examples: Sequence[Example] = kept[0] if len(kept) == 1 else [e for part in kept for e in part]
    prompts = [answer_key(examples[i].prompt_ids, ()).hex()[:12] for i in range(len(examples))]
    return Scored(examples, prompts, counts, split.format)
