"""Prompts that hardly differ: nearly always another column than the prompt's was read.

R rows; the pairs that several answers of one row make count once.
"""

import numpy as np

from dpo_lab.data.doctor.case import Case, Result, pairs_word, shown
from dpo_lab.data.doctor.findings import Finding
from dpo_lab.data.doctor.hashing import distinct, joined, repeated
from dpo_lab.data.doctor.statistics import percent
from dpo_lab.data.doctor.whole import Ints, Whole
from dpo_lab.data.types import Pair

FEWEST = 10  # rows without which it says nothing that prompts are the same
SAME = 0.5  # of the rows with one prompt
FEW_ROWS, FEW, ROWS_EACH = 100, 10, 50  # rows from which on 10 prompts are few, and so are 50 rows to a prompt
SHORT, SHORT_MANY = 24, 0.1  # bytes of a label rather than a question; of the pairs, and some will be shared by chance
SHARED, READ = 5, 200  # rows from which on a short prompt is shared; of the commonest prompts are read
FIX = "If it is not meant so, the prompt is read from the wrong column: correct data.columns."


def few_prompts(case: Case) -> Result:
    """One prompt nearly everywhere, few different ones, or labels in their place."""
    whole = case.whole[0] if len(case.whole[0]) else case.whole[1]
    n, prompts = len(whole), distinct(whole.prompts)
    if prompts == n:
        return Result(numbers={"prompts/commonest": 1 / n if n else 0.0})
    first, counts, rows = _commonest(whole)
    total = n - int(counts.sum()) + int(rows.sum())
    result = Result(numbers={"prompts/commonest": float(counts[0] / n)})
    if rows[0] >= max(FEWEST, SAME * total):
        all_of = (
            f"All {pairs_word(n)}"
            if counts[0] == n
            else f"{pairs_word(int(counts[0]))} of {n:,} ({percent(counts[0] / n)})"
        )
        message = f"{all_of} have the same prompt."
        result.findings.append(_finding("same-prompt", message, whole, first[:1], counts[:1]))
    elif total >= FEW_ROWS and total >= prompts * (ROWS_EACH if prompts > FEW else 1):
        message = f"{pairs_word(n)} have only {prompts:,} different prompts."
        result.findings.append(_finding("few-prompts", message, whole, first, counts))
    else:
        result.findings.extend(_short(whole, first[rows >= SHARED], counts[rows >= SHARED]))
    return result


def _commonest(whole: Whole) -> tuple[Ints, Ints, Ints]:
    """Of each prompt of several pairs, those of most rows first: its first pair, its pairs, its rows."""
    there = np.flatnonzero(repeated(whole.prompts))
    prompts, first, inverse, counts = np.unique(
        whole.prompts[there], return_index=True, return_inverse=True, return_counts=True
    )
    _, one_each = np.unique(joined(prompts[inverse], whole.rows[there].astype(np.uint64)), return_index=True)
    rows = np.bincount(inverse[one_each], minlength=len(prompts))
    order = np.argsort(-rows, kind="stable")
    return there[first][order], counts[order], rows[order]


def _short(whole: Whole, first: Ints, counts: Ints) -> list[Finding]:
    """The finding on short prompts that many rows share, if they are many."""
    short = [k for k, i in enumerate(first[:READ]) if len(_said(whole.pair(int(i))).encode(errors="replace")) <= SHORT]
    count = int(counts[short].sum())
    if count < SHORT_MANY * len(whole):
        return []
    message = (
        f"{pairs_word(count)} ({percent(count / len(whole))}) have one of {len(short):,} very short prompts, each of "
        f"which {SHARED} rows or more share."
    )
    return [_finding("short-prompts", message, whole, first[short], counts[short])]


def _finding(check: str, message: str, whole: Whole, first: Ints, counts: Ints) -> Finding:
    count = int(counts.sum())
    mask = np.zeros(len(whole), bool)
    mask[first] = True
    examples = [shown(_said(whole.pair(int(i)))) for i in first[:3]]
    return Finding(check, "warning", message, FIX, count, count / len(whole), whole.places(mask), " | ".join(examples))


def _said(pair: Pair) -> str:
    """What a prompt says, without its system message."""
    return "\n".join(m["content"] for m in pair.prompt if m["role"] != "system").strip()
