"""What answers are like: near to the chosen ones, varied, long, repeating themselves, refusing, cut.

Where nothing else is said a number is a mean over the answers. Shares are between 0 and 1, BLEU and ROUGE up to 100.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from statistics import fmean
from typing import Any

from dpo_lab.inference.evals.refusals import refuses
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
    """The numbers of one model's answers: `text_numbers`, and `reference_metrics` where there are chosen answers."""
    with_chosen = [(s.text, s.chosen) for s in said if s.chosen is not None and s.chosen.strip()]
    return (reference_metrics(with_chosen) if with_chosen else {}) | text_numbers(said)


def text_numbers(said: Sequence[Said]) -> dict[str, float]:
    """What needs nothing but the answers.

    distinct1, distinct2: different n-grams of words among all of all answers (Li et al., arXiv:1510.03055); longer
        answers have less.
    repetition: share of an answer's 4-grams of words and signs that were there before (seq-rep-4, arXiv:1908.04319).
    refusals: share of answers that decline; see `refusals`.
    truncated: share of answers that did not end by themselves.
    """
    all_words = [words(s.text) for s in said]
    return {
        "distinct1": distinct(all_words, 1),
        "distinct2": distinct(all_words, 2),
        "tokens": fmean(s.tokens for s in said),
        "characters": fmean(len(s.text) for s in said),
        "repetition": fmean(repetition(s.text) for s in said),
        "refusals": fmean(refuses(s.text) for s in said),
        "truncated": fmean(not s.ended for s in said),
    }


def reference_metrics(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """BLEU-4 of all answers together, and the mean F1 of ROUGE-1, 2 and L, of (answer, chosen answer).

    Whether words are cut as in Chinese is decided by the chosen answer, so that every model is measured alike.
    """
    scores = [rouge(answer, chosen) for answer, chosen in pairs]
    return {"bleu4": bleu(pairs)} | {name: fmean(s[name] for s in scores) for name in ROUGE}


def bleu(pairs: Iterable[tuple[str, str]]) -> float:
    """Corpus BLEU-4 (Papineni et al. 2002) by sacrebleu, each pair cut by its own tokenizer: zh, or 13a."""
    from sacrebleu.metrics.bleu import BLEU

    cut = [[_bleu_tokens(is_chinese(chosen))(text.rstrip()) for text in (answer, chosen)] for answer, chosen in pairs]
    # The texts are cut already; force says that this is meant.
    return BLEU(tokenize="none", force=True).corpus_score([c[0] for c in cut], [[c[1] for c in cut]]).score


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
