"""Several sources as one sequence of pairs."""

from collections.abc import Sequence

import numpy as np

from dpo_lab.config.schema import Data
from dpo_lab.data.gather import Source
from dpo_lab.data.pairs import Pairs, PairTable
from dpo_lab.runtime.files import digest

STOP = {"interleave_under": "first_exhausted", "interleave_over": "all_exhausted"}


def mixed(tables: Sequence[PairTable], sources: Sequence[Source], data: Data, *, how: str) -> Pairs:
    """The pairs of all sources in one order, which is a function of `data.seed` where chance has a part.

    Args:
        tables: one for each source.
        sources: of some only `samples` are drawn.
        data: probabilities and seed.
        how: concat, interleave_under or interleave_over.
    """
    whole = Pairs.whole(tables)
    ends = np.cumsum([len(Pairs.whole([table])) for table in tables])
    parts = [
        _drawn(np.arange(start, end), source.samples, f"samples {source.name} {data.seed}")
        for start, end, source in zip([0, *ends[:-1]], ends, sources, strict=True)
    ]
    if how == "concat" or len(parts) == 1:
        return whole.at(np.concatenate(parts))
    return whole.at(_interleaved(parts, data, STOP[how]))


def _drawn(rows: np.ndarray, n: int | None, seed: str) -> np.ndarray:
    """N of the rows by chance; all of them, and some twice, where there are fewer."""
    if n is None:
        return rows
    chance = np.random.default_rng(int(digest(seed), 16))
    first = chance.permutation(rows)[:n]
    return np.concatenate([first, chance.choice(rows, n - len(first))]) if n > len(first) and len(rows) else first


def _interleaved(parts: list[np.ndarray], data: Data, stop: str) -> np.ndarray:
    from datasets import Dataset, interleave_datasets

    numbered = [Dataset.from_dict({"row": part}) for part in parts if len(part)]
    shares = [p for p, part in zip(data.probabilities or [], parts, strict=False) if len(part)]
    shares = [p / sum(shares) for p in shares]
    taken = interleave_datasets(
        numbered,
        probabilities=shares or None,
        seed=data.seed,
        stopping_strategy=stop,  # type: ignore[arg-type]
    )
    return np.asarray(taken.with_format("numpy")["row"][:])
