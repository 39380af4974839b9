"""The combinations of a multirun, and the name of the folder that they share."""

import copy
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dpo_lab.config.identity import is_outside, run_id
from dpo_lab.config.overrides import Given
from dpo_lab.config.resolvers import plain
from dpo_lab.config.sources import Sources, Uncomposable, composed, content
from dpo_lab.runtime.files import digest

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


def default_name(given: Sequence[Given], sources: Sources) -> str:
    """`beta_lr-1a2b3c4d`: the swept keys, and a hash of them and of what is the same in every job.

    The order of the words is no part, nor how a value is written, nor what is no part of a run's id: a sweep goes on in
    its folder with smaller micro-batches too.
    """
    axes = sorted(g.key for g in given if g.swept)
    name = "_".join(re.split(r"[./]", key)[-1] for key in axes) or "single"
    name = re.sub(r"[^A-Za-z0-9_-]", "", name)[:60]
    return f"{name}-{digest(*axes, _fixed(given, sources))[:8]}"


def _fixed(given: Sequence[Given], sources: Sources) -> str:
    """What the words that are the same in every job come to: the id of the run that they would be without the axes."""
    kept = [g for g in given if not g.swept]
    if sources.primary == "train":  # elsewhere the id is that of the result that is looked at
        try:
            return run_id(plain(_without_gaps(composed(sources, tuple(g.text for g in kept)))))
        except (Uncomposable, OmegaConfBaseException):
            pass  # a word is about an option that only the axes choose
    values = [(g.text.partition("=")[0], g.override.value()) for g in kept if not is_outside(g.key)]
    return json.dumps(sorted(values, key=lambda pair: pair[0]), sort_keys=True, default=str)


def _without_gaps(cfg: DictConfig) -> DictConfig:
    """With null where an axis would say what is missing."""
    own = copy.deepcopy(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]))
    for key in OmegaConf.missing_keys(own):
        OmegaConf.update(own, key, None)
    return own


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


def without_effect(given: Iterable[Given]) -> list[str]:
    """Axes whose values would all be one and the same run."""
    return [
        f"{g.typed}: {g.key} changes no trial's result, so that all its values are one run. Give it one value."
        for g in given
        if g.swept and is_outside(g.key)
    ]
