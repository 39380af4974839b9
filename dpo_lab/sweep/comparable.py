"""Which trials can be compared with each other: done, and scored on the same held-out pairs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpo_lab.sweep.pairs import Pairs
from dpo_lab.sweep.results import Trial
from dpo_lab.sweep.wording import SEEDS, identity, value_text


def comparable(trials: Sequence[Trial]) -> tuple[list[Trial], tuple[tuple[Trial, str], ...]]:
    """The done trials that were scored on the same held-out pairs, as most were, and the others with the reason."""
    reasons = {trial.id: _unfit(trial) for trial in trials}
    groups: dict[Any, list[Trial]] = {}
    for trial in trials:
        if not reasons[trial.id]:
            pairs = pairs_of(trial)
            groups.setdefault((pairs.index.tobytes(), pairs.prompts, pairs.has_reference), []).append(trial)
    if not groups:
        return [], tuple((trial, reasons[trial.id]) for trial in trials)
    most = max(groups.values(), key=lambda group: (len(group), len(pairs_of(group[0]).index)))
    for group in groups.values():
        if group is not most:
            reasons |= {trial.id: _other(pairs_of(trial), pairs_of(most[0])) for trial in group}
    return most, tuple((trial, reasons[trial.id]) for trial in trials if reasons[trial.id])


def pairs_of(trial: Trial) -> Pairs:
    """Of a trial that can be compared, which has some."""
    assert trial.pairs is not None
    return trial.pairs


def group_by_setting(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Trials that differ in seeds alone, in the order met."""
    settings: dict[str, list[Trial]] = {}
    for trial in trials:
        settings.setdefault(identity(trial.seedless()), []).append(trial)
    return settings


def prompt_numbers(pairs: Pairs) -> NDArray[np.int64]:
    """The number of each pair's prompt, from 0 without gaps."""
    return np.unique(np.array(pairs.prompts), return_inverse=True)[1].astype(np.int64)


def seed_numbers(trials: Sequence[Trial]) -> NDArray[np.int64]:
    """(R, K) numbers, from 0 without gaps, of the seeds of a setting's R trials, of the K kinds that there are.

    Trials whose seeds are not known apart count as one draw each.
    """
    texts = [[value_text(trial.axes.get(key)) for trial in trials] for key in SEEDS]
    found = np.stack([np.unique(column, return_inverse=True)[1] for column in texts], axis=1).astype(np.int64)
    if len(np.unique(found, axis=0)) < len(trials):
        found[:, 0] = np.arange(len(trials))
    return found


def _unfit(trial: Trial) -> str:
    """Why a trial cannot be compared; empty where it can."""
    if trial.state != "done":
        states = {"new": "not started", "running": "still running"}
        why = " ".join(trial.reason.split())
        return states.get(trial.state, trial.state) + (f": {why}" if why else "")
    if trial.pairs is None:
        return "no scored held-out pairs: eval_pairs.jsonl is missing or damaged"
    if not np.isfinite(trial.pairs.margins).all():
        return "the log-probs of its held-out pairs are not finite"
    return ""


def _other(own: Pairs, compared: Pairs) -> str:
    if own.index.tobytes() == compared.index.tobytes() and own.prompts == compared.prompts:
        word = "without" if compared.has_reference else "with"
        return f"scored {word} a reference, so that its accuracy is another measure than that of the compared trials"
    return f"scored on other held-out pairs ({len(own.index):,}; the compared trials have {len(compared.index):,})"
