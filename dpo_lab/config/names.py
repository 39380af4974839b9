"""The valid name that was probably meant."""

from collections.abc import Iterable
from difflib import SequenceMatcher


def nearest(word: str, candidates: Iterable[str], *, most: int = 3) -> list[str]:
    """The candidates that resemble `word`, best first, compared as a whole and by what follows the last dot."""
    scores: dict[str, float] = {}
    for candidate in candidates:
        whole = _likeness(word, candidate)
        last = _likeness(_last(word), _last(candidate)) * (1.0 if "." in candidate else 0.95)
        scores[candidate] = max(whole, last)
    best = max(scores.values(), default=0.0)
    cut = 1.0 if best == 1.0 else max(0.7, best - 0.1)
    return sorted((c for c, score in scores.items() if score >= cut), key=lambda c: (-scores[c], c))[:most]


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """`. Did you mean a or b?`, or nothing where no candidate resembles the word."""
    found = nearest(word, candidates)
    return f". Did you mean {listed(found, 'or')}?" if found else ""


def listed(words: Iterable[str], conjunction: str) -> str:
    """a, b or c."""
    *head, last = list(words)
    return f"{', '.join(head)} {conjunction} {last}" if head else last


def _likeness(a: str, b: str) -> float:
    ratio = SequenceMatcher(None, a.lower(), b.lower(), autojunk=False).ratio()
    return max(ratio, 0.8) if a and b.startswith(a) else ratio


def _last(key: str) -> str:
    return key.rpartition(".")[2]
