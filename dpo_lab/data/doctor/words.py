"""How far a bag of words predicts which answer was chosen.

N pairs, C columns (one a token), F folds.
"""

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpo_lab.data.doctor.sample import Ints, Ragged
from dpo_lab.data.doctor.statistics import wilson

COLUMNS = 2**14  # the most frequent tokens
FOLDS = 5
STEPS = 40  # of the accelerated gradient method
RIDGE = 1e-3  # weight of the squared norm
SUPPORT = 5  # pairs that a token must tell apart before it is named

if TYPE_CHECKING:
    from torch import Tensor

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Baseline:
    """A logistic regression on the difference of the two answers' token counts, tested on prompts it has not seen."""

    accuracy: float
    low: float
    high: float
    pairs: int
    for_chosen: tuple[int, ...]  # token ids that weigh most for being chosen
    for_rejected: tuple[int, ...]


def baseline(chosen: Ragged, rejected: Ragged, groups: Sequence[Hashable], *, ends: Sequence[int] = ()) -> Baseline:
    """Cross-validated accuracy, with all pairs of a prompt in the same fold.

    There is no intercept, and a pair and its mirror image are the same observation: which answer comes first cannot
    leak. A pair without any difference counts half.

    Args:
        chosen: token ids of the preferred answers.
        rejected: token ids of the others.
        groups: the prompts; what is equal stays together.
        ends: tokens left out, because they say how an answer was cut rather than what it says.
    """
    import torch

    rows, columns, values, tokens = differences(chosen, rejected, ends)
    n = len(chosen)
    number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    shuffled = np.random.default_rng(0).permutation(len(number))
    fold = torch.from_numpy(np.array([shuffled[number[g]] % FOLDS for g in groups], np.int64))
    train = torch.cat([fold[:, None] != torch.arange(FOLDS)[None, :], torch.ones(n, 1, dtype=torch.bool)], dim=1)
    norms = np.sqrt(np.bincount(rows, weights=values.astype(float) ** 2, minlength=1))
    scaled = (values / norms[rows]).astype(np.float32)
    width = max(len(tokens), 1)
    x = _sparse(rows, columns, scaled, (n, width))
    weights = fit(x, _sparse(columns, rows, scaled, (width, n)), train)  # (C, F + 1)
    scores = (x @ weights).gather(1, fold[:, None]).squeeze(1)
    right = float((scores > 0).sum()) + 0.5 * float((scores == 0).sum())
    low, high = wilson(right, n)
    best, worst = _heaviest(weights[:, -1].numpy(), np.bincount(columns, minlength=len(tokens)), tokens)
    return Baseline(right / n if n else 0.5, low, high, n, best, worst)


def differences(chosen: Ragged, rejected: Ragged, ends: Sequence[int]) -> tuple[Ints, Ints, Ints, Ints]:
    """Nonzero counts(chosen) - counts(rejected): rows, columns, values, and the token of each column."""
    owners = np.concatenate([chosen.owners, rejected.owners])
    tokens = np.concatenate([chosen.values, rejected.values])
    signs = np.concatenate([np.ones(len(chosen.values), np.int64), -np.ones(len(rejected.values), np.int64)])
    keep = ~np.isin(tokens, list(ends))
    owners, tokens, signs = owners[keep], tokens[keep], signs[keep]
    width = int(tokens.max()) + 1 if len(tokens) else 1
    cells, inverse = np.unique(owners * width + tokens, return_inverse=True)
    counts = np.bincount(inverse, weights=signs, minlength=len(cells)).astype(np.int64)
    cells, counts = cells[counts != 0], counts[counts != 0]
    rows, found = cells // width, cells % width
    frequency = np.bincount(found, minlength=width)
    frequent = np.argsort(-frequency, kind="stable")[: min(COLUMNS, int((frequency > 0).sum()))]
    column_of = np.full(width, -1, np.int64)
    column_of[frequent] = np.arange(len(frequent))
    kept = column_of[found] >= 0
    return rows[kept], column_of[found[kept]], counts[kept], frequent


def fit(x: "Tensor", x_t: "Tensor", train: "Tensor") -> "Tensor":
    """Ridge-penalised logistic regressions, one for each column of the mask `train` (N, F): weights (C, F).

    Nesterov's accelerated gradient. Rows have length 1 at most, so the loss' curvature is at most 1/4.
    """
    import torch

    mask = train.to(x.dtype)
    mask = mask / mask.sum(dim=0).clamp(min=1)
    step = 1 / (0.25 * _curvature(x, x_t) + RIDGE)
    weights = torch.zeros(x.shape[1], train.shape[1], dtype=x.dtype)
    ahead, momentum = weights, 1.0
    for _ in range(STEPS):
        gradient = RIDGE * ahead - x_t @ (torch.sigmoid(-(x @ ahead)) * mask)
        moved = ahead - step * gradient
        faster = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = moved + (momentum - 1) / faster * (moved - weights)
        weights, momentum = moved, faster
    return weights


def _curvature(x: "Tensor", x_t: "Tensor") -> float:
    """The largest eigenvalue of x'x / N, from above, for any fold."""
    import torch

    vector = torch.ones(x.shape[1], 1, dtype=x.dtype)
    value = 1.0
    for _ in range(6):
        vector = vector / vector.norm().clamp(min=1e-12)
        vector = x_t @ (x @ vector)
        value = float(vector.norm()) / max(1, x.shape[0])
    return min(1.0, 1.5 * value * FOLDS / (FOLDS - 1)) + 1e-9


def _sparse(rows: Ints, columns: Ints, values: Floats, size: tuple[int, int]) -> "Tensor":
    import torch

    order = np.lexsort((columns, rows))
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(rows, minlength=size[0]))])
    with warnings.catch_warnings():  # CSR is four times as fast as COO here, and said to be in beta
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            torch.from_numpy(starts),
            torch.from_numpy(columns[order]),
            torch.from_numpy(values[order]),
            size,
            check_invariants=True,
        )


def _heaviest(weights: Floats, support: Ints, tokens: Ints, top: int = 8) -> tuple[tuple[int, ...], tuple[int, ...]]:
    known = np.flatnonzero(support[: len(tokens)] >= SUPPORT)
    order = known[np.argsort(-weights[known], kind="stable")]
    best = tuple(int(tokens[c]) for c in order[:top] if weights[c] > 0)
    worst = tuple(int(tokens[c]) for c in order[::-1][:top] if weights[c] < 0)
    return best, worst
