"""What answers are like: near to the chosen ones, varied, long, repeating themselves, refusing, cut.

Where nothing else is said a number is a mean over the answers. Shares are between 0 and 1, BLEU and ROUGE up to 100.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from dpo_lab.inference.evals.refusals import refuses
from dpo_lab.inference.evals.sureness import Additive, Floats, ratio
from dpo_lab.inference.evals.words import chinese_words, is_chinese, ngrams, units, words
from dpo_lab.runtime.errors import ConfigError

ROUGE = ("rouge1", "rouge2", "rougeL")
REPEATED = 4  # words and signs; the n of seq-rep-n


@dataclass(frozen=True)
class Said:
    """An answer, and the one that the data prefers."""

    text: str
    ended: bool  # by itself
    tokens: int
    chosen: str | None = None


def check_packages() -> None:
    """What BLEU and ROUGE need.

    Raises:
        ConfigError: a package is not installed.
    """
    missing = [name for name in ("sacrebleu", "rouge_score", "jieba") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"evaluate.task=predict compares answers with the chosen ones, which needs {' and '.join(missing)}: "
            'pip install "dpo_lab[predict]".'
        )


def text_metrics(said: Sequence[Said]) -> dict[str, float]:
    """The numbers of one model's answers: `additive_numbers` and `variety`."""
    return {key: number.value for key, number in additive_numbers(said).items()} | variety(said)


def variety(said: Sequence[Said]) -> dict[str, float]:
    """How varied the words of all answers are.

    distinct1, distinct2: different n-grams of words among all of all answers (Li et al., arXiv:1510.03055); longer
        answers have less. Drawing an answer twice would have less as well, so there is no interval.
    """
    all_words = [words(s.text) for s in said]
    return {f"distinct{n}": distinct(all_words, n) for n in (1, 2)}


def additive_numbers(said: Sequence[Said]) -> dict[str, Additive]:
    """What is a function of sums over the answers, in their order.

    bleu4: corpus BLEU-4 (Papineni et al. 2002) by sacrebleu, of answers to which there is a chosen one.
    rouge1, rouge2, rougeL: mean F1 in percent; see `rouge`.
    repetition: share of an answer's 4-grams of words and signs that were there before (seq-rep-4, arXiv:1908.04319).
    refusals: share of answers that decline; see `refusals`.
    truncated: share of answers that did not end by themselves.
    """
    means = {
        "tokens": [s.tokens for s in said],
        "characters": [len(s.text) for s in said],
        "repetition": [repetition(s.text) for s in said],
        "refusals": [refuses(s.text) for s in said],
        "truncated": [not s.ended for s in said],
    }
    numbers = {key: _mean(values) for key, values in means.items()}
    chosen = [s.chosen if s.chosen is not None and s.chosen.strip() else None for s in said]
    if not any(chosen):
        return numbers
    scores = [None if c is None else rouge(s.text, c) for s, c in zip(said, chosen, strict=True)]
    numbers |= {name: _mean([None if score is None else score[name] for score in scores]) for name in ROUGE}
    counts = [np.zeros(10) if c is None else _bleu_counts(s.text, c) for s, c in zip(said, chosen, strict=True)]
    return numbers | {"bleu4": Additive(np.stack(counts), _bleu)}


def _mean(values: Sequence[float | None]) -> Additive:
    """Over those that there are."""
    there = np.array([value is not None for value in values], dtype=np.float64)
    return ratio(np.array([value or 0.0 for value in values], dtype=np.float64), there)


def _bleu_counts(answer: str, chosen: str) -> Floats:
    """(10,): the lengths of both, then matched and all n-grams for n = 1 to 4.

    Whether words are cut as in Chinese (sacrebleu's zh, else 13a) is decided by the chosen answer, so that every model
    is measured alike.
    """
    from sacrebleu.metrics.bleu import BLEU

    cut = _bleu_tokens(is_chinese(chosen))
    # The texts are cut already; force says that this is meant.
    found = BLEU(tokenize="none", force=True, effective_order=True).sentence_score(
        cut(answer.rstrip()), [cut(chosen.rstrip())]
    )
    return np.array([found.sys_len, found.ref_len, *found.counts, *found.totals], dtype=np.float64)


def _bleu(sums: Floats) -> Floats:
    """(S, 10) summed counts -> (S,) BLEU-4, up to 100."""
    from sacrebleu.metrics.bleu import BLEU

    rows = (row.astype(int).tolist() for row in sums.round())
    return np.array(
        [BLEU.compute_bleu(r[2:6], r[6:], r[0], r[1], smooth_method="exp").score for r in rows], dtype=np.float64
    )


@cache
def _bleu_tokens(chinese: bool) -> Any:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
    from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

    return TokenizerZh() if chinese else Tokenizer13a()


def rouge(answer: str, chosen: str) -> dict[str, float]:
    """F1 of ROUGE-1, 2 and L (Lin 2004) in percent by rouge-score: of jieba's words in Chinese, else of plain words."""
    found = _scorer(is_chinese(chosen)).score(chosen, answer)
    return {name: 100 * float(found[name].fmeasure) for name in ROUGE}


@cache
def _scorer(chinese: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE), tokenizer=_Cut(chinese))


@dataclass(frozen=True)
class _Cut:
    """A tokenizer as rouge-score calls it: its own knows the letters a to z and no others."""

    chinese: bool

    def tokenize(self, text: str) -> list[str]:
        """Words, lower-case."""
        return chinese_words(text) if self.chinese else words(text)


def distinct(answers: Iterable[Sequence[Hashable]], n: int) -> float:
    """Different n-grams among all of all answers; 0 where there is none."""
    found = [gram for answer in answers for gram in ngrams(answer, n)]
    return len(set(found)) / len(found) if found else 0.0


def repetition(text: str) -> float:
    """The share of a text's 4-grams that it has had before; 0 for a text that is too short to have any."""
    found = ngrams(units(text), REPEATED)
    return 1 - len(set(found)) / len(found) if found else 0.0
