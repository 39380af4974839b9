"""What a result makes of the pairs: its metrics, and a record a pair."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dpo_lab.config.brought import REFERENCE, Subject
from dpo_lab.inference.evals.compare import PairValues
from dpo_lab.inference.evals.pairs import Scored
from dpo_lab.preference.ref_cache import RefCache, answer_key

Floats = NDArray[np.float32]
BLOCK = 4096  # pairs whose log-probs are read at a time


@dataclass(frozen=True)
class Standing:
    """A result and its scores.

    Attributes:
        name: of the result.
        path: as it was given.
        metrics: as training records them, without val/.
        records: one a pair, as in eval_pairs.jsonl of a run; `correct` says whether the chosen answer is preferred.
    """

    name: str
    path: str
    metrics: dict[str, float]
    records: list[dict[str, Any]]

    @cached_property
    def values(self) -> PairValues:
        """What the comparison with other results needs."""
        c, rc, r, rr = (column(self.records, name) for name in COLUMNS)
        correct = np.array([row["correct"] for row in self.records], dtype=np.float64)
        return PairValues(correct, ((c - rc) - (r - rr)).astype(np.float64))

    @property
    def answer_gaps(self) -> NDArray[np.float64]:
        """(P,) tokens that the chosen answer has more than the rejected one."""
        chosen, rejected = (column(self.records, f"{side}_tokens") for side in ("chosen", "rejected"))
        return (chosen - rejected).astype(np.float64)


COLUMNS = ("chosen_logps", "ref_chosen_logps", "rejected_logps", "ref_rejected_logps")


def column(records: Sequence[dict[str, Any]], name: str) -> Floats:
    """(P,) one number of each record, as it was computed."""
    return np.array([row[name] for row in records], dtype=np.float32)


def standing_of(
    subject: Subject,
    metrics: dict[str, float],
    records: list[dict[str, Any]],
    cache: RefCache,
    found: Scored,
    *,
    present: bool,
    average: Literal["sum", "mean"],
) -> Standing:
    """A result's scores, with log-ratios also where its loss knows no reference.

    Args:
        subject: the result.
        metrics: of its scorer.
        records: of its scorer, with their prompts.
        cache: of the reference's log-probs.
        found: the pairs.
        present: whether its rewards are log-ratios.
        average: of the log-probs that are its rewards otherwise.
    """
    if not present:
        sums = reference_sums(cache, found)
        sides = ("ref_chosen_logps", "ref_rejected_logps")
        records = [row | dict(zip(sides, map(float, sums[row["index"]]), strict=True)) for row in records]
    c, rc, r, rr = (column(records, name) for name in COLUMNS)
    chosen, rejected = c - rc, r - rr
    rewards = (chosen, rejected)
    if not present:
        ratios = {"chosen": chosen.mean(), "rejected": rejected.mean(), "margins": (chosen - rejected).mean()}
        metrics = metrics | {f"logratios/{name}": float(value) for name, value in ratios.items()}
        tokens = [column(records, f"{side}_tokens") if average == "mean" else 1 for side in ("chosen", "rejected")]
        rewards = (c / tokens[0], r / tokens[1])
    correct = rewards[0] > rewards[1]
    records = [row | {"correct": bool(right)} for row, right in zip(records, correct, strict=True)]
    return Standing(subject.name, str(subject.path), metrics, records)


def of_reference(cache: RefCache, found: Scored) -> dict[str, Any]:
    """The reference's own row: how probable it finds the answers. It has no rewards, and so no accuracy."""
    sums = reference_sums(cache, found)
    tokens = np.array([e.lengths[1:] for e in found.examples], dtype=np.float64)
    means, per_token = sums.mean(axis=0), sums.sum(axis=0) / tokens.sum(axis=0)
    sides = ("chosen", "rejected")
    metrics = {f"logps/{side}": float(means[i]) for i, side in enumerate(sides)}
    metrics |= {f"logps_per_token/{side}": float(per_token[i]) for i, side in enumerate(sides)}
    metrics |= {f"logratios/{name}": 0.0 for name in (*sides, "margins")}
    return {"name": REFERENCE, "metrics": metrics}


def reference_sums(cache: RefCache, found: Scored) -> Floats:
    """(P, 2) log-prob of each chosen and rejected answer under the reference."""
    keys = [
        answer_key(e.prompt_ids, ids) for i in range(len(found.examples)) for e in [found.examples[i]]
        for ids in (e.chosen_ids, e.rejected_ids)
    ]  # fmt: skip
    sums: list[float] = []
    for start in range(0, len(keys), BLOCK):
        sums += [logps.sum().item() for logps in cache.read(keys[start : start + BLOCK])]
    return np.array(sums, dtype=np.float32).reshape(-1, 2)
