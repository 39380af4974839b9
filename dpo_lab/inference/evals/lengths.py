"""How long prompts and answers are, and whether a result prefers the longer answer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpo_lab.data.types import Example
from dpo_lab.inference.evals.standing import Standing

Floats = NDArray[np.float64]


def data_lengths(examples: Sequence[Example]) -> dict[str, Any]:
    """Tokens of prompts and answers: mean, median, 95th percentile and maximum; and how often the longer one is chosen."""
    lengths = np.array([examples[i].lengths for i in range(len(examples))], dtype=np.float64)
    gaps = lengths[:, 1] - lengths[:, 2]
    found: dict[str, Any] = {
        name: {
            "mean": float(column.mean()),
            "median": float(np.median(column)),
            "p95": float(np.percentile(column, 95)),
            "max": int(column.max()),
        }
        for name, column in zip(("prompt", "chosen", "rejected"), lengths.T, strict=True)
    }
    return found | {"longer_chosen": int((gaps > 0).sum()), "shorter_chosen": int((gaps < 0).sum())}


def length_bias(standing: Standing) -> dict[str, float | int | None]:
    """Accuracy where the chosen answer is the longer and where it is the shorter one, and how margins follow length.

    The correlation is Pearson's, of a pair's margin in nats and the tokens that the chosen answer has more.
    """
    gaps, values = standing.answer_gaps, standing.values
    longer, shorter = gaps > 0, gaps < 0
    spread = len(gaps) > 2 and gaps.std() > 0 and values.margins.std() > 0
    return {
        "accuracy_longer_chosen": _mean(values.correct[longer]),
        "accuracy_shorter_chosen": _mean(values.correct[shorter]),
        "correlation": float(np.corrcoef(gaps, values.margins)[0, 1]) if spread else None,
    }


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None
