"""The combinations of a multirun, and the name of the folder that they share."""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

from dpo_lab.config.overrides import Given
from dpo_lab.config.sources import Sources, content

# Where results go and how they are shown: the same sweep continues in the same folder whatever these say.
_OUTSIDE = re.compile(
    r"(output_dir|cache_dir|logger|overwrite|plan|sweep|hydra|launcher|sweeper|study|prune|trainer\.accelerator)([./].*)?"
)

MOST = 2000  # combinations that are all looked at before a sweep begins; a search of more tries a few of them


def combinations(given: Sequence[Given], most: int = MOST) -> Iterator[list[str]]:
    """Every combination of the swept values, each as the overrides of one job, in the order of the sweep.

    Where there are more than `most`: each value with the first ones of the others.
    """
    if math.prod(len(g.texts) for g in given) <= most:
        yield from (list(texts) for texts in product(*(g.texts for g in given)))
        return
    first = [g.texts[0] for g in given]
    yield first
    for place, g in enumerate(given):
        yield from ([*first[:place], text, *first[place + 1 :]] for text in g.texts[1:])


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


def with_study(typed: Iterable[str], sources: Sources, *, multirun: bool) -> tuple[list[str], list[str]]:
    """The command line with the axes of its study, and what is wrong with that.

    What stands on the command line itself has the last word: an axis given there, swept or not, takes the study's place.
    """
    words = list(typed)
    study = next((word.partition("=")[2] for word in words if word.startswith("study=")), None)
    file = sources.file("study", study) if study and re.fullmatch(r"\w+", study) else None
    params = content(file)[1].get("params") if file else None
    if not isinstance(params, dict) or not params:
        return words, []  # no study, none of that name (which is said elsewhere), or one without axes
    if not multirun:
        return words, [f"study={study} is a sweep, which needs --multirun."]
    own = {word.partition("=")[0].lstrip("+~") for word in words}
    return [*words, *(f"{key}={values}" for key, values in params.items() if key not in own)], []


def of_sweeps(given: Iterable[Given]) -> list[str]:
    """Words that mean nothing to a single run."""
    groups = ("launcher", "sweeper", "prune")
    return [f"{g.typed} is for sweeps. Drop it, or add --multirun." for g in given if g.key.partition(".")[0] in groups]
