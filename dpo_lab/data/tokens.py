"""Token ids on disk: tokenised once for a template and a length, in parallel, then read as memory-mapped files."""

import hashlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np

from dpo_lab.data.pairs import Columns, Pairs, pair_of
from dpo_lab.data.tables import WAITING, code_version, finish, whole
from dpo_lab.data.tokenize import Encoder
from dpo_lab.data.types import Counts, Example
from dpo_lab.runtime.errors import DataError, Interrupted
from dpo_lab.runtime.files import atomic_produce, digest, file_lock
from dpo_lab.runtime.forks import bound_children

log = logging.getLogger(__name__)
BATCH = 256  # pairs that a process tokenises at a time
PARALLEL = 4000  # pairs from which on it pays to start processes
IDS = ("prompt_ids", "chosen_ids", "rejected_ids")


class Examples(Sequence[Example]):
    """Tokenised pairs of a memory-mapped table; an example is made when it is asked for.

    Attributes:
        rows: places in the table, in the order of the examples.
        lengths: (N, 3), tokens of prompt, chosen and rejected answer.
    """

    def __init__(self, tokens: Columns, pairs: Pairs, rows: np.ndarray) -> None:
        self.tokens, self.pairs, self.rows = tokens, pairs, rows
        self.lengths = np.stack([tokens.numbers(f"{name}_length") for name in IDS], axis=1)[rows]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, i: int) -> Example: ...
    @overload
    def __getitem__(self, i: slice) -> "Examples": ...
    def __getitem__(self, i: int | slice) -> "Example | Examples":
        if isinstance(i, slice):
            return Examples(self.tokens, self.pairs, self.rows[i])
        row = int(self.rows[i])
        prompt, chosen, rejected = (self.tokens.ids(name, row) for name in IDS)
        return Example(prompt, chosen, rejected, self.pairs[row])

    def keys(self) -> np.ndarray:
        """(N, 3) hashes of the texts of prompt, chosen and rejected answer: of all examples, for the price of none."""
        return self.pairs.keys()[self.rows]

    def digest(self) -> str:
        """A hash of the token ids, in order."""
        hashes = {name: hashlib.blake2b(digest_size=8) for name in IDS}  # whatever the batches on disk are
        for batch, rows in self.tokens.batched(self.rows):
            for name, h in hashes.items():
                h.update(batch.column(name).take(rows).flatten().to_numpy(zero_copy_only=False))
        return digest(self.lengths.tobytes(), *(h.digest() for h in hashes.values()))


@dataclass(frozen=True)
class Tokenised:
    """What became of the pairs of a split.

    Attributes:
        pairs: those that were looked at, in order.
        examples: those that are kept.
        dropped: place in `pairs` -> why it is left out.
        cut: places in `pairs` of those that were cut to fit.
        counts: the same in numbers.
    """

    pairs: Pairs
    examples: Examples
    dropped: dict[int, str]
    cut: frozenset[int]
    counts: Counts


def tokenise(
    pairs: Pairs,
    encoder: Encoder,
    cache_dir: Path,
    *,
    limit: int | None,
    workers: int | None,
    heldout: np.ndarray | None = None,
) -> Tokenised:
    """The token ids of pairs; from the cache where they are there.

    Args:
        pairs: of a split, in order.
        encoder: template and bounds.
        cache_dir: tables lie in its folder data/.
        limit: stop when so many are kept, and count nothing beyond; None keeps all.
        workers: processes; None chooses.
        heldout: hashes of prompts that must not be trained on.
    """
    done, files, kept = 0, [], 0
    marks: list[np.ndarray] = []
    while done < len(pairs) and (limit is None or kept < limit):
        size = len(pairs) if limit is None else limit if not done else max(BATCH, limit - kept)
        block = pairs[done : done + size]
        more = _table(block, encoder, cache_dir, workers)
        files += more
        columns = Columns.of(more)
        marks.append(_left_out(columns, block, heldout))
        kept += int((~marks[-1]).sum())
        done += len(block)
    columns = Columns.of(files)
    out = np.concatenate(marks) if marks else np.zeros(0, dtype=bool)
    if limit is not None and kept > limit:
        done = int(np.flatnonzero(~out)[limit - 1]) + 1
        out = out[:done]
    looked = pairs[:done]
    examples = Examples(columns, looked, np.flatnonzero(~out))
    counts, dropped, cut = _count(columns, looked, examples, out)
    return Tokenised(looked, examples, dropped, cut, counts)


def _left_out(columns: Columns, pairs: Pairs, heldout: np.ndarray | None) -> np.ndarray:
    """(N,) true where a pair is not used."""
    out = columns.numbers("dropped") >= 0
    if heldout is None or not len(heldout):
        return out
    return out | np.isin(pairs.hashes(), heldout)


