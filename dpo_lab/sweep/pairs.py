"""The held-out pairs of a trial's last evaluation, from eval_pairs.jsonl."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Pairs:
    """The last evaluation of a trial: P held-out pairs in the order of their index.

    Attributes:
        index: (P,) place of each pair in the held-out data.
        prompts: of each pair a word that is equal for pairs of one prompt.
        margins: (P,) log-ratio of the chosen answer minus that of the rejected one, in nats; without a reference the
            log-probs take the log-ratios' place.
        correct: (P,) 1 where the margin is above 0, else 0.
        step: of the evaluation.
        chosen_tokens: (P,) tokens of the chosen answer.
        rejected_tokens: (P,) tokens of the rejected answer.
        has_reference: whether there is one.
    """

    index: NDArray[np.int64]
    prompts: tuple[str, ...]
    margins: NDArray[np.float64]
    correct: NDArray[np.float64]
    step: int
    chosen_tokens: NDArray[np.int64]
    rejected_tokens: NDArray[np.int64]
    has_reference: bool


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a JSON-lines file, in one go where none is torn: that is five times as fast."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    try:
        rows = json.loads(b"[" + b",".join(line for line in lines if line) + b"]")
    except ValueError:
        rows = []
        for line in lines:
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue  # a kill tears the last line at most, but a full disk any
    return [row for row in rows if isinstance(row, dict)]


def read_pairs(path: Path) -> Pairs | None:
    """eval_pairs.jsonl; None where there is none or it is damaged."""
    rows = read_rows(path)
    try:
        rows.sort(key=lambda row: row["index"])
        index = np.array([row["index"] for row in rows], dtype=np.int64)
        has_reference = all("ref_chosen_logps" in row and "ref_rejected_logps" in row for row in rows)
        margins = _margins(rows, has_reference)
        tokens = [np.array([int(row.get(name) or 0) for row in rows]) for name in ("chosen_tokens", "rejected_tokens")]
        step = int(rows[-1].get("step") or 0)
    except (LookupError, TypeError, ValueError, OverflowError):
        return None
    prompts = tuple(str(row.get("prompt") or row["index"]) for row in rows)
    correct = (margins > 0).astype(np.float64)
    return Pairs(index, prompts, margins, correct, step, tokens[0], tokens[1], has_reference)


def _margins(rows: Sequence[Mapping[str, Any]], has_reference: bool) -> NDArray[np.float64]:
    def column(name: str) -> NDArray[np.float64]:
        return np.array([float(row[name]) for row in rows])

    with np.errstate(invalid="ignore"):  # a collapsed run has infinities, and their difference is no number
        margins = column("chosen_logps") - column("rejected_logps")
        return margins - (column("ref_chosen_logps") - column("ref_rejected_logps")) if has_reference else margins
