"""The combinations of a multirun, and the name of the folder that they share."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from itertools import product

from dpo_lab.config.overrides import Given

# Where results go and how they are shown: the same sweep continues in the same folder whatever these say.
_OUTSIDE = re.compile(
    r"(output_dir|cache_dir|logger|overwrite|plan|sweep|hydra|launcher|trainer\.accelerator)([./].*)?"
)


def combinations(given: Sequence[Given]) -> Iterator[list[str]]:
    """Every combination of the swept values, each as the overrides of one job, in the order of the sweep."""
    return (list(texts) for texts in product(*(g.texts for g in given)))


def swept_part(combination: Sequence[str], given: Sequence[Given]) -> str:
    """What tells a combination from the others."""
    return " ".join(text for text, g in zip(combination, given, strict=True) if g.swept)


def default_name(given: Sequence[Given]) -> str:
    """`lr_beta-1a2b3c4d`: the swept keys, and a hash of the overrides that are the same in every job."""
    axes = "_".join(re.split(r"[./]", g.key)[-1] for g in given if g.swept) or "single"
    fixed = sorted(g.text for g in given if not g.swept and not _OUTSIDE.fullmatch(g.key))
    digest = hashlib.sha256("\0".join(fixed).encode()).hexdigest()[:8]
    axes = re.sub(r"[^A-Za-z0-9_-]", "", axes)[:60]
    return f"{axes}-{digest}"