def _count(
    columns: Columns, pairs: Pairs, examples: Examples, out: np.ndarray
) -> tuple[Counts, dict[int, str], frozenset[int]]:
    counts, dropped = Counts(kept=len(examples)), {}
    reasons = columns.numbers("dropped")[: len(out)]
    for row in np.flatnonzero(out):
        why = columns.text("reason", int(row)) if reasons[row] >= 0 else "prompt is held out"
        dropped[int(row)] = why
        counts.drop(why, pairs.row(int(row)), file=pairs.file(int(row)))
    named = np.flatnonzero(columns.numbers("named")[: len(out)])
    counts.named = len(named)
    if len(named):
        counts.first_named = pairs.row(int(named[0]))
    cuts = columns.numbers("cuts")[: len(out)]
    for bit, what in CUTS.items():
        rows = np.flatnonzero((cuts & bit > 0) & ~out)
        if len(rows):
            counts.cut[what] = len(rows)
            counts.found(what, pairs.row(int(rows[0])), pairs.file(int(rows[0])))
    return counts, dropped, frozenset(np.flatnonzero((cuts > 0) & ~out).tolist())


CUTS = {1: "prompts cut", 2: "answers cut", 4: "thoughts left out"}


@dataclass(frozen=True)
class Step:
    """What a process does with some pairs: columns of a table of pairs -> columns of a table of token ids."""

    encoder: Encoder

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """One batch, as `datasets` hands it over."""
        names = list(batch)
        pairs = [pair_of(dict(zip(names, cells, strict=True))) for cells in zip(*batch.values(), strict=True)]
        columns: dict[str, list[Any]] = {name: [] for name in FEATURES}
        for outcome in self.encoder(pairs):
            e = outcome.example
            ids = (e.prompt_ids, e.chosen_ids, e.rejected_ids) if e else ([], [], [])
            for name, values in zip(IDS, ids, strict=True):
                columns[name].append(np.asarray(values, dtype=np.int32))
                columns[f"{name}_length"].append(len(values))
            columns["dropped"].append(-1 if outcome.dropped is None else 0)
            columns["reason"].append(outcome.dropped)
            columns["cuts"].append(sum(bit for bit, what in CUTS.items() if what in outcome.cuts))
            columns["named"].append(outcome.named)
        return columns


FEATURES = {
    **dict.fromkeys(IDS, "[int32]"),
    **{f"{name}_length": "int32" for name in IDS},
    **{"dropped": "int8", "reason": "string", "cuts": "int8", "named": "bool"},
}


def _table(pairs: Pairs, encoder: Encoder, cache_dir: Path, workers: int | None) -> list[Path]:
    """The Arrow files of the token ids of some pairs, one row a pair."""
    key = digest(
        code_version(), pairs.key, pairs.rows.tobytes(), encoder.template.identity(), str(encoder.max_length),
        encoder.truncation,
    )  # fmt: skip
    folder = cache_dir / "data" / f"tokens-{key}"
    with file_lock(folder.with_suffix(".lock"), wait=True, on_wait=partial(log.warning, WAITING, cache_dir)):
        if whole(folder) is None:
            atomic_produce(folder, lambda place: _write(pairs, encoder, place, workers))
    return sorted(folder.glob("*.arrow"))


def _write(pairs: Pairs, encoder: Encoder, folder: Path, workers: int | None) -> None:
    import datasets
    from datasets import Dataset, Features, List, Value

    folder.mkdir()
    features = Features(
        {n: List(Value("int32")) if t == "[int32]" else Value(t) for n, t in FEATURES.items()}  # type: ignore[arg-type]
    )
    source = datasets.concatenate_datasets([Dataset.from_file(str(file)) for file in pairs.files])
    n = len(pairs)
    processes = min(workers or (os.cpu_count() or 1), max(1, n // BATCH)) if workers or n >= PARALLEL else 1
    if n >= PARALLEL:
        log.info("tokenising %d pairs, processes: %d", n, processes)
    with _bar(n >= PARALLEL and sys.stderr.isatty()), _forking(processes), bound_children(), _told():
        source.select(pairs.rows).map(
            Step(encoder),
            batched=True,
            batch_size=BATCH,
            writer_batch_size=BATCH,
            remove_columns=source.column_names,
            features=features,
            num_proc=processes if processes > 1 else None,
            cache_file_name=str(folder / "tokens.arrow"),
            new_fingerprint=folder.name,  # ours: that of datasets would hash the tokenizer, which changes as it is used
            desc="tokenising",
        )
    finish(folder, {"pairs": n, "max_length": encoder.max_length, "truncation": encoder.truncation})


@contextmanager
def _told() -> Iterator[None]:
    """What really ended the work: `datasets` puts a time-out of its own in the place of an interruption."""
    try:
        yield
    except Exception as e:
        cause: BaseException | None = e
        while cause is not None:
            if isinstance(cause, KeyboardInterrupt | Interrupted):
                raise cause from None
            cause = cause.__context__
        if isinstance(e, RuntimeError) and "abruptly died" in str(e):
            raise DataError(
                "A process that tokenises was killed, maybe for lack of memory. Try fewer: data.workers=1."
            ) from e
        raise


@contextmanager
def _bar(shown: bool) -> Iterator[None]:
    """The progress bar of `datasets`, only where it has something to show."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def _forking(processes: int) -> Iterator[None]:
    """Tell `tokenizers` that several processes share the work, or it warns and each would use all cores."""
    name, before = "TOKENIZERS_PARALLELISM", os.environ.get("TOKENIZERS_PARALLELISM")
    if processes > 1:
        os.environ[name] = "false"
    try:
        yield
    finally:
        if processes > 1:
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before
